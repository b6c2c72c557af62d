"""Batched sequential quadratic programming: `SQP`.

    1. Measure the KKT residual; a sample within the tolerance is done.
    2. Model: the Hessian of the Lagrangian, convexified (`convex`), or BFGS (`bfgs`).
    3. Direction and multipliers: a QP (`subproblem`).
    4. Penalty: above the multipliers, and growing where the violation does not fall.
    5. Line search on the l1 merit function, with a second-order correction (`search`); go to 1.

A sample whose violation is stationary at the greatest penalty is at a local minimum of the
violation, and is called infeasible.

Source: Nocedal & Wright, Numerical Optimization (2nd ed., 2006), Alg. 18.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..iterate import Measure, iterate, select
from ..qp.problem import largest, matvec
from ..solution import Solution, Status, check_counts, check_positive
from ..tree import put, take
from .bfgs import Memory
from .convex import convexify
from .problem import Multipliers, Problem, Slopes
from .search import Ahead, search
from .subproblem import Direction, Model, direction, left_over, origin, violation

Hessian = Literal["exact", "bfgs"]
MOST = 1e6  # greatest penalty, in units of 1 + |g|
UNBOUNDED = -1e20  # an objective below this has no minimum


class Iterate(NamedTuple):
    """The state of a sample.

    Attributes:
        z, y: the point and the multipliers.
        rho: the penalty, `(B,)`.
        stuck: line searches in a row that found nothing, `(B,)`.
        hard: whether the last QP had rows that contradict each other, bool `(B,)`.
        memory: of BFGS; of no use under ``hessian="exact"``.
    """

    z: Tensor
    y: Multipliers
    rho: Tensor
    stuck: Tensor
    hard: Tensor
    memory: Memory


class Look(NamedTuple):
    """What `measure` saw: the slopes, who goes on, and the greatest penalty, `(B,)`."""

    at: Slopes
    running: Tensor
    most: Tensor


@dataclass(frozen=True)
class SQP:
    """Settings of sequential quadratic programming; the defaults are the documentation.

    Attributes:
        tol: on `Residuals`, primal, dual and gap.
        max_steps: limit on the steps of a sample, each with one QP and a line search.
        hessian: "exact", by autograd, n vjps of the gradient a step; or "bfgs", from gradients.
        memory: pairs that BFGS keeps.
    """

    tol: float = 1e-8
    max_steps: int = 200
    hessian: Hessian = "exact"
    memory: int = 30

    def __post_init__(self) -> None:
        check_positive(self, "tol")
        check_counts(self, "max_steps", "memory")
        if self.hessian not in get_args(Hessian):
            raise ValueError(f"SQP(hessian={self.hessian!r}): expected one of {get_args(Hessian)}")

    def solve(self, problem: Problem, z0: Tensor, y0: Multipliers) -> Solution:
        """The `Iterate` of smallest KKT residual of each sample, without gradients.

        Returns:
            `Solution` whose residual is the worst of `Residuals`, in units of `tol`.
        """
        start = Iterate(
            problem.clamp(z0),
            y0,
            z0.new_ones(len(z0)),
            torch.zeros(len(z0), dtype=torch.int64, device=z0.device),
            torch.zeros(len(z0), dtype=torch.bool, device=z0.device),
            Memory.empty(z0, self.memory if self.hessian == "bfgs" else 0),
        )

        def measure(x: Iterate) -> Measure:
            at = problem.slopes(x.z)
            primal, dual, gap = problem.residuals(x.z, x.y, at)
            error = torch.maximum(torch.maximum(primal, dual), gap) / self.tol
            error = torch.where(at.finite(), error, torch.nan)
            most = MOST * (1 + largest(at.g))
            ends = self._verdict(x, at, primal, most)
            running = (error > 1) & (ends < 0)
            return Measure(error, ends, Look(at, running, most))

        def step(x: Iterate, look: Look) -> Iterate:
            return self._step(problem, x, look)

        return iterate(measure, step, start, max_steps=self.max_steps)

    def _verdict(self, x: Iterate, at: Slopes, primal: Tensor, most: Tensor) -> Tensor:
        """What can be said without convergence: `Status`, or -1."""
        ends = torch.full_like(x.stuck, -1)
        ends = torch.where(x.stuck > 1, int(Status.ITERATION_LIMIT), ends)
        ends = torch.where(at.f < UNBOUNDED, int(Status.DUAL_INFEASIBLE), ends)
        still = largest(at.g + at.pull(x.y)) <= self.tol * (1 + x.y.norm())
        hopeless = still & (primal > self.tol) & (x.rho >= most)
        return torch.where(hopeless, int(Status.PRIMAL_INFEASIBLE), ends)

    def _step(self, problem: Problem, x: Iterate, look: Look) -> Iterate:
        memory, H = self._hessian(problem, x, look)
        some = look.running.nonzero().flatten()
        model, gamma = _modelled(problem, x, look, H, some)
        way = direction(model, problem.bounded, x.hard[some])
        way = way._replace(y=corrected(way.y, gamma, model, way.d))
        rho = _penalty(model, way)
        predicted = rho * (left_over(model, way.d) - violation(model.equality, model.inequality))
        slope = (model.g * way.d).sum(-1) + predicted
        whole = Ahead(torch.zeros_like(x.z), torch.zeros_like(x.rho), x.rho, look.running)
        ahead = put(whole, some, Ahead(way.d, slope, rho, look.running[some]))

        def correct(samples: Tensor, equality: Tensor, inequality: Tensor) -> Tensor:
            """The step with the constraints as they are at the full step, not as linearised."""
            place = torch.searchsorted(some, samples)
            part, d = take(model._replace(rho=rho), place), way.d[place]
            again = part._replace(
                equality=equality - matvec(part.A, d), inequality=inequality - matvec(part.G, d)
            )
            return direction(again, problem.bounded, torch.ones_like(place, dtype=torch.bool)).d

        z, moved = search(problem, x.z, look.at, ahead, correct)
        y = put(x.y, some, way.y)
        y = select(moved, y, x.y)
        if self.hessian == "bfgs":
            memory = memory._replace(z=x.z, pull=look.at.g + look.at.pull(y))
        stuck = torch.where(moved, 0, x.stuck + 1)
        hard = put(x.hard, some, ~way.plain)
        return Iterate(z, y, ahead.rho, stuck, hard, memory)

    def _hessian(self, problem: Problem, x: Iterate, look: Look) -> tuple[Memory, Tensor]:
        """The curvature of the Lagrangian; a multiple of the identity after a failed search."""
        if self.hessian == "bfgs":
            memory = x.memory.updated(x.z, look.at.g + look.at.pull(x.y))
            H = memory.B
        else:
            memory, H = x.memory, problem.curvature(x.z, x.y)
        size = largest(look.at.g)[:, None, None]
        plain = size * torch.eye(problem.n, dtype=x.z.dtype, device=x.z.device)
        return memory, torch.where((x.stuck > 0)[:, None, None], plain, H)


def _modelled(
    problem: Problem, x: Iterate, look: Look, H: Tensor, some: Tensor
) -> tuple[Model, Multipliers]:
    """The QPs of the samples `some`, and the weights gamma of the rows in their Q."""
    z, y, at, rho, most = take((x.z, x.y, look.at, x.rho, look.most), some)
    H = H[some]
    H = torch.where(H.isfinite().flatten(1).all(-1)[:, None, None], H, torch.eye(problem.n).to(H))
    rows, wanted = strict_rows(problem, at, y)
    Q, gamma, _ = convexify(H, rows, wanted, curvature_unit(at, z), step=True)
    lb, ub = take((problem.lb.detach(), problem.ub.detach()), some)
    model = Model(
        Q, at.g, at.A, at.equality, at.G, at.inequality, lb - z, ub - z, origin(z), rho, most
    )
    return model, split(problem, gamma)


def curvature_unit(at: Slopes, z: Tensor) -> Tensor:
    """|g| / (1 + |z|), `(B,)`, positive: with that curvature a step is as long as z."""
    return (largest(at.g) + 1e-100) / (1 + largest(z))


def strict_rows(problem: Problem, at: Slopes, y: Multipliers) -> tuple[Tensor, Tensor]:
    """(the Jacobian of equalities, inequalities and bounds; which rows have a multiplier)."""
    rows = [at.A, at.G]
    wanted = [torch.ones_like(y.nu, dtype=torch.bool), y.lam > 0]
    if problem.bounded:
        eye = torch.eye(problem.n, dtype=at.g.dtype, device=at.g.device)
        rows.append(eye.expand(len(at.g), -1, -1))
        wanted.append(y.mu != 0)
    return torch.cat(rows, 1), torch.cat(wanted, -1)


def split(problem: Problem, v: Tensor) -> Multipliers:
    """A vector over the rows of `strict_rows` as one of multipliers."""
    parts = v.split([problem.e, problem.m, v.shape[-1] - problem.e - problem.m], -1)
    mu = parts[2] if problem.bounded else v.new_zeros(len(v), problem.n)
    return Multipliers(parts[0], parts[1], mu)


def corrected(y: Multipliers, gamma: Multipliers, at: Slopes | Model, d: Tensor) -> Multipliers:
    """The multipliers y with diag(gamma) J d, which the QP has in its Q; signs are kept."""
    lam = (y.lam + gamma.lam * matvec(at.G, d)).clamp(min=0)
    mu = y.mu + gamma.mu * d
    mu = torch.where(y.mu * mu > 0, mu, 0.0)
    return Multipliers(y.nu + gamma.nu * matvec(at.A, d), lam, mu)


def _penalty(model: Model, way: Direction) -> Tensor:
    """rho: above the multipliers where all rows hold, and ten times as much where it is too low."""
    need = 1.5 * torch.maximum(largest(way.y.nu), largest(way.y.lam))
    usual = torch.maximum(need, (model.rho + need) / 2)
    now = violation(model.equality, model.inequality)
    low = left_over(model, way.d) > 0.9 * now
    harder = torch.where(low, 10 * model.rho, model.rho)
    return torch.minimum(torch.where(way.plain, usual, harder), model.most)
