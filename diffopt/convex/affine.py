"""A block of a program's data as a function of the parameters: `Affine`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .entries import Array, Entries

# A parameter that stands in more places than this in one block is gathered, not copied.
COPIES = 64


@dataclass(frozen=True)
class Placed:
    """A whole parameter in some rows and columns of a block.

    Strided copies are many times faster than gathers, forward and backward.
    """

    parameter: int
    shape: tuple[int, int]  # that the parameter is seen in
    transposed: bool
    weight: float
    rows: slice
    cols: slice
    fills: bool  # there is nothing else in the block

    def added_to(self, block: Tensor, values: Sequence[Tensor]) -> Tensor:
        """`block` `(B|1, rows, cols)` with this term."""
        part = values[self.parameter].unflatten(-1, self.shape)
        part = part.mT if self.transposed else part
        part = part if self.weight == 1 else self.weight * part
        if self.fills:
            return part
        block = block.expand(samples(block, part), -1, -1)
        band = block[:, self.rows]
        new = band[..., self.cols] + part
        band = band.slice_scatter(new, -1, self.cols.start, self.cols.stop, self.cols.step)
        return block.slice_scatter(band, -2, self.rows.start, self.rows.stop, self.rows.step)


@dataclass(frozen=True)
class Scattered:
    """What one parameter adds to a block, entry by entry: `weight * value[source]` at `target`."""

    parameter: int
    source: Tensor
    target: Tensor
    weight: Tensor

    def added_to(self, block: Tensor, values: Sequence[Tensor]) -> Tensor:
        """`block` `(B|1, rows, cols)` with this term."""
        value = values[self.parameter]
        part = value.gather(-1, self.source.expand(len(value), -1)) * self.weight
        size = samples(block, part)
        flat, target = block.flatten(1).expand(size, -1), self.target.expand(size, -1)
        out = flat.scatter_add(-1, target, part.expand(size, -1))
        return out.unflatten(-1, block.shape[1:])


@dataclass(frozen=True)
class Affine:
    """A block as a function of the parameters.

    Attributes:
        constant: `(1, rows, cols)`.
        terms: what the parameters add to it.
    """

    constant: Tensor
    terms: tuple[Placed | Scattered, ...]

    @classmethod
    def of(
        cls, entries: Entries, shape: tuple[int, int], shapes: Sequence[tuple[int, ...]]
    ) -> Affine | None:
        """The block of `shape` that holds `entries`, None if there are none.

        Args:
            shapes: of the parameters.
        """
        if not len(entries):
            return None
        constant = np.zeros(shape)
        np.add.at(constant, (entries.row, entries.col), entries.offsets())
        terms: list[Placed | Scattered] = []
        start = 0
        for parameter, own in enumerate(shapes):
            part = entries.weights[:, start : start + math.prod(own)].tocoo()
            use = Use(part.col, entries.row[part.row], entries.col[part.row], part.data)
            terms += use.terms(parameter, own, shape)
            start += math.prod(own)
        if len(terms) == 1 and not constant.any():
            terms = [_alone(terms[0], shape)]
        return cls(torch.from_numpy(constant).unsqueeze(0), tuple(terms))

    def __call__(self, values: Sequence[Tensor]) -> Tensor:
        """The block, `(B|1, rows, cols)`, for parameters `(B|1, size)` each."""
        block = self.constant
        for term in self.terms:
            block = term.added_to(block, values)
        return block


@dataclass(frozen=True)
class Use:
    """Where the entries of one parameter go in a block: `(k,)` each."""

    source: Array
    row: Array
    col: Array
    weight: Array

    def terms(
        self, parameter: int, own: tuple[int, ...], shape: tuple[int, int]
    ) -> list[Placed | Scattered]:
        """As copies of the whole parameter if that is what they are, else entry by entry."""
        if not len(self.source):
            return []
        copies = self._copies(math.prod(own))
        placed = [_placed(parameter, own, copy) for copy in copies]
        if placed and all(placed):
            return [p for p in placed if p is not None]
        target = self.row * shape[1] + self.col
        triple = (torch.from_numpy(np.array(v)) for v in (self.source, target, self.weight))
        return [Scattered(parameter, *triple)]

    def _copies(self, size: int) -> list[Use]:
        """The first use of every entry, the second, and so on; none if some entries lack one."""
        count = len(self.source) // size
        if count * size != len(self.source) or not 0 < count <= COPIES:
            return []
        order = np.lexsort((self.col, self.row, self.source))
        if (self.source[order].reshape(size, count) != np.arange(size)[:, None]).any():
            return []
        of_copy = order.reshape(size, count).T  # sorted by source within each
        return [Use(*(v[k] for v in (self.source, self.row, self.col, self.weight)))
                for k in of_copy]  # fmt: skip


def samples(*tensors: Tensor) -> int:
    """The size of a batch of which some tensors are shared, with one sample."""
    return next((len(v) for v in tensors if len(v) != 1), 1)


def _placed(parameter: int, own: tuple[int, ...], copy: Use) -> Placed | None:
    """One copy of a parameter as a rectangle of the block, if it is one."""
    shape = (own[0], math.prod(own[1:])) if own else (1, 1)
    row, col = copy.row.reshape(shape), copy.col.reshape(shape)
    if (copy.weight != copy.weight[0]).any():
        return None
    for transposed in (False, True):
        r, c = (row.T, col.T) if transposed else (row, col)
        rows, cols = _progression(r[:, 0]), _progression(c[0])
        if rows and cols and (r == r[:, :1]).all() and (c == c[:1]).all():
            weight = float(copy.weight[0])
            return Placed(parameter, shape, transposed, weight, rows, cols, fills=False)
    return None


def _progression(v: Array) -> slice | None:
    """`v` as a slice with a positive step, if it is one."""
    step = int(v[1] - v[0]) if len(v) > 1 else 1
    if step < 1 or (np.diff(v) != step).any():
        return None
    return slice(int(v[0]), int(v[-1]) + 1, step)


def _alone(term: Placed | Scattered, shape: tuple[int, int]) -> Placed | Scattered:
    """`term`, which has nothing beside it: it need not be added if it covers the block."""
    whole = slice(0, shape[0], 1), slice(0, shape[1], 1)
    if isinstance(term, Placed) and (term.rows, term.cols) == whole:
        return replace(term, fills=True)
    return term
