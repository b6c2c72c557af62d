"""Solves with one sparse symmetric matrix K = [H, C'; C, -T], H and T positive semidefinite.

Equilibrated to S K S with rows of size one, it is solved in one of two ways:

* directly: K + delta diag(I, -I) is quasi-definite and so has a factorisation L D L' for every
  ordering, without pivoting (Vanderbei, "Symmetric quasidefinite matrices", SIAM J. Optim. 5,
  1995). Refinement against K itself takes the delta out again.
* by MINRES, preconditioned by diagonals, restarted on what is left.

Random patterns fill in: at n = 10,000 with ten entries a row the factor is dense, about n^3 / 3
operations, where MINRES needs some hundred products. Chains, grids and banded matrices hardly fill
in, but are often ill-conditioned. So the fill is bounded from above first (see `arithmetic`).

K may be singular, if the right-hand side is in its range: both ways then find a solution.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from ..optional import package
from .problem import Array, Matrix, sparse, top

# delta, raised where rounding, of the size of 1e-16 / delta, beats it: where H is nearly zero.
DELTAS = (1e-8, 1e-7, 1e-6)
# The bound of `arithmetic` up to which a factorisation comes first (a second and a half of random
# patterns, much less of others), and up to which it comes at all, after MINRES has failed.
CHEAP, DEAR = 3e9, 3e10
SWEEPS = 30  # of refinement
KRYLOV, RESTARTS = 2000, 6  # steps of MINRES, and how often it starts again
EPS = 1e-15  # a relative residual not worth another sweep


class System:
    """K, to be solved with: see above.

    Args:
        K: `(n + r, n + r)`, symmetric, both triangles.
        n: the size of H.
    """

    def __init__(self, K: Matrix, n: int) -> None:
        self.n, self.size = n, K.shape[0]
        self.unit = _equilibration(K)
        S = sparse().diags_array(self.unit)
        self.K = (S @ K @ S).tocsc()
        self.sign = np.where(np.arange(self.size) < n, 1.0, -1.0)
        self.cost = arithmetic(self.K)
        self.direct = self.cost <= CHEAP

    def solve(self, r: Array, terms: Array) -> tuple[Array, float]:
        """(x with K x = r, the residual relative to the terms that r adds up, equilibrated)."""
        r = self.unit * r
        size = top(r)
        if size == 0 or not np.isfinite(size):
            return np.zeros_like(r), 0.0 if size == 0 else float("nan")
        x, error = self._refined(r / size) if self.direct else self._iterated(r / size)
        if not self.direct and error > 1e-9 and self.cost <= DEAR:
            again, other = self._refined(r / size)
            x, error = (again, other) if other < error else (x, error)
        return size * self.unit * x, error * min(1.0, size / top(self.unit * terms))

    def null(self, w: Array) -> Array:
        """w `(r, k)` projected to the null space of C', nearly, in units of the user.

        (K + delta)^-1 (0, w) has -w / delta in the null space, and O(w) beside it.
        """
        C = self.K[self.n :, : self.n]
        if not self.direct:
            lsmr = package("scipy.sparse.linalg", extra="solvers").lsmr
            parts = [v - C @ lsmr(C, v, atol=1e-14, btol=1e-14)[0] for v in w.T]
            return self.unit[self.n :, None] * np.stack(parts, -1)
        for _ in range(2):
            full = np.concatenate([np.zeros((self.n, w.shape[1])), w])
            w = np.stack([-self.delta * self.factor.solve(v)[self.n :] for v in full.T], -1)
        return self.unit[self.n :, None] * w

    @cached_property
    def factor(self) -> Any:
        """L D L' of K + delta diag(I, -I)."""
        return self._factors[0]

    @property
    def delta(self) -> float:
        """The shift of `factor`."""
        return self._factors[1]

    @cached_property
    def _factors(self) -> tuple[Any, float]:
        for delta in DELTAS:
            shifted = self.K + sparse().diags_array(delta * self.sign)
            factor, pivots, order = ldl(shifted)
            if factor is not None and (pivots * self.sign[order] > 0).all():
                break
        return factor if factor is not None else _Nothing(), delta

    def _refined(self, r: Array) -> tuple[Array, float]:
        x = self.factor.solve(r)
        rest = r - self.K @ x
        error = top(rest)
        for _ in range(SWEEPS):
            if error <= EPS or not np.isfinite(error):
                break
            new = x + self.factor.solve(rest)
            rest_new = r - self.K @ new
            error_new = top(rest_new)
            if not error_new < error:
                break
            slow = error_new > 0.5 * error
            x, rest, error = new, rest_new, error_new
            if slow:
                break
        return x, error

    def _iterated(self, r: Array) -> tuple[Array, float]:
        linalg = package("scipy.sparse.linalg", extra="solvers")
        M = sparse().diags_array(1 / self._diagonal())
        x, rest, error = np.zeros_like(r), r, 1.0
        for _ in range(RESTARTS):
            step, _ = linalg.minres(self.K, rest, rtol=1e-12, maxiter=KRYLOV, M=M)
            new = x + step
            rest_new = r - self.K @ new
            error_new = top(rest_new)
            if not error_new < 0.5 * error:
                break
            x, rest, error = new, rest_new, error_new
            if error <= 10 * EPS:
                break
        return x, error

    def _diagonal(self) -> Array:
        """The diagonals of H and of C diag(H)^-1 C' + T: those of the ideal preconditioner.

        One for a row of zeros, whose right-hand side is rounding, and is not to be blown up.
        """
        d = self.K.diagonal()
        H = np.maximum(d[: self.n], 1e-2)
        C = self.K[self.n :, : self.n]
        schur = C.multiply(C) @ (1 / H) - d[self.n :]
        return np.concatenate([H, np.where(schur > 1e-12, schur, 1.0)])


class _Nothing:
    """The factor of a matrix that has none."""

    def solve(self, r: Array) -> Array:
        """NaN."""
        return np.full_like(r, np.nan)


def ldl(K: Matrix) -> tuple[Any, Array, Array]:
    """(the factor of the symmetric K or None, its pivots, and which row each belongs to)."""
    upper = sparse().csc_matrix(sparse().triu(K))
    try:
        factor = package("qdldl", extra="solvers").Solver(upper, upper=True)
    except RuntimeError:  # a pivot of zero
        return None, np.zeros(0), np.zeros(0, dtype=int)
    _, pivots, order = factor.factors()
    return factor, pivots, order


def arithmetic(K: Matrix) -> float:
    """An upper bound of the multiplications of L D L' for the symmetric K, in a good ordering.

    Fill stays within the envelope of K: with first(i) the first column of row i, column j of L has
    at most as many entries as rows i > j have first(i) <= j. The bandwidth is made small by
    reverse Cuthill-McKee, without the rows that are fuller than most, which come last.
    """
    order = package("scipy.sparse.csgraph", extra="solvers").reverse_cuthill_mckee
    size = K.shape[0]
    if size == 0:
        return 0.0
    K = K.tocsr()
    degree = np.diff(K.indptr)
    bounds = []
    for most in {size, int(10 * np.sqrt(size))}:
        light, heavy = np.flatnonzero(degree <= most), np.flatnonzero(degree > most)
        inner = order(sparse().csr_matrix(K[light][:, light]), symmetric_mode=True)
        place = np.empty(size, dtype=np.int64)
        place[np.concatenate([light[inner], heavy])] = np.arange(size)
        first = np.arange(size)
        np.minimum.at(first, place[np.repeat(np.arange(size), degree)], place[K.indices])
        starts = np.bincount(first, minlength=size) - 1
        bounds.append(float((np.cumsum(starts).astype(float) ** 2).sum()))
    return min(bounds)


def _equilibration(K: Matrix) -> Array:
    """S with the largest entry of every row of S K S near one (Ruiz 2001); 1 for a row of zeros."""
    unit, size = np.ones(K.shape[0]), abs(K).tocsc()
    for _ in range(8):
        if size.shape[0] == 0:
            break
        top = size.max(axis=0).toarray().ravel()
        step = 1 / np.sqrt(np.where(top > 0, top, 1.0))
        unit = unit * step
        S = sparse().diags_array(step)
        size = (S @ size @ S).tocsc()
        if np.abs(step - 1).max() < 0.1:
            break
    return unit
