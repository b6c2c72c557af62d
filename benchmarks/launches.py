"""How many pieces of work a call hands to a device, each of which has a cost of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

# What a device does besides kernels, by the names that the profiler gives to it.
COPIES = ("Memcpy", "Memset")


def launches(call: Callable[[], object], device: torch.device) -> int | None:
    """On a CUDA device the kernels that ran, of torch or not, None if the profiler sees none there;
    elsewhere the operations of torch that were dispatched, views included. Work of compiled code on
    the CPU is not seen."""
    return kernels(call, device) if device.type == "cuda" else operations(call)


def kernels(call: Callable[[], object], device: torch.device) -> int | None:
    """The kernels that ran on a CUDA device."""
    probe = torch.ones(1, device=device)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        probe + probe  # a kernel of our own: is it seen?
        call()
        torch.cuda.synchronize()
    count = sum(is_kernel(event) for event in record.events())
    return count - 1 if count else None


def is_kernel(event: Any) -> bool:
    """Whether an event of the profiler is a kernel that ran on a CUDA device."""
    return event.device_type == DeviceType.CUDA and not event.name.startswith(COPIES)


def operations(call: Callable[[], object]) -> int:
    """The operations of torch that were dispatched."""
    with Counter() as counter:
        call()
    return counter.count


class Counter(TorchDispatchMode):
    """Counts the operations that are dispatched under it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))
