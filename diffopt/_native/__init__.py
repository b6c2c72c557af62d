"""The compiled core for CPUs, in the build for the instructions that this processor has.

`core` is the extension module, and `reason` the name of its build; or None, and why. The extension
is optional: it is compiled at installation where a C++ compiler is found, once for each build.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# what torch calls the processor's vector instructions: the builds that run there, best first
BUILDS = {"AVX512": ("avx512", "avx2", "base"), "AVX2": ("avx2", "base")}


SUFFIX = {torch.float32: "32", torch.float64: "64"}


def kernel(name: str, v: Tensor) -> Callable[..., Any] | None:
    """The function `name` of the core for plain tensors like v; None if the core cannot serve."""
    # torch.no_grad does not end the forward mode
    traced = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    if core is None or v.device.type != "cpu" or v.dtype not in SUFFIX or traced:
        return None
    # an extension that was built before this function came has it not
    found: Callable[..., Any] | None = getattr(core, f"{name}_{SUFFIX[v.dtype]}", None)
    return found


def _load() -> tuple[ModuleType | None, str]:
    why = "no build found"
    for name in BUILDS.get(torch.backends.cpu.get_cpu_capability(), ("base",)):
        try:
            return import_module(f"{__name__}.{name}"), name
        except ModuleNotFoundError:
            why = "not compiled: install with a C++17 compiler (GCC or Clang) at hand"
        except ImportError as error:
            why = f"cannot be loaded: {error}"
    return None, why


core, reason = _load()
