"""Clarabel: an interior-point method of Goulart & Chen (arXiv 2405.12762), in Rust."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..optional import package
from ..solution import Status, check_counts, check_positive
from .problem import Found, SparseQP, sparse

STATUS = {
    "Solved": Status.CONVERGED,
    "AlmostSolved": Status.REDUCED_ACCURACY,
    "PrimalInfeasible": Status.PRIMAL_INFEASIBLE,
    "AlmostPrimalInfeasible": Status.PRIMAL_INFEASIBLE,
    "DualInfeasible": Status.DUAL_INFEASIBLE,
    "AlmostDualInfeasible": Status.DUAL_INFEASIBLE,
}
# A limit so far from a z of size one plays no part, but its size would be that of the tolerances:
# the problem would be called unbounded. Should it be active, the polish finds out.
FAR = 1e9


@dataclass(frozen=True)
class Clarabel:
    """Robust, and the most accurate of the three; what to start with.

    Attributes:
        tol: relative tolerance of residuals and gap.
        max_iter: steps.
        threads: of its factorisation; 0 for all cores.
    """

    tol: float = 1e-8
    max_iter: int = 200
    threads: int = 1

    def __post_init__(self) -> None:
        check_positive(self, "tol")
        check_counts(self, "max_iter")
        if isinstance(self.threads, bool) or not isinstance(self.threads, int) or self.threads < 0:
            raise ValueError(f"Clarabel(threads={self.threads!r}): expected 0 (all cores) or more")

    def __call__(self, qp: SparseQP) -> Found:
        """The answer for `qp`: its rows are A, and those of C that have a limit above or below."""
        clarabel, sp = package("clarabel", extra="solvers"), sparse()
        C = sp.vstack([qp.G, sp.eye_array(qp.n)], format="csr")
        free = ~qp.fixed
        fixed = np.flatnonzero(qp.fixed)
        above = np.flatnonzero((qp.upper < FAR) & free)
        below = np.flatnonzero((qp.lower > -FAR) & free)
        rows = sp.csc_matrix(sp.vstack([qp.A, C[fixed], C[above], -C[below]]))
        limits = np.concatenate([qp.b, qp.upper[fixed], qp.upper[above], -qp.lower[below]])
        equal, sided = qp.e + len(fixed), len(above) + len(below)
        cones = [clarabel.ZeroConeT(equal), clarabel.NonnegativeConeT(sided)]
        cones = [cone for cone, size in zip(cones, (equal, sided), strict=True) if size]
        Q = sp.csc_matrix(sp.triu(qp.Q))
        out = clarabel.DefaultSolver(Q, qp.p, rows, limits, cones, self._settings()).solve()
        parts = np.split(np.array(out.z), np.cumsum([qp.e, len(fixed), len(above)]))
        y = np.zeros(qp.m + qp.n)
        y[fixed] = parts[1]
        y[above] += parts[2]
        y[below] -= parts[3]
        status = STATUS.get(str(out.status), Status.ITERATION_LIMIT)
        return Found(np.array(out.x), parts[0], y[: qp.m], y[qp.m :], status, int(out.iterations))

    def _settings(self) -> object:
        settings = package("clarabel", extra="solvers").DefaultSettings()
        settings.verbose = False
        settings.max_iter, settings.max_threads = self.max_iter, self.threads
        settings.tol_feas = settings.tol_gap_abs = settings.tol_gap_rel = self.tol
        settings.presolve_enable = False  # it takes limits of 1e20 for none, before we have said so
        return settings
