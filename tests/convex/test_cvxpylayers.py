"""`DiffoptSolver` inside `CvxpyLayer`; its answers are tested with those of `ConvexLayer`."""

import cvxpy as cp
import pytest
import torch
from cvxpylayers.torch import CvxpyLayer

from diffopt import ConvergenceError, ConvergenceWarning, InteriorPoint, Status
from diffopt.convex.cvxpylayers import DiffoptSolver

x, y, top = cp.Variable(2), cp.Parameter(2), cp.Parameter()
PROBLEM = cp.Problem(cp.Minimize(cp.sum_squares(x - y)), [cp.sum(x) == 1, x >= 0, x <= top])
POINTS = torch.tensor([[0.9, 0.5], [2.0, 0.0]]).double()
NEAREST = torch.tensor([[0.7, 0.3], [1.0, 0.0]]).double()


def layer(solver=None, **settings):
    solver = DiffoptSolver() if solver is None else solver
    return CvxpyLayer(PROBLEM, [y, top], [x], solver=solver, **settings)


def test_batched_alone_and_mixed():
    for given, expected in ((POINTS, NEAREST), (POINTS[0], NEAREST[0])):
        (found,) = layer()(given, torch.tensor(5.0).double())
        torch.testing.assert_close(found, expected)


def test_gradients_of_a_single_problem():
    point = POINTS[0].clone().requires_grad_()
    (pull,) = torch.autograd.grad(layer()(point, torch.tensor(5.0).double())[0][0], point)
    torch.testing.assert_close(pull, torch.tensor([0.5, -0.5]).double())


def test_gradients_are_of_the_dtype_of_parameters():
    """Values are float64, as those of cvxpylayers always are on a CPU."""
    leaf = POINTS.float().requires_grad_()
    (found,) = layer()(leaf, torch.tensor(5.0))
    (pull,) = torch.autograd.grad(found[:, 0].sum(), leaf)
    assert found.dtype == torch.float64 and pull.dtype == torch.float32


def test_without_gradients():
    with torch.no_grad():
        (found,) = layer()(POINTS, torch.tensor(5.0).double())
    torch.testing.assert_close(found, NEAREST)


def test_a_bad_sample_has_a_status_and_the_others_their_answer():
    """For top = 0.2 the sum of x cannot be 1."""
    solver = DiffoptSolver()
    points = torch.cat([POINTS, POINTS[:1]]).requires_grad_()
    with pytest.warns(ConvergenceWarning, match="sample 2: PRIMAL_INFEASIBLE"):
        (found,) = layer(solver)(points, torch.tensor([5.0, 5.0, 0.2]).double())
    torch.testing.assert_close(found[:2], NEAREST)
    assert solver.last.status.tolist() == [0, 0, Status.PRIMAL_INFEASIBLE]
    (pull,) = torch.autograd.grad(found[:, 0].sum(), points)
    assert pull[0].tolist() == pytest.approx([0.5, -0.5]) and pull[2].tolist() == [0, 0]


def test_options_and_settings():
    with pytest.raises(ConvergenceError, match="PRIMAL_INFEASIBLE"):
        layer(DiffoptSolver(on_failure="raise"))(POINTS, torch.tensor(0.2).double())
    few = layer(DiffoptSolver(InteriorPoint(max_steps=1), on_failure="nan"))
    assert few(POINTS, torch.tensor(5.0).double())[0].isnan().any()
    more = few(POINTS, torch.tensor(5.0).double(), solver_args={"max_steps": 50})[0]
    torch.testing.assert_close(more, NEAREST)
    with pytest.warns(ConvergenceWarning, match="solver_args has tol, which"):
        layer()(POINTS, torch.tensor(5.0).double(), solver_args={"tol": 1e-3})
    with pytest.raises(ValueError, match="'maxiter' is no option of a layer"):
        DiffoptSolver(maxiter=3)


def test_one_solver_serves_several_layers():
    solver = DiffoptSolver()
    first = layer(solver)
    s, w = cp.Variable(), cp.Parameter()
    other = CvxpyLayer(cp.Problem(cp.Minimize((s - w) ** 2)), [w], [s], solver=solver)
    torch.testing.assert_close(other(torch.tensor(3.0).double())[0], torch.tensor(3.0).double())
    torch.testing.assert_close(first(POINTS, torch.tensor(5.0).double())[0], NEAREST)


def test_other_cones_are_refused():
    with pytest.raises(ValueError, match="second-order cones: DiffoptSolver solves linear and"):
        CvxpyLayer(cp.Problem(cp.Minimize(cp.norm2(x - y))), [y], [x], solver=DiffoptSolver())


def test_limits_by_absolute_value_have_a_derivative():
    """CVXPY's unknowns t of |x| <= t <= 1 are not unique: at their limits they have one."""
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - y)), [cp.abs(x) <= 1])
    box = CvxpyLayer(problem, [y], [x], solver=DiffoptSolver())
    leaf = torch.tensor([[0.3, 2.0]]).double().requires_grad_()
    (pull,) = torch.autograd.grad(box(leaf)[0].sum(), leaf)
    torch.testing.assert_close(pull, torch.tensor([[1.0, 0.0]]).double())
