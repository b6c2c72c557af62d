"""The cuda engine: a team of threads for each QP, the whole method in one launch.

The kernel is the source of the compiled core (`diffopt/_native/kernel.cu`), compiled when it is
first needed, for each size of a team. What it does not settle, the reference engine does.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from ctypes import sizeof
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from .._native import driver, nvrtc
from .._native.driver import DriverError
from .._native.launcher import Launcher
from .._native.nvrtc import CompileError
from .._native.task import Answers, Batch, Gradients, Needs, Settings, Slice, Task, Warm
from .arguments import SHAPES
from .cores import Lanes, Layout, Run, Sizes, packed, room, slice_of
from .interior_point import InteriorPoint
from .kkt import Blocks

Size = tuple[int, int]
TEAMS = {32: 4, 64: 1, 128: 1, 256: 1}  # threads of a team: teams of a block


class Launches(Protocol):
    """What runs the kernels of `kernel.cu`.

    Attributes:
        fast_bytes: of fast memory that a block can have.
    """

    fast_bytes: int

    def measure(self, threads: int, teams: int, task: Task) -> Needs:
        """What a problem of the sizes in `task` needs."""

    def resident(self, threads: int, teams: int, fast_bytes: int) -> int:
        """How many teams, of which a block has `teams`, work at the same time."""

    def launch(self, kernel: str, threads: int, teams: int, count: int, task: Task) -> None:
        """Run `count` teams, `teams` of them a block."""


# type of a device: what launches there; why a device has proved unusable
LAUNCHERS: dict[str, Callable[[torch.device], Launches]] = {"cuda": Launcher}
FAILED: dict[torch.device, str] = {}


def unavailable(solver: InteriorPoint, device: torch.device) -> str | None:
    """Why the engine cannot serve; None if it can."""
    if sys.platform == "win32":
        return "its kernels are not for Windows, whose long integers are short"
    if device.type not in LAUNCHERS:
        return f"it runs on a CUDA device, but p is on {device}"
    if device.type == "cuda" and (torch.version.cuda is None or not torch.cuda.is_available()):
        return "torch finds no CUDA device"
    if solver.dtype != torch.float64:
        return f"it works in float64, but dtype is {solver.dtype}"
    if solver.cuda_graph:
        return "it has no graphs, which cuda_graph=True asks the torch engine for"
    return "it does not log its steps, but verbose is True" if solver.verbose else None


def absent() -> str | None:
    """What this machine lacks for the engine; None if nothing."""
    why = unavailable(InteriorPoint(), torch.device("cuda")) or next(iter(FAILED.values()), None)
    missing = (where for library, where in (nvrtc.find(), driver.find()) if library is None)
    return why or next(missing, None)


@dataclass(frozen=True)
class Kernels:
    """The `Core` of a CUDA device."""

    device: torch.device

    def fits(self, sizes: Sizes) -> bool:
        """Whether the factor, and what else the derivative reads, has room in shared memory."""
        if self.device in FAILED:
            return False
        with _Reported(self.device):
            return _team(self.device, sizes[1:]) is not None
        return False

    def solve(
        self,
        given: Mapping[str, Tensor],
        sizes: Sizes,
        numbers: tuple[float, ...],
        warm: Blocks | None,
        keep: bool,
    ) -> Run | None:
        with _Reported(self.device):
            return self._solve(given, sizes, numbers, warm, keep)
        return None

    def _solve(
        self,
        given: Mapping[str, Tensor],
        sizes: Sizes,
        numbers: tuple[float, ...],
        warm: Blocks | None,
        keep: bool,
    ) -> Run:
        held = {k: packed(given[k]) for k in SHAPES if k in given}
        start = [v.contiguous().resolve_neg() for v in warm] if warm is not None else []
        lanes, layout = Lanes.empty(sizes, self.device), Layout(sizes, numbers, ())
        task, count, _work = self._task(layout)  # what is held until the kernel is launched
        for name, v in held.items():
            setattr(task.batch, name, Slice(*slice_of(v)))
        task.warm = Warm(*(v.data_ptr() for v in start))
        task.answers = Answers(*(v.data_ptr() for v in lanes))
        store = self._room((sizes[0] if keep else count) * (task.matrix_bytes + task.tape_bytes))
        task.store, task.keep = store.data_ptr(), keep
        self._launch("solve_all", sizes, count, task)
        settled = int(lanes.settled.sum())
        return Run(self, lanes, settled, layout, store if keep else None)

    def apply_inverse(
        self, layout: Layout, tape: Tensor, v: Tensor, transpose: bool
    ) -> tuple[Tensor, Tensor, float]:
        x, error = torch.zeros_like(v), v.new_ones(v.shape[0])
        with _Reported(self.device):
            self._apply_inverse(layout, tape, (v, x, error), transpose)
        return x, error, float(error.amax())

    def _apply_inverse(
        self, layout: Layout, tape: Tensor, vectors: Sequence[Tensor], transpose: bool
    ) -> None:
        task, count, _work = self._task(layout)
        task.store, task.transpose, task.fast_matrices = tape.data_ptr(), transpose, False
        task.v, task.x, task.error = (v.data_ptr() for v in vectors)
        self._launch("apply_inverse_all", layout.sizes, count, task)

    def outer_products(
        self, sizes: Sizes, x: Tensor, u: Tensor, active: Tensor, out: Sequence[Tensor | None]
    ) -> bool:
        task = Task(batch=_batch(sizes), v=u.data_ptr())
        task.answers.x, task.answers.active = x.data_ptr(), active.data_ptr()
        task.gradients = Gradients(*(0 if v is None else v.data_ptr() for v in out))
        with _Reported(self.device):
            self._launch("pull_back_all", sizes, sizes[0], task)
            return True
        return False

    def _task(self, layout: Layout) -> tuple[Task, int, Tensor]:
        """(the sizes, the settings and the memory of the teams; how many teams; that memory)."""
        sizes = layout.sizes
        (threads, teams), needs = _needs(self.device, sizes[1:])
        most, resident = _fast_bytes(self.device, teams), _launcher(self.device).resident
        vectors = needs.tape_bytes + needs.vector_bytes
        # As much of a problem as leaves room for all problems at once.
        levels = vectors + needs.base_bytes + needs.matrix_bytes, vectors + needs.base_bytes
        ample = (k for k in levels if k <= most and resident(threads, teams, k) >= sizes[0])
        fast = next(ample, min(vectors, most))
        work_bytes = needs.vector_bytes + needs.base_bytes + needs.moment_bytes
        count = -(-min(sizes[0], resident(threads, teams, fast)) // teams) * teams
        work = self._room(count * work_bytes)
        task = Task(
            batch=_batch(sizes), settings=Settings(*layout.numbers), work=work.data_ptr(),
            matrix_bytes=needs.matrix_bytes, tape_bytes=needs.tape_bytes,
            work_bytes=work_bytes, fast_bytes=fast, fast_matrices=fast == levels[0],
        )  # fmt: skip
        return task, count, work

    def _room(self, size: int) -> Tensor:
        return room(self.device, size // 8)

    def _launch(self, kernel: str, sizes: Sizes, count: int, task: Task) -> None:
        team = _team(self.device, sizes[1:])
        assert team is not None  # or `fits` had said so
        try:
            _launcher(self.device).launch(kernel, *team, count, task)
        except DriverError as error:
            if "OUT_OF_MEMORY" not in str(error):
                raise
            torch.cuda.empty_cache()  # what torch holds the driver cannot give to the kernel
            _launcher(self.device).launch(kernel, *team, count, task)


class _Reported:
    """In it, a failure of the compiler or of the driver is warned of, and ends the engine."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> bool:
        if not isinstance(error, CompileError | DriverError):
            return False
        if self.device not in FAILED:
            FAILED[self.device] = f"it cannot be used on {self.device}: {error}"
            warnings.warn(
                f"the cuda engine of solve_qp {FAILED[self.device]}\n"
                "The torch engine, which is slower, solves instead.",
                RuntimeWarning,
                stacklevel=2,
            )
        return True


@cache
def _launcher(device: torch.device) -> Launches:
    return LAUNCHERS[device.type](device)


@cache
def _needs(device: torch.device, shape: tuple[int, int, int, bool]) -> tuple[Size, Needs]:
    """(threads of a team and teams of a block, the bytes that a problem needs) for n, m, e and
    whether there are bounds.

    A team has a thread for each column of the factor, up to 256; a larger one where the memory of
    a block, divided among its teams, would be too small.
    """
    columns, largest = shape[0] + shape[2], max(TEAMS)
    for threads, teams in TEAMS.items():
        if columns <= threads or threads == largest:
            needs = _launcher(device).measure(threads, teams, Task(batch=_batch((1, *shape))))
            assert needs.task_bytes == sizeof(Task), (needs.task_bytes, sizeof(Task))
            if needs.tape_bytes <= _fast_bytes(device, teams) or teams == 1:
                break
    return (threads, teams), needs


def _team(device: torch.device, shape: tuple[int, int, int, bool]) -> Size | None:
    """(threads of a team, teams of a block); None where the tape does not fit a block."""
    size, needs = _needs(device, shape)
    return size if needs.tape_bytes <= _fast_bytes(device, size[1]) else None


def _batch(sizes: Sizes) -> Batch:
    return Batch(*sizes)


def _fast_bytes(device: torch.device, teams: int) -> int:
    """The fast memory that each of so many teams of a block can have."""
    return _launcher(device).fast_bytes // teams // 16 * 16
