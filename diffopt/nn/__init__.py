"""Modules: each holds parameters and makes one call of a function of the package."""

from .deq import DEQ
from .qp import QPLayer

__all__ = ["DEQ", "QPLayer"]
