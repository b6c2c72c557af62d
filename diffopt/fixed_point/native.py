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
    """U and V of all samples, `(B, memory, n)`; a sample that is done goes on unused."""

    def __init__(self, step: Callable[..., None], z0: Tensor, memory: int) -> None:
        B, n = z0.shape
        self.step = step
        self.U, self.V = (z0.new_empty(B, memory, n) for _ in range(2))
        self.last_step = torch.empty_like(z0, memory_format=torch.contiguous_format)
        self.size, self.count, self.begun = memory, 0, False

    def propose(self, at: Evaluation) -> Tensor:
        """The next point, z - B g."""
        if self.count == self.size:
            self.count, self.begun = 0, False
        gap = at.gap.contiguous()
        parts = gap, self.U, self.V, self.last_step
        self.step(
            (*gap.shape, self.size, self.count), self.begun, torch.get_num_threads(),
            [v.data_ptr() for v in parts],
        )  # fmt: skip
        self.count, self.begun = self.count + self.begun, True
        return at.z + self.last_step
