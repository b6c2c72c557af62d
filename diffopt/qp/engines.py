"""Which engine solves: one function for all that need solutions without gradients."""

from __future__ import annotations

from .interior_point import InteriorPoint
from .kkt import Blocks
from .native import find_native, serves
from .problem import QP
from .reference import Found, find_reference


def find(qp: QP, solver: InteriorPoint, warm: Blocks | None = None) -> Found:
    """The solution of each sample of `qp`, or what is known about it: see `find_reference`."""
    engine = find_native if serves(solver, qp.p.device) else find_reference
    return engine(qp, solver, warm)
