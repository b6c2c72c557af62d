"""One differentiable answer: numbers on the way in, the graph of the arguments on the way out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..implicit import check_order, implicit_root
from ..qp.answer import QPSolution
from ..qp.certificates import no_proof
from ..qp.options import Degenerate, check_choice, check_proximal
from ..qp.problem import Residuals
from ..solution import OnFailure, Status, check_on_failure, report
from .arguments import Given, crossed
from .automatic import automatic
from .convexity import convex
from .point import Point, failed, settle
from .problem import Found, SparseQP
from .root import SparseKKT, kkt_residual
from .scaling import equilibrate

SparseSolver = Callable[[SparseQP], Found]


@dataclass(frozen=True)
class Options:
    """How to solve and to differentiate; documented by `solve_qp_sparse`."""

    solver: SparseSolver | None
    order: int
    degenerate: Degenerate
    proximal: float
    on_failure: OnFailure

    def __post_init__(self) -> None:
        check_on_failure(self.on_failure)
        check_order(self.order)
        unusable = isinstance(self.solver, type) or not callable(self.solver)
        if self.solver is not None and unusable:
            raise ValueError(
                f"solver={self.solver!r}: expected Clarabel(), PIQP(), OSQP(), ADMM(), a "
                "function from a SparseQP to a Found, or None for a choice by the pattern"
            )
        check_choice("degenerate", self.degenerate)
        check_proximal(self.proximal)


def solve_all(problems: Sequence[Given], options: Options) -> list[QPSolution]:
    """The answers, found in as many threads as torch uses, and one warning for all."""
    workers = max(1, min(len(problems), torch.get_num_threads()))
    if workers == 1:
        points = [find(given, options) for given in problems]
    else:
        with ThreadPoolExecutor(workers) as pool:
            points = list(pool.map(lambda given: find(given, options), problems))
    status = torch.tensor([int(point.status) for point in points])
    error = torch.tensor([point.error for point in points], dtype=torch.float64)
    report(status, error, options.on_failure, "solve_qp_sparse", measure="KKT residual {:.1e}")
    return [answer(*pair, options) for pair in zip(problems, points, strict=True)]


def find(given: Given, options: Options) -> Point:
    """The point of one problem, without a graph."""
    if not given.valid():
        nothing = Found(np.full(given.n, np.nan), None, None, None, Status.INVALID_INPUT, 0)
        return failed(equilibrate(given.blank()), nothing)
    task = equilibrate(given.problem())
    if not convex(task.qp.Q):
        nothing = Found(np.zeros(given.n), None, None, None, Status.INVALID_INPUT, 0)
        return failed(task, nothing)
    if crossed(task.user):
        zero = np.zeros(given.n)
        return failed(task, Found(zero, None, None, None, Status.PRIMAL_INFEASIBLE, 0))
    solvers = automatic(task.qp) if options.solver is None else (options.solver,)
    for solver in solvers:
        point = settle(task, solver, options.degenerate)
        if point.status == Status.CONVERGED and point.polished:
            break
    return point


def answer(given: Given, point: Point, options: Options) -> QPSolution:
    """`point` in the graph of `given`."""
    n, m = given.n, given.m
    z, nu, y = _attached(given, point, options)
    lam, mu = y.split([m, n])
    proof = no_proof(1, n, m, given.e, given.p.detach())
    return QPSolution(
        z=z.to(given.dtype),
        lam=lam.to(given.dtype),
        nu=nu.to(given.dtype),
        mu=mu.to(given.dtype),
        status=torch.tensor(int(point.status)),
        iterations=torch.tensor(point.iterations),
        residuals=Residuals(*(torch.tensor(v, dtype=torch.float64) for v in point.residuals)),
        weakly_active=torch.from_numpy(point.weak),
        polished=torch.tensor(point.polished),
        certificate=type(proof)(*(v.squeeze(0).to(given.dtype) for v in proof)),
    )


def _attached(given: Given, point: Point, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """(z, nu, y of all rows of C), a failed problem as `on_failure` says."""
    z, nu, y = (torch.from_numpy(v) for v in (point.z, point.nu, point.y))
    if point.jacobian is None:
        loud = torch.nan if options.on_failure == "nan" else 1.0
        nothing = given.anchor() * loud
        return z * loud + nothing, nu * loud + nothing, y * loud + nothing
    if not given.differentiated():
        return z, nu, y
    rows = torch.from_numpy(np.flatnonzero(point.jacobian.kkt.active))
    operator = SparseKKT(point.jacobian, options.on_failure)
    root = torch.cat([z, nu, y[rows]])
    root = implicit_root(kkt_residual(given, point), root, operator, options.order)
    z, nu, active = root.split([len(z), len(nu), len(rows)])
    return z, nu, torch.zeros_like(y).index_add(0, rows, active)
