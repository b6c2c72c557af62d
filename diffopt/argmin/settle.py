"""The point that is returned and differentiated, whoever found it.

At a KKT point the QP of `subproblem` has the solution d = 0, with the multipliers, the weakly
active limits and the dependent rows of the smooth problem. So one QP at the point a solver found
says all that the derivative needs, by the policies of `solve_qp`; and its d is a Newton step on
the KKT conditions, which brings the point to rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..iterate import select
from ..qp import InteriorPoint, Residuals
from ..qp.engines import find
from ..qp.options import Degenerate
from ..qp.point import Point, settle
from ..qp.problem import QP, matvec
from ..solution import Status, proved, succeeded
from .convex import Convex, convexify
from .problem import Multipliers, Problem, Slopes
from .sqp import corrected, curvature_unit, split, strict_rows
from .subproblem import origin

POLISH = 4  # most Newton steps
ROUNDING = 1e-14  # a residual that no step improves
CLOSE = 1e-4  # residual of a point that is worth a Newton step
REDUCED = 1e-5  # residual that may be used


class Candidate(NamedTuple):
    """What a solver found: z, its multipliers, `Status` codes and steps."""

    z: Tensor
    y: Multipliers
    status: Tensor
    steps: Tensor


class Settled(NamedTuple):
    """The point, and what its derivative needs.

    Attributes:
        z, y: the point and its multipliers.
        point: the QP at the point, solved: activity, dependent rows, the factor of its system.
        gamma: weights of the squared constraints in the augmented Lagrangian whose Hessian is the
            Q of that QP.
        sound: whether it is, bool `(B,)`. If not, there is a direction of negative curvature (or
            none) along the constraints, and no derivative.
        status: `Status` codes, `(B,)`.
        residuals: of (z, y).
    """

    z: Tensor
    y: Multipliers
    point: Point
    gamma: Multipliers
    sound: Tensor
    status: Tensor
    residuals: Residuals


def multipliers_at(problem: Problem, z: Tensor) -> Multipliers:
    """Those that leave least of the gradient of f, by one QP with Q = I."""
    at = problem.slopes(z)
    fit, eye = at.finite(), torch.eye(problem.n, dtype=z.dtype, device=z.device)
    qp = _qp(problem, z, at, eye.expand(len(z), -1, -1), fit)
    return _multipliers(problem, _solved(qp, torch.zeros_like(at.f), "active"))


def settled(problem: Problem, found: Candidate, tol: float, degenerate: Degenerate) -> Settled:
    """What was found, as near to a KKT point as Newton steps bring it, and judged by its residual.

    A point that is not near to one, by `CLOSE`, stays as it is and is a failure.
    """
    z, y, status, _ = found
    at = problem.slopes(z)
    error = _error(problem, z, y, at)
    fit, strict = (error <= CLOSE) & ~proved(status), None
    for k in range(POLISH + 1):
        qp, convex = _model(problem, z, y, at, strict, fit)
        point = _solved(qp, error, degenerate)
        done = fit & succeeded(point.status)
        strict = _strict(problem, point)
        gamma = split(problem, torch.where(strict, convex.gamma, 0.0))
        own = corrected(_multipliers(problem, point), gamma, at, point.z - origin(z))
        lent = ((convex.gamma > 0) & ~strict).any(-1) & fit  # to rows that are not equalities
        trial = _moved(problem, z, point)
        there = problem.slopes(trial)
        after = _error(problem, trial, own, there)
        better = done & (error > ROUNDING) & (after < error / 2)
        if k == POLISH or not bool((better | lent).any()):
            break
        z, y, at, error = select(better, _Spot(trial, own, there, after), _Spot(z, y, at, error))
    final = _error(problem, z, own, at)
    most = torch.minimum(10 * error, error.clamp(min=tol)).clamp(min=100 * ROUNDING)
    done = done & (final <= most)
    y, error = select(done, _Pair(own, final), _Pair(y, error))
    sound = done & convex.sound & ~lent
    residuals = problem.residuals(z, y, at)
    status = _judged(status, fit, error, tol)
    return Settled(z, y, point, split(problem, convex.gamma), sound, status, residuals)


class _Spot(NamedTuple):
    """A point with its multipliers, slopes and residual."""

    z: Tensor
    y: Multipliers
    at: Slopes
    error: Tensor


class _Pair(NamedTuple):
    """Multipliers and the residual that they leave."""

    y: Multipliers
    error: Tensor


def _judged(status: Tensor, fit: Tensor, error: Tensor, tol: float) -> Tensor:
    """`Status` by the residual, where that says anything; the solver's own failures elsewhere."""
    status = torch.where(succeeded(status), int(Status.ITERATION_LIMIT), status)
    status = torch.where(fit & (error <= REDUCED), int(Status.REDUCED_ACCURACY), status)
    status = torch.where(fit & (error <= tol), int(Status.CONVERGED), status)
    return torch.where(error.isnan(), int(Status.NUMERICAL_FAILURE), status)


def _error(problem: Problem, z: Tensor, y: Multipliers, at: Slopes) -> Tensor:
    """The worst residual, NaN where something is not finite, `(B,)`."""
    error = problem.residuals(z, y, at).worst()
    return torch.where(at.finite(), error, torch.nan)


def _model(
    problem: Problem, z: Tensor, y: Multipliers, at: Slopes, strict: Tensor | None, fit: Tensor
) -> tuple[QP, Convex]:
    """The QP at z, and how its Q was made; `strict` are the rows that count as equalities."""
    H = problem.curvature(z, y)
    fit = fit & H.isfinite().flatten(1).all(-1)
    rows, wanted = strict_rows(problem, at, y)
    wanted = wanted if strict is None else strict
    keep = fit[:, None, None]
    unit = torch.where(fit, curvature_unit(at, z), 1.0)
    convex = convexify(torch.where(keep, H, 0.0), torch.where(keep, rows, 0.0), wanted, unit)
    return _qp(problem, z, at, convex.Q, fit), convex


def _qp(problem: Problem, z: Tensor, at: Slopes, Q: Tensor, fit: Tensor) -> QP:
    """The QP of steps d from z, in `origin` + d; one without constraints where not `fit`."""
    row, block, a = fit.unsqueeze(-1), fit[:, None, None], origin(z.nan_to_num(0.0))
    eye = torch.eye(problem.n, dtype=z.dtype, device=z.device)
    lower = torch.full_like(at.inequality, -torch.inf)
    upper = matvec(at.G, a) - at.inequality
    if problem.bounded:
        lower = torch.cat([lower, problem.lb.detach() - z + a], -1)
        upper = torch.cat([upper, problem.ub.detach() - z + a], -1)
    return QP(
        Q=torch.where(block, Q, eye),
        p=torch.where(row, at.g - matvec(Q, a), 0.0),
        G=torch.where(block, at.G, 0.0),
        A=torch.where(block, at.A, 0.0),
        b=torch.where(row, matvec(at.A, a) - at.equality, 0.0),
        lower=torch.where(row, lower, -torch.inf),
        upper=torch.where(row, upper, torch.inf),
        bounded=problem.bounded,
    )


def _solved(qp: QP, error: Tensor, degenerate: Degenerate) -> Point:
    """The solution of `qp`, whose data are as wrong as `error` says: what is below may be zero."""
    with torch.no_grad():
        found = find(qp, InteriorPoint())
        wrong = torch.maximum(found.polished.error, error.nan_to_num(0.0))
        return settle(qp, found._replace(polished=found.polished._replace(error=wrong)), degenerate)


def _multipliers(problem: Problem, point: Point) -> Multipliers:
    lam, mu = point.y[:, : problem.m], point.y[:, problem.m :]
    return Multipliers(point.nu, lam, mu if problem.bounded else torch.zeros_like(point.z))


def _strict(problem: Problem, point: Point) -> Tensor:
    """Rows that hold as equalities when the data change a little, bool `(B, e + k)`."""
    every = torch.ones_like(point.nu, dtype=torch.bool)
    return torch.cat([every, (point.t == 0) & ~point.weak], -1)


def _moved(problem: Problem, z: Tensor, point: Point) -> Tensor:
    """z + d, at an active bound to the last bit."""
    moved = problem.clamp(z + (point.z - origin(z)))
    if not problem.bounded:
        return moved
    active, upper = (v[:, problem.m :] for v in (point.t == 0, point.at_upper))
    bound = torch.where(upper, problem.ub.detach(), problem.lb.detach())
    return torch.where(active & bound.isfinite(), bound, moved)
