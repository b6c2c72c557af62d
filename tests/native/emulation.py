"""The kernels of the cuda engine on a CPU: the same source, compiled as C++."""

from __future__ import annotations

from contextlib import contextmanager
from ctypes import addressof
from dataclasses import dataclass
from importlib.util import find_spec

from diffopt._native.task import Needs, Task
from diffopt.qp import cuda

COMPILED = find_spec("diffopt._native.emulation") is not None
if COMPILED:
    from diffopt._native import emulation


@dataclass(frozen=True)
class Emulation:
    """What launches the kernels on a CPU.

    Attributes:
        threads: of a team, threads of the CPU that run at the same time.
        fast_bytes: of fast memory; what does not fit lies elsewhere.
        teams: how many share the problems.
    """

    threads: int = 1
    fast_bytes: int = 232448 - 2048  # of an H100
    teams: int = 3

    def measure(self, threads: int, teams: int, task: Task) -> Needs:
        needs = Needs()
        emulation.measure(addressof(task), addressof(needs))
        return needs

    def resident(self, threads: int, teams: int, fast_bytes: int) -> int:
        return self.teams

    def launch(self, kernel: str, threads: int, teams: int, count: int, task: Task) -> None:
        getattr(emulation, kernel)(addressof(task), count, self.threads)


@contextmanager
def emulated(launcher: Emulation = Emulation()):
    """In it, engine="cuda" works for tensors on the CPU."""
    caches = cuda._launcher, cuda._needs
    for known in caches:
        known.cache_clear()
    cuda.LAUNCHERS["cpu"] = lambda device: launcher
    try:
        yield launcher
    finally:
        del cuda.LAUNCHERS["cpu"]
        cuda.FAILED.clear()
        for known in caches:
            known.cache_clear()
