"""Histories on the CPU, by the compiled core: one pass over the memory of each sample a step.

The mathematics is that of `anderson` and `broyden`, in C++ (`diffopt/_native/history.hpp`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .loop import Evaluation


class AndersonHistory:
    """The last differences of all samples; one that is done goes on unused."""

    def __init__(
        self, step: Callable[..., None], z0: Tensor, memory: int, damping: float, ridge: float
    ) -> None:
        B, n = z0.shape
        self.step = step
        self.memory, self.damping, self.ridge = memory, damping, ridge
        self.images, self.gaps = (z0.new_empty(B, memory, n) for _ in range(2))
        self.gram = torch.zeros(B, memory, memory, dtype=torch.float64, device="cpu")
        self.last: list[Tensor] = []
        self.count = 0

    def propose(self, at: Evaluation) -> Tensor:
        """The next point."""
        image, gap = at.image.contiguous(), at.gap.contiguous()
        if not self.last:
            self.last = [image.clone(), gap.clone()]
            return at.z + self.damping * gap
        slot, self.count = self.count % self.memory, self.count + 1
        out = torch.empty_like(image)
        parts = image, gap, *self.last, self.images, self.gaps, self.gram, out
        sizes = *image.shape, self.memory, slot, min(self.count, self.memory)
        self.step(
            sizes, self.damping, self.ridge, torch.get_num_threads(), [v.data_ptr() for v in parts]
        )
        return out


class BroydenHistory:
    """U and V of all samples, `(B, memory, n)`; one that no longer moves keeps its own."""

    def __init__(self, step: Callable[..., None], z0: Tensor, memory: int) -> None:
        B, n = z0.shape
        self.step = step
        self.U, self.V = (z0.new_zeros(B, memory, n) for _ in range(2))
        self.last_step, self.last_gap = (z0.new_zeros(B, n) for _ in range(2))
        self.size, self.count, self.begun = memory, 0, False

    def propose(self, at: Evaluation) -> Tensor:
        """The next point, z - B g."""
        gap = at.gap.contiguous()
        if self.count == self.size:
            begin_anew(self.U, self.V, (gap != self.last_gap).any(-1, keepdim=True))
            self.count, self.begun = 0, False
        parts = gap, self.U, self.V, self.last_step, self.last_gap
        self.step(
            (*gap.shape, self.size, self.count), self.begun, torch.get_num_threads(),
            [v.data_ptr() for v in parts],
        )  # fmt: skip
        self.count, self.begun = self.count + self.begun, True
        return at.z + self.last_step


def begin_anew(U: Tensor, V: Tensor, moved: Tensor) -> None:
    """Forget what the samples that `moved` have learned."""
    for part in (U, V):
        part.copy_(torch.where(moved.unsqueeze(-1), 0.0, part))
