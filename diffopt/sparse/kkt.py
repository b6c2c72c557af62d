"""The KKT conditions of an active set as one symmetric linear system.

With Z the active rows of C = [G; I], y their multipliers and tau >= 0 (0 where a row is strictly
active), the unknowns (z, nu, y) satisfy

    Qz + A'nu + Z'y = r_z,      Az = r_nu,      Zz - tau y = r_y.

Inactive rows have no unknown. An unknown at a strictly active bound is known, and its multiplier
is what is left of its row: neither is in the system that is factorised.
"""

from __future__ import annotations

import numpy as np

from .linear import System
from .problem import Array, SparseQP, sparse


class KKT:
    """The system of an active set, factorised.

    Args:
        qp: the data.
        active: rows of C, bool `(m + n,)`.
        tau: `(m + n,)`, read where active.
    """

    def __init__(self, qp: SparseQP, active: Array, tau: Array) -> None:
        self.qp, self.active, self.tau = qp, active, tau
        self.rows = np.flatnonzero(active[: qp.m])
        self.bounds = np.flatnonzero(active[qp.m :])
        give = tau[qp.m :][self.bounds]
        self.hard = give == 0
        self.pinned, self.soft = self.bounds[self.hard], self.bounds[~self.hard]
        self.give = give[~self.hard]
        free = np.ones(qp.n, dtype=bool)
        free[self.pinned] = False
        self.free = np.flatnonzero(free)
        sp = sparse()
        self.C = sp.vstack([qp.A, qp.G.tocsr()[self.rows]], format="csc")
        H = qp.Q
        if len(self.soft):
            spring = np.zeros(qp.n)
            spring[self.soft] = 1 / self.give
            H = H + sp.diags_array(spring)
        C = self.C[:, self.free]
        T = np.concatenate([np.zeros(qp.e), tau[: qp.m][self.rows]])
        H = H.tocsc()[:, self.free].tocsr()[self.free]
        K = sp.block_array([[H, C.T], [C, sp.diags_array(-T)]] if len(T) else [[H]], format="csc")
        self.system = System(K, len(self.free))

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Sizes of z, nu, and the active parts of lam and mu in a vector of unknowns."""
        return self.qp.n, self.qp.e, len(self.rows), len(self.bounds)

    def solve(self, r: Array) -> tuple[Array, float]:
        """((z, nu, y active), the relative residual) for r = (r_z, r_nu, r_y), one vector each.

        Relative to the terms of the right-hand side, which may be only rounding once the known
        unknowns are put in: where A fixes an unknown that is at its bound, say.
        """
        n, f = self.qp.n, len(self.free)
        r_z, r_c, r_b = np.split(r, [n, n + self.C.shape[0]])
        z = np.zeros(n)
        z[self.pinned] = r_b[self.hard]
        pull = np.zeros(n)
        pull[self.soft] = r_b[~self.hard] / self.give
        Qz, Cz = self.qp.Q @ z, self.C @ z
        x, error = self.system.solve(
            np.concatenate([(r_z + pull - Qz)[self.free], r_c - Cz]),
            np.concatenate([(abs(r_z) + abs(pull) + abs(Qz))[self.free], abs(r_c) + abs(Cz)]),
        )
        z[self.free], y = x[:f], x[f:]
        mu = np.empty(len(self.bounds))
        mu[self.hard] = (r_z - self.qp.Q @ z - self.C.T @ y)[self.pinned]
        mu[~self.hard] = (z[self.soft] - r_b[~self.hard]) / self.give
        return np.concatenate([z, y, mu]), error

    def null(self, w: Array) -> Array:
        """Multipliers (nu, y active) without effect on stationarity, nearly, from random w.

        Args:
            w: `(e + active rows of G, k)`.
        """
        eta = self.system.null(w)
        mu = np.zeros((len(self.bounds), w.shape[1]))
        mu[self.hard] = -(self.C.T @ eta)[self.pinned]
        return np.concatenate([eta, mu])

    def left(self, y: Array) -> float:
        """How far |A'nu + Z'y| is from 0, relative to its terms, for (nu, y active).

        A row has size one, or zero; of those of zeros the terms are nothing but rounding.
        """
        y_c, mu = np.split(y, [self.C.shape[0]])
        out, size = self.C.T @ y_c, abs(self.C.T) @ abs(y_c)
        out[self.bounds] += mu
        size[self.bounds] += abs(mu)
        return float(np.abs(out).max() / max(size.max(), abs(y).max(), 1e-300))

    def spread(self, y: Array) -> tuple[Array, Array]:
        """(nu, y of all rows of C) from (nu, y active)."""
        nu, lam, mu = np.split(y, [self.qp.e, self.C.shape[0]])
        full = np.zeros(self.qp.m + self.qp.n)
        full[self.rows], full[self.qp.m + self.bounds] = lam, mu
        return nu, full

    def gathered(self, nu: Array, y: Array) -> Array:
        """(nu, y active) from (nu, y of all rows of C)."""
        m = self.qp.m
        return np.concatenate([nu, y[:m][self.rows], y[m:][self.bounds]])
