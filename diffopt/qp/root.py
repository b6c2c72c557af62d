"""The KKT conditions of a solved QP as a root problem: residual and operator for `implicit_root`.

With the active set held fixed the conditions are smooth equations in x = (z, nu, y), and all that
the derivative of a QP needs: OptNet's outer products fall out of autograd on the residual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..operators import Operator
from ..solution import OnFailure, Solution, Status
from .kkt import KKT, Blocks
from .polish import Point, active_conditions
from .problem import QP
from .scaling import Scaling


def pack(x: Blocks) -> Tensor:
    """(z, nu, y) as one vector a sample, `(B, n + e + k)`."""
    return torch.cat(x, -1)


def unpack(v: Tensor, qp: QP) -> Blocks:
    """The inverse of `pack`."""
    e = qp.A.shape[-2]
    z, nu, y = v.split([qp.n, e, v.shape[-1] - qp.n - e], -1)
    return Blocks(z, nu, y)


def kkt_residual(qp: QP, scaling: Scaling, point: Point) -> Callable[[Tensor], Tensor]:
    """F with F(z*, nu*, y*) = 0: `polish.active_conditions` in the user's unknowns.

    Its rows are scaled as those of the equilibrated problem, whose factor the operator uses. The
    value at the root, which is rounding, is subtracted: the Newton step of `implicit_root` then
    leaves an answer that is already polished alone, to the last bit.

    Args:
        qp: the data, attached to the graph of the user's arguments.
    """
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

    Failed samples (`alive` False) get a zero derivative, or NaN under ``on_failure="nan"``.
    """

    kkt: KKT
    columns: Tensor  # (B|1, n + e + k): unknowns of the user over those of the factor
    alive: Tensor  # (B)
    on_failure: OnFailure = "warn"
    rtol: float = 1e-10

    @classmethod
    def at(
        cls, point: Point, scaling: Scaling, alive: Tensor, on_failure: OnFailure
    ) -> KKTOperator:
        """The operator at a polished point."""
        parts = (scaling.z, scaling.nu, scaling.y)
        size = max(v.shape[0] for v in parts)
        columns = torch.cat([v.expand(size, -1) for v in parts], -1)
        return cls(point.kkt, columns, alive, on_failure)

    def solve(self, v: Tensor) -> Solution:
        x, error = self._masked_solve(v, transpose=False)
        return self._solution(self.columns * x, error)

    def solve_transpose(self, v: Tensor) -> Solution:
        x, error = self._masked_solve(self.columns * v, transpose=True)
        return self._solution(x, error)

    def _masked_solve(self, v: Tensor, transpose: bool) -> tuple[Tensor, Tensor]:
        alive = self.alive.unsqueeze(-1)
        x, error = self.kkt.solve_hard(unpack(torch.where(alive, v, 0.0), self.kkt.qp), transpose)
        error = torch.where(self.alive, error, 0.0)
        return torch.where(alive, pack(x), self._fill(v, transpose)), error

    def _fill(self, v: Tensor, transpose: bool) -> Tensor | float:
        """The answer for a failed sample; NaN in the gradient only if its value was used."""
        if self.on_failure != "nan":
            return 0.0
        used = (v != 0).any(-1, keepdim=True) if transpose else torch.ones_like(v[:, :1]).bool()
        return torch.where(used, torch.nan, 0.0)

    def _solution(self, x: Tensor, error: Tensor) -> Solution:
        ok = error <= self.rtol
        status = torch.where(ok, int(Status.CONVERGED), int(Status.NUMERICAL_FAILURE))
        return Solution(x, status, torch.ones_like(status), error)
