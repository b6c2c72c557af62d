"""Every kind of Q with every set of constraints: value, first and second derivative.

The case by case tables are for what is hard. This one is for what was forgotten: the product of
the kinds of Q, of the presence of each block, and of shared and separate matrices, less those
without a unique solution.
"""

import functools
from itertools import product

import pytest
import torch

from diffopt import Status, solve_qp
from problems.random_qp import random_qp

from .. import cases, checks

N, BATCH = 6, 3
KINDS = {  # of Q: arguments of random_qp
    "definite": {},
    "semidefinite": {"rank": 4},
    "zero": {"rank": 0},
    "diagonal": {"diagonal": True},
}
ROWS = {"": {}, "inequality": {"m": 8}, "two-sided": {"m": 8, "two_sided": True}}
EQUALITY = {"": {}, "equality": {"e": 2}}
BOX = {"": {}, "box": {"bounds": True}}
SHARED = {"": (), "shared": ("Q", "G", "A")}
STEPS = torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=torch.float64)
OUTPUTS = ("z", "lam", "nu", "mu")


def is_unique(options: dict) -> bool:
    """Whether there are limits enough to hold the unknowns that Q and A leave free."""
    limits = options.get("m", 0) + (N if "bounds" in options else 0)
    return options.get("rank", N) + options.get("e", 0) + limits >= N


def grid() -> dict:
    """name: arguments of random_qp."""
    out = {}
    for q, a, g, box, shared in product(KINDS, EQUALITY, ROWS, BOX, SHARED):
        options = KINDS[q] | EQUALITY[a] | ROWS[g] | BOX[box]
        name = ", ".join(filter(None, (f"{q} Q", a, g, box, shared)))
        if is_unique(options):
            out[name] = options | {"shared": SHARED[shared], "batch": (BATCH,), "seed": len(out)}
    return out


GRID = grid()


@functools.cache
def solved(name: str):
    """(instance, leaves, solution), with a graph to second order."""
    instance = random_qp(N, **GRID[name])
    leaves = {k: v.clone().requires_grad_() for k, v in cases.arguments(instance).items()}
    return instance, leaves, solve(leaves, order=2)


def solve(values: dict, **options):
    return solve_qp(values.get("Q"), **{k: v for k, v in values.items() if k != "Q"}, **options)


def weighted(sol) -> torch.Tensor:
    """A random linear function of all outputs of the batch, `(*K,)` for solutions `(*K, B)`."""
    x = torch.cat([getattr(sol, key) for key in OUTPUTS], -1)
    w = torch.randn(x.shape[-2:], generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    return (w * x).sum((-2, -1))


def directions(values: dict, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {k: checks._direction(k, v.detach(), generator) for k, v in values.items()}


def moved(values: dict, along: list[dict], eps: float) -> dict:
    """The points theta + step d of `STEPS` for each direction d, as one batch `(4, len(along))`."""
    out = {}
    for k, v in values.items():
        d = torch.stack([u.get(k, torch.zeros_like(v)) for u in along])
        line = v.detach() + eps * STEPS.view(4, *[1] * d.ndim) * d
        shared = k in "QGA" and v.ndim == 2
        out[k] = line.unsqueeze(2) if shared else line  # the dimension of the batch
    return out


def central(values: torch.Tensor, eps: float) -> torch.Tensor:
    """The derivatives, of order four, from the values at the points of `moved`, `(4, K)`."""
    weights = torch.tensor([8.0, -8.0, -1.0, 1.0], dtype=torch.float64)
    return weights @ values / (12 * eps)


def inner(grads: dict, along: dict) -> torch.Tensor:
    return sum((grads[k] * d).sum() for k, d in along.items())


def relative(ours: torch.Tensor, truth: torch.Tensor, value: torch.Tensor) -> float:
    """The worst relative error; a derivative far below the value itself is rounding."""
    size = torch.stack([ours.abs(), truth.abs(), 0.01 * value.detach().abs().expand_as(ours)]).amax(
        0
    )
    return float(((ours - truth).abs() / size).max())


@pytest.mark.parametrize("name", GRID)
class TestGrid:
    def test_value_and_multipliers(self, name):
        instance, _, sol = solved(name)
        assert (sol.status == Status.CONVERGED).all()
        assert checks.kkt_error(instance.arguments(), sol).max() <= 1e-12
        for key in OUTPUTS:
            ours, truth = getattr(sol, key).detach(), getattr(instance, key)
            size = truth.abs().amax().item() if truth.numel() else 1.0
            torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9 * size)

    def test_first_derivative(self, name):
        _, leaves, sol = solved(name)
        value, eps, d = weighted(sol), 3e-6, directions(leaves, seed=2)
        grads = torch.autograd.grad(value, leaves.values(), retain_graph=True)
        ours = torch.stack([(g * d[k]).sum() for k, g in zip(leaves, grads, strict=True)])
        points = moved(leaves, [{k: d[k]} for k in leaves], eps)
        truth = central(weighted(solve(points)), eps)
        assert relative(ours, truth, value) <= 1e-6

    def test_second_derivative(self, name):
        """Along random directions c and d of all arguments: d/dd of the derivative along c."""
        _, leaves, sol = solved(name)
        eps, c, d = 1e-6, directions(leaves, seed=3), directions(leaves, seed=4)

        def slope(values, sol, **options):
            grads = torch.autograd.grad(weighted(sol).sum(), values.values(), **options)
            return dict(zip(values, grads, strict=True))

        first = inner(slope(leaves, sol, create_graph=True), c)
        second = torch.autograd.grad(first, leaves.values(), retain_graph=True)
        ours = inner(dict(zip(leaves, second, strict=True)), d)
        points = {k: v.requires_grad_() for k, v in moved(leaves, [d], eps).items()}
        grads = slope(points, solve(points))
        along_c = torch.stack([inner({k: v[i] for k, v in grads.items()}, c) for i in range(4)])
        assert relative(ours, central(along_c, eps), first) <= 1e-5
