"""Newton's method on f(z) - z, its linear systems solved by GMRES on products with I - f'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..iterate import Measure
from ..linear import GMRES
from ..operators import MatrixFree
from ..solution import Solution, check_counts, check_positive
from .loop import Map, Settings, finished


class _Search(NamedTuple):
    """A sample on its way along a direction d: z = origin + length d."""

    z: Tensor
    origin: Tensor
    d: Tensor
    length: Tensor  # (B, 1)
    error: Tensor  # (B, 1) at the origin


class _Known(NamedTuple):
    gap: Tensor
    error: Tensor  # (B, 1)


@dataclass(frozen=True, kw_only=True)
class NewtonKrylov(Settings):
    """Inexact Newton: (I - f') d = f(z) - z up to a relative residual `forcing`, z <- z + d.

    Converges quadratically near a fixed point (as far as `forcing` lets it), whatever the spectrum
    of f'; a step that does not bring a sample nearer, or leads out of the domain of f, is halved
    (Dembo, Eisenstat & Steihaug 1982; Kelley, Iterative Methods for Linear and Nonlinear Equations,
    1995, ch. 6 and 8). A step costs up to `krylov` products with f', each about two evaluations.

    Attributes:
        max_steps: steps, each one evaluation of f besides the products with f'.
        forcing: relative residual of the linear solve.
        krylov: GMRES vectors a step.

    Example:
        >>> f = lambda z: torch.cos(z)
        >>> sol = NewtonKrylov(rtol=1e-12).solve(f, torch.zeros(1, 1, dtype=torch.float64))
        >>> round(sol.value.item(), 9), sol.steps.item() <= 6
        (0.739085133, True)
    """

    max_steps: int = 50
    forcing: float = 1e-4
    krylov: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "forcing")
        check_counts(self, "krylov")

    def solve(self, f: Map, z0: Tensor) -> Solution:
        """z with f(z) = z, `(B, n)`."""
        method = GMRES(rtol=self.forcing, restart=self.krylov, max_cycles=1)

        def measure(state: _Search) -> Measure:
            image = f(state.z)
            gap = image - state.z
            error = self.error(gap, image)
            # Out of the domain, from a point inside: no breakdown, but a step to halve.
            inside = state.error.squeeze(-1).isfinite()
            error = torch.where(error.isfinite() | ~inside, error, torch.finfo(error.dtype).max)
            return Measure(error, carry=_Known(gap, error.unsqueeze(-1)))

        def step(state: _Search, now: _Known) -> _Search:
            # Not nearer: half of the way again; otherwise a new direction.
            nearer = now.error < state.error
            d = MatrixFree(lambda z: z - f(z), state.z, method, "ignore").solve(now.gap).value
            length = torch.where(nearer, 1.0, state.length / 2)
            origin = torch.where(nearer, state.z, state.origin)
            d = torch.where(nearer, d, state.d)
            error = torch.where(nearer, now.error, state.error)
            return _Search(origin + length * d, origin, d, length, error)

        ones = z0.new_ones(z0.shape[0], 1)
        start = _Search(z0, z0, torch.zeros_like(z0), ones, torch.full_like(ones, torch.inf))
        return finished(self, measure, step, start)
