"""The KKT conditions of a solved QP as a root problem: residual and operator for `implicit_root`.

With the active set held fixed the conditions are smooth equations in x = (z, nu, y), and all that
the derivative of a QP needs: OptNet's outer products fall out of autograd on the residual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..operators import Operator
from ..solution import OnFailure, Part, Solution, Status, succeeded
from .dependence import Dependence
from .kkt import KKT, Blocks, pack, unpack
from .point import Point
from .polish import active_conditions
from .problem import QP, digits
from .smooth import Center


def kkt_residual(qp: QP, point: Point) -> Callable[[Tensor], Tensor]:
    """F with F(z*, nu*, y*) = 0: `polish.active_conditions` in the user's unknowns.

    Its rows are scaled as those of the equilibrated problem, whose factor the operator uses. The
    value at the root, which is rounding, is subtracted: the Newton step of `implicit_root` then
    leaves an answer that is already polished alone, to the last bit.

    Args:
        qp: the data, attached to the graph of the user's arguments.
    """
    scaling = point.scaling
    limit = torch.where(point.at_upper, qp.upper, qp.lower)
    limit = torch.where(point.t < 1, limit, 0.0)  # an infinite one is inactive: keep 0 * inf out
    on, off = (1 - point.t) * scaling.rows, point.t / scaling.y

    def residual(v: Tensor) -> Tensor:
        r = active_conditions(qp, unpack(v, qp), limit, on, off)
        out = pack(Blocks(scaling.dual * r.z, scaling.equal * r.nu, r.y))
        return out - out.detach()

    return residual


@dataclass(frozen=True)
class KKTOperator(Operator):
    """The Jacobian of `kkt_residual` through the factor that the solver left behind.

    Where rows are dependent the Jacobian is singular, and its pseudo-inverse is applied: in the
    user's units both the part (nu, y) of a vector and the rows of the same place of a residual
    lose their component in the null space. Failed samples (`alive` False) get a zero derivative,
    or NaN under ``on_failure="nan"``.
    """

    kkt: KKT
    columns: Tensor  # (B|1, n + e + k): unknowns of the user over those of the factor
    rows: Tensor  # (B|1, e + k): rows of the residual over those in the user's units
    free: Dependence
    alive: Tensor  # (B)
    lost: Tensor  # (B): alive, but without the derivative that was asked for
    on_failure: OnFailure = "warn"
    rtol: float = 1e-10
    part: Part | None = None

    @classmethod
    def at(cls, point: Point, on_failure: OnFailure) -> KKTOperator:
        """The operator at a polished point."""
        scaling = point.scaling
        columns = side_by_side(scaling.z, scaling.nu, scaling.y)
        on = torch.where(point.t < 1, (1 - point.t) * scaling.rows, 1.0)
        rows = side_by_side(scaling.equal, on)
        alive = succeeded(point.status)
        lost = torch.zeros_like(alive)
        return cls(point.kkt, columns, rows, point.free, alive, lost, on_failure)

    @classmethod
    def at_center(cls, point: Point, at: Center, on_failure: OnFailure) -> KKTOperator:
        """The operator at the central-path point that belongs to a polished point."""
        plain = cls.at(point, on_failure)
        free = Dependence(plain.free.basis[..., :0], plain.free.alive)
        return replace(plain, kkt=at.kkt, free=free, lost=at.status != int(Status.CONVERGED))

    def solve(self, v: Tensor) -> Solution:
        x, error = self._masked_solve(self._in_range(v, 1 / self.rows), transpose=False)
        return self._solution(self._in_range(self.columns * x), error)

    def solve_transpose(self, v: Tensor) -> Solution:
        x, error = self._masked_solve(self.columns * self._in_range(v), transpose=True)
        return self._solution(self._in_range(x, self.rows), error)

    def _in_range(self, v: Tensor, unit: Tensor | None = None) -> Tensor:
        """v with the component of ``unit * (nu, y)`` in the null space removed."""
        z, y = v[..., : self.kkt.qp.n], v[..., self.kkt.qp.n :]
        if unit is None:
            return torch.cat([z, self.free.least_norm(y)], -1)
        return torch.cat([z, self.free.least_norm(y * unit) / unit], -1)

    def _masked_solve(self, v: Tensor, transpose: bool) -> tuple[Tensor, Tensor]:
        alive = self.alive.unsqueeze(-1)
        x, error = self.kkt.solve_hard(unpack(torch.where(alive, v, 0.0), self.kkt.qp), transpose)
        used = (v != 0).any(-1)
        error = torch.where(self.lost & used, torch.inf, error)
        error = torch.where(self.alive, error, 0.0)
        # NaN only where the value was used: a sample that nobody looks at has no gradient at all.
        loud = used.unsqueeze(-1) if self.on_failure == "nan" else torch.zeros_like(alive)
        nothing = torch.where(loud, torch.nan, 0.0).to(v.dtype)
        return torch.where(alive, pack(x), nothing), error

    def _solution(self, x: Tensor, error: Tensor) -> Solution:
        ok = error <= digits(self.rtol, error.dtype)
        status = torch.where(ok, int(Status.CONVERGED), int(Status.NUMERICAL_FAILURE))
        return Solution(x, status, torch.ones_like(status), error)


def side_by_side(*parts: Tensor) -> Tensor:
    """The parts `(B|1, ...)` as one vector a sample."""
    size = max(v.shape[0] for v in parts)
    return torch.cat([v.expand(size, -1) for v in parts], -1)
