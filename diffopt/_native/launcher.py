"""The kernels of `kernel.cu` on a CUDA device: compiled once for each size of a team, launched."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from ctypes import c_void_p, sizeof
from functools import cache
from pathlib import Path

import torch

from . import driver, nvrtc
from .task import Needs, Task

LOG = logging.getLogger("diffopt")
FOLDER, MAIN = Path(__file__).parent, "kernel.cu"
KERNELS = ("solve_all", "apply_inverse_all", "pull_back_all", "measure")
# What the kernels themselves have of shared memory, and the driver keeps of it, in each block.
RESERVED = 2048
REGISTERS = 65536  # of a multiprocessor, since 2014


@cache
def sources() -> Mapping[str, str]:
    """`kernel.cu` and what it includes, by name."""
    found, wanted = {}, [MAIN]
    while wanted:
        name = wanted.pop()
        found[name] = (FOLDER / name).read_text(encoding="utf-8")
        wanted += set(re.findall(r'^#include "(\S+)"', found[name], re.M)) - set(found)
    return found


def image(threads: int, teams: int, arch: str) -> bytes:
    """The kernels for teams of so many `threads`, so many `teams` a block.

    Raises:
        CompileError: with what the compiler says.
    """
    defines = {"DIFFOPT_THREADS": threads, "DIFFOPT_TEAMS": teams}
    return nvrtc.compile(f"team_{threads}", sources(), MAIN, arch, defines)


class Launcher:
    """The kernels on one device, in torch's current stream.

    Attributes:
        fast_bytes: of shared memory that the teams of a block can have.
    """

    def __init__(self, device: torch.device) -> None:
        torch.cuda.init()
        self.device = device
        self.fast_bytes = driver.shared_limit(device) - RESERVED
        self._multiprocessors = driver.multiprocessors(device)
        self._loaded: dict[tuple[int, int], dict[str, driver.Function]] = {}

    def measure(self, threads: int, teams: int, task: Task) -> Needs:
        """What a problem of the sizes in `task` needs; waits for the device."""
        room = torch.zeros(sizeof(Needs) // 8, dtype=torch.int64, device=self.device)
        kernel = self._kernels(threads, teams)["measure"]
        with torch.cuda.device(self.device):
            kernel.launch(1, 32, 0, self._stream(), task, c_void_p(room.data_ptr()))
        return Needs(*room.tolist())

    def resident(self, threads: int, teams: int, fast_bytes: int) -> int:
        """How many teams work at the same time, `teams` of them a block."""
        with torch.cuda.device(self.device):
            registers = self._kernels(threads, teams)["solve_all"].registers()
        by_registers = REGISTERS // (registers * threads * teams)
        by_memory = (self.fast_bytes + RESERVED) // (fast_bytes * teams + RESERVED)
        return self._multiprocessors * teams * max(1, min(by_registers, by_memory))

    def launch(self, kernel: str, threads: int, teams: int, count: int, task: Task) -> None:
        """Run `count` teams, `teams` of them a block, with `task.fast_bytes` each."""
        function = self._kernels(threads, teams)[kernel]
        blocks, shared = -(-count // teams), teams * task.fast_bytes
        with torch.cuda.device(self.device):
            function.launch(blocks, threads * teams, shared, self._stream(), task)

    def _stream(self) -> int:
        return torch.cuda.current_stream(self.device).cuda_stream

    def _kernels(self, threads: int, teams: int) -> dict[str, driver.Function]:
        """The kernels for such teams, loaded when they are first needed."""
        if (threads, teams) not in self._loaded:
            major, minor = torch.cuda.get_device_capability(self.device)
            LOG.info("compiling the kernels of solve_qp for teams of %d threads", threads)
            compiled = image(threads, teams, f"sm_{major}{minor}")
            with torch.cuda.device(self.device):
                module = driver.Module(compiled)
                kernels = {name: module.function(name) for name in KERNELS}
                for name in KERNELS[:2]:
                    kernels[name].allow_shared(self.fast_bytes)
            self._loaded[threads, teams] = kernels
        return self._loaded[threads, teams]
