"""Modules: each holds parameters and makes one call of a function of the package."""

from .qp import QPLayer

__all__ = ["QPLayer"]
