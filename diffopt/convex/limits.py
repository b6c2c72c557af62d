"""Rows with one entry as the bounds of unknowns: `Limits`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .entries import Array
from .presolve import Bound


@dataclass(frozen=True)
class Limits:
    """Bounds of some of the unknowns that are kept: entries of b over the coefficients.

    Attributes:
        unknowns, coefficients: `(k,)`.
        all: whether every unknown has one, in order.
    """

    unknowns: Tensor
    coefficients: Tensor
    all: bool

    @classmethod
    def of(cls, bounds: Sequence[Bound], kept: Array) -> Limits:
        """Those of one side."""
        place = {int(j): k for k, j in enumerate(kept)}
        unknowns = torch.tensor([place[b.unknown] for b in bounds], dtype=torch.int64)
        coefficients = torch.tensor([b.coefficient for b in bounds], dtype=torch.float64)
        return cls(unknowns, coefficients, unknowns.tolist() == list(range(len(kept))))

    def bounds(self, b: Tensor, n: int, absent: float) -> Tensor | None:
        """The bounds of n unknowns, `(B|1, n)`, for entries `b` `(B|1, k)`; None without any."""
        if not len(self.unknowns):
            return None
        value = b / self.coefficients + 0.0  # which makes 0 of -0
        return value if self.all else spread(self.unknowns, value, n, absent)


def spread(places: Tensor, v: Tensor, size: int, absent: float) -> Tensor:
    """`v` `(B|1, k)` at `places` of a vector that is `absent` elsewhere."""
    full = v.new_full((1, size), absent).expand(len(v), -1)
    return full.scatter(-1, places.expand(len(v), -1), v)
