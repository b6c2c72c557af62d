"""CVXPY problems as layers, and our solver inside cvxpylayers."""

from __future__ import annotations

from .program import ConvexSolution

__all__ = ["ConvexSolution"]
