"""The same problem written in another way has the same solution and the same derivative.

A rewriting takes the arguments to other arguments, by differentiable operations, and says how to
read the answer. So the derivative with respect to the original arguments exists on both ways, and
the rules for it (copies of a row add up, units cancel) are those of autograd.
"""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffopt import Status, solve_qp
from problems.random_qp import random_lp, random_qp

from .. import cases

OUTPUTS = ("z", "lam", "nu", "mu")
BATCH, M, E = 3, 12, 3
BASES = {
    "everything": random_qp(10, M, E, two_sided=True, bounds=True, batch=(BATCH,)),
    "semidefinite": random_qp(10, M, E, rank=5, batch=(BATCH,)),
    "linear program": random_lp(10, M, E, bounds=True, batch=(BATCH,)),
}
ROW_VECTORS = ("h", "h_lower", "lam")
Values = dict[str, Tensor]  # arguments, or outputs
Rewriting = Callable[[Values], tuple[Values, Callable[[Values], Values]]]


def changed(a: Values, **changes: Callable[[Tensor], Tensor]) -> Values:
    """`a` with some of its entries changed, those that are there."""
    return a | {k: f(a[k]) for k, f in changes.items() if k in a}


def scaled_rows(low: float, high: float) -> Rewriting:
    """The rows of G and of A times factors from `low` to `high`; the multipliers divided."""
    g, e = (torch.logspace(low, high, count).double() for count in (M, E))

    def rewrite(a: Values):
        rows = {k: lambda v: g * v for k in ("h", "h_lower")} | {"b": lambda v: e * v}
        matrices = {"G": lambda v: g.unsqueeze(-1) * v, "A": lambda v: e.unsqueeze(-1) * v}
        return changed(a, **rows, **matrices), lambda x: changed(
            x, lam=lambda v: g * v, nu=lambda v: e * v
        )

    return rewrite


def picked_rows(g: list[int], e: list[int]) -> Rewriting:
    """Rows in another order, some of them more than once; multipliers of copies add up."""
    g_index, e_index = torch.tensor(g), torch.tensor(e)

    def total(index: Tensor, count: int) -> Callable[[Tensor], Tensor]:
        return lambda y: y.new_zeros(*y.shape[:-1], count).index_add(-1, index, y)

    def rewrite(a: Values):
        rows = {k: lambda v: v[..., g_index] for k in ("h", "h_lower")}
        rows["b"] = lambda v: v[..., e_index]
        matrices = {"G": lambda v: v[..., g_index, :], "A": lambda v: v[..., e_index, :]}
        return changed(a, **rows, **matrices), lambda x: changed(
            x, lam=total(g_index, M), nu=total(e_index, E)
        )

    return rewrite


def idle_row(limit: float) -> Rewriting:
    """One more row of G, the sum of the unknowns, with a limit that is far away."""

    def rewrite(a: Values):
        b = changed(
            a,
            G=lambda v: torch.cat([v, torch.ones_like(v[..., :1, :])], -2),
            h=lambda v: torch.cat([v, torch.full_like(v[..., :1], limit)], -1),
            h_lower=lambda v: torch.cat([v, torch.full_like(v[..., :1], -limit)], -1),
        )
        return b, lambda x: changed(x, lam=lambda v: v[..., :M])

    return rewrite


def batch_mates(a: Values):
    """More samples: the same ones in reverse, with an objective 1e6 times as large."""
    b = {k: torch.cat([v, (1e6 if k in "Qp" else 1.0) * v.flip(0)]) for k, v in a.items()}
    return b, lambda x: {k: v[:BATCH] for k, v in x.items()}


def one_by_one(a: Values):
    """A batch dimension of size one before and after that of the samples."""
    b = {k: v.unsqueeze(1).unsqueeze(0) for k, v in a.items()}
    return b, lambda x: {k: v.squeeze(2).squeeze(0) for k, v in x.items()}


def units(z: float, objective: float) -> Rewriting:
    """z in units of 1 / `z`, and the objective in units of 1 / `objective`."""

    def rewrite(a: Values):
        factor = dict.fromkeys(("h", "h_lower", "b", "lb", "ub"), z)
        factor |= {"Q": objective / z**2, "p": objective / z, "G": 1.0, "A": 1.0}
        back = dict.fromkeys(("lam", "nu", "mu"), z / objective) | {"z": 1 / z}
        return {k: factor[k] * v for k, v in a.items()}, lambda x: {
            k: back[k] * v for k, v in x.items()
        }

    return rewrite


def own_units(low: float, high: float) -> Rewriting:
    """Every unknown in a unit of its own."""

    def rewrite(a: Values):
        d = torch.logspace(low, high, a["p"].shape[-1]).double()
        columns = {k: lambda v: v * d for k in ("p", "G", "A")}
        bounds = {k: lambda v: v / d for k in ("lb", "ub")}
        b = changed(a, Q=lambda v: d.unsqueeze(-1) * v * d, **columns, **bounds)
        return b, lambda x: changed(x, z=lambda v: d * v, mu=lambda v: v / d)

    return rewrite


def bounds_as_rows(a: Values):
    """lb <= z <= ub as rows of G; absent ones have infinite limits."""
    n, far = a["p"].shape[-1], torch.full_like(a["p"], torch.inf)
    eye = torch.eye(n, dtype=torch.float64).expand(BATCH, n, n)
    none = torch.full_like(a["h"], -torch.inf)
    b = {k: v for k, v in a.items() if k not in ("lb", "ub")}
    b["G"] = torch.cat([a["G"], eye], -2)
    b["h"] = torch.cat([a["h"], a.get("ub", far)], -1)
    b["h_lower"] = torch.cat([a.get("h_lower", none), a.get("lb", -far)], -1)
    return b, lambda x: x | {"lam": x["lam"][..., :M], "mu": x["lam"][..., M:]}


def equalities_as_rows(a: Values):
    """Az = b as rows of G with equal limits."""
    none = torch.full_like(a["h"], -torch.inf)
    b = {k: v for k, v in a.items() if k not in ("A", "b")}
    b["G"] = torch.cat([a["G"], a["A"]], -2)
    b["h"] = torch.cat([a["h"], a["b"]], -1)
    b["h_lower"] = torch.cat([a.get("h_lower", none), a["b"]], -1)
    return b, lambda x: x | {"lam": x["lam"][..., :M], "nu": x["lam"][..., M:]}


REWRITINGS: dict[str, Rewriting] = {
    "rows from 1e-6 to 1e6": scaled_rows(-6, 6),
    "rows from 1e6 to 1e-6": scaled_rows(6, -6),
    "rows times 1e-6": scaled_rows(-6, -6),
    "rows times 1e6": scaled_rows(6, 6),
    "rows in reverse": picked_rows([*range(M)][::-1], [*range(E)][::-1]),
    "inequalities twice": picked_rows([*range(M), *range(M)], [*range(E)]),
    "equalities twice": picked_rows([*range(M)], [*range(E), *range(E)]),
    "some rows three times": picked_rows([*range(M), 0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 2]),
    "z in units of 1e-6": units(1e6, 1.0),
    "z in units of 1e6": units(1e-6, 1.0),
    "objective in units of 1e-6": units(1.0, 1e6),
    "objective in units of 1e6": units(1.0, 1e-6),
    "z in units of 1e-3, objective in 1e6": units(1e3, 1e-6),
    "unknowns in units from 1e-3 to 1e3": own_units(-3, 3),
    "bounds as rows": bounds_as_rows,
    "equalities as rows": equalities_as_rows,
    "batch mates": batch_mates,
    "three batch dimensions": one_by_one,
}
for limit in (1e3, 1e6, 1e12, torch.inf):
    REWRITINGS[f"a row with a limit of {limit:g}"] = idle_row(limit)
# value, gradient: to rounding where the numbers are the same
TOLERANCES = dict.fromkeys(REWRITINGS, (1e-12, 1e-10))
TOLERANCES |= dict.fromkeys(("batch mates", "three batch dimensions"), (1e-12, 1e-12))


@functools.cache
def answer(base: str, rewriting: str | None) -> tuple[Values, Values]:
    """The outputs as of the original arguments, and the gradients of a function of all of them."""
    a = cases.arguments(BASES[base])
    leaves = {k: v.clone().requires_grad_() for k, v in a.items()}
    b, back = REWRITINGS[rewriting](leaves) if rewriting else (leaves, lambda x: x)
    sol = solve_qp(b.get("Q"), **{k: v for k, v in b.items() if k != "Q"})
    assert (sol.status == Status.CONVERGED).all()
    outputs = back({k: getattr(sol, k) for k in OUTPUTS})
    generator = torch.Generator().manual_seed(0)
    loss = sum(
        (torch.randn(v.shape, generator=generator, dtype=v.dtype) * v).sum()
        for v in (outputs[k] for k in OUTPUTS)
    )
    grads = torch.autograd.grad(loss, leaves.values())
    return {k: v.detach() for k, v in outputs.items()}, dict(zip(leaves, grads, strict=True))


def assert_same(actual: Values, expected: Values, tolerance: float) -> None:
    """Entry by entry, relative to the largest number of each tensor."""
    assert actual.keys() == expected.keys()
    for name, truth in expected.items():
        size = truth.abs().amax().item() if truth.numel() else 0.0
        torch.testing.assert_close(
            actual[name],
            truth,
            rtol=0,
            atol=tolerance * size,
            msg=lambda m, name=name: f"{name}: {m}",
        )


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("rewriting", REWRITINGS)
class TestInvariance:
    def test_value(self, rewriting, base):
        assert_same(answer(base, rewriting)[0], answer(base, None)[0], TOLERANCES[rewriting][0])

    def test_gradient(self, rewriting, base):
        assert_same(answer(base, rewriting)[1], answer(base, None)[1], TOLERANCES[rewriting][1])
