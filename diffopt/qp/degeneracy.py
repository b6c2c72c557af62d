"""What is chosen where the KKT conditions leave a choice: multipliers, and kinks of the solution.

* Dependent active rows: of all valid multipliers the ones of least Euclidean norm.
* A weakly active row, at its limit with a zero multiplier: the solution has a kink there, with a
  derivative of its own on either side. "active" keeps the row, "inactive" drops it, "central"
  gives it the weight y/s that it has in the limit of the central path, which lies between.

All are properties of the problem, not of the method that solved it. None depends on the place of a
row; "central" does not depend on its units either, nor change if a row is repeated.

The central path near a solution: with z = z* + sqrt(mu) d the slacks of the weak rows are of size
sqrt(mu), so that d minimises 1/2 d'Qd - sum of log(s_i) with s_i = -sign_i C_i d over the weak
rows, while the rows of A and the strictly active ones stay where they are. That is the point
s y = 1 of a QP of its own, without p, b and limits. Where it has none (rows that leave no room to
move, y/s growing without bound) the weak rows count as active.

Source: that the path arrives along one well-defined direction, Monteiro & Tsuchiya,
"Limiting behavior of the derivatives of certain trajectories associated with a monotone
horizontal linear complementarity problem" (Math. Oper. Res. 21(4), 1996).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..iterate import Measure
from ..product import product
from ..solution import Status
from ..unattended import Limits, run
from .dependence import Dependence, places
from .engines import find
from .interior_point import InteriorPoint
from .kkt import KKTFamily
from .newton import Iterate, Sides, centred, origin, residual, weights
from .problem import QP, Products, digits, largest


def central_weights(family: KKTFamily, strict: Tensor, weak: Tensor, at_upper: Tensor) -> Tensor:
    """t of the weak rows in the limit of the central path; 0 strict, 1 others, `(B, k)`.

    Args:
        family: of the equilibrated QP.
        strict, weak: strictly and weakly active rows, bool `(B, k)`.
        at_upper: the side that each is at.
    """
    inf = torch.full(strict.shape, torch.inf, dtype=family.qp.p.dtype, device=strict.device)
    upper = torch.where(strict | (weak & at_upper), 0.0, inf)
    lower = torch.where(strict | (weak & ~at_upper), 0.0, -inf)
    qp = replace(
        family.qp,
        p=torch.zeros_like(family.qp.p),
        b=torch.zeros_like(family.qp.b),
        lower=lower,
        upper=upper,
    )
    tangent, sides = replace(family, qp=qp), Sides.of(qp)
    found = run(_Centring(tangent, sides), origin(qp, sides))
    exists = (found.status == int(Status.CONVERGED)).unsqueeze(-1)
    t = torch.where(exists, weights(sides, found.value), 0.0)
    return torch.where(strict, 0.0, torch.where(weak, t, 1.0))


@dataclass(frozen=True)
class _Centring:
    """The way to the points with s y = 1, by damped Newton steps: a `Task` of `unattended`."""

    family: KKTFamily
    sides: Sides
    limits: ClassVar[Limits] = Limits(max_steps=40, patience=8)

    def measure(self, x: Iterate) -> Measure:
        qp, sides = self.family.qp, self.sides
        found = qp.products(x.z, x.nu, x.multipliers())
        rest = residual(qp, sides, x, found)
        off = (x.s * x.y - 1) * sides.on
        fixed = torch.where(sides.fixed, rest.fixed, 0.0)
        size = 1 + largest(found.Qz)
        error = largest(rest.dual, rest.primal, rest.sides.flatten(1), fixed) / size
        return Measure(
            torch.maximum(error, largest(off.flatten(1))) / digits(1e-10, error.dtype), None, found
        )

    def suspects(self, x: Iterate, found: Products) -> None:
        return None

    def verdict(self, x: Iterate, found: Products) -> None:
        return None

    def step(self, x: Iterate, found: Products, attended: bool) -> Iterate:
        family, one = replace(self.family, attended=attended), torch.ones_like(x.z[:, 0])
        return centred(family, self.sides, x, found, one, digits(1e-12, x.z.dtype))

    def sound(self, x: Iterate) -> Tensor:
        return x.z.isfinite().all(-1)


def least_norm(free: Dependence, y: Tensor, sign: Tensor) -> Tensor:
    """The valid multipliers of least norm that differ from y = (nu, y) by N c, `(B, e + k)`.

    Args:
        free: the directions N.
        y: valid multipliers.
        sign: +1 or -1 where a multiplier has to have that sign, 0 where it may have any or is
            zero, `(B, e + k)`.
    """
    out = free.least_norm(y)
    wrong = ((out * sign < 0).any(-1)).nonzero().flatten()
    if len(wrong) == 0:
        return out
    N, size = free.basis[wrong], out[wrong].abs().amax(-1, keepdim=True)
    start, sign = out[wrong] / size, sign[wrong]
    c = _shortest(N, start, sign)
    moved = start + product(N, c.unsqueeze(-1)).squeeze(-1)
    moved = torch.where(moved * sign < 0, 0.0, moved)
    return out.index_copy(0, wrong, size * moved)


def _shortest(N: Tensor, start: Tensor, sign: Tensor) -> Tensor:
    """c of least norm with sign (start + N c) >= 0, `(B, d)`; N'start = 0, so |start + N c| too."""
    d, rows = N.shape[-1], (sign != 0) & (N != 0).any(-1)
    first = places(rows)
    rows, sign, start = (v.gather(1, first) for v in (rows, sign, start))
    G = -sign.unsqueeze(-1) * N.gather(1, first.unsqueeze(-1).expand(-1, -1, d))
    small = QP(
        Q=torch.eye(d, dtype=N.dtype, device=N.device).unsqueeze(0),
        p=N.new_zeros(1, d),
        G=G,
        A=N.new_zeros(1, 0, d),
        b=N.new_zeros(1, 0),
        lower=torch.full_like(start[:1], -torch.inf),
        upper=torch.where(rows, sign * start, torch.inf),
        bounded=False,
    )
    found = find(small, InteriorPoint())
    return found.polished.best.x.z * found.setup.scaling.z
