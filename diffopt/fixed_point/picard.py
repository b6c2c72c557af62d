"""Picard iteration: z <- f(z)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..solution import Solution, check_positive
from .loop import Map, Settings, run


@dataclass(frozen=True, kw_only=True)
class Picard(Settings):
    """Damped Picard iteration, z <- z + damping (f(z) - z).

    Converges where f is a contraction (Banach, 1922), at the rate of its Lipschitz constant; a
    damping below 1 also where f has Jacobian eigenvalues far below 0.

    Attributes:
        damping: in (0, 1].

    Example:
        Halving the distance to 2 in each step:

        >>> Picard(rtol=0, atol=0.1).solve(lambda z: 1 + z / 2, torch.zeros(1, 1)).steps
        tensor([4])
    """

    damping: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "damping")
        if self.damping > 1:
            raise ValueError(f"Picard(damping={self.damping!r}): expected a number in (0, 1]")

    def solve(self, f: Map, z0: Tensor) -> Solution:
        """z with f(z) = z, `(B, n)`."""
        if self.damping == 1:
            return run(self, f, z0, self.looking(lambda at: at.image))
        return run(self, f, z0, self.looking(lambda at: at.z + self.damping * at.gap))
