"""Broyden's method: a quasi-Newton inverse of the Jacobian, which the backward pass can use.

For the gap g(z) = f(z) - z the inverse is kept as  B = -I + U'V,  with rows of U and V added by
Broyden's "good" update (Math. Comp. 19, 1965; with the Sherman-Morrison formula: Kelley, Iterative
Methods for Linear and Nonlinear Equations, 1995, ch. 7):  with s the last step, y the change of g,

    B <- B + (s - B y) s'B / (s'B y).

After a full step s = -B g the numerator is  s - B y = -B g(z + s):  one product with B a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._native import kernel
from ..operators import Operator
from ..solution import OnFailure, Solution, Status, check_counts
from .loop import Evaluation, Map, Settings, run
from .native import BroydenHistory, begin_anew


@dataclass(frozen=True, kw_only=True)
class Broyden(Settings):
    """Limited-memory Broyden, with a memory of its own for every sample.

    Attributes:
        memory: number of updates that are kept, 2 `memory` vectors; when it is full, the samples
            that still move begin anew from the point that they have reached.

    Example:
        >>> f = lambda z: torch.cos(z)
        >>> round(Broyden().solve(f, torch.zeros(1, 1, dtype=torch.float64)).value.item(), 6)
        0.739085
    """

    memory: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "memory")

    def solve(self, f: Map, z0: Tensor) -> Solution:
        """z with f(z) = z, `(B, n)`."""
        return run(self, f, z0, self._history(z0).propose)

    def solve_with_inverse(self, f: Map, z0: Tensor) -> tuple[Solution, BroydenInverse]:
        """z, and what is known of the inverse of I - f' there."""
        history, seen = self._history(z0), [z0, z0]

        def watched(z: Tensor) -> Tensor:
            seen[:] = z, f(z)
            return seen[1]

        out = run(self, watched, z0, history.propose)
        z, image = seen
        history.propose(Evaluation(z, image, image - z))  # to learn from the last step
        return out, BroydenInverse(history.U, history.V)

    def _history(self, z0: Tensor) -> _History | BroydenHistory:
        step = kernel("broyden_step", z0)
        if step is None:
            return _History(z0, self.memory)
        return BroydenHistory(step, z0, self.memory)


class _History:
    """U and V of all samples, `(B, memory, n)`; one that no longer moves keeps its own."""

    def __init__(self, z0: Tensor, memory: int) -> None:
        B, n = z0.shape
        self.U, self.V = (z0.new_zeros(B, memory, n) for _ in range(2))
        self.size, self.count = memory, 0
        self.last: tuple[Tensor, Tensor] | None = None  # gap and step

    def propose(self, at: Evaluation) -> Tensor:
        """The next point, z - B g."""
        g = at.gap
        Bg = self._apply(self.U, self.V, g)
        if self.last is not None:
            last_gap, s = self.last
            Bg = self._update(Bg, g, s, (g != last_gap).any(-1, keepdim=True))
        self.last = g, -Bg
        return at.z - Bg

    def _apply(self, U: Tensor, V: Tensor, g: Tensor) -> Tensor:
        """(-I + U'V) g; with U and V exchanged the transpose."""
        if self.count == 0:
            return -g
        k = self.count
        weight = V[:, :k] @ g.unsqueeze(-1)
        return torch.baddbmm(-g.unsqueeze(1), weight.mT, U[:, :k]).squeeze(1)

    def _update(self, Bg: Tensor, g: Tensor, s: Tensor, moved: Tensor) -> Tensor:
        """B g with the B that the last step s teaches; `Bg` that of the B before."""
        if self.count == self.size:
            begin_anew(self.U, self.V, moved)
            self.count = 0
            return -g
        v = self._apply(self.V, self.U, s)  # B's
        curvature = (s * (Bg + s)).sum(-1, keepdim=True)  # s'B y
        # A step that teaches nothing, or is not finite, leaves B as it is.
        known = (curvature.abs() > 1e-12 * (s * s).sum(-1, keepdim=True)) & curvature.isfinite()
        known = known & moved
        u, v = torch.where(known, -Bg / curvature, 0.0), torch.where(known, v, 0.0)
        k, self.count = self.count, self.count + 1
        self.U[:, k] = torch.where(moved, u, self.U[:, k])
        self.V[:, k] = torch.where(moved, v, self.V[:, k])
        return Bg + u * (v * g).sum(-1, keepdim=True)


@dataclass(frozen=True)
class BroydenInverse(Operator):
    """(I - f')^-1 as the forward solve has learned it, I - U'V: the gradient costs two products.

    Biased, as much as the forward solve has not explored (Ramzi et al., "SHINE", ICLR 2022). It
    fails only where it is not finite.
    """

    U: Tensor
    V: Tensor
    on_failure: OnFailure = "warn"

    def solve(self, v: Tensor) -> Solution:
        return self._solution(v, self.U, self.V)

    def solve_transpose(self, v: Tensor) -> Solution:
        return self._solution(v, self.V, self.U)

    def _solution(self, v: Tensor, U: Tensor, V: Tensor) -> Solution:
        x = v - (U.mT @ (V @ v.unsqueeze(-1))).squeeze(-1)
        finite = x.isfinite().all(-1)
        status = torch.where(finite, int(Status.CONVERGED), int(Status.NUMERICAL_FAILURE))
        return Solution(x, status, torch.zeros_like(status), torch.full_like(x[..., 0], torch.nan))
