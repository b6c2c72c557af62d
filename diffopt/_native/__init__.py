"""The compiled core for CPUs, in the build for the instructions that this processor has.

`core` is the extension module, and `reason` the name of its build; or None, and why. The extension
is optional: it is compiled at installation where a C++ compiler is found, once for each build.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch

# what torch calls the processor's vector instructions: the builds that run there, best first
BUILDS = {"AVX512": ("avx512", "avx2", "base"), "AVX2": ("avx2", "base")}


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
