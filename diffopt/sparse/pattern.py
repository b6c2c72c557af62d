"""A sparse matrix as its pattern and its values, in the graph of whatever the user gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .problem import Array, Matrix, sparse

LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


@dataclass(frozen=True)
class Pattern:
    """Entries (row, column, value); products are torch, so gradients arrive at the values.

    Attributes:
        row, column: `(nnz,)`, int64.
        values: `(nnz,)`, float64.
        shape: (rows, columns).
    """

    row: Tensor
    column: Tensor
    values: Tensor
    shape: tuple[int, int]

    @classmethod
    def empty(cls, rows: int, columns: int) -> Pattern:
        """The matrix of zeros."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls(none, none, none.double(), (rows, columns))

    @classmethod
    def of(cls, name: str, value: Any) -> Pattern:
        """The argument `name`: a sparse tensor of torch or a sparse matrix of scipy.

        Raises:
            ValueError: if it is neither, complex, not a matrix, hybrid, or on another device.
        """
        if not isinstance(value, Tensor):
            return cls._of_scipy(name, value)
        if value.layout not in LAYOUTS and value.layout != torch.strided:
            raise ValueError(
                f"{name} is {value.layout}: expected COO, CSR or CSC, pass {name}.to_sparse_coo()"
            )
        if value.layout == torch.strided:
            raise ValueError(
                f"{name} is dense, of shape {tuple(value.shape)}: pass {name}.to_sparse(), whose "
                "gradient has its pattern, or use solve_qp"
            )
        if value.device.type != "cpu":
            raise ValueError(
                f"{name} is on {value.device}: the sparse solvers run on the CPU, pass "
                f"{name}.cpu(), through which gradients flow back"
            )
        if value.ndim != 2 or value.dense_dim() or value.is_complex():
            raise ValueError(
                f"{name} is {value.dtype} of shape {tuple(value.shape)}, {value.dense_dim()} of "
                "its dimensions dense: expected a real matrix, both of whose dimensions are "
                "sparse, without batch dimensions; several problems are a list of dicts"
            )
        if value.layout == torch.sparse_coo:
            value = value if value.is_coalesced() else value.coalesce()
            row, column = value.indices()
        elif value.layout == torch.sparse_csr:
            row, column = _expanded(value.crow_indices()), value.col_indices()
        else:
            row, column = value.row_indices(), _expanded(value.ccol_indices())
        return cls(row.long(), column.long(), value.values().double(), tuple(value.shape))

    @classmethod
    def _of_scipy(cls, name: str, value: Any) -> Pattern:
        if not hasattr(value, "tocoo") or getattr(value, "ndim", 2) != 2:
            raise ValueError(
                f"{name} is a {type(value).__name__}: expected a sparse tensor of torch (COO, CSR "
                "or CSC) or a sparse matrix of scipy"
            )
        entries = value.tocoo(copy=True)
        entries.sum_duplicates()
        if np.iscomplexobj(entries.data):
            raise ValueError(f"{name} is complex: expected real numbers")
        parts = entries.row.astype(np.int64), entries.col.astype(np.int64)
        row, column = map(torch.from_numpy, parts)
        values = torch.from_numpy(entries.data.astype(np.float64))
        return cls(row, column, values, tuple(value.shape))

    def times(self, x: Tensor) -> Tensor:
        """M x."""
        return x.new_zeros(self.shape[0]).index_add(0, self.row, self.values * x[self.column])

    def transposed_times(self, y: Tensor) -> Tensor:
        """M'y."""
        return y.new_zeros(self.shape[1]).index_add(0, self.column, self.values * y[self.row])

    def only(self, rows: Array) -> Pattern:
        """The rows `rows` (indices, ascending) as a matrix of their own."""
        place = torch.full((self.shape[0],), -1, dtype=torch.int64)
        place[torch.as_tensor(rows)] = torch.arange(len(rows))
        kept = (place[self.row] >= 0).nonzero().flatten()
        row = place[self.row[kept]]
        return Pattern(row, self.column[kept], self.values[kept], (len(rows), self.shape[1]))

    def scipy(self) -> Matrix:
        """The values, without a graph, as a CSC matrix of scipy."""
        at = (self.row.numpy(), self.column.numpy())
        return sparse().csc_matrix((self.values.detach().numpy(), at), shape=self.shape)


def _expanded(pointers: Tensor) -> Tensor:
    """The row (column) of each entry, from the compressed ones."""
    return torch.repeat_interleave(torch.arange(len(pointers) - 1), pointers.diff())
