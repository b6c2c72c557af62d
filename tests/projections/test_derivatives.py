"""Derivatives: finite differences, forward and reverse mode, kinks and repeated eigenvalues."""

import pytest
import torch
from torch.func import jvp, vjp

from diffopt.projections import (
    Box,
    BoxHyperplane,
    Halfspace,
    L1Ball,
    L2Ball,
    L2Sphere,
    Nonnegative,
    PSDCone,
    SecondOrderCone,
    Simplex,
)

from .sets import CASES, DOUBLE, EYE, draw, vector


def test_derivatives(drawn):
    assert torch.autograd.gradcheck(drawn.function, drawn.leaves(), fast_mode=True)


@pytest.mark.parametrize("name", [k for k, case in CASES.items() if case.smooth])
def test_second_derivatives(name):
    drawn = draw(CASES[name], batch=4, seed=1)
    assert torch.autograd.gradgradcheck(drawn.function, drawn.leaves(), fast_mode=True)


def test_jvp_is_the_transpose_of_vjp(drawn, generator):
    values = (drawn.x, *drawn.parameters.values())
    ways = tuple(torch.randn(v.shape, generator=generator, dtype=DOUBLE) for v in values)
    ways = tuple(
        torch.zeros_like(w) if k in drawn.case.fixed else w
        for k, w in zip(["x", *drawn.parameters], ways, strict=True)
    )
    z, dz = jvp(drawn.function, values, ways)
    v = torch.randn(z.shape, generator=generator, dtype=DOUBLE)
    pulled = vjp(drawn.function, *values)[1](v)
    back = sum((w * p).sum() for w, p in zip(ways, pulled, strict=True))
    torch.testing.assert_close((v * dz).sum(), back, rtol=1e-9, atol=1e-9)


TIES = {  # a set, a point where it has a kink, the derivative that is returned
    "box": (Box(0.0, 1.0), vector(0, 1), EYE),
    "nonnegative": (Nonnegative(), vector(0, 0), EYE),
    "simplex": (Simplex(), vector(1, 0), torch.zeros(2, 2).double()),
    "l1 ball": (L1Ball(), vector(0.5, -0.5), EYE),
    "l1 ball, a zero": (L1Ball(), vector(2, 0), torch.zeros(2, 2).double()),
    "l1 ball, zero": (L1Ball(), vector(0, 0), EYE),
    "l2 ball": (L2Ball(5.0), vector(3, 4), EYE),
    "l2 sphere": (L2Sphere(), vector(0, 0), torch.zeros(2, 2).double()),
    "half-space": (Halfspace(vector(1, 0)), vector(0, 5), EYE),
    "second-order cone": (SecondOrderCone(), vector(1, 1), EYE),
    "second-order cone, polar": (SecondOrderCone(), vector(1, -1), torch.zeros(2, 2).double()),
    "second-order cone, apex": (SecondOrderCone(), vector(0, 0), EYE),
    "psd": (PSDCone(), torch.zeros(1, 1).double(), torch.full((1, 1, 1, 1), 0.5).double()),
    "section": (
        BoxHyperplane(vector(1, 1), 1.0, 0.0, 2.0),
        vector(1, 0),
        torch.zeros(2, 2).double(),
    ),
}


@pytest.mark.parametrize("name", TIES)
def test_derivative_at_ties(name):
    project, x, expected = TIES[name]
    torch.testing.assert_close(torch.autograd.functional.jacobian(project, x), expected)


@pytest.mark.parametrize("drawn", [draw(c) for c in CASES.values()], ids=CASES)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_finite_derivatives_at_corners(drawn, value):
    x = torch.full_like(drawn.x, value).requires_grad_()
    values = [v.clone().requires_grad_() for v in drawn.parameters.values()]
    for point in (x, drawn.project(x).detach().requires_grad_()):
        grads = torch.autograd.grad(drawn.function(point, *values).sum(), [point, *values])
        assert all(g.isfinite().all() for g in grads)


FIXED = {
    "box": Box,
    "box and hyperplane": lambda lb, ub: BoxHyperplane(vector(1, 0, 1), 1.0, lb, ub),
}


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("x", [-1.0, 0.0, 1.0])
def test_where_the_bounds_are_equal_the_upper_one_gets_the_gradient(name, x):
    point = torch.full((3,), x, dtype=DOUBLE, requires_grad=True)
    lb = vector(0, 0, -9).requires_grad_()
    ub = vector(0, 0, 9).requires_grad_()
    z = FIXED[name](lb, ub)(point)
    grads = torch.autograd.grad(z[:2].sum(), [point, lb, ub], materialize_grads=True)
    assert [g.tolist() for g in grads] == [[0, 0, 0], [0, 0, 0], [1, 1, 0]]


@pytest.mark.parametrize("eigenvalues", [(1, 1, 1), (-2, -2, -2), (3, 3, -1), (2, -2, -2)])
def test_repeated_eigenvalues(eigenvalues, generator):
    """The cone is smooth where no eigenvalue is zero, however many of them are equal."""
    Q = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=DOUBLE)).Q
    X = (Q @ torch.diag(vector(*eigenvalues)) @ Q.T).requires_grad_()
    assert torch.autograd.gradcheck(PSDCone(), X)
    assert torch.autograd.gradgradcheck(PSDCone(order=2), X, atol=1e-5, rtol=1e-4)


def test_tiny_eigenvalues_lose_no_digits(generator):
    """The formula with Omega = l_i / (l_i - l_j), where eigenvalues are 1e-10 of the largest."""
    Q = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=DOUBLE)).Q
    X = Q @ torch.diag(vector(1, 1e-10, -2e-10)) @ Q.T
    X = (X + X.T) / 2
    way = torch.randn(3, 3, generator=generator, dtype=DOUBLE)
    way = way + way.T
    (low, high, top), Q = torch.linalg.eigh(X)
    mixed = torch.stack([high, top]) / (torch.stack([high, top]) - low)
    omega = torch.ones(3, 3, dtype=DOUBLE)
    omega[0, 0], omega[0, 1:], omega[1:, 0] = 0, mixed, mixed
    z, dz = jvp(PSDCone(), (X,), (way,))
    torch.testing.assert_close(dz, Q @ (omega * (Q.T @ way @ Q)) @ Q.T, rtol=0, atol=1e-13)
    torch.testing.assert_close(z, X - low * Q[:, :1] @ Q[:, :1].T, rtol=0, atol=1e-15)


def test_nearly_equal_and_nearly_zero_eigenvalues():
    """Omega = l_i / (l_i - l_j) of eigenvalues 1e-9 and -2e-9, next to two of about 1."""
    X = torch.diag(vector(1, 1 + 2e-16, 1e-9, -2e-9))
    jacobian = torch.autograd.functional.jacobian(PSDCone(), X)
    assert jacobian[2, 3, 2, 3].item() == pytest.approx(1 / 6, rel=1e-6)  # H is half of this entry
    assert jacobian[0, 1, 0, 1].item() == pytest.approx(1 / 2, rel=1e-12)
    assert jacobian[0, 0, 0, 0].item() == pytest.approx(1, rel=1e-12)


def test_one_derivative_too_many_raises():
    X = torch.diag(vector(1, -1)).requires_grad_()
    (first,) = torch.autograd.grad(PSDCone()(X).square().sum(), X, create_graph=True)
    with pytest.raises(RuntimeError, match="order=2"):
        torch.autograd.grad(first.sum(), X)
