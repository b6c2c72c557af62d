"""A smooth problem given by callables, with one flat batch dimension: values, slopes, curvature.

    minimise f(z)    subject to    c(z) <= 0,   e(z) = 0,   lb <= z <= ub

All derivatives are those of autograd, sample by sample: a vjp with the j-th unit vector in every
sample at once is row j of every Jacobian.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..qp import Residuals
from ..qp.problem import largest, matvec

Map = Callable[[Tensor], Tensor]


class Multipliers(NamedTuple):
    """Of the equalities `(B, e)`, the inequalities `(B, m)` and the bounds `(B, n)`."""

    nu: Tensor
    lam: Tensor
    mu: Tensor

    def norm(self) -> Tensor:
        """The largest of each sample, `(B,)`."""
        return largest(*self)


class Slopes(NamedTuple):
    """The functions at a point, and their first derivatives.

    Attributes:
        f: `(B,)`.
        equality, inequality: `(B, e)`, `(B, m)`.
        g: gradient of f, `(B, n)`.
        A, G: Jacobians of the equalities `(B, e, n)` and the inequalities `(B, m, n)`.
    """

    f: Tensor
    equality: Tensor
    inequality: Tensor
    g: Tensor
    A: Tensor
    G: Tensor

    def pull(self, y: Multipliers) -> Tensor:
        """A'nu + G'lam + mu, `(B, n)`."""
        return matvec(self.A.mT, y.nu) + matvec(self.G.mT, y.lam) + y.mu

    def finite(self) -> Tensor:
        """Samples that are finite throughout, bool `(B,)`."""
        return torch.stack([v.isfinite().flatten(1).all(-1) for v in self[1:]]).all(0) & (
            self.f.isfinite()
        )


@dataclass(frozen=True)
class Problem:
    """What a solver gets. Points are `(B, n)` in float64, the batch flattened.

    Attributes:
        objective: f, `(B, n)` to `(B,)`.
        inequality: c, `(B, n)` to `(B, m)`; m is 0 where there is none.
        equality: e, `(B, n)` to `(B, e)`; e is 0 where there is none.
        lb, ub: `(B|1, n)`, infinite where there is no bound.
        n, m, e: numbers of unknowns, inequalities and equalities.
        bounded: whether there are bounds at all.
    """

    objective: Map
    inequality: Map
    equality: Map
    lb: Tensor
    ub: Tensor
    n: int
    m: int
    e: int
    bounded: bool

    def values(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(f, e, c) at z, without gradients."""
        with torch.no_grad():
            out = self._together(z).detach()
        f, equality, inequality = out.split([1, self.e, self.m], -1)
        return f.squeeze(-1), equality, inequality

    def slopes(self, z: Tensor) -> Slopes:
        """The functions and their first derivatives at z, without gradients."""
        with torch.no_grad():
            out, pull_back = torch.func.vjp(self._together, z)[:2]
            r = out.shape[-1]
            unit = torch.eye(r, dtype=z.dtype, device=z.device)
            if r == 1:
                rows = pull_back(torch.ones_like(out))[0].unsqueeze(1)
            else:
                seeds = unit.unsqueeze(1).expand(r, len(z), r)
                rows = torch.func.vmap(pull_back)(seeds)[0].movedim(0, 1)
        f, equality, inequality = out.detach().split([1, self.e, self.m], -1)
        g, A, G = rows.detach().split([1, self.e, self.m], 1)
        return Slopes(f.squeeze(-1), equality, inequality, g.squeeze(1), A, G)

    def curvature(self, z: Tensor, y: Multipliers) -> Tensor:
        """The Hessian of f + nu'e + lam'c at z, `(B, n, n)`, without gradients."""

        def lagrangian(v: Tensor) -> Tensor:
            return (weights * self._together(v)).sum()

        weights = torch.cat([z.new_ones(len(z), 1), y.nu, y.lam], -1)
        with torch.no_grad():
            pull_back = torch.func.vjp(torch.func.grad(lagrangian), z)[1]
            unit = torch.eye(self.n, dtype=z.dtype, device=z.device)
            seeds = unit.unsqueeze(1).expand(self.n, len(z), self.n)
            H = torch.func.vmap(pull_back)(seeds)[0].movedim(0, 1).detach()
        return (H + H.mT) / 2

    def clamp(self, z: Tensor) -> Tensor:
        """z with every unknown within its bounds."""
        return torch.minimum(torch.maximum(z, self.lb), self.ub) if self.bounded else z

    def none(self, z: Tensor) -> Multipliers:
        """Multipliers of zero."""
        return Multipliers(
            z.new_zeros(len(z), self.e), z.new_zeros(len(z), self.m), torch.zeros_like(z)
        )

    def residuals(self, z: Tensor, y: Multipliers, at: Slopes) -> Residuals:
        """How far (z, y) is from the KKT conditions, as `solve_qp` measures it.

        primal / (1 + max(|Az|, |Gz|, |z| of bounds)), dual / (1 + max(|g|, |mu|)), and the sum of
        |multiplier times distance to its limit| / (1 + |f|). A multiplier of the wrong sign, or of
        an absent bound, counts as an error of its own size in dual.
        """
        over = torch.maximum(z - self.ub, self.lb - z).clamp(min=0)
        primal = largest(at.equality, at.inequality.clamp(min=0), over)
        size = 1 + largest(matvec(at.A, z), matvec(at.G, z), z if self.bounded else z[:, :0])
        limit = torch.where(y.mu > 0, self.ub, self.lb)
        absent = limit.isinf()
        stray = largest(y.lam.clamp(max=0), torch.where(absent, y.mu, 0.0))
        dual = torch.maximum(largest(at.g + at.pull(y)), stray)
        product = (y.mu * torch.where(absent, 0.0, z - limit)).abs().sum(-1)
        gap = (y.lam * at.inequality).abs().sum(-1) + (y.nu * at.equality).abs().sum(-1) + product
        return Residuals(primal / size, dual / (1 + largest(at.g, y.mu)), gap / (1 + at.f.abs()))

    def _together(self, z: Tensor) -> Tensor:
        """(f, e, c) as one vector a sample, `(B, 1 + e + m)`."""
        parts = [self.objective(z).unsqueeze(-1)]
        if self.e:
            parts.append(self.equality(z))
        if self.m:
            parts.append(self.inequality(z))
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]
