"""Problems with other cones, which cvxpylayers solves: values, gradients, and what is said."""

import logging

import cvxpy as cp
import pytest
import torch

from diffopt import ConvergenceWarning, ConvexLayer

x, p, r = cp.Variable(3), cp.Parameter(3), cp.Parameter(nonneg=True)
POINTS = torch.tensor([[3.0, 0.0, 4.0], [0.3, 0.4, 0.0]]).double()


def layer(objective, constraints, parameters, **options):
    return ConvexLayer(cp.Problem(objective, constraints), parameters, [x], **options)


def test_the_projection_on_a_ball_and_its_derivative():
    """p r / |p| outside; its derivative in p is r (I - pp'/|p|^2) / |p|, in r it is p / |p|."""
    ball = layer(cp.Minimize(cp.sum_squares(x - p)), [cp.norm2(x) <= r], [p, r])
    leaves = POINTS.clone().requires_grad_(), torch.tensor(2.0).double().requires_grad_()
    (found,) = ball(*leaves)
    expected = torch.stack([POINTS[0] * 2 / 5, POINTS[1]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    w = torch.tensor([1.0, 2.0, -1.0]).double()
    pull, push = torch.autograd.grad((found * w).sum(), leaves)
    unit = POINTS[0] / 5
    truth = torch.stack([2 / 5 * (w - unit * (unit @ w)), w])
    torch.testing.assert_close(pull, truth, rtol=0, atol=1e-5)
    torch.testing.assert_close(push, unit @ w, rtol=0, atol=1e-5)


def test_the_entropy_of_a_distribution():
    """max p'x + entropy(x) on the simplex is the softmax of p."""
    soft = layer(cp.Maximize(p @ x + cp.sum(cp.entr(x))), [cp.sum(x) == 1], [p])
    leaf = POINTS.clone().requires_grad_()
    (found,) = soft(leaf)
    truth = leaf.softmax(-1)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-6)
    weights = torch.tensor([1.0, 2.0, -1.0]).double()
    ours, theirs = (torch.autograd.grad((v * weights).sum(), leaf)[0] for v in (found, truth))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_a_geometric_program():
    """min x + y with x y >= a: both are sqrt(a), and their sum has the slope 1 / sqrt(a)."""
    u, v, a = cp.Variable(pos=True), cp.Variable(pos=True), cp.Parameter(pos=True)
    problem = cp.Problem(cp.Minimize(u + v), [u * v >= a])
    sides = ConvexLayer(problem, [a], [u, v], gp=True)
    area = torch.tensor([4.0, 9.0]).double().requires_grad_()
    found = sides(area)
    for side in found:
        torch.testing.assert_close(side, area.detach().sqrt(), rtol=0, atol=1e-6)
    (slope,) = torch.autograd.grad((found[0] + found[1]).sum(), area)
    torch.testing.assert_close(slope, area.detach().rsqrt(), rtol=0, atol=1e-4)
    with pytest.warns(ConvergenceWarning, match="sample 1: INVALID_INPUT"):
        assert sides(torch.tensor([4.0, -9.0]).double())[0][0].item() == pytest.approx(2, abs=1e-6)


def test_the_log_says_who_solves_it(caplog):
    with caplog.at_level(logging.WARNING, logger="diffopt"):
        layer(cp.Minimize(cp.norm2(x - p)), [x >= 0], [p])
    assert "second-order cones" in caplog.text and "left to cvxpylayers" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="diffopt"):
        layer(cp.Minimize(cp.sum_squares(x - p)), [x >= 0], [p])
    assert not caplog.text


def test_the_representation_says_so_too():
    assert "cvxpylayers" in repr(layer(cp.Minimize(cp.norm2(x - p)), [], [p]))


def test_another_solver_and_its_settings():
    ball = cp.Minimize(cp.sum_squares(x - p)), [cp.norm2(x) <= r], [p, r]
    exact = layer(*ball)(POINTS, 2.0)[0]
    loose = layer(*ball, fallback_args={"eps": 1e-1})(POINTS, 2.0)[0]
    clarabel = layer(*ball, fallback_args={"solve_method": "CLARABEL"})(POINTS, 2.0)[0]
    assert (loose - exact).abs().max() > 1e-5
    torch.testing.assert_close(clarabel, exact, rtol=0, atol=1e-5)


def test_what_the_default_solver_does_not_take_is_refused():
    P = cp.Parameter((3, 3), PSD=True)
    with pytest.raises(ValueError, match=r"second-order cones.* write sum_squares\(L @ x\)"):
        layer(cp.Minimize(cp.quad_form(x, P) + p @ x), [cp.norm2(x) <= 1], [P, p])
    with pytest.raises(ValueError, match="order, smoothing: options of quadratic programs"):
        layer(cp.Minimize(cp.norm2(x - p)), [], [p], order=2, smoothing=1e-6)
    with pytest.raises(ValueError, match="on_failure='quiet' is not one of"):
        layer(cp.Minimize(cp.norm2(x - p)), [], [p], on_failure="quiet")
