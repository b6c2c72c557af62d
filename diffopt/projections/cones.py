"""Cones: `SecondOrderCone`, `PSDCone`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..implicit import implicit_root
from ..operators import Operator
from ..solution import OnFailure, Solution
from .arguments import Argument, by_sample, check_point
from .vectors import length


@dataclass(frozen=True)
class SecondOrderCone:
    """The cone of v = (x, t), t last, with |x| <= t: ``SecondOrderCone()(v)``, `(*B, n)`.

    v itself where |x| <= t, zero where |x| <= -t, and otherwise
    (|x| + t) / 2 (x / |x|, 1).

    Derivative: of any order off the boundaries; on them, where it has a kink, the identity for
    |x| = t (the apex included) and zero for |x| = -t.

    Example:
        >>> SecondOrderCone()(torch.tensor([3.0, 4.0, 1.0]))
        tensor([1.8000, 2.4000, 3.0000])

    Source: Parikh & Boyd, "Proximal algorithms" (Foundations and Trends in Optimization 1, 2014),
    Sec. 6.3.2.
    """

    def __call__(self, v: Tensor) -> Tensor:
        check_point(v)
        return by_sample(_second_order, Argument(v))


@dataclass(frozen=True)
class PSDCone:
    """The symmetric positive semidefinite matrices: ``PSDCone()(X)``, `(*B, n, n)`.

    The nearest in the Frobenius norm; that of X is that of its symmetric part. An eigenvalue below
    n eps of the largest counts as zero.

    Args:
        order: how many derivatives are exact; one more raises.

    Raises:
        ValueError: if X is not square.
        RuntimeError: when derivative number `order` + 1 is asked for.

    Derivative: in the eigenbasis Q of X the direction H becomes Omega * H, with
    Omega_ij = (max(l_i, 0) - max(l_j, 0)) / (l_i - l_j): 1 for two positive eigenvalues, 0 for two
    negative ones, and l_i / (l_i - l_j) if only l_i is positive. It is computed as
    (1 + (l_i + l_j) / (|l_i| + |l_j|)) / 2, so equal eigenvalues are nothing special. The only
    kink is at zero: Omega_ij = 1/2 where both are zero, the mean of the two sides.

    Accuracy: that of `torch.linalg.eigh`, rounding times |X|.

    Example:
        The eigenvalues are 2 and -2, with (1, 1) and (1, -1):

        >>> PSDCone()(torch.tensor([[0.0, 2.0], [2.0, 0.0]], dtype=torch.float64)).round(decimals=9)
        tensor([[1., 1.],
                [1., 1.]], dtype=torch.float64)

    Source: Higham, "Computing a nearest symmetric positive semidefinite matrix" (Linear Algebra
    Appl. 103, 1988), Thm. 2.1; the Daleckii-Krein formula, Bhatia, "Matrix Analysis" (1997),
    Thm. V.3.3; Sun & Sun, "Semismooth matrix-valued functions" (Math. Oper. Res. 27, 2002), for
    the kink.
    """

    order: int = 1

    def __call__(self, X: Tensor) -> Tensor:
        check_point(X, 2)
        if X.shape[-1] != X.shape[-2]:
            raise ValueError(f"x has shape {tuple(X.shape)}: expected square matrices (*B, n, n)")
        return by_sample(self._project, Argument(X, 2))

    def _project(self, X: Tensor) -> Tensor:
        """(H + |H|) / 2 in the eigenbasis, where |H| is the root Z >= 0 of Z^2 - H^2 = 0.

        Q and the eigenvalues l are constants. H = Q'XQ is written so that its value is diagonal
        to the last bit: then so is the derivative of H^2, dH -> (l_i + l_j) dH_ij, and that of
        Z^2 is dZ -> (|l_i| + |l_j|) dZ_ij, which never takes a difference of eigenvalues.
        """
        S = (X + X.mT) / 2
        eigenvalues, Q = torch.linalg.eigh(S.detach())
        size = eigenvalues.abs()
        cut = size.shape[-1] * torch.finfo(X.dtype).eps * size.amax(-1, keepdim=True)
        eigenvalues = torch.where(size > cut, eigenvalues, 0.0)
        size = eigenvalues.abs()
        H = torch.diag_embed(eigenvalues) + Q.mT @ (S - S.detach()) @ Q
        square = H @ H

        def residual(z: Tensor) -> Tensor:
            Z = z.unflatten(-1, H.shape[-2:])
            return (Z @ Z - square).flatten(-2)

        sums = (size.unsqueeze(-1) + size.unsqueeze(-2)).flatten(-2)
        root = torch.diag_embed(size).flatten(-2)
        Z = implicit_root(residual, root, _Diagonal(sums), self.order).unflatten(-1, H.shape[-2:])
        return Q @ ((H + Z) / 2) @ Q.mT


@dataclass(frozen=True)
class _Diagonal(Operator):
    """A diagonal A, `(*B, n)`; an entry of zero has the pseudo-inverse zero. It never fails."""

    diagonal: Tensor
    on_failure: OnFailure = "warn"

    def solve(self, v: Tensor) -> Solution:
        zero = self.diagonal == 0
        x = torch.where(zero, 0.0, v / torch.where(zero, 1.0, self.diagonal))
        status = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
        return Solution(x, status, status, torch.zeros_like(x[..., 0]))

    def solve_transpose(self, v: Tensor) -> Solution:
        return self.solve(v)


def _second_order(v: Tensor) -> Tensor:
    x, t = v[..., :-1], v[..., -1:]
    size = length(x.detach())
    inside, polar = size <= t, size <= -t
    x = torch.where(inside | polar, 1.0, x)  # no norm is differentiated at zero
    size = length(x)
    between = (size + t) / 2 * torch.cat([x / size, torch.ones_like(t)], -1)
    return torch.where(inside, v, torch.where(polar, 0.0, between))
