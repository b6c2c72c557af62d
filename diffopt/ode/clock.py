"""The clocks of the samples: where each is, the step that it tries next, and how far it got."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _native
from .control import BEST, LONGEST, SAFETY, SHORTEST, exponents, next_step
from .methods import Adaptive
from .step import nodes


class Clock(NamedTuple):
    """One for each sample, `(B,)` all.

    Attributes:
        t: the time.
        h: the step to try next, with its sign.
        end: where the sample stops: at its last time, or where it failed.
        before: the error of the last accepted step.
        accepted, tried: counts of steps, int64.
    """

    t: Tensor
    h: Tensor
    end: Tensor
    before: Tensor
    accepted: Tensor
    tried: Tensor

    def stride(self, c: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        """The step to try, no longer than to the end, `(B,)`, and the times t + c h in it."""
        native = self._native("stride")
        if native is not None:
            h, times = torch.empty_like(self.t), self.t.new_empty(len(c), len(self.t))
            native(len(self.t), self._addresses(), c, h.data_ptr(), times.data_ptr())
            return h, times
        left = self.end - self.t
        h = torch.where(self._cut(), left, self.h)
        return h, self.t + nodes(c, h.device) * h

    def advance(self, solver: Adaptive, step: Tensor, error: Tensor) -> tuple[Clock, bool, bool]:
        """The clocks after `step` whose `error` is at most 1 where it is accepted.

        Returns:
            the clocks, whether all samples were accepted, whether one of them has not arrived.
        """
        native = self._native("advance")
        if native is not None and not step.requires_grad and not error.requires_grad:
            t, h, before = torch.empty((3, len(step)), dtype=step.dtype, device="cpu").unbind(0)
            counts = torch.empty((2, len(step)), dtype=torch.int64, device="cpu").unbind(0)
            to = [v.data_ptr() for v in (t, h, before, *counts)]
            constants = *exponents(solver), SAFETY, SHORTEST, LONGEST, solver.max_step
            flags = native(
                len(step), self._addresses(), constants, step.data_ptr(), error.data_ptr(), to
            )
            return Clock(t, h, self.end, before, *counts), *flags
        ok, running = error <= 1, self.t != self.end
        t = torch.where(ok, torch.where(self._cut(), self.end, self.t + step), self.t)
        # the steps are constants, unless their choice is differentiated as well
        tried = step if error.requires_grad else step.detach()
        h = next_step(solver, tried, error, self.before, ok)
        before = torch.where(ok, error.clamp_min(BEST), self.before)
        counts = self.accepted + (ok & running), self.tried + running
        new = Clock(t, h, self.end, before, *counts)
        return new, bool(ok.all()), bool((t != self.end).any())

    def _cut(self) -> Tensor:
        """Whether the step would lead to the end, or beyond."""
        return self.h.abs() >= (self.end - self.t).abs()

    def _native(self, name: str) -> Callable[..., Any] | None:
        recorded = self.t.requires_grad or self.h.requires_grad or self.end.requires_grad
        return None if recorded else _native.kernel(name, self.t)

    def _addresses(self) -> list[int]:
        return [v.data_ptr() for v in self]
