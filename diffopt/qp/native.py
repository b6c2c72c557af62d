"""The native engine: many QPs at once in the SIMD lanes of a CPU, by the compiled core.

Here addresses are taken and memory is laid out; the mathematics is that of the reference engine,
in C++ (`diffopt/_native`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .._native import core, reason
from .arguments import SHAPES
from .cores import Lanes, Layout, Run, Sizes, packed, room, slice_of
from .interior_point import InteriorPoint
from .kkt import Blocks

ABSENT = (0, 0, 0)  # address and strides
CPU = torch.device("cpu")  # made once: from a string it costs as much as the memory


def unavailable(solver: InteriorPoint, device: torch.device) -> str | None:
    """Why the core cannot serve; None if it can."""
    if core is None:
        return f"the compiled core is not there ({reason})"
    if device.type != "cpu":
        return f"it runs on the CPU, but p is on {device}"
    if solver.dtype != torch.float64:
        return f"it works in float64, but dtype is {solver.dtype}"
    return "it does not log its steps, but verbose is True" if solver.verbose else None


class Native:
    """The `Core` of CPUs."""

    def fits(self, sizes: Sizes) -> bool:
        return True

    def solve(
        self,
        given: Mapping[str, Tensor],
        sizes: Sizes,
        numbers: tuple[float, ...],
        warm: Blocks | None,
        keep: bool,
    ) -> Run:
        assert core is not None
        held = [packed(given[k]) if k in given else None for k in SHAPES]
        slices = [ABSENT if v is None else slice_of(v) for v in held]
        plan, size = core.plan(sizes, slices, numbers)
        tape = room(CPU, size // 8 + 1) if keep else None
        lanes = Lanes.empty(sizes, CPU)
        start = [v.contiguous().resolve_neg() for v in warm] if warm is not None else []
        settled = core.solve(
            sizes, slices, numbers, plan, tape.data_ptr() if tape is not None else 0,
            torch.get_num_threads(), [v.data_ptr() for v in start] or [0, 0, 0],
            [v.data_ptr() for v in lanes],
        )  # fmt: skip
        return Run(self, lanes, settled, Layout(sizes, numbers, plan), tape)

    def apply_inverse(
        self, layout: Layout, tape: Tensor, v: Tensor, transpose: bool
    ) -> tuple[Tensor, Tensor, float]:
        assert core is not None
        # Saved and read back by a hook, the tape may lie anywhere.
        tape = tape if tape.data_ptr() % 64 == 0 else tape.clone()
        x, error = torch.empty_like(v), v.new_empty(v.shape[0])
        worst = core.apply_inverse(
            *layout, tape.data_ptr(), torch.get_num_threads(), transpose,
            v.data_ptr(), x.data_ptr(), error.data_ptr(),
        )  # fmt: skip
        return x, error, worst

    def outer_products(
        self, sizes: Sizes, x: Tensor, u: Tensor, active: Tensor, out: Sequence[Tensor | None]
    ) -> bool:
        assert core is not None
        addresses = [0 if v is None else v.data_ptr() for v in out]
        core.outer_products(
            sizes, torch.get_num_threads(), x.data_ptr(), u.data_ptr(), active.data_ptr(), addresses
        )
        return True
