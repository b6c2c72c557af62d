"""One iteration over memory that stays where it is, captured once and replayed.

A CUDA graph is a list of kernels with their addresses. So there is a copy of the problem and one of
the state, written before the first iteration; an iteration reads both and overwrites the state.
The capture takes many times an iteration, and serves all later problems of the same shapes and
settings, whose data are copied to the same places.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import device
from .tree import mapped, tensors

KEPT = 8  # graphs of a thread; each holds the memory of a problem and of its iteration


class Replay:
    """The iteration `advance(problem, state) -> state` of problems that are alike."""

    def __init__(self, advance: Callable[[Any, Any], Any], problem: Any, state: Any) -> None:
        self._advance = advance
        with torch.inference_mode(False):  # they outlive the caller's mode
            self._problem, self._state = _own(problem), _own(state)
        self._work: Callable[[], None] | None = None

    def load(self, problem: Any) -> None:
        """Take the data of another problem."""
        _write(self._problem, problem)

    def __call__(self, state: Any) -> Any:
        """A state some iterations later (at the first call a few), in memory that is kept."""
        if state is not self._state:
            _write(self._state, state)
        if self._work is None:  # the calls before a capture are iterations too
            self._work = device.capture(self._iteration, next(tensors(state)))
        self._work()
        return self._state

    def _iteration(self) -> None:
        _write(self._state, self._advance(self._problem, self._state))


class _Kept(threading.local):
    """The replays of each thread, those used last at the end."""

    def __init__(self) -> None:
        self.replays: OrderedDict[Any, Replay] = OrderedDict()


_KEPT = _Kept()


def replayed(advance: Callable[[Any, Any], Any], problem: Any, state: Any) -> Replay:
    """The replay of `advance` for `problem`, made for the first problem like it in this thread.

    Args:
        advance: (problem, state) -> state; a function of a module, which looks at no number and
            returns new tensors only.
        problem, state: dataclasses or named tuples of tensors, and of values that can be compared.
    """
    replays, first = _KEPT.replays, next(tensors(state))
    key = advance, device.queue(first), mapped((problem, state), _kind)
    if key not in replays:
        replays[key] = Replay(advance, problem, state)
    replays.move_to_end(key)
    replays[key].load(problem)
    while len(replays) > KEPT:
        replays.popitem(last=False)
    return replays[key]


def _kind(v: Tensor) -> Any:
    return v.shape, v.dtype, v.device


def _own(part: Any) -> Any:
    """A copy of `part` with every tensor in memory of its own."""
    return mapped(part, lambda v: v.clone(memory_format=torch.contiguous_format))


def _write(held: Any, new: Any) -> None:
    for place, value in zip(tensors(held), tensors(new), strict=True):
        place.copy_(value)
