"""The KKT matrix of a QP: factorised once, then solved, transposed-solved and refined.

Every linear system of the package's QP code has one form. With t in [0, 1] a sample and row of C,

    Q x + A'nu + C'(f y)  = r_d          t = 0: an equality, C x = r_c (an active limit)
    A x                   = r_e          t = 1: y = -r_c               (an inactive one)
    g C x - t y           = r_c          between: an interior-point weight (1 - t) / t

where (f, g) = (1, 1 - t), and (1 - t, 1) for the transposed system. Predictor, corrector, polish
and backward pass differ in t and in the right-hand side only.

The factor is of a regularised system: t + delta = T for t, rho added to Q, -delta in the lower
right corner. Rows of C are then eliminated, y = (g C x - r_c) / T, which leaves

    [H  A'; A  -delta I] [x; nu] = [r_d + C'(f r_c / T); r_e],   H = Q + rho I + C' diag(f g / T) C

or, where `structure` keeps the rows of G (and only the bounds go into H), scaled to be symmetric:
with s = sqrt(f g) = sqrt(1 - t) and q = s / g the rows of an active G (t < 1/2) read

    s G x - T u = q r_c,   y = u / q,   and G'(s u) is what they add to the first row.

Of an inactive one y = (g G x - r_c) / T as before, with the row s G x - T u = 0 for the part of
y that comes from x: nothing is divided by an s or a T that is nearly zero.

Iterative refinement against the system above, without delta and rho, takes the regularisation
out again, so that dependent rows and semidefinite Q need no special case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..linear import GMRES
from .factors import Factor
from .problem import QP, digits, matvec
from .structure import Constant, Dense, Diagonal, choose

# Refinements that nobody sees. Over the iterations of the tests' problems one was enough for 210 of
# the 223 correctors that any number brought to their tolerance, and what is left the next step
# sees; of 254 predictors, asked for ROUGH, none needed any.
UNSEEN, ROUGH = 2, 1e-4


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


def pack(x: Blocks) -> Tensor:
    """(z, nu, y) as one vector a sample, `(B, n + e + k)`."""
    return torch.cat(x, -1)


def unpack(v: Tensor, qp: QP) -> Blocks:
    """The inverse of `pack`."""
    e = qp.A.shape[-2]
    z, nu, y = v.split([qp.n, e, v.shape[-1] - qp.n - e], -1)
    return Blocks(z, nu, y)


@dataclass(frozen=True)
class KKT:
    """The factorised system: make it with `factorize`, then `solve` any number of times."""

    qp: QP
    t: Tensor  # (B, k)
    factor: Factor
    delta: float
    gamma: float
    refinements: int
    attended: bool = True

    def solve(
        self, r: Blocks, transpose: bool = False, rtol: float | None = None
    ) -> tuple[Blocks, Tensor]:
        """The solution for `r`, refined towards `rtol` (1e-12), and its residual, `(B)`.

        The residual is relative to |r| + 1e-3 |x|: of a matrix of norm one and a solution much
        larger than r, rounding leaves 1e-16 |x| whatever is done.
        """
        rtol = digits(1e-12, r.z.dtype) if rtol is None else rtol
        x, rest, error = self._unrefined(r, transpose)
        for _ in range(self.refinements):
            if not bool((error > rtol * _size(r, x)).any()):
                break
            step = self._solve_regularised(rest, transpose)
            x, rest, error, better = self._improved(r, x, rest, error, step, transpose)
            if not bool(better.any()):
                break
        return x, error / _size(r, x)

    def direction(self, r: Blocks, rtol: float) -> Blocks:
        """The solution for `r` to about `rtol`, for a step of an iteration.

        Where not `attended` the number of refinements is fixed: the factor alone gives `ROUGH`.
        """
        if self.attended:
            return self.solve(r, rtol=rtol)[0]
        if rtol >= digits(ROUGH, r.z.dtype):
            return self._solve_regularised(r, False)
        x, rest, error = self._unrefined(r, False)
        for _ in range(min(self.refinements, UNSEEN)):
            step = self._solve_regularised(rest, False)
            x, rest, error, _ = self._improved(r, x, rest, error, step, False)
        return x

    def solve_hard(
        self, r: Blocks, transpose: bool = False, atol: Tensor | float = 0.0
    ) -> tuple[Blocks, Tensor]:
        """`solve`, and where that is stuck above 1e-11 GMRES with the factor as preconditioner.

        Plain refinement contracts an error along a singular direction of size sigma by delta /
        (sigma^2 + delta), which is near 1 for nearly dependent rows. There are few such
        directions, and a Krylov space resolves one a step. A residual below `atol` `(B)` is none.
        """
        x, relative = self.solve(r, transpose)
        stuck = digits(1e-11, relative.dtype)
        if not bool(((relative > stuck) & (relative * _size(r, x) > atol)).any()):
            return x, relative
        widths = [v.shape[-1] for v in r]

        def preconditioned(v: Tensor) -> Tensor:
            part = Blocks(*v.split(widths, -1))
            return torch.cat(self.apply(self._solve_regularised(part, transpose), transpose), -1)

        rest = r.minus(self.apply(x, transpose))
        u = GMRES(rtol=digits(1e-14, relative.dtype), restart=16, max_cycles=1).solve(
            preconditioned, torch.cat(rest, -1)
        )
        step = self._solve_regularised(Blocks(*u.value.split(widths, -1)), transpose)
        x, _, error, _ = self._improved(r, x, rest, rest.norm(), step, transpose)
        return x, error / _size(r, x)

    def _unrefined(self, r: Blocks, transpose: bool) -> tuple[Blocks, Blocks, Tensor]:
        """(x, r - K x, the norm of that) with the factor alone."""
        x = self._solve_regularised(r, transpose)
        rest = r.minus(self.apply(x, transpose))
        return x, rest, rest.norm()

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
        m, e, T = self.qp.m, self.qp.A.shape[-2], self.t + self.delta
        eliminated, rho = r.y / T, r.nu
        if self.factor.E is not None:
            s, active = self.factor.E[..., e:], self.t[..., :m] < 0.5
            q = s if transpose else 1 / s
            eliminated[..., :m].masked_fill_(active, 0.0)
            rho = torch.cat([rho, torch.where(active, q * r.y[..., :m], 0.0)], -1)
        rhs = r.z + self.qp.rows_transposed(eliminated if f is None else f * eliminated)
        if self.gamma:
            rhs = rhs + self.gamma * matvec(self.qp.A.mT, r.nu)
        z, u = self.factor.solve(rhs, rho)
        Cz = self.qp.rows(z)
        y = ((Cz if g is None else g * Cz) - r.y) / T
        if self.factor.E is not None:
            y[..., :m] = torch.where(active, u[..., e:] / q, y[..., :m])
        return Blocks(z, u[..., :e], y)


@dataclass(frozen=True)
class KKTFamily:
    """The KKT matrices of one QP for all t: what does not depend on t, computed once."""

    qp: QP
    kind: Dense | Diagonal | Constant
    delta: float
    refinements: int
    attended: bool = True  # whether the host may look at numbers; if not, see `KKT.direction`

    @classmethod
    def of(cls, qp: QP, regularization: float = 1e-9, refinements: int = 6) -> KKTFamily:
        """The family of `qp` (equilibrated, so that absolute regularisation makes sense)."""
        return cls(qp, choose(qp, regularization), regularization, refinements)

    def factorize(self, t: Tensor) -> KKT:
        """The factorised system for `t` `(B, k)`."""
        t = t.to(self.qp.Q.dtype)
        gamma = self.kind.gamma if isinstance(self.kind, Dense) else 0.0
        factor = self.kind.factor(t, self.attended)
        return KKT(self.qp, t, factor, self.delta, gamma, self.refinements, self.attended)


def _size(r: Blocks, x: Blocks) -> Tensor:
    """|r| + 1e-3 |x|, `(B)`, and 1 where both are zero."""
    size = r.norm() + 1e-3 * x.norm()
    return torch.where(size == 0, 1.0, size)
