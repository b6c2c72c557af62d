"""Layers whose output is defined by a condition, differentiated through that condition."""

from . import projections
from .doctor import doctor
from .fixed_point import (
    Anderson,
    Broyden,
    FixedPoint,
    Handover,
    NewtonKrylov,
    Picard,
    Unrolled,
    fixed_point,
    jacobian_penalty,
    spectral_radius,
)
from .implicit import implicit_root
from .nn import DEQ, QPLayer
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
    "Anderson",
    "Broyden",
    "Certificate",
    "ConvergenceError",
    "ConvergenceWarning",
    "DEQ",
    "FixedPoint",
    "Handover",
    "InteriorPoint",
    "LPGD",
    "NewtonKrylov",
    "Picard",
    "QPLayer",
    "QPSolution",
    "Residuals",
    "Shifts",
    "Status",
    "Unrolled",
    "check_kkt",
    "doctor",
    "fixed_point",
    "implicit_root",
    "jacobian_penalty",
    "projections",
    "solve_qp",
    "spectral_radius",
    "stack_qps",
]
