"""The structure of a batch of KKT matrices: what of their factors does not depend on the weights.

Three kinds, which differ in the H that eliminates x and the rows M that are left (see `factors`).
C = [G; I] are the rows with limits, w their weights (see `kkt`):

    Dense      H = Q + rho I + C' diag(w) C + gamma A'A, M = A      always right
    Diagonal   H = Q + rho I + weights of the bounds,  M = [A; G]   Q diagonal: nothing of size n^2
    Constant   H = Q + rho I,                          M = [A; G]   Q, A and G shared, no bounds:
                                                                    L and V'V once and for all

gamma A', times the second row of the system, is added to the first: H is then positive definite
whenever the QP is convex on the null space of A (Golub & Greif, SIAM J. Sci. Comput. 2003, sec. 2).

The last two (the range-space method, Nocedal & Wright, Numerical Optimization, 2nd ed., 2006, sec.
16.2) keep T, about delta on an active row, next to M Q^-1 M'. So they are for a definite Q, where
they are also more accurate: Dense adds 1/delta to Q, and rounding takes 1e-16 / delta of it. A
diagonal Q with bounds only is Diagonal whatever it is: an unknown that is not at a bound has
nothing but Q and rho in any H.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..product import full, product
from .factors import Factor, Root, cholesky, schur
from .problem import QP

# The least eigenvalue of an equilibrated Q, whose entries are about one, times delta / eps, for
# M = [A; G]: rounding of S is then a hundredth of delta.
DEFINITE = 1e2
# Rows of [A; G] over unknowns up to which M = [A; G] pays, where the samples share them and where
# they do not: measured, the Schur complement being dearer to form and to solve with than H.
SHARED_ROWS, OWN_ROWS = 0.75, 0.5
PRODUCTS = 2**20  # most numbers kept in products of shared rows: 8 MiB


@dataclass(frozen=True)
class Dense:
    """H with all rows of C in it: of any Q."""

    base: Tensor  # Q + rho I + gamma A'A, (B|1, n, n)
    G: Tensor  # (B|1, m, n)
    products: Tensor | None  # g g' of each row of a shared G, (1, m, n^2)
    A: Tensor  # (B|1, e, n)
    bounded: bool
    delta: float
    gamma: float

    @classmethod
    def of(cls, qp: QP, delta: float) -> Dense:
        """gamma is 1 if there are equalities: H must be definite on their null space only."""
        gamma = 1.0 if qp.A.shape[-2] else 0.0
        eye = torch.eye(qp.n, dtype=qp.Q.dtype, device=qp.Q.device)
        base = _weighted(qp) + (delta * eye + gamma * product(qp.A.mT, qp.A))
        products = _products(qp.G) if qp.m and qp.batch >= _enough(qp.n) else None
        return cls(base, qp.G, products, qp.A, qp.bounded, delta, gamma)

    def factor(self, t: Tensor, attended: bool = True) -> Factor:
        """The factor at the weights of `t` `(B, k)`; `attended`: see `cholesky`."""
        theta = 1 - self.gamma * self.delta
        root = Root(cholesky(self._matrix((1 - t) / (t + self.delta)), attended), False)
        V = full(torch.linalg.solve_triangular, root.L, self.A.mT, upper=False)
        S = product(V.mT, V)
        S.mul_(theta).diagonal(dim1=-2, dim2=-1).add_(self.delta)
        return Factor(root, self.A, V, Root(cholesky(S, attended), False), theta=theta)

    def _matrix(self, w: Tensor) -> Tensor:
        """H, `(B, n, n)`; the bounds touch the diagonal only."""
        m, n = self.G.shape[-2:]
        wG = w[..., :m]
        if m and self.products is not None and w.shape[0] >= _enough(n):
            H = full(torch.addmm, self.base.flatten(1), wG, self.products[0]).view(-1, n, n)
        elif m:
            H = product(self.G.mT, wG.unsqueeze(-1) * self.G).add_(self.base)
        else:
            H = self.base.expand(w.shape[0] if self.bounded else -1, -1, -1).clone()
        if self.bounded:
            H.diagonal(dim1=-2, dim2=-1).add_(w[..., m:])
        return H


@dataclass(frozen=True)
class Diagonal:
    """H diagonal: nothing of size n^2 is ever formed."""

    base: Tensor  # diagonal of Q + rho I, (B|1, n)
    M: Tensor  # (B|1, e + m, n)
    products: Tensor | None  # of each column of a shared M with itself, (1, n, (e + m)^2)
    e: int
    bounded: bool
    delta: float

    @classmethod
    def of(cls, qp: QP, delta: float) -> Diagonal:
        base, M = qp.Q.diagonal(dim1=-2, dim2=-1), _stacked(qp)
        base = (base if qp.weight is None else qp.weight * base) + delta
        products = _products(M.mT) if M.shape[-2] else None
        return cls(base, M, products, qp.A.shape[-2], qp.bounded, delta)

    def factor(self, t: Tensor, attended: bool = True) -> Factor:
        """The factor at the weights of `t` `(B, k)`; `attended`: see `cholesky`."""
        m, r = self.M.shape[-2] - self.e, self.M.shape[-2]
        bounds = t[..., m:]
        h = self.base + (1 - bounds) / (bounds + self.delta) if self.bounded else self.base
        if self.products is None:
            K = product(self.M, (self.M / h.unsqueeze(-2)).mT)
        else:
            K = product(1 / h, self.products[0]).view(-1, r, r)
        E, S = schur(K, t[..., :m], self.e, self.delta, attended)
        return Factor(Root(h.sqrt(), True), self.M, None, S, E)


@dataclass(frozen=True)
class Constant:
    """H the same for all weights and, up to a number, all samples: it is factorised once."""

    root: Root  # of Q + rho I without the weight of Q, (1, n, n)
    M: Tensor  # (1, e + m, n)
    V: Tensor  # (1, n, e + m)
    K: Tensor  # c V'V, (B|1, e + m, e + m)
    c: Tensor | None  # 1 / weight, (B|1, 1)
    e: int
    delta: float

    @classmethod
    def of(cls, qp: QP, delta: float) -> Constant:
        eye = torch.eye(qp.n, dtype=qp.Q.dtype, device=qp.Q.device)
        root, M = Root(cholesky(qp.Q + delta * eye), False), _stacked(qp)
        V = full(torch.linalg.solve_triangular, root.L, M.mT, upper=False)
        c = None if qp.weight is None else 1 / qp.weight
        K = product(V.mT, V)
        K = K if c is None else c.unsqueeze(-1) * K
        return cls(root, M, V, K, c, qp.A.shape[-2], delta)

    def factor(self, t: Tensor, attended: bool = True) -> Factor:
        """The factor at the weights of `t` `(B, m)`; `attended`: see `cholesky`."""
        E, S = schur(self.K, t, self.e, self.delta, attended)
        return Factor(self.root, self.M, self.V, S, E, self.c)


def choose(qp: QP, delta: float) -> Dense | Diagonal | Constant:
    """The cheapest of the three kinds that is right for every sample of `qp`, equilibrated."""
    shared = qp.A.shape[0] == 1 and qp.G.shape[0] == 1
    most = (SHARED_ROWS if shared else OWN_ROWS) * qp.n
    few = qp.m + qp.A.shape[-2] <= most
    if not bool((qp.Q - torch.diag_embed(qp.Q.diagonal(dim1=-2, dim2=-1))).any()):
        if (qp.m == 0 and qp.bounded) or (few and _definite(qp, delta)):
            return Diagonal.of(qp, delta)
    alike = shared and qp.Q.shape[0] == 1 and not qp.bounded
    if alike and few and _definite(qp, delta):
        return Constant.of(qp, delta)
    return Dense.of(qp, delta)


def _weighted(qp: QP) -> Tensor:
    return qp.Q if qp.weight is None else qp.weight.unsqueeze(-1) * qp.Q


def _stacked(qp: QP) -> Tensor:
    """[A; G], shared if both are."""
    if qp.m == 0 or qp.A.shape[-2] == 0:
        return qp.G if qp.m else qp.A
    size = max(qp.A.shape[0], qp.G.shape[0])
    return torch.cat([v.expand(size, -1, -1) for v in (qp.A, qp.G)], -2)


def _products(rows: Tensor) -> Tensor | None:
    """g g' of each row of a shared matrix `(1, m, n)`, `(1, m, n^2)`; None if not shared or large.

    rows' diag(w) rows, flattened, is then w times this: one GEMM for all samples.
    """
    shared, m, n = rows.shape
    if shared != 1 or m * n * n > PRODUCTS:
        return None
    return (rows.unsqueeze(-1) * rows.unsqueeze(-2)).reshape(1, m, n * n)


def _enough(n: int) -> int:
    """The least batch for which reading all products costs less than one product a sample."""
    return n // 2 if n > 20 else 1


def _definite(qp: QP, delta: float) -> bool:
    """Whether the least eigenvalue of Q is `DEFINITE` eps / delta at least, in every sample."""
    least = DEFINITE * torch.finfo(qp.Q.dtype).eps / delta
    if qp.weight is not None:
        least = least / float(qp.weight.amin())
    eye = torch.eye(qp.n, dtype=qp.Q.dtype, device=qp.Q.device)
    return not bool((torch.linalg.cholesky_ex(qp.Q - least * eye)[1] > 0).any())
