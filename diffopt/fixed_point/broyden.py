"""Broyden's method: a quasi-Newton inverse of the Jacobian, which the backward pass can use.

For the gap g(z) = f(z) - z the inverse B is kept by Broyden's "good" update (Math. Comp. 19, 1965),
with s the last step and y the change of g,

    B <- B + (s - B y) s'B / (s'B y),    B = -I at first.

After a full step, s = -B g(z), the steps say it all (Kelley, Iterative Methods for Linear and
Nonlinear Equations, 1995, section 7.3): with d = -B g(z + s) the next step is s+ = d s's / (s's -
s'd), which is -B g(z + s) with the new B, and

    B <- F B,    F = I + c s+ s',    c = 1 / s's.

So -B = F_(k-1) ... F_0, and k + 1 vectors hold it. Its product with x is

    x + sum_j a_j s_(j+1),    (I - L) a = c (s_0'x, ..., s_(k-1)'x),    L_ji = c_j s_j's_(i+1)

with i < j: L is lower triangular.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._native import kernel
from ..operators import Operator
from ..solution import OnFailure, Solution, Status, check_counts
from .loop import Map, Settings, run
from .native import BroydenHistory


@dataclass(frozen=True, kw_only=True)
class Broyden(Settings):
    """Limited-memory Broyden, with a memory of its own for every sample.

    Attributes:
        memory: number of updates that are kept, `memory` + 1 vectors; when it is full, the samples
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
        return run(self, f, z0, self._history(z0).look)

    def solve_with_inverse(self, f: Map, z0: Tensor) -> tuple[Solution, BroydenInverse]:
        """z, and what is known of the inverse of I - f' there."""
        history = self._history(z0)
        history.steps.zero_()
        out = run(self, f, z0, history.look)
        return out, BroydenInverse(history.steps, history.weights.to(z0.dtype))

    def _history(self, z0: Tensor) -> _History | BroydenHistory:
        step, memory = kernel("broyden_step", z0), min(self.memory, self.max_steps)
        if step is None:
            return _History(self, z0, memory)
        return BroydenHistory(self, step, z0, memory)


class _History:
    """The steps and weights of all samples; one that is done keeps its own."""

    def __init__(self, settings: Settings, z0: Tensor, memory: int) -> None:
        B, n = z0.shape
        self.settings, self.size, self.count = settings, memory, -1
        self.steps = z0.new_zeros(B, memory + 1, n)
        self.weights = z0.new_zeros(B, memory)
        self.products = z0.new_zeros(B, memory, memory)  # s_j's_(i+1), i < j
        self.expected = z0
        self.done = torch.zeros(B, dtype=torch.bool, device=z0.device)

    def look(self, z: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """The error of each sample, and the next point."""
        if self.settings.patience is not None:  # a stalled sample was held back
            self.done |= (z != self.expected).any(-1)
        gap = image - z
        error = self.settings.error(gap, image)
        done = self.done | ~((error > 1) & (error < torch.inf))
        if self.count == self.size:
            self.weights[~done], self.count = 0.0, -1
            moved = ~done
        else:  # from the last step too there is something to learn, for the backward pass
            moved = ~self.done & (error < torch.inf)
        self.done, self.count = done, self.count + 1
        d = self._step(gap, moved)
        self.expected = torch.where(done.unsqueeze(-1), z, z + d)
        return error, self.expected

    def _step(self, gap: Tensor, moved: Tensor) -> Tensor:
        """The next step, -B g, which is kept for those that `moved`."""
        S, k, own = self.steps, self.count, moved.unsqueeze(-1)
        d = self._learned(gap, own) if k > 0 else gap
        S[:, k] = torch.where(own, d, S[:, k])
        if 0 < k < self.size:
            row = (S[:, 1 : k + 1] @ d.unsqueeze(-1)).squeeze(-1)
            self.products[:, k, :k] = torch.where(own, row, self.products[:, k, :k])
        return d

    def _learned(self, gap: Tensor, own: Tensor) -> Tensor:
        """-B g with the B that the last step teaches."""
        j = self.count - 1
        factors = self.steps[:, : j + 1], self.weights[:, :j], self.products[:, :j, :j]
        d, s = _applied(*factors, gap), self.steps[:, j]
        length = (s * s).sum(-1, keepdim=True)
        curvature = length - (s * d).sum(-1, keepdim=True)  # s'B y
        # A step that teaches nothing, or is not finite, leaves B as it is.
        known = (curvature.abs() > 1e-12 * length) & (1 / length + curvature).isfinite()
        weight = torch.where(known, 1 / length, 0.0)
        self.weights[:, j : j + 1] = torch.where(own, weight, self.weights[:, j : j + 1])
        return torch.where(known, d * (length / curvature), d)


def _applied(S: Tensor, c: Tensor, products: Tensor, x: Tensor) -> Tensor:
    """-B x, from k + 1 steps, k weights and the products of the steps."""
    if c.shape[-1] == 0:
        return x
    right = c * (S[..., :-1, :] @ x.unsqueeze(-1)).squeeze(-1)
    a = _solved(c, products, right, False)
    return x + (S[..., 1:, :].mT @ a.unsqueeze(-1)).squeeze(-1)


def _solved(c: Tensor, products: Tensor, right: Tensor, transpose: bool) -> Tensor:
    """a with (I - L) a = right, or with I - L'."""
    L = -c.unsqueeze(-1) * products
    L, right = L.mT if transpose else L, right.unsqueeze(-1)
    return torch.linalg.solve_triangular(L, right, upper=transpose, unitriangular=True).squeeze(-1)


@dataclass(frozen=True)
class BroydenInverse(Operator):
    """(I - f')^-1 as the forward solve has learned it, -B: the gradient costs two products.

    Biased, as much as the forward solve has not explored (Ramzi et al., "SHINE", ICLR 2022). It
    fails only where it is not finite.

    Attributes:
        steps: s_0 to s_k, `(B, k + 1, n)`.
        weights: c, `(B, k)`.
    """

    steps: Tensor
    weights: Tensor
    on_failure: OnFailure = "warn"

    def solve(self, v: Tensor) -> Solution:
        return self._solution(v, _applied(self.steps, self.weights, self._products(), v))

    def solve_transpose(self, v: Tensor) -> Solution:
        """As `solve`, with the factors transposed: x + sum_j b_j c_j s_j."""
        S, c = self.steps, self.weights
        right = (S[..., 1:, :] @ v.unsqueeze(-1)).squeeze(-1)
        b = _solved(c, self._products(), right, True)
        return self._solution(v, v + (S[..., :-1, :].mT @ (c * b).unsqueeze(-1)).squeeze(-1))

    def _products(self) -> Tensor:
        S = self.steps
        return (S[..., :-1, :] @ S[..., 1:, :].mT).tril(-1)

    def _solution(self, v: Tensor, x: Tensor) -> Solution:
        finite = x.isfinite().all(-1)
        status = torch.where(finite, int(Status.CONVERGED), int(Status.NUMERICAL_FAILURE))
        return Solution(x, status, torch.zeros_like(status), x.new_full(x.shape[:-1], torch.nan))
