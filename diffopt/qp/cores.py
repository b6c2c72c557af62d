"""What a compiled core takes and gives, whichever it is: `native` on a CPU, `cuda` on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .kkt import Blocks

# (samples, n, m, e, whether there are bounds)
Sizes = tuple[int, int, int, int, bool]
MOST = 2**31 - 1  # steps that a core can count


class Layout(NamedTuple):
    """What a core has to know of a batch besides its data.

    Attributes:
        sizes: see `Sizes`.
        numbers: the settings.
        plan: how the core works on such a batch.
    """

    sizes: Sizes
    numbers: tuple[float, ...]
    plan: tuple[int, ...]


class Lanes(NamedTuple):
    """What a core found, a sample each, in the user's units.

    Attributes:
        x: (z, nu, y), `(B, n + e + k)`.
        facts: the residuals primal, dual and gap, and the worst in both units, `(B, 4)`.
        active: +1 at an upper limit, -1 at a lower one, 0 elsewhere, int8 `(B, k)`.
        steps: `(B,)`.
        polished: whether the point is that of its active set, and good, bool `(B,)`.
        settled: polished, and no choice is left: no weakly active or dependent rows, bool `(B,)`.
    """

    x: Tensor
    facts: Tensor
    active: Tensor
    steps: Tensor
    polished: Tensor
    settled: Tensor

    @classmethod
    def empty(cls, sizes: Sizes, device: torch.device) -> Lanes:
        """Room for what the core finds."""
        size, n, m, e, bounded = sizes
        k = m + n if bounded else m
        return cls(
            room(device, size, n + e + k),
            room(device, size, 4),
            room(device, size, k, dtype=torch.int8),
            room(device, size, dtype=torch.int64),
            room(device, size, dtype=torch.bool),
            room(device, size, dtype=torch.bool),
        )


class Run(NamedTuple):
    """A solve by a core.

    Attributes:
        core: which it was.
        lanes: the answers.
        settled: how many samples are.
        layout, tape: for `apply_inverse`; no tape where it was not to be kept.
    """

    core: Core
    lanes: Lanes
    settled: int
    layout: Layout
    tape: Tensor | None


class Core(Protocol):
    """A compiled solver on one device."""

    def fits(self, sizes: Sizes) -> bool:
        """Whether problems of this size can be solved, and no other engine is better at it."""

    def solve(
        self,
        given: Mapping[str, Tensor],
        sizes: Sizes,
        numbers: tuple[float, ...],
        warm: Blocks | None,
        keep: bool,
    ) -> Run | None:
        """The solutions; None if the core cannot be used after all, which has been reported.

        Args:
            given: the arguments of `solve_qp` that are present, float64, `(B|1, ...)`.
            sizes, numbers: see `Layout`.
            warm: the solution of a similar problem.
            keep: whether a derivative may be asked for.
        """

    def apply_inverse(
        self, layout: Layout, tape: Tensor, v: Tensor, transpose: bool
    ) -> tuple[Tensor, Tensor, float]:
        """x = J^-1 v, or J^-T v, of the Jacobian J of the conditions, with the relative residuals
        and the worst of them."""

    def outer_products(
        self, sizes: Sizes, x: Tensor, u: Tensor, active: Tensor, out: Sequence[Tensor | None]
    ) -> bool:
        """Whether the gradients of the conditions have been written to `out`; None: not wanted."""


def room(device: torch.device, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Memory for a core, whatever the default device is."""
    return torch.empty(shape, dtype=dtype, device=device)


def packed(v: Tensor) -> Tensor:
    """`v` with the entries of a sample next to each other, and no sign yet to be changed."""
    v = v.detach().resolve_neg() if v.is_neg() else v
    return v if v.is_contiguous() or v[0].is_contiguous() else v.detach().contiguous()


def slice_of(v: Tensor) -> tuple[int, int, int]:
    """(address, entries to the next sample, entries to the next entry); 0 where all share it."""
    return v.data_ptr(), 0 if v.shape[0] == 1 else v.stride(0), 1
