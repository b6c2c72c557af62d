"""Modules: each holds parameters and makes one call of a function of the package."""

from .argmin import ArgminLayer
from .cnf import CNF, ExactTrace, Hutchinson
from .convex import ConvexLayer
from .deq import DEQ
from .neural_ode import NeuralODE
from .projected_gradient import ProjectedGradient
from .qp import QPLayer

__all__ = [
    "ArgminLayer",
    "CNF",
    "ConvexLayer",
    "DEQ",
    "ExactTrace",
    "Hutchinson",
    "NeuralODE",
    "ProjectedGradient",
    "QPLayer",
]
