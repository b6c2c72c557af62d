"""Anderson acceleration: the next point from the last few, combined so that their gaps cancel.

With gaps g = f(z) - z and the differences dG, dF of successive gaps and images as columns,

    gamma = argmin |g - dG gamma|,    z <- f(z) - dF gamma        (damping 1),

which is the type-II method of Walker & Ni, "Anderson Acceleration for Fixed-Point Iterations" (SIAM
J. Numer. Anal. 49, 2011). gamma comes from the normal equations: its own accuracy is of little
weight, since the next gap is measured anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._native import kernel
from ..solution import Solution, check_counts, check_positive
from .loop import Evaluation, Map, Settings, run
from .native import AndersonHistory


@dataclass(frozen=True, kw_only=True)
class Anderson(Settings):
    """Anderson acceleration with a memory of its own for every sample.

    Attributes:
        memory: number of earlier differences that are combined; 2 `memory` vectors are kept.
        damping: in (0, 1]: how much of the combined gap is added.
        regularization: added to the normal equations, relative to their largest entry; rounding
            errors of the dtype are the least.

    Example:
        On a linear map of n unknowns it ends after n + 1 steps or before, like GMRES:

        >>> M = torch.tensor([[0.0, 0.9], [-0.9, 0.0]], dtype=torch.float64)
        >>> sol = Anderson().solve(lambda z: z @ M.mT + 1, torch.zeros(1, 2, dtype=torch.float64))
        >>> sol.steps <= 4
        tensor([True])
    """

    memory: int = 5
    damping: float = 1.0
    regularization: float = 1e-12

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "memory")
        check_positive(self, "damping", "regularization")
        if self.damping > 1:
            raise ValueError(f"Anderson(damping={self.damping!r}): expected a number in (0, 1]")

    def solve(self, f: Map, z0: Tensor) -> Solution:
        """z with f(z) = z, `(B, n)`."""
        memory = max(1, min(self.memory, z0.shape[1]))
        ridge = max(self.regularization, 8 * torch.finfo(z0.dtype).eps)
        if (step := kernel("anderson_step", z0)) is not None:
            history = AndersonHistory(self, step, z0, memory, self.damping, ridge)
            return run(self, f, z0, history.look)
        return run(self, f, z0, self.looking(_History(memory, self.damping, ridge).propose))


class _History:
    """The last differences of all samples; one that is done goes on unused."""

    def __init__(self, memory: int, damping: float, ridge: float) -> None:
        self.size, self.damping, self.ridge = memory, damping, ridge
        self.last: Evaluation | None = None
        self.count = 0

    def _begin(self, at: Evaluation) -> None:
        B, n = at.gap.shape
        self.images, self.gaps = (at.gap.new_empty(B, self.size, n) for _ in range(2))
        self.gram = at.gap.new_zeros(B, self.size, self.size)  # of the differences of gaps
        self.pair = at.gap.new_empty(B, 2, n)  # the gap and its last difference

    def propose(self, at: Evaluation) -> Tensor:
        """The next point."""
        if self.last is None:
            self._begin(at)
            self.last = at
            return at.z + self.damping * at.gap
        self._remember(at, self.last)
        k = min(self.count, self.size)
        weight = self._weights(at, k)
        out = torch.baddbmm(at.image.unsqueeze(1), weight, self.images[:, :k], alpha=-1)
        if self.damping < 1:
            left = torch.baddbmm(at.gap.unsqueeze(1), weight, self.gaps[:, :k], alpha=-1)
            out = out - (1 - self.damping) * left
        return out.squeeze(1)

    def _remember(self, at: Evaluation, last: Evaluation) -> None:
        j = self.count % self.size
        change = at.gap - last.gap
        self.images[:, j], self.gaps[:, j] = at.image - last.image, change
        self.pair[:, 0], self.pair[:, 1] = at.gap, change
        self.last, self.newest = at, j
        self.count += 1

    def _weights(self, at: Evaluation, k: int) -> Tensor:
        """gamma, `(B, 1, k)`; zero, which is a Picard step, where it cannot be computed."""
        j = self.newest
        products = self.gaps[:, :k] @ self.pair.mT  # one pass over the memory
        self.gram[:, j, :k] = self.gram[:, :k, j] = products[..., 1]
        H = self.gram[:, :k, :k].clone()
        diagonal = H.diagonal(dim1=-2, dim2=-1)
        diagonal += self.ridge * diagonal.amax(-1, keepdim=True)
        gamma, _ = torch.linalg.solve_ex(H, products[..., :1])
        return gamma.mT.nan_to_num(0.0, 0.0, 0.0)
