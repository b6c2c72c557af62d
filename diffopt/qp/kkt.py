"""The KKT matrix of a QP: factorised once, then solved, transposed-solved and refined.

Every linear system of the package's QP code has one form. With t in [0, 1] a sample and row of C,

    Q x + A'nu + C'(f y)  = r_d          t = 0: an equality, C x = r_c (an active limit)
    A x                   = r_e          t = 1: y = -r_c               (an inactive one)
    g C x - t y           = r_c          between: an interior-point weight (1 - t) / t

where (f, g) = (1, 1 - t), and (1 - t, 1) for the transposed system. Predictor, corrector, polish
and backward pass differ in t and in the right-hand side only.

The factor is of a regularised system: t + delta for t, rho added to Q, -delta in the lower right
corner. Eliminating y = (g C x - r_c) / (t + delta) leaves, with w = f g / (t + delta),

    H = Q + rho I + C' diag(w) C + gamma A'A
    [H  theta A'; A  -delta I] [x; nu] = [r_d + C'(f r_c / (t + delta)) + gamma A' r_e; r_e]

with theta = 1 - gamma delta (adding gamma A' times the second row to the first: Golub & Greif,
SIAM J. Sci. Comput. 2003, sec. 2; H is then positive definite whenever the QP is convex on the
null space of A). With H = L L', V = L^-1 A' and S = theta V'V + delta I:

    S nu = V' L^-1 r - r_e,      x = L^-T (L^-1 r - theta V nu).

Iterative refinement against the system above, without delta and rho, takes the regularisation
out again, so that dependent rows and semidefinite Q need no special case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..linear import GMRES
from .problem import QP, matvec


class Blocks(NamedTuple):
    """A vector of the KKT system: unknowns or multipliers or residuals, `(B, n|e|k)`."""

    z: Tensor
    nu: Tensor
    y: Tensor

    def plus(self, other: Blocks) -> Blocks:
        """The sum."""
        return Blocks(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: Blocks) -> Blocks:
        """The difference."""
        return Blocks(*(a - b for a, b in zip(self, other, strict=True)))

    def where(self, mask: Tensor, other: Blocks) -> Blocks:
        """This vector in the samples of `mask` `(B)`, `other` elsewhere."""
        mask = mask.unsqueeze(-1)
        return Blocks(*(torch.where(mask, a, b) for a, b in zip(self, other, strict=True)))

    def norm(self) -> Tensor:
        """Euclidean norm of each sample, `(B)`."""
        return torch.linalg.vector_norm(torch.cat(self, -1), dim=-1)


@dataclass(frozen=True)
class KKT:
    """The factorised system: make it with `factorize`, then `solve` any number of times.

    `root` is L, or the diagonal of L as `(B, n)` where H is diagonal (diagonal Q, no rows of G):
    then nothing of size n^2 is ever formed.
    """

    qp: QP
    t: Tensor  # (B, k)
    root: Tensor  # (B, n, n) or (B, n)
    V: Tensor  # (B, n, e)
    S: Tensor  # (B, e, e), its Cholesky factor
    delta: float
    gamma: float
    refinements: int

    def solve(
        self, r: Blocks, transpose: bool = False, rtol: float = 1e-12
    ) -> tuple[Blocks, Tensor]:
        """The solution for `r`, refined towards `rtol`, and its residual, `(B)`.

        The residual is relative to |r| + 1e-3 |x|: of a matrix of norm one and a solution much
        larger than r, rounding leaves 1e-16 |x| whatever is done.
        """
        x = self._solve_regularised(r, transpose)
        rest = r.minus(self.apply(x, transpose))
        error = rest.norm()
        for _ in range(self.refinements):
            if not bool((error > rtol * _size(r, x)).any()):
                break
            step = self._solve_regularised(rest, transpose)
            x, rest, error, better = self._improved(r, x, rest, error, step, transpose)
            if not bool(better.any()):
                break
        return x, error / _size(r, x)

    def solve_hard(
        self, r: Blocks, transpose: bool = False, atol: Tensor | float = 0.0
    ) -> tuple[Blocks, Tensor]:
        """`solve`, and where that is stuck above 1e-11 GMRES with the factor as preconditioner.

        Plain refinement contracts an error along a singular direction of size sigma by delta /
        (sigma^2 + delta), which is near 1 for nearly dependent rows. There are few such
        directions, and a Krylov space resolves one a step. A residual below `atol` `(B)` is none.
        """
        x, relative = self.solve(r, transpose)
        if not bool(((relative > 1e-11) & (relative * _size(r, x) > atol)).any()):
            return x, relative
        widths = [v.shape[-1] for v in r]

        def preconditioned(v: Tensor) -> Tensor:
            part = Blocks(*v.split(widths, -1))
            return torch.cat(self.apply(self._solve_regularised(part, transpose), transpose), -1)

        rest = r.minus(self.apply(x, transpose))
        u = GMRES(rtol=1e-14, restart=16, max_cycles=1).solve(preconditioned, torch.cat(rest, -1))
        step = self._solve_regularised(Blocks(*u.value.split(widths, -1)), transpose)
        x, _, error, _ = self._improved(r, x, rest, rest.norm(), step, transpose)
        return x, error / _size(r, x)

    def _improved(
        self, r: Blocks, x: Blocks, rest: Blocks, error: Tensor, step: Blocks, transpose: bool
    ) -> tuple[Blocks, Blocks, Tensor, Tensor]:
        """(x, rest, error) after `step` for the samples that it helps, and which these are."""
        trial = x.plus(step)
        new_rest = r.minus(self.apply(trial, transpose))
        new_error = new_rest.norm()
        better = new_error < error
        error = torch.where(better, new_error, error)
        return trial.where(better, x), new_rest.where(better, rest), error, better

    def apply(self, x: Blocks, transpose: bool = False) -> Blocks:
        """The unregularised KKT matrix, or its transpose, times x."""
        f, g = self._factors(transpose)
        Cy = self.qp.rows_transposed(x.y if f is None else f * x.y)
        Cz = self.qp.rows(x.z)
        return Blocks(
            self.qp.curvature(x.z) + matvec(self.qp.A.mT, x.nu) + Cy,
            matvec(self.qp.A, x.z),
            (Cz if g is None else g * Cz) - self.t * x.y,
        )

    def _factors(self, transpose: bool) -> tuple[Tensor | None, Tensor | None]:
        """(f, g), None standing for 1."""
        return (1 - self.t, None) if transpose else (None, 1 - self.t)

    def _solve_regularised(self, r: Blocks, transpose: bool) -> Blocks:
        f, g = self._factors(transpose)
        scaled = r.y / (self.t + self.delta)
        rhs = r.z + self.qp.rows_transposed(scaled if f is None else f * scaled)
        if self.gamma:
            rhs = rhs + self.gamma * matvec(self.qp.A.mT, r.nu)
        theta = 1 - self.gamma * self.delta
        half = self._half(rhs)
        nu = _cholesky_solve(self.S, self._Vt(half) - r.nu)
        z = self._half_transposed(half - theta * self._V(nu))
        Cz = self.qp.rows(z)
        y = ((Cz if g is None else g * Cz) - r.y) / (self.t + self.delta)
        return Blocks(z, nu, y)

    def _V(self, nu: Tensor) -> Tensor:
        """V nu = L^-1 A'nu; through A where H is diagonal, since the batch may share A."""
        if self.root.ndim == 2:
            return matvec(self.qp.A.mT, nu) / self.root
        return matvec(self.V, nu)

    def _Vt(self, half: Tensor) -> Tensor:
        """V'half = A L^-T half."""
        if self.root.ndim == 2:
            return matvec(self.qp.A, half / self.root)
        return matvec(self.V.mT, half)

    def _half(self, v: Tensor) -> Tensor:
        """L^-1 v."""
        if self.root.ndim == 2:
            return v / self.root
        return torch.linalg.solve_triangular(self.root, v.unsqueeze(-1), upper=False).squeeze(-1)

    def _half_transposed(self, v: Tensor) -> Tensor:
        """L^-T v."""
        if self.root.ndim == 2:
            return v / self.root
        return torch.linalg.solve_triangular(self.root.mT, v.unsqueeze(-1), upper=True).squeeze(-1)


@dataclass(frozen=True)
class KKTFamily:
    """The KKT matrices of one QP for all t: what does not depend on t, computed once."""

    qp: QP
    base: Tensor  # Q + rho I + gamma A'A, or its diagonal
    delta: float
    gamma: float
    refinements: int

    @classmethod
    def of(cls, qp: QP, regularization: float = 1e-9, refinements: int = 6) -> KKTFamily:
        """The family of `qp` (equilibrated, so that absolute regularisation makes sense)."""
        Q, weight = qp.Q, 1.0 if qp.weight is None else qp.weight
        diagonal = qp.m == 0 and qp.bounded and not bool((Q - _diag_part(Q)).any())
        if diagonal:
            base, gamma = weight * Q.diagonal(dim1=-2, dim2=-1) + regularization, 0.0
        else:
            gamma = 1.0 if qp.A.shape[-2] else 0.0
            eye = torch.eye(qp.n, dtype=Q.dtype, device=Q.device)
            fixed = regularization * eye + gamma * (qp.A.mT @ qp.A)
            base = (Q if qp.weight is None else qp.weight.unsqueeze(-1) * Q) + fixed
        return cls(qp, base, regularization, gamma, refinements)

    def factorize(self, t: Tensor) -> KKT:
        """The factorised system for `t` `(B, k)`."""
        w = (1 - t) / (t + self.delta)
        if self.base.ndim == 2:
            root = (self.base + w).sqrt()
            V = self.qp.A.mT / root.unsqueeze(-1)
        else:
            root = _cholesky(self._dense(w))
            V = torch.linalg.solve_triangular(root, self.qp.A.mT, upper=False)
        theta = 1 - self.gamma * self.delta
        eye = torch.eye(V.shape[-1], dtype=V.dtype, device=V.device)
        S = _cholesky(theta * (V.mT @ V) + self.delta * eye)
        return KKT(self.qp, t, root, V, S, self.delta, self.gamma, self.refinements)

    def _dense(self, w: Tensor) -> Tensor:
        """H, `(B, n, n)`; the bounds touch the diagonal only."""
        G, wG = self.qp.G, w[..., : self.qp.m]
        H = self.base + G.mT @ (wG.unsqueeze(-1) * G)
        if self.qp.bounded:
            H.diagonal(dim1=-2, dim2=-1).add_(w[..., self.qp.m :])
        return H


def _size(r: Blocks, x: Blocks) -> Tensor:
    """|r| + 1e-3 |x|, `(B)`, and 1 where both are zero."""
    size = r.norm() + 1e-3 * x.norm()
    return torch.where(size == 0, 1.0, size)


def _diag_part(M: Tensor) -> Tensor:
    return torch.diag_embed(M.diagonal(dim1=-2, dim2=-1))


def _cholesky(M: Tensor) -> Tensor:
    """Lower factor of M scaled to unit diagonal first, shifted where rounding made it indefinite.

    Active rows give diagonal entries near 1/delta beside entries near 1: scaling them away first
    costs nothing and is worth several digits. The shift starts at 1e-14 of the unit diagonal and
    grows until the factorisation exists; refinement takes it out again. Samples whose matrix is
    not finite keep a NaN factor.
    """
    if M.shape[-1] == 0:
        return M
    size = M.diagonal(dim1=-2, dim2=-1).clamp(min=1e-300).sqrt()
    unit = M / (size.unsqueeze(-1) * size.unsqueeze(-2))
    factor, info = torch.linalg.cholesky_ex(unit)
    shift = 1e-14
    while shift < 1e-5 and bool((info > 0).any()):
        shifted = unit + shift * torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
        again, new_info = torch.linalg.cholesky_ex(shifted)
        failed = (info > 0)[..., None, None]
        factor, info = torch.where(failed, again, factor), torch.where(info > 0, new_info, info)
        shift *= 100
    return factor * size.unsqueeze(-1)


def _cholesky_solve(factor: Tensor, v: Tensor) -> Tensor:
    if factor.shape[-1] == 0:
        return v
    return torch.cholesky_solve(v.unsqueeze(-1), factor).squeeze(-1)
