"""Rows of which a substitution leaves nothing but rounding: `doubtful` ones are looked at.

2 x + 4 y = 2 b  says nothing new behind  x = b - 2 y.  What is left of it may be  1e-17 y = 1e-17,
which a solver scales up to an equation like any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .affine import samples
from .entries import Array, Entries
from .presolve import Level

# A sum below this, relative to its terms, is rounding; rows are dependent below it (`solve_qp`).
ROUNDING = 1e-11


def doubtful(A: Entries, levels: Sequence[Level], kept: Array, rows: Array) -> Tensor:
    """Which of `rows` hold each unknown that is kept twice or not at all, counting detours.

    No other row can cancel altogether.
    """
    ways, removed = np.zeros((0, len(kept))), np.zeros(0, int)
    for level in levels:
        own = _pattern(A, level.rows, kept) + _pattern(A, level.rows, removed) @ ways
        ways = np.concatenate([ways, own.clip(max=2)])
        removed = np.concatenate([removed, level.unknowns])
    through = _pattern(A, rows, removed)
    count = _pattern(A, rows, kept) + through @ ways
    return torch.from_numpy(np.flatnonzero(through.any(1) & (count != 1).all(1)))


def vanishing(own: Tensor, limit: Tensor, M: Tensor, T: Tensor, t: Tensor) -> Tensor:
    """Where  (own + M T, limit - M t)  is rounding, in rows with no other coefficient left.

    Args:
        own: `(B|1, rows, K)`.
        limit: `(B|1, rows)`.
        M: `(B|1, rows, J)`.
        T, t: `(B|1, J, K)` and `(B|1, J)`.

    Returns:
        Booleans, `(B|1, rows, K + 1)`.
    """
    size = samples(own, limit, M, T, t)
    W = _beside(T, -t, size)
    terms = _beside(own, limit, size)
    small = (terms + M @ W).abs() <= ROUNDING * (terms.abs() + M.abs() @ W.abs())
    return small & small[..., :-1].all(-1, keepdim=True) & terms.isfinite()


def cleared(v: Tensor, where: Tensor) -> Tensor:
    """`v` with zeros there; its derivative is as it was."""
    return v - torch.where(where, v.detach(), 0.0)


def _pattern(A: Entries, rows: Array, cols: Array) -> Array:
    part, out = A.within(rows, cols), np.zeros((len(rows), len(cols)))
    out[part.row, part.col] = 1
    return out


def _beside(matrix: Tensor, column: Tensor, size: int) -> Tensor:
    column = column.unsqueeze(-1).expand(size, -1, -1)
    return torch.cat([matrix.expand(size, -1, -1), column], -1).detach()
