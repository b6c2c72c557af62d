"""The KKT conditions of a settled point as a root problem for `implicit_root`.

With the active set held fixed, x = (z, nu, y) and y = (lam, mu) solve smooth equations:

    grad L(z, x) = 0,    e(z) = 0,    on (c(z) - limit) - off y = 0

with a weight `on` active and one `off` inactive rows (both where weakly active), bounds being rows
of their own, and L the augmented Lagrangian

    f + nu'e + lam'c + mu'z + 1/2 sum of gamma (rows that are zero at the root)^2.

The squares change neither the root nor its derivatives. They make the Hessian of L the Q of the
QP that was solved at the point, so that the factor of that QP is the operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..implicit import implicit_root
from ..qp.root import KKTOperator
from ..solution import OnFailure, succeeded
from .problem import Multipliers, Problem
from .settle import Settled


def attached(
    problem: Problem, found: Settled, order: int, on_failure: OnFailure
) -> tuple[Tensor, Multipliers]:
    """(z, multipliers) in the graph of all that the user's functions close over, and of the bounds.

    A sample that failed has a derivative of zero; one without a derivative reports that in the
    backward pass.
    """
    y = found.y
    parts = [found.z, y.nu, y.lam, *([y.mu] if problem.bounded else [])]
    alive = succeeded(found.status)
    operator = KKTOperator.at(found.point, on_failure)
    operator = replace(operator, alive=alive, lost=alive & ~found.sound)
    x = implicit_root(residual(problem, found), torch.cat(parts, -1), operator, order)
    z, nu, lam, *mu = x.split([v.shape[-1] for v in parts], -1)
    return z, Multipliers(nu, lam, mu[0] if mu else y.mu)


def residual(problem: Problem, found: Settled) -> Callable[[Tensor], Tensor]:
    """F, its rows scaled as those of the factor, zero at the root to the last bit."""
    point, gamma, m = found.point, found.gamma, problem.m
    scaling, t = point.scaling, point.t
    held = t < 1
    on, off = (1 - t) * scaling.rows, t / scaling.y
    upper = point.at_upper[:, m:]
    limit = torch.where(upper, problem.ub, problem.lb) if problem.bounded else None
    if limit is not None:
        limit = torch.where(held[:, m:], limit, 0.0)  # an infinite one is inactive
    sizes = [problem.n, problem.e, t.shape[-1]]

    def F(x: Tensor) -> Tensor:
        z, nu, y = x.split(sizes, -1)

        def lagrangian(v: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            e, c = problem.equality(v), problem.inequality(v)
            value = problem.objective(v).sum() + (nu * e).sum() + (y[:, :m] * c).sum()
            squares = (gamma.nu * e.square()).sum() + (gamma.lam * c.square()).sum()
            return value + squares / 2, (e, c)

        dual, (e, c) = torch.func.grad(lagrangian, has_aux=True)(z)
        if limit is not None:
            over = z - limit
            dual = dual + y[:, m:] + gamma.mu * over
            c = torch.cat([c, over], -1)
        c = torch.where(held, c, 0.0)
        out = torch.cat([scaling.dual * dual, scaling.equal * e, on * c - off * y], -1)
        return out - out.detach()

    return F
