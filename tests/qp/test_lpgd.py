"""smoothing=LPGD(tau): gradients of a finite perturbation; proximal=eps: a regularised problem."""

import functools

import pytest
import torch

from diffopt import LPGD, Status, solve_qp
from problems.random_qp import random_lp, random_qp

from .. import cases
from .test_smoothing import DOUBLE, VALUES, gradients, simplex, worst_difference

SMALL_TAU = ["inequality and equality", "two-sided", "everything", "shared matrices", "no batch"]


@functools.cache
def lpgd_and_exact(name: str):
    a = cases.arguments(cases.QPS[name])
    return gradients(a, VALUES, smoothing=LPGD(1e-6))[1], gradients(a, VALUES)[1]


@pytest.mark.parametrize("name", SMALL_TAU)
def test_a_small_perturbation_gives_the_exact_gradient(name):
    ours, truth = lpgd_and_exact(name)
    assert worst_difference(ours, truth) <= 1e-4


def test_lpgd_at_a_vertex_by_hand():
    """max r.z on the simplex chooses 0; the loss -z_1 with tau = 2 > r_0 - r_1 leads to 1."""
    r = torch.tensor([1.0, 0.5, 0.0], dtype=DOUBLE, requires_grad=True)
    z = simplex(-r, smoothing=LPGD(2.0)).z
    (grad,) = torch.autograd.grad(-z[1], r)
    assert z.tolist() == pytest.approx([1.0, 0.0, 0.0], abs=1e-12)
    assert grad.tolist() == pytest.approx([0.5, -0.5, 0.0], abs=1e-10)  # (z* - z_tau) / tau
    (small,) = torch.autograd.grad(-simplex(-r, smoothing=LPGD(0.4)).z[1], r)
    assert small.tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-10)  # not strong enough


def test_lpgd_is_the_perturbed_solution_less_the_solution():
    """(z_tau - z*) / tau, for p of a QP whose active set the pull changes."""
    a = cases.arguments(random_qp(6, 8, 1, batch=(5,), seed=9))
    v = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    p = a["p"].clone().requires_grad_()
    sol = solve_qp(**a | {"p": p}, smoothing=LPGD(3.0))
    (grad,) = torch.autograd.grad((v * sol.z).sum(), p)
    there = solve_qp(**a | {"p": a["p"] + 3.0 * v})
    assert ((there.lam != 0) != (sol.lam != 0)).any(-1).all()
    torch.testing.assert_close(grad, (there.z - sol.z.detach()) / 3.0, rtol=1e-9, atol=1e-9)


def test_gradient_descent_through_a_linear_program():
    """From one vertex of a polytope to another with LPGD; the exact gradient is zero."""
    lp = random_lp(4, 12, batch=(), seed=2)
    G, h = lp.block("G"), lp.block("h")
    generator = torch.Generator().manual_seed(3)
    target = solve_qp(None, -G.mT @ torch.rand(12, generator=generator, dtype=DOUBLE), G, h).z
    for smoothing, reaches in ((LPGD(30.0), True), (None, False)):
        p = lp.p.clone().requires_grad_()
        for _ in range(15):
            z = solve_qp(None, p, G, h, smoothing=smoothing).z
            (grad,) = torch.autograd.grad((z - target).square().sum() / 2, p)
            p = (p - 3.0 * grad).detach().requires_grad_()
        assert bool((z - target).norm() <= 1e-9) is reaches
        assert bool((p - lp.p).norm() > 1e-9) is reaches


def test_what_lpgd_does_not_define_raises():
    p = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    with pytest.raises(ValueError, match="order=2 with smoothing=LPGD"):
        simplex(p, smoothing=LPGD(1.0), order=2)
    with pytest.raises(NotImplementedError, match="reverse mode"):
        torch.func.jvp(lambda p: simplex(p, smoothing=LPGD(1.0)).z, (p.detach(),), (p.detach(),))


def test_the_optimal_face_gives_its_point_of_least_norm():
    """p = (0, 0, 1) on the simplex: every (t, 1 - t, 0) is optimal, (1/2, 1/2, 0) the shortest."""
    p = torch.tensor([0.0, 0.0, 1.0], dtype=DOUBLE, requires_grad=True)
    for eps in (1e-2, 1e-4):
        sol = simplex(p, proximal=eps)
        assert sol.status == Status.CONVERGED
        assert sol.z.tolist() == pytest.approx([0.5, 0.5, 0.0], abs=1e-10)
        (grad,) = torch.autograd.grad(sol.z[0], p)
        assert (eps * grad).tolist() == pytest.approx([-0.5, 0.5, 0.0], abs=1e-8)


@pytest.mark.parametrize("name", ["everything", "semidefinite", "linear program, box"])
def test_proximal_adds_to_the_diagonal_of_Q(name):
    a = cases.arguments(cases.QPS[name])
    n = a["p"].shape[-1]
    added = a.get("Q", torch.zeros(n, n, dtype=DOUBLE)) + 0.1 * torch.eye(n, dtype=DOUBLE)
    sol, grads = gradients(a, proximal=0.1)
    written, truth = gradients(a | {"Q": added})
    for key in VALUES:
        torch.testing.assert_close(getattr(sol, key), getattr(written, key), rtol=0, atol=1e-12)
    for key, grad in grads.items():
        torch.testing.assert_close(grad, truth[key], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), "yes"])
def test_bad_tau_is_named(bad):
    with pytest.raises(ValueError, match="tau="):
        LPGD(bad)
