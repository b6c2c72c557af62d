"""Histories on the CPU, by the compiled core: one pass over the memory of each sample a step.

The mathematics is that of `anderson` and `broyden`, in C++ (`diffopt/_native/history.hpp`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .loop import Settings


class _Looking:
    """What the histories share: which samples are done, and the call."""

    def __init__(self, settings: Settings, step: Callable[..., None], z0: Tensor) -> None:
        self.tolerance, self.step = (settings.rtol, settings.atol), step
        self.stalls, self.expected = settings.patience is not None, z0
        self.done = torch.zeros(len(z0), dtype=torch.bool, device="cpu")
        self.count = torch.full((len(z0),), -1, dtype=torch.int64, device="cpu")

    def _looked(
        self, z: Tensor, image: Tensor, memory: int, options: tuple[float, ...], *held: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The error of each sample, and the next point."""
        if self.stalls:  # that is seen from outside only: such a sample was held back
            self.done |= (z != self.expected).any(-1)
        z, image = z.contiguous(), image.contiguous()
        error, following = z.new_empty(z.shape[0]), torch.empty_like(z)
        parts = z, image, following, error, self.done, *held, self.count
        self.step(
            (*z.shape, memory), self.tolerance, *options, torch.get_num_threads(),
            [v.data_ptr() for v in parts],
        )  # fmt: skip
        self.expected = following
        return error, following


class AndersonHistory(_Looking):
    """The last differences of all samples, each with a count of its own."""

    def __init__(
        self, settings: Settings, step: Callable[..., None], z0: Tensor, memory: int,
        damping: float, ridge: float,
    ) -> None:  # fmt: skip
        super().__init__(settings, step, z0)
        B, n = z0.shape
        self.memory, self.options = memory, (damping, ridge)
        self.last = torch.empty_like(z0), torch.empty_like(z0)
        self.differences = z0.new_empty(B, memory, n), z0.new_empty(B, memory, n)
        self.gram = torch.zeros(B, memory, memory, dtype=torch.float64, device="cpu")

    def look(self, z: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """The error of each sample, and the next point."""
        held = *self.last, *self.differences, self.gram
        return self._looked(z, image, self.memory, self.options, *held)


class BroydenHistory(_Looking):
    """The steps and weights of all samples, see `broyden`."""

    def __init__(
        self, settings: Settings, step: Callable[..., None], z0: Tensor, memory: int
    ) -> None:
        super().__init__(settings, step, z0)
        B, n = z0.shape
        self.memory = memory
        self.steps = z0.new_empty(B, memory + 1, n)
        self.weights = torch.zeros(B, memory, dtype=torch.float64, device="cpu")

    def look(self, z: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """The error of each sample, and the next point."""
        return self._looked(z, image, self.memory, (), self.steps, self.weights)
