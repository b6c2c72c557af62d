"""What is chosen where the KKT conditions leave a choice, as `qp.degeneracy` does it.

Dependent active rows: the valid multipliers of least Euclidean norm. Weakly active rows: as
`degenerate` says; "central" is their weight tau = s / y in the limit of the central path, that is
at the point s y = 1 of the tangent QP (see `qp.degeneracy`).
"""

from __future__ import annotations

import numpy as np

from .admm import ADMM
from .kkt import KKT
from .polish import polish
from .problem import Array, SparseQP, sparse
from .scaling import equilibrate

SEEN = 1e-6  # of a random vector in the null space, relative to it
NULL = 1e-10  # what a vector of the null space may leave of stationarity
ROUNDING = 1e-12  # of a multiplier of the wrong sign
STEPS = 60  # of Newton's method to the centre


def null_space(kkt: KKT) -> Array:
    """Orthonormal (nu, y active), `(e + active, d)`, that cancel in A'nu + Z'y.

    From random vectors projected there, twice as many until there are enough of them.
    """
    count = kkt.C.shape[0]
    draw = np.random.default_rng(0)
    width, none = 1, np.zeros((count + len(kkt.bounds), 0))
    while count:
        W = draw.standard_normal((count, width))
        V = kkt.null(W)
        if np.abs(V[:count]).max() <= SEEN * np.abs(kkt.system.unit[kkt.system.n :]).max():
            return none
        U, size, _ = np.linalg.svd(V, full_matrices=False)
        rank = int((size > SEEN * size[0]).sum())
        if rank < width or width == count:
            found = (_cleaned(kkt, u) for u in U[:, :rank].T)
            keep = [u for u in found if kkt.left(u) <= NULL]
            return np.linalg.qr(np.stack(keep, -1))[0] if keep else none
        width = min(max(8, 2 * width), count)
    return none


def _cleaned(kkt: KKT, u: Array) -> Array:
    """u less what it has outside of the null space: the y in the range of Z with Z'y = Z'u."""
    nu, y = kkt.spread(u)
    qp = kkt.qp
    pull = qp.gradient(np.zeros(qp.n), nu, y) - qp.p
    rest, _ = kkt.solve(np.concatenate([pull, np.zeros(len(u))]))
    return u - rest[qp.n :]


def shortest(basis: Array, y: Array, sign: Array) -> Array:
    """The valid multipliers of least norm that differ from y = (nu, y active) by basis c.

    Where those of the pseudo-inverse have a wrong sign it is a small QP in c.

    Args:
        basis: `(e + active, d)`.
        y: valid multipliers.
        sign: +1 or -1 where a multiplier has to have that sign, 0 where it may have any.
    """
    out: Array = y - basis @ (basis.T @ y)
    size = np.abs(y).max()
    if (out * sign < -ROUNDING * size).any():
        task = equilibrate(_small(basis, y / size, sign))
        best = polish(task, ADMM()(task.qp))
        c, _, _ = task.back(*best.guess[:3])
        out = y + size * (basis @ c)
    return np.where(out * sign < 0, 0.0, out)


def _small(basis: Array, y: Array, sign: Array) -> SparseQP:
    """Least |y + basis c|^2 / 2 over c with sign (y + basis c) >= 0."""
    sp, d = sparse(), basis.shape[1]
    held = np.flatnonzero((sign != 0) & (np.abs(basis).max(axis=1) > 0))
    far, none = np.full(d, np.inf), np.zeros(0)
    return SparseQP(
        Q=sp.csc_matrix(sp.eye_array(d)),
        p=basis.T @ y,
        G=sp.csc_matrix(-sign[held, None] * basis[held]),
        h_lower=np.full(len(held), -np.inf),
        h=(sign * y)[held].clip(min=0),
        A=sp.csc_matrix((0, d)),
        b=none,
        lb=-far,
        ub=far,
    )


def central_tau(qp: SparseQP, side: Array, weak: Array) -> Array:
    """tau of the `weak` rows, 0 elsewhere; 0 for all where the tangent QP has no centre.

    The centre minimises 1/2 d'Qd - sum of log(s_i), s_i = -side_i C_i d over the weak rows, with
    Ad = 0 and C_i d = 0 for the other active rows: by damped Newton steps from s y = 1.
    """
    sign, m, n = side.astype(float)[weak], qp.m, qp.n
    s, eta = qp.lengths[weak], 1 / qp.lengths[weak]
    d, nu, y = np.zeros(n), np.zeros(qp.e), np.zeros(m + n)
    tau, strict = np.zeros(m + n), (side != 0) & ~weak
    for _ in range(STEPS):
        tau[weak], y[weak] = s / eta, sign * eta
        Cd = qp.rows(d)
        r_z = qp.gradient(d, nu, y) - qp.p
        miss, off = sign * Cd[weak] + s, s * eta - 1
        size = 1 + np.abs(qp.Q @ d).max()
        parts = (r_z, qp.A @ d, Cd[strict], miss, off)
        if max(np.abs(v).max() if len(v) else 0.0 for v in parts) <= 1e-10 * size:
            return tau
        kkt = KKT(qp, side != 0, tau)
        r_y = np.where(strict, -Cd, 0.0)
        r_y[weak] = -sign * (miss - off / eta)
        step, error = kkt.solve(np.concatenate([-r_z, kkt.gathered(-(qp.A @ d), r_y)]))
        if not error < 1e-3:
            break
        d_nu, d_y = kkt.spread(step[n:])
        d_eta = sign * d_y[weak]
        d_s = -(off + s * d_eta) / eta
        falls = max(np.max(-d_eta / eta), np.max(-d_s / s), 1e-12)
        a = min(1.0, 0.99 / falls)
        d, nu, y = d + a * step[:n], nu + a * d_nu, y + a * d_y
        s, eta = s + a * d_s, eta + a * d_eta
    return np.zeros(m + n)
