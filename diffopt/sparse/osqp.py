"""OSQP: the operator-splitting method of Stellato et al. (Math. Prog. Comp. 12, 2020), in C."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..optional import package
from ..solution import Status, check_counts, check_positive
from .problem import Found, SparseQP, sparse

STATUS = {
    "OSQP_SOLVED": Status.CONVERGED,
    "OSQP_SOLVED_INACCURATE": Status.REDUCED_ACCURACY,
    "OSQP_PRIMAL_INFEASIBLE": Status.PRIMAL_INFEASIBLE,
    "OSQP_DUAL_INFEASIBLE": Status.DUAL_INFEASIBLE,
    "OSQP_NON_CVX": Status.INVALID_INPUT,
}
PROOF = 1e-6  # relative, of a certificate of infeasibility


@dataclass(frozen=True)
class OSQP:
    """One factorisation for all steps: for problems whose factor is dear, and rough answers.

    The polish makes its answer exact, if the active set can be told from it; where not, a smaller
    `eps` helps. Its own polish is off.

    Attributes:
        eps: absolute and relative tolerance.
        max_iter: steps.
    """

    eps: float = 1e-6
    max_iter: int = 20_000

    def __post_init__(self) -> None:
        check_positive(self, "eps")
        check_counts(self, "max_iter")

    def __call__(self, qp: SparseQP) -> Found:
        """The answer for `qp`; bounds are rows like others, and only the present ones."""
        osqp, sp = package("osqp", extra="solvers"), sparse()
        rows, lower, upper = qp.stacked()
        solver = osqp.OSQP()
        try:
            solver.setup(
                sp.csc_matrix(sp.triu(qp.Q)), qp.p, sp.csc_matrix(rows), lower, upper,
                eps_abs=self.eps, eps_rel=self.eps, eps_prim_inf=PROOF, eps_dual_inf=PROOF,
                max_iter=self.max_iter, verbose=False,
            )  # fmt: skip
        except osqp.OSQPException:
            none = np.zeros(qp.n)
            return Found(none, None, None, None, Status.INVALID_INPUT, 0)
        out = solver.solve(raise_error=False)
        name = osqp.SolverStatus(out.info.status_val).name
        status = STATUS.get(name, Status.ITERATION_LIMIT)
        return Found(out.x, *qp.unstacked(out.y), status, int(out.info.iter))
