"""Layers whose output is defined by a condition, differentiated through that condition."""

from .doctor import doctor
from .implicit import implicit_root
from .nn import QPLayer
from .qp import (
    LPGD,
    Certificate,
    InteriorPoint,
    QPSolution,
    Residuals,
    Shifts,
    check_kkt,
    solve_qp,
    stack_qps,
)
from .solution import ConvergenceError, ConvergenceWarning, Status

__version__ = "0.1.0"

__all__ = [
    "LPGD",
    "Certificate",
    "ConvergenceError",
    "ConvergenceWarning",
    "InteriorPoint",
    "QPLayer",
    "QPSolution",
    "Residuals",
    "Shifts",
    "Status",
    "check_kkt",
    "doctor",
    "implicit_root",
    "solve_qp",
    "stack_qps",
]
