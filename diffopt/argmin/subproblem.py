"""The step of sequential quadratic programming: a QP that models the problem around a point.

    minimise 1/2 d'Qd + g'd    subject to    e + Ad = 0,   c + Gd <= 0,   lb <= z + d <= ub

Without inequalities and bounds it is one linear system, solved by Cholesky factors of Q and of
A Q^-1 A'; without equalities too, that is Newton's step. Otherwise, and where A does not have
full rank, it is a QP. Where that is infeasible, or asks for multipliers above the greatest
penalty, its rows may be violated at `rho` a unit: that is the step of the l1 penalty method
(Fletcher's S-l1-QP; Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, sec. 18.5), which
moves towards the feasible points, or to where the violation is least.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..qp import InteriorPoint, QPSolution, solve_qp
from ..qp.problem import largest, matvec
from ..solution import succeeded
from ..tree import put, take
from .problem import Multipliers

# Where the rows contradict each other there is no need to prove it: the elastic QP follows.
QUICK = InteriorPoint(max_steps=25, patience=5)
VIOLATED = 1e-10  # a violation below this, in units of 1 + |d|, is none
DEPENDENT = 1e-8  # least over largest pivot of A Q^-1 A' below which the QP engine is asked


class Model(NamedTuple):
    """The data of the QPs.

    Attributes:
        Q: positive definite, `(B, n, n)`.
        g: `(B, n)`.
        A, equality: `(B, e, n)`, `(B, e)`.
        G, inequality: `(B, m, n)`, `(B, m)`.
        lower, upper: lb - z and ub - z, `(B, n)`.
        origin: of the unknowns of the QPs, see `origin`, `(B, n)`.
        rho: price of a violation, `(B,)`.
        most: multipliers that count as too large, `(B,)`.
    """

    Q: Tensor
    g: Tensor
    A: Tensor
    equality: Tensor
    G: Tensor
    inequality: Tensor
    lower: Tensor
    upper: Tensor
    origin: Tensor
    rho: Tensor
    most: Tensor


class Direction(NamedTuple):
    """The solutions.

    Attributes:
        d: `(B, n)`.
        y: the multipliers.
        plain: whether all rows hold, bool `(B,)`; else they are violated at `rho` a unit.
    """

    d: Tensor
    y: Multipliers
    plain: Tensor


def direction(model: Model, bounded: bool, hard: Tensor) -> Direction:
    """The step of each sample; zero where none was found.

    Args:
        hard: samples for which violated rows are to be expected, bool `(B,)`.
    """
    if model.G.shape[1] == 0 and not bounded:
        out, good = _linear(model)
    else:
        out, good = nowhere(model), torch.zeros_like(hard)
    for solve, wanted in ((_quadratic, ~hard), (_elastic, torch.ones_like(hard))):
        left = (~good & wanted).nonzero().flatten()
        if len(left):
            part, fine = solve(take(model, left), bounded)
            out = put(out, left, part)
            good = good.index_copy(0, left, fine)
    return out


def nowhere(model: Model) -> Direction:
    """No step, and no multipliers."""
    y = Multipliers(model.equality, model.inequality, model.g)
    return _found(model.g, y, torch.zeros_like(model.rho, dtype=torch.bool))


def _linear(model: Model) -> tuple[Direction, Tensor]:
    """By Cholesky factors: Q = LL', S = A Q^-1 A', S nu = e - A Q^-1 g, Qd = -g - A'nu."""
    L = torch.linalg.cholesky_ex(model.Q)[0]
    V = torch.linalg.solve_triangular(L, model.A.mT, upper=False)
    w = torch.linalg.solve_triangular(L, model.g.unsqueeze(-1), upper=False)
    factor = torch.linalg.cholesky_ex(V.mT @ V)[0]
    rhs = model.equality.unsqueeze(-1) - V.mT @ w
    nu = torch.cholesky_solve(rhs, factor)
    d = -torch.linalg.solve_triangular(L.mT, w + V @ nu, upper=True).squeeze(-1)
    nu = nu.squeeze(-1)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    good = d.isfinite().all(-1) & (largest(nu) <= model.most)
    if nu.shape[-1]:
        good = good & (pivots.amin(-1) > DEPENDENT * pivots.amax(-1))
    y = Multipliers(nu, model.inequality, torch.zeros_like(d))
    return _found(d, y, good), good


def _quadratic(model: Model, bounded: bool) -> tuple[Direction, Tensor]:
    sol = _solved(model, bounded, QUICK)
    y = Multipliers(sol.nu, sol.lam, sol.mu)
    good = succeeded(sol.status) & (y.norm() <= model.most)
    return _found(sol.z, y, good), good


def _elastic(model: Model, bounded: bool) -> tuple[Direction, Tensor]:
    """With unknowns t >= 0 more: Gd - t, and Ad + t - t, at a price of one.

    The objective is divided by rho, so that every sample has a price of its own.
    """
    (size, m, n), e, pad = model.G.shape, model.A.shape[1], torch.nn.functional.pad
    rho, extra = model.rho.unsqueeze(-1), m + 2 * e
    own = torch.eye(m).to(model.G), torch.eye(e).to(model.A)
    sides = [pad(-own[0], (0, 2 * e)), torch.cat([pad(own[1], (m, 0)), -own[1]], -1)]
    more = model._replace(
        Q=pad(model.Q / rho.unsqueeze(-1), (0, extra, 0, extra)),
        g=pad(model.g / rho, (0, extra), value=1.0),
        G=torch.cat([model.G, sides[0].expand(size, -1, -1)], -1),
        A=torch.cat([model.A, sides[1].expand(size, -1, -1)], -1),
        lower=pad(model.lower, (0, extra)),
        upper=pad(model.upper, (0, extra), value=torch.inf),
        origin=pad(model.origin, (0, extra)),
    )
    sol = _solved(more, True, InteriorPoint())
    y = Multipliers(rho * sol.nu, rho * sol.lam, rho * sol.mu[:, :n])
    good, t = succeeded(sol.status), sol.z[:, n:].abs().sum(-1)
    plain = good & (t <= VIOLATED * (1 + largest(sol.z))) & (y.norm() < model.rho)
    return _found(sol.z[:, :n], y, good)._replace(plain=plain), good


def _solved(model: Model, bounded: bool, solver: InteriorPoint) -> QPSolution:
    some, few, a = model.G.shape[1] > 0, model.A.shape[1] > 0, model.origin
    sol = solve_qp(
        model.Q,
        model.g - matvec(model.Q, a),
        model.G if some else None,
        matvec(model.G, a) - model.inequality if some else None,
        model.A if few else None,
        matvec(model.A, a) - model.equality if few else None,
        model.lower + a if bounded else None,
        model.upper + a if bounded else None,
        solver=solver,
        on_failure="ignore",
    )
    return replace(sol, z=sol.z - a)


def origin(z: Tensor) -> Tensor:
    """a in x = a + d, the unknowns of the QPs: z, moved away from zero by one.

    The engine takes its unit of the unknowns from the data. Those of d are zero at a solution.
    """
    return z + torch.where(z < 0, -1.0, 1.0).to(z.dtype)


def _found(d: Tensor, y: Multipliers, good: Tensor) -> Direction:
    keep = good.unsqueeze(-1)
    return Direction(
        torch.where(keep, d, 0.0), Multipliers(*(torch.where(keep, v, 0.0) for v in y)), good
    )


def violation(equality: Tensor, inequality: Tensor) -> Tensor:
    """Sum of |e| and of the positive part of c, `(B,)`."""
    return equality.abs().sum(-1) + inequality.clamp(min=0).sum(-1)


def left_over(model: Model, d: Tensor) -> Tensor:
    """The violation of the linearised constraints after the step d, `(B,)`."""
    return violation(model.equality + matvec(model.A, d), model.inequality + matvec(model.G, d))
