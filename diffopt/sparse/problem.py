"""One sparse QP as solvers see it: scipy matrices and float64 vectors, and its KKT residuals.

    minimise 1/2 z'Qz + p'z    subject to    h_lower <= Gz <= h,   Az = b,   lb <= z <= ub

The rows of G and the bounds are handled together as rows of C = [G; I] with multipliers
y = (lam, mu): positive at an upper limit, negative at a lower one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..optional import package
from ..solution import Status

Array = Any  # numpy.ndarray
Matrix = Any  # a sparse array of scipy


def sparse() -> Any:
    """`scipy.sparse`."""
    return package("scipy.sparse", extra="solvers")


class Found(NamedTuple):
    """What a solver returns: an answer, good or bad, and how it ended.

    Attributes:
        z: `(n,)`.
        nu, lam, mu: multipliers of A `(e,)`, of G `(m,)` and of the bounds `(n,)`; None if the
            solver has none, and what is active is then read off the slacks.
        status: of the solver.
        iterations: its steps.
    """

    z: Array
    nu: Array | None
    lam: Array | None
    mu: Array | None
    status: Status
    iterations: int


@dataclass(frozen=True)
class SparseQP:
    """The data of one QP, finite but for absent limits; a solver gets it equilibrated.

    Attributes:
        Q: `(n, n)`, symmetric, CSC. p: `(n,)`.
        G: `(m, n)`, CSC, with limits `h_lower`, `h` `(m,)`; -inf and inf where absent.
        A: `(e, n)`, CSC, with `b` `(e,)`.
        lb, ub: `(n,)`, -inf and inf where absent.
    """

    Q: Matrix
    p: Array
    G: Matrix
    h_lower: Array
    h: Array
    A: Matrix
    b: Array
    lb: Array
    ub: Array

    @property
    def n(self) -> int:
        """Number of unknowns."""
        return len(self.p)

    @property
    def m(self) -> int:
        """Number of rows of G."""
        return len(self.h)

    @property
    def e(self) -> int:
        """Number of rows of A."""
        return len(self.b)

    @cached_property
    def lower(self) -> Array:
        """The lower limits of the rows of C."""
        return np.concatenate([self.h_lower, self.lb])

    @cached_property
    def upper(self) -> Array:
        """The upper limits of the rows of C."""
        return np.concatenate([self.h, self.ub])

    @cached_property
    def fixed(self) -> Array:
        """Rows of C whose two limits are equal."""
        return self.lower == self.upper

    @cached_property
    def lengths(self) -> Array:
        """The Euclidean lengths of the rows of C; 0 for a row of zeros."""
        squares = np.asarray(self.G.multiply(self.G).sum(axis=1)).ravel()
        return np.concatenate([np.sqrt(squares), np.ones(self.n)])

    @cached_property
    def bounded(self) -> Array:
        """The unknowns that have a bound."""
        return np.flatnonzero(np.isfinite(self.lb) | np.isfinite(self.ub))

    def stacked(self) -> tuple[Matrix, Array, Array]:
        """(M, l, u) with l <= Mz <= u: the rows of A, those of G, and one for each bound there."""
        own = sparse().eye_array(self.n, format="csr")[self.bounded]
        M = sparse().vstack([self.A, self.G, own], format="csr")
        lower = np.concatenate([self.b, self.h_lower, self.lb[self.bounded]])
        upper = np.concatenate([self.b, self.h, self.ub[self.bounded]])
        return M, lower, upper

    def unstacked(self, y: Array) -> tuple[Array, Array, Array]:
        """(nu, lam, mu) from the multipliers of the rows of `stacked`."""
        nu, lam, there = np.split(y, [self.e, self.e + self.m])
        mu = np.zeros(self.n)
        mu[self.bounded] = there
        return nu, lam, mu

    def rows(self, z: Array) -> Array:
        """C z, `(m + n,)`."""
        return np.concatenate([self.G @ z, z])

    def gradient(self, z: Array, nu: Array, y: Array) -> Array:
        """Qz + p + A'nu + C'y, `(n,)`."""
        return self.Q @ z + self.p + self.A.T @ nu + self.G.T @ y[: self.m] + y[self.m :]

    def residuals(self, z: Array, nu: Array, y: Array) -> tuple[float, float, float]:
        """(primal, dual, gap), relative, as `qp.problem.Residuals` defines them."""
        Qz, Az, Cz = self.Q @ z, self.A @ z, self.rows(z)
        with np.errstate(invalid="ignore", over="ignore"):
            violation = np.maximum(Cz - self.upper, self.lower - Cz)
            primal = max(0.0, top(np.maximum(violation, 0)), top(Az - self.b))
            limit = np.where(y > 0, self.upper, self.lower)
            absent = np.isinf(limit)
            paid = np.where(absent, 0.0, limit) @ y
            stray = top(np.where(absent, y, 0.0))
            dual = max(top(self.gradient(z, nu, y)), stray)
            quadratic, linear = z @ Qz, z @ self.p
            gap = abs(quadratic + linear + self.b @ nu + paid)
            return (
                float(primal / (1 + max(top(Cz[: self.m]), top(Az), top(self.b)))),
                float(dual / (1 + max(top(Qz), top(self.p), top(y[self.m :])))),
                float(gap / (1 + abs(quadratic / 2 + linear))),
            )

    def error(self, z: Array, nu: Array, y: Array) -> float:
        """The worst of `residuals`; NaN counts as infinite."""
        found = self.residuals(z, nu, y)
        return max(found) if np.isfinite(found).all() else float("inf")


def top(v: Array) -> float:
    """The infinity norm; 0 of an empty vector."""
    return float(np.abs(v).max()) if len(v) else 0.0
