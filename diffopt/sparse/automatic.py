"""Which solvers to try where the user names none."""

from __future__ import annotations

from collections.abc import Callable

from .admm import ADMM
from .clarabel import Clarabel
from .linear import CHEAP, arithmetic
from .problem import Found, SparseQP, sparse

CURVED = 1e-4  # of the diagonal of an equilibrated Q: less is like a linear program
# Where ADMM suits it needs some hundred steps; more are not worth what Clarabel may take.
STEPS = 1000


def automatic(qp: SparseQP) -> tuple[Callable[[SparseQP], Found], ...]:
    """Clarabel, after `ADMM` where a factor may be dense and Q curves in every unknown."""
    if (qp.Q.diagonal() >= CURVED).all() and arithmetic(_factorised(qp)) > CHEAP:
        return ADMM(max_iter=STEPS), Clarabel()
    return (Clarabel(),)


def _factorised(qp: SparseQP) -> object:
    """The pattern that an interior-point method factorises, but for the rows of bounds."""
    sp = sparse()
    C = sp.vstack([qp.A, qp.G])
    return sp.block_array([[qp.Q, C.T], [C, sp.eye_array(C.shape[0])]], format="csc")
