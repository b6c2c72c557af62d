"""Entries of a matrix that depend on parameters, before it is decided which block they go to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Entries:
    """Entries of a matrix, each an affine function of the parameters.

        v_i  =  constant_i + sum over the entries of all parameters of weight * entry

    as disciplined parametrised programming promises (Agrawal et al., "Differentiable Convex
    Optimization Layers", NeurIPS 2019, section 4.1).

    Attributes:
        row, col: their places, `(k,)`.
        weights: scipy CSR, `(k, U + 1)`: what each takes of the U entries of all parameters, one
            parameter behind the other as the user has them in memory; the last column is constant.
    """

    row: Array
    col: Array
    weights: Any

    def __len__(self) -> int:
        return len(self.row)

    def take(self, which: Array) -> Entries:
        """Some of them, by mask or index."""
        return Entries(self.row[which], self.col[which], self.weights[which])

    def within(self, rows: Array, cols: Array) -> Entries:
        """Those in the rows and columns listed, their places counted in the lists."""
        row, col = positions(rows, self.row), positions(cols, self.col)
        inside = (row >= 0) & (col >= 0)
        return replace(self.take(inside), row=row[inside], col=col[inside])

    def offsets(self) -> Array:
        """Their constant parts."""
        return np.asarray(self.weights[:, [-1]].todense()).ravel()

    def constants(self) -> Array:
        """Their values; NaN where a parameter takes part."""
        parametric = np.diff(self.weights[:, :-1].tocsr().indptr) > 0
        return np.where(parametric, np.nan, self.offsets())


def positions(chosen: Array, of: Array) -> Array:
    """The place in `chosen` of each element of `of`, -1 if it is not there."""
    size = int(max(chosen.max(initial=-1), of.max(initial=-1))) + 1
    table = np.full(size, -1)
    table[chosen] = np.arange(len(chosen))
    return table[of]
