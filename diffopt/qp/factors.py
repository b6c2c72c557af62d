"""One factorised KKT matrix: unknowns eliminated with a Cholesky factor, then a Schur complement.

    [H  theta M'E; E M  -T] [x; u] = [r; rho],    H = L L' / c,  V = L^-1 M',  E, T diagonal
    S = theta c E V'V E + T,    S u = c E V' L^-1 r - rho,    x = c L^-T (L^-1 r - theta V E u).

`structure` says what H and M are made of, and which of it the samples share.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..product import full
from .problem import matvec


@dataclass(frozen=True)
class Root:
    """L, lower triangular `(B|1, n, n)`, or its diagonal `(B|1, n)` where the rest is zero."""

    L: Tensor
    diagonal: bool

    def half(self, v: Tensor) -> Tensor:
        """L^-1 v."""
        if self.diagonal:
            return v / self.L
        if self.L.shape[0] == 1 and v.ndim == 2:  # one solve with B right-hand sides: v' L^-T
            return _solved(self.L[0].mT, v, upper=True, left=False)
        return _solved(self.L, v.unsqueeze(-1), upper=False).squeeze(-1)

    def half_transposed(self, v: Tensor) -> Tensor:
        """L^-T v."""
        if self.diagonal:
            return v / self.L
        if self.L.shape[0] == 1 and v.ndim == 2:
            return _solved(self.L[0], v, upper=False, left=False)
        return _solved(self.L.mT, v.unsqueeze(-1), upper=True).squeeze(-1)


@dataclass(frozen=True)
class Factor:
    """The factorised matrix; None stands for ones."""

    root: Root
    M: Tensor  # (B|1, r, n)
    V: Tensor | None  # (B|1, n, r); None where L is diagonal: M does it, which the batch may share
    S: Root  # of the Schur complement, (B|1, r, r)
    E: Tensor | None = None  # (B, r)
    c: Tensor | None = None  # (B|1, 1)
    theta: float = 1.0

    def solve(self, r: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
        """(x, u)."""
        half = self.root.half(r)
        if rho.shape[-1] == 0:
            return _times(self.c, self.root.half_transposed(half)), rho
        u = _times(self.E, _times(self.c, self._Vt(half))) - rho
        u = self.S.half_transposed(self.S.half(u))
        rest = half - self.theta * self._V(_times(self.E, u))
        return _times(self.c, self.root.half_transposed(rest)), u

    def _V(self, u: Tensor) -> Tensor:
        return self.root.half(matvec(self.M.mT, u)) if self.V is None else matvec(self.V, u)

    def _Vt(self, v: Tensor) -> Tensor:
        if self.V is None:
            return matvec(self.M, self.root.half_transposed(v))
        return matvec(self.V.mT, v)


def schur(K: Tensor, t: Tensor, e: int, delta: float, attended: bool) -> tuple[Tensor | None, Root]:
    """(E, root of E K E + T) for e equalities and rows of G of activity `t` `(B, m)`.

    E is sqrt(1 - t) and T is t + delta on the rows of G; 1 and delta on those of A.
    """
    if t.shape[-1] == 0:
        S = K.clone()
        S.diagonal(dim1=-2, dim2=-1).add_(delta)
        return None, Root(cholesky(S, attended), False)
    E = torch.nn.functional.pad((1 - t).sqrt(), (e, 0), value=1.0)
    S = (K * E.unsqueeze(-1)).mul_(E.unsqueeze(-2))
    S.diagonal(dim1=-2, dim2=-1).add_(torch.nn.functional.pad(t, (e, 0)) + delta)
    return E, Root(cholesky(S, attended), False)


def cholesky(M: Tensor, attended: bool = True) -> Tensor:
    """Lower factor of M, shifted relative to its diagonal where rounding made it indefinite.

    The rounding errors of Cholesky are relative to the diagonal whatever its scale (Demmel, "On
    floating point errors in Cholesky", LAPACK Working Note 14, 1989), so only a shift needs one.
    Samples whose matrix is not finite keep a NaN factor. Where not `attended` no number is looked
    at, and what would have to be shifted has NaN in its diagonal.
    """
    if M.shape[-1] == 0:
        return M
    factor, info = torch.linalg.cholesky_ex(M)
    failed = info > 0
    if not attended:
        factor.diagonal(dim1=-2, dim2=-1).add_(torch.where(failed, torch.nan, 0.0).unsqueeze(-1))
    elif bool(failed.any()):
        factor[failed] = _shifted_cholesky(M[failed])
    return factor


def _shifted_cholesky(M: Tensor) -> Tensor:
    """The factor of M, of unit diagonal, plus a shift that grows from 50 eps until there is one."""
    size = M.diagonal(dim1=-2, dim2=-1).clamp(min=torch.finfo(M.dtype).tiny).sqrt()
    unit = M / (size.unsqueeze(-1) * size.unsqueeze(-2))
    eye = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    factor, shift = torch.full_like(M, torch.nan), 50 * torch.finfo(M.dtype).eps
    failed = torch.ones(len(M), dtype=torch.bool, device=M.device)
    for _ in range(5):  # up to 1e-6 in float64
        again, info = torch.linalg.cholesky_ex(unit + shift * eye)
        factor = torch.where(failed[:, None, None], again, factor)
        failed, shift = failed & (info > 0), 100 * shift
        if not bool(failed.any()):
            break
    return factor * size.unsqueeze(-1)


def _times(scale: Tensor | None, v: Tensor) -> Tensor:
    return v if scale is None else scale * v


def _solved(L: Tensor, v: Tensor, upper: bool, left: bool = True) -> Tensor:
    return full(torch.linalg.solve_triangular, L, v, upper=upper, left=left)
