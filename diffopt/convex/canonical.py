"""The canonical program of a CVXPY problem, as cvxpylayers hands it out: `Canonical`.

    minimise 1/2 x'Px + q'x    subject to    Ax + s = b,   s = 0 in the first rows, s >= 0 after

with P, q, A, b affine in the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..optional import package
from .entries import Array, Entries

CONES = {
    "soc": "second-order",
    "exp": "exponential",
    "psd": "positive semidefinite",
    "p3d": "power",
    "pnd": "power",
}


@dataclass(frozen=True)
class Canonical:
    """A quadratic or linear program with parameters.

    Attributes:
        n: number of unknowns.
        equalities: the rows of A that are equalities come first; how many there are.
        P: entries of the whole symmetric matrix.
        q, b: entries of vectors, in column 0.
        A: entries; A x = b and A x <= b.
        shapes: of the parameters, in the user's order.
        outputs: how to recover each variable that is asked for.
        wanted: unknowns that the user asks for.
    """

    n: int
    equalities: int
    P: Entries
    q: Entries
    A: Entries
    b: Entries
    shapes: tuple[tuple[int, ...], ...]
    outputs: tuple[Output, ...]
    wanted: frozenset[int]

    @property
    def m(self) -> int:
        """The number of rows of A."""
        return len(self.b)


@dataclass(frozen=True)
class Output:
    """Where the value of a variable is.

    Attributes:
        dual: among the multipliers of the rows of A, else among the unknowns.
        index: places there, in the memory layout of `shape`.
        shape: of the variable.
    """

    dual: bool
    index: Array
    shape: tuple[int, ...]


def other_cones(dims: Any) -> list[str]:
    """The names of the cones of `dims` that no quadratic program has."""
    return [kind for name, kind in CONES.items() if getattr(dims, name, None)]


def canonical(ctx: Any) -> Canonical:
    """The program in the context of a `CvxpyLayer`, as a function of the user's parameters."""
    sparse = package("scipy.sparse", extra="cvxpy")
    lift = _lift(ctx, sparse)
    P, q, A = (M @ lift for M in _maps(ctx, sparse))
    shapes = tuple(tuple(p.shape) for p in ctx.parameters)
    return _program(ctx, P, q, A, shapes)


def canonical_by_value(ctx: Any) -> Canonical:
    """The same as a function of three vectors: the entries of P, of q and 0, and of (A, b).

    What does not depend on the user's parameters is known to be constant here too. The outputs are
    all unknowns and all multipliers.
    """
    sparse = package("scipy.sparse", extra="cvxpy")
    maps = _maps(ctx, sparse)
    sizes = [M.shape[0] for M in maps]
    starts = np.cumsum([0, *sizes])
    lifted = []
    for start, M in zip(starts, maps, strict=False):
        parametric = np.diff(M[:, :-1].tocsr().indptr) > 0
        own, k = sparse.eye_array(len(parametric), sum(sizes) + 1, k=start).tocsr(), M.shape[1] - 1
        constant = np.where(parametric, 0.0, np.asarray(M[:, [k]].todense()).ravel())
        last = sparse.coo_array(
            (constant, (np.arange(len(constant)), np.full(len(constant), sum(sizes)))),
            shape=own.shape,
        )
        lifted.append((sparse.diags_array(parametric.astype(float)) @ own + last).tocsr())
    n, m = ctx.q.shape[0] - 1, _coordinates(ctx.reduced_A)[2][0]
    outputs = Output(False, np.arange(n), (n,)), Output(True, np.arange(m), (m,))
    return _program(ctx, lifted[0], lifted[1], lifted[2], tuple((size,) for size in sizes), outputs)


def _maps(ctx: Any, sparse: Any) -> list[Any]:
    """The entries of P, of q and the constant, and of (b - Ax), as maps of CVXPY's parameters."""
    width = ctx.q.shape[1]
    P, A = ctx.reduced_P.reduced_mat, ctx.reduced_A.reduced_mat
    none = sparse.csr_array((0, width))
    return [sparse.csr_array(none if M is None else M) for M in (P, ctx.q, A)]


def _program(
    ctx: Any,
    P: Any,
    q: Any,
    A: Any,
    shapes: tuple[tuple[int, ...], ...],
    outputs: tuple[Output, ...] = (),
) -> Canonical:
    """The program whose entries are these maps of parameters of these shapes.

    Its outputs are the variables that the user asks for, unless others are given.
    """
    asked = tuple(_output(v) for v in ctx.var_recover)
    n = ctx.q.shape[0] - 1
    row, col, _ = _coordinates(ctx.reduced_P)
    quadratic = _entries(P, row, col)
    linear = _entries(q[:n], np.arange(n), np.zeros(n, int))
    row, col, (m, _) = _coordinates(ctx.reduced_A)
    whole, last = _entries(A, row, col), col == n
    matrix, b = whole.take(~last), whole.take(last)
    matrix = Entries(matrix.row, matrix.col, -matrix.weights)  # CVXPY's is that of b - Ax
    return Canonical(
        n,
        int(ctx.cone_dims.zero),
        quadratic,
        linear,
        matrix,
        _every_row(b, m),
        shapes,
        outputs or asked,
        frozenset(int(i) for o in asked if not o.dual for i in o.index),
    )


def _entries(weights: Any, row: Array, col: Array) -> Entries:
    weights = weights.tocsr()
    weights.sum_duplicates()
    weights.eliminate_zeros()
    return Entries(row, col, weights)


def _every_row(b: Entries, m: int) -> Entries:
    """A vector with an entry in every row, zero where there was none."""
    weights = b.weights.tocoo()
    place = (b.row[weights.coords[0]], weights.coords[1])
    full = type(b.weights)((weights.data, place), shape=(m, b.weights.shape[1]))
    return Entries(np.arange(m), np.zeros(m, int), full)


def _coordinates(reduced: Any) -> tuple[Array, Array, tuple[int, int]]:
    """Rows and columns of the entries of a matrix that CVXPY keeps by columns."""
    if reduced.reduced_mat is None or reduced.problem_data_index is None:
        return np.zeros(0, int), np.zeros(0, int), (0, 0)
    indices, starts, (m, n) = reduced.problem_data_index
    return np.asarray(indices), np.repeat(np.arange(n), np.diff(starts)), (int(m), int(n))


def _lift(ctx: Any, sparse: Any) -> Any:
    """CVXPY's vector of parameters, and 1, from the user's: sparse `(columns + 1, U + 1)`.

    CVXPY orders the parameters its own way, each by columns; of a symmetric one it has the upper
    triangle, for which the mean of both triangles stands here.
    """
    triangles = ctx.param_triu_indices or [None] * len(ctx.parameters)
    shapes = [tuple(p.shape) for p in ctx.parameters]
    starts = np.cumsum([0, *(math.prod(s) for s in shapes)])
    blocks: dict[int, Any] = {}
    for k, (shape, triangle) in enumerate(zip(shapes, triangles, strict=True)):
        own = _columns(shape, triangle)
        size = own[0].shape[0]
        place = (np.tile(np.arange(size), len(own)), starts[k] + np.concatenate(own))
        blocks[ctx.user_order_to_col_order[k]] = sparse.csr_array(
            (np.full(size * len(own), 1 / len(own)), place), shape=(size, starts[-1] + 1)
        )
    one = sparse.csr_array(([1.0], ([0], [starts[-1]])), shape=(1, starts[-1] + 1))
    return sparse.vstack([*(blocks[k] for k in sorted(blocks)), one]).tocsr()


def _columns(shape: tuple[int, ...], triangle: Any) -> Sequence[Array]:
    """For each of CVXPY's entries of a parameter its place, or two to take the mean of."""
    place = np.arange(math.prod(shape)).reshape(shape)
    if triangle is None:
        return (place.ravel(order="F"),)
    rows, cols = np.array(triangle[0]), np.array(triangle[1])
    return place[rows, cols], place[cols, rows]


def _output(variable: Any) -> Output:
    """Where a variable of cvxpylayers' context is."""
    dual = variable.source == "dual"
    place = variable.dual if dual else variable.primal
    index, shape = np.arange(place.start, place.stop), tuple(variable.shape)
    if variable.unpack_fn == "svec_primal":  # the upper triangle of a symmetric matrix, by rows
        full = np.zeros(shape, int)
        rows, cols = np.triu_indices(shape[0])
        full[rows, cols] = full[cols, rows] = index
        return Output(dual, full.ravel(), shape)
    return Output(dual, index.reshape(shape, order="F").ravel(), shape)
