"""Equilibration of a sparse QP: as `qp.scaling`, which has the derivation.

    z = r d * z^,   rows of A times e_A / r,   rows of C times e_C / r,   objective times c / r
    nu = e_A nu^ / c,   y = e_C y^ / c            (e_C = 1/d on the bounds)

Solvers, the polish and every tolerance work in the units of the result, which make the answer
independent of those of the data.

Source: Ruiz, "A scaling algorithm to equilibrate both rows and columns norms in matrices" (RAL
2001), Alg. 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..qp.scaling import LARGEST, PASSES, SMALLEST
from .problem import Array, Matrix, SparseQP, sparse, top


@dataclass(frozen=True)
class Scaled:
    """A problem of the user and the same one equilibrated.

    Attributes:
        user, qp: the two.
        z, nu, y: a unit of the equilibrated one in the user's, `(n,)`, `(e,)`, `(m + n,)`.
        dual, equal, rows: factors from the user's Qz, Az and Cz to the equilibrated ones.
    """

    user: SparseQP
    qp: SparseQP
    z: Array
    nu: Array
    y: Array
    dual: Array
    equal: Array
    rows: Array

    def back(self, z: Array, nu: Array, y: Array) -> tuple[Array, Array, Array]:
        """A point in the user's units."""
        return self.z * z, self.nu * nu, self.y * y

    def error(self, z: Array, nu: Array, y: Array) -> float:
        """The worst KKT residual of an equilibrated point, in both units."""
        return max(self.qp.error(z, nu, y), self.user.error(*self.back(z, nu, y)))


def equilibrate(qp: SparseQP) -> Scaled:
    """`qp` beside its equilibrated form."""
    d, e_A, e_G = _ruiz(qp)
    e_C = np.concatenate([e_G, 1 / d])
    r, c = _sizes(qp, d, e_A, e_C)
    diag = sparse().diags_array
    D, dual, equal, rows = diag(d), c * d, e_A / r, e_C / r
    lower, upper = qp.lower * rows, qp.upper * rows
    scaled = SparseQP(
        Q=(D @ qp.Q @ D * (c * r)).tocsc(),
        p=qp.p * dual,
        G=(diag(e_G) @ qp.G @ D).tocsc(),
        h_lower=lower[: qp.m],
        h=upper[: qp.m],
        A=(diag(e_A) @ qp.A @ D).tocsc(),
        b=qp.b * equal,
        lb=lower[qp.m :],
        ub=upper[qp.m :],
    )
    return Scaled(qp, scaled, r * d, e_A / c, e_C / c, dual, equal, rows)


def _ruiz(qp: SparseQP) -> tuple[Array, Array, Array]:
    """(d, e_A, e_G) that bring the rows and columns of [Q A' G'; A 0 0; G 0 0] to norm one."""
    d, e_A, e_G = np.ones(qp.n), np.ones(qp.e), np.ones(qp.m)
    Q, A, G = (abs(M).tocsc() for M in (qp.Q, qp.A, qp.G))
    At, Gt = A.T.tocsc(), G.T.tocsc()
    unit_A, unit_G = 1 / _or_one(tops(At, np.ones(qp.n))), 1 / _or_one(tops(Gt, np.ones(qp.n)))
    Q = Q / (Q.max() if Q.nnz and Q.max() > 0 else 1.0)
    for _ in range(PASSES):
        by_A, by_G = tops(A, e_A * unit_A), tops(G, e_G * unit_G)
        columns = d * np.maximum(tops(Q, d), np.maximum(by_A, by_G))
        rows_A, rows_G = e_A * unit_A * tops(At, d), e_G * unit_G * tops(Gt, d)
        d, e_A, e_G = (_shrink(*pair) for pair in ((d, columns), (e_A, rows_A), (e_G, rows_G)))
    return d, e_A * unit_A, e_G * unit_G


def _sizes(qp: SparseQP, d: Array, e_A: Array, e_C: Array) -> tuple[float, float]:
    """(r, c): the size that z is expected to have, and one over that of the duals."""
    q, g = float((d * tops(abs(qp.Q).tocsc(), d)).mean()), top(d * qp.p)
    lower, upper = e_C * qp.lower, e_C * qp.upper
    needed = max(top(e_A * qp.b), top(lower.clip(min=0)), top((-upper).clip(min=0)))
    limits = np.abs(np.concatenate([lower, upper]))
    limits = limits[np.isfinite(limits) & (limits > 0)]
    far = top(limits)
    free = g / q if q > 0 else (float(np.median(limits)) if len(limits) else 0.0)
    r = max(needed, min(free, far) if far > 0 else free) or far or 1.0
    return r, 1 / (max(q * r, g) or 1.0)


def tops(M: Matrix, weight: Array) -> Array:
    """max_i weight_i M_ij for each column j of a nonnegative CSC matrix; zero if it is empty."""
    out = np.zeros(M.shape[1])
    some = np.diff(M.indptr) > 0
    if some.any():
        out[some] = np.maximum.reduceat(M.data * weight[M.indices], M.indptr[:-1][some])
    return out


def _or_one(v: Array) -> Array:
    return np.where(v > 0, v, 1.0)


def _shrink(factor: Array, norm: Array) -> Array:
    clipped: Array = (factor / np.sqrt(_or_one(norm))).clip(SMALLEST, LARGEST)
    return clipped
