"""What is different on a CUDA device: the host queues work there, and waits where it looks.

A look at one number (`bool(x.any())`, `x.item()`, `x.nonzero()`) waits until all that is queued is
done, and the device then idles until the host has queued more. So code that asks `on_cuda` first
looks seldom, and at numbers of a while ago (`Glance`); or it is queued at once, as a graph
(`capture`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

AHEAD = 2  # looks that a number is late: see `Glance`
_CAPTURES = threading.Lock()
WARM_UPS = 2  # calls before a capture, in which libraries find their algorithms and memory


def on_cuda(v: Tensor) -> bool:
    """Whether v is on a CUDA device: asked by all that works differently there."""
    return v.is_cuda


def queue(v: Tensor) -> int:
    """The stream on which work for v is queued, as a number; 0 where there is none."""
    return torch.cuda.current_stream(v.device).cuda_stream if v.is_cuda else 0


class Glance:
    """Numbers of the device as they were `AHEAD` looks ago, without waiting for those of now.

    A look waits for a copy that was queued `AHEAD` looks before, while the device has the work of
    these to do; so a host is never far ahead, and what it sees does not depend on how fast it is.
    """

    def __init__(self) -> None:
        self._copy: _Copy | None = None
        self._age = 0

    def look(self, numbers: Tensor) -> list[int] | None:
        """`numbers`, integers `(N,)`, of `AHEAD` looks ago; None while a copy is on its way."""
        self._age += 1
        seen = None
        if self._copy is not None and self._age >= AHEAD:
            seen, self._copy = self._copy.read(), None
        if self._copy is None:
            self._copy, self._age = _Copy(numbers), 0
        return seen


class _Copy:
    """A copy in the memory of the host, of numbers that may not have been computed yet."""

    def __init__(self, numbers: Tensor) -> None:
        held = torch.empty(  # on the CPU whatever the default device is
            numbers.shape, dtype=numbers.dtype, device="cpu", pin_memory=numbers.is_cuda
        )
        held.copy_(numbers, non_blocking=True)
        self._held = held.numpy()  # the same memory, which may be read without asking torch
        self._event: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(numbers.device))

    def read(self) -> list[int]:
        """The numbers, when they are there."""
        if self._event is not None:
            self._event.synchronize()
        numbers: list[int] = self._held.tolist()
        return numbers


def capture(work: Callable[[], None], like: Tensor) -> Callable[[], None]:
    """`work` on the device of `like` as one CUDA graph: a call queues all of its kernels at once.

    It reads and writes the same memory at each call, and must not look at a number. It is called
    a few times first, on a stream of its own, as the notes of torch on CUDA graphs ask for; while
    it is captured nothing is computed. One capture is under way at a time; a thread that waits for
    the whole device meanwhile ends it with an error.
    """
    with _CAPTURES, torch.cuda.device(like.device):
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                work()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            work()
    return graph.replay
