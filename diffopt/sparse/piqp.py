"""PIQP: a proximal interior-point method of Schwan, Jiang, Kuhn & Jones (CDC 2023), in C++."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..optional import package
from ..solution import Status, check_counts, check_positive
from .problem import Found, SparseQP, sparse

STATUS = {
    "PIQP_SOLVED": Status.CONVERGED,
    "PIQP_PRIMAL_INFEASIBLE": Status.PRIMAL_INFEASIBLE,
    "PIQP_DUAL_INFEASIBLE": Status.DUAL_INFEASIBLE,
}
PROOF = 1e-6  # relative, of infeasibility


@dataclass(frozen=True)
class PIQP:
    """The fastest of the three on chains and control problems, which fill in little.

    Attributes:
        tol: absolute tolerance of residuals and gap.
        max_iter: steps.
    """

    tol: float = 1e-8
    max_iter: int = 250

    def __post_init__(self) -> None:
        check_positive(self, "tol")
        check_counts(self, "max_iter")

    def __call__(self, qp: SparseQP) -> Found:
        """The answer for `qp`; rows with equal limits go to its equations."""
        solver = package("piqp", extra="solvers").SparseSolver()
        solver.settings.verbose = False
        solver.settings.eps_abs = solver.settings.eps_duality_gap_abs = self.tol
        solver.settings.eps_primal_inf = solver.settings.eps_dual_inf = PROOF
        solver.settings.max_iter = self.max_iter
        A, b = (qp.A, qp.b) if qp.e else (None, None)
        limited = np.flatnonzero(np.isfinite(qp.h_lower) | np.isfinite(qp.h))
        rows = sparse().csc_matrix(qp.G.tocsr()[limited]), qp.h_lower[limited], qp.h[limited]
        G = (rows[0], _known(rows[1]), _known(rows[2])) if len(limited) else (None, None, None)
        solver.setup(qp.Q, qp.p, A, b, *G, _known(qp.lb), _known(qp.ub))
        solver.solve()
        out = solver.result
        lam = np.zeros(qp.m)
        if len(limited):
            lam[limited] = np.array(out.z_u) - np.array(out.z_l)
        name = str(out.info.status).rsplit(".", maxsplit=1)[-1]
        return Found(
            np.array(out.x),
            np.array(out.y),
            lam,
            np.array(out.z_bu) - np.array(out.z_bl),
            STATUS.get(name, Status.ITERATION_LIMIT),
            int(out.info.iter),
        )


def _known(limit: np.ndarray) -> np.ndarray | None:
    return limit if np.isfinite(limit).any() else None
