"""Layers whose output is defined by a condition, differentiated through that condition."""

from .implicit import implicit_root
from .nn import QPLayer
from .qp import InteriorPoint, QPSolution, solve_qp
from .solution import ConvergenceError, ConvergenceWarning, Status

__version__ = "0.1.0"

__all__ = [
    "ConvergenceError",
    "ConvergenceWarning",
    "InteriorPoint",
    "QPLayer",
    "QPSolution",
    "Status",
    "implicit_root",
    "solve_qp",
]
