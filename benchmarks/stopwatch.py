"""A stopwatch for calls on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Stopwatch:
    """Times calls whose work is on `device`.

    On the CPU by `time.perf_counter`. On a CUDA device by a pair of events on the current stream,
    recorded when the device has nothing left to do, and waited for: the time from the call until
    the device has done what was asked, with all that the CPU does in between. Work on a stream of
    its own counts only as far as the current stream waits for it.
    """

    device: torch.device

    def time(self, call: Callable[[], T]) -> tuple[T, float]:
        """What `call` returns, and the seconds that it took."""
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                return self._by_events(call)
        start = time.perf_counter()
        out = call()
        return out, time.perf_counter() - start

    def _by_events(self, call: Callable[[], T]) -> tuple[T, float]:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        before.record()
        out = call()
        after.record()
        torch.cuda.synchronize()
        return out, before.elapsed_time(after) / 1e3  # of milliseconds
