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
from .nn import DEQ, ProjectedGradient, QPLayer
from .projected_gradient import (
    FISTA,
    L1,
    ElasticNet,
    GroupLasso,
    NonnegativeL1,
    Projected,
    ProximalSolution,
    projected_gradient,
    proximal_gradient,
)
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
    "ElasticNet",
    "FISTA",
    "FixedPoint",
    "GroupLasso",
    "Handover",
    "InteriorPoint",
    "L1",
    "LPGD",
    "NewtonKrylov",
    "NonnegativeL1",
    "Picard",
    "Projected",
    "ProjectedGradient",
    "ProximalSolution",
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
    "projected_gradient",
    "projections",
    "proximal_gradient",
    "solve_qp",
    "spectral_radius",
    "stack_qps",
]
