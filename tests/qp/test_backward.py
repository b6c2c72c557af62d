"""Dtypes and autocast, and what a backward pass computes and allocates."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffopt import QPLayer, Status, solve_qp
from problems.random_qp import random_qp

from .. import cases, checks

DOUBLE = torch.float64
VALUES = ("z", "lam", "nu", "mu")
FULL = random_qp(5, 6, 1, two_sided=True, bounds=True, active=3, batch=(4,), seed=0)
ROUNDED = random_qp(5, 6, 1, bounds=True, batch=(4,), seed=2)
NAMES = tuple(cases.arguments(FULL))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_gradients_are_the_rounded_exact_ones(dtype):
    a = {k: v.to(dtype) for k, v in cases.arguments(ROUNDED).items()}
    low = {k: v.clone().requires_grad_() for k, v in a.items()}
    high = {k: v.double().requires_grad_() for k, v in a.items()}
    weight = torch.linspace(-1, 1, 5).to(dtype)
    grads = []
    for leaves in (low, high):
        sol = solve_qp(**leaves)
        loss = (weight.to(sol.z.dtype) * sol.z).sum()
        grads.append(torch.autograd.grad(loss, leaves.values()))
    for ours, exact in zip(*grads, strict=True):
        assert ours.dtype == dtype
        size = exact.abs().max().item()
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=torch.finfo(dtype).eps * size)


def test_a_layer_behind_a_linear_under_autocast():
    """p comes in bfloat16; the answer is that of this p, and the gradients reach the weights."""
    torch.manual_seed(0)
    a = cases.arguments(random_qp(6, 5, 1, batch=(), seed=3))
    a.pop("p")
    linear, layer = torch.nn.Linear(3, 6), QPLayer(**a)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        p = linear(torch.randn(7, 3))
        sol = layer.solve(p)
        sol.z.pow(2).sum().backward()
    assert p.dtype == torch.bfloat16 and sol.z.dtype == DOUBLE
    assert (sol.status == Status.CONVERGED).all()
    assert checks.kkt_error(a | {"p": p.double()}, sol).max() <= 1e-10
    exact = p.detach().double().requires_grad_()
    (truth,) = torch.autograd.grad(solve_qp(**a | {"p": exact}).z.pow(2).sum(), exact)
    bias = truth.to(torch.bfloat16).double().sum(0)
    torch.testing.assert_close(linear.bias.grad.double(), bias, rtol=2e-2, atol=2e-2)
    assert linear.weight.grad.isfinite().all() and linear.weight.grad.abs().max() > 1e-3


def test_autocast_does_not_reach_the_solve():
    a = cases.arguments(FULL)
    leaves = {k: v.clone().requires_grad_() for k, v in a.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sol = solve_qp(**leaves)
        cast = torch.autograd.grad(sum(getattr(sol, k).sum() for k in VALUES), leaves.values())
    plain = solve_qp(**leaves)
    grads = torch.autograd.grad(sum(getattr(plain, k).sum() for k in VALUES), leaves.values())
    assert all(torch.equal(getattr(sol, k), getattr(plain, k)) for k in VALUES)
    for ours, truth in zip(cast, grads, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_argument_that_requires_it_gets_a_gradient(name):
    a = {k: v.clone() for k, v in cases.arguments(FULL).items()}
    a[name].requires_grad_()
    solve_qp(**a).z.pow(2).sum().backward()
    assert [k for k, v in a.items() if v.grad is not None] == [name]
    assert a[name].grad.abs().max() > 1e-6


class Allocations(TorchDispatchMode):
    """The sizes, in numbers, of the tensors that operations allocate: views and in-place no."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [0]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        held = {v.untyped_storage().data_ptr() for v in given}
        new = [v for v in tree_leaves(out) if isinstance(v, Tensor)]
        self.sizes += [
            s.nbytes() // v.element_size()
            for v in new
            if (s := v.untyped_storage()).data_ptr() not in held
        ]
        return out


def largest_allocation(shared: tuple[str, ...]) -> int:
    """In the backward pass of a function of all outputs, of 256 problems with n = 12, m = 15."""
    a = cases.arguments(random_qp(12, 15, 3, batch=(256,), shared=shared, seed=4))
    leaves = {k: v.clone().requires_grad_() for k, v in a.items()}
    sol = solve_qp(**leaves)
    loss = sum(getattr(sol, k).pow(2).sum() for k in VALUES)
    with Allocations() as seen:
        torch.autograd.grad(loss, leaves.values())
    return max(seen.sizes)


def test_gradients_of_shared_matrices_need_no_outer_product_a_sample():
    per_sample_Q = 256 * 12 * 12
    assert largest_allocation(("Q", "G", "A")) < per_sample_Q / 2
    assert largest_allocation(()) >= per_sample_Q  # the recording sees them where they are due
