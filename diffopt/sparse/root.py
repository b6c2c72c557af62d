"""The KKT conditions of an active set as a root problem: residual and operator.

The residual is plain torch over the values of the patterns, so that autograd puts gradients where
the user has entries, and nowhere else: no dense matrix is formed, forward or backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..operators import Operator
from ..solution import OnFailure, Solution, Status
from .arguments import Given
from .point import Jacobian, Point
from .problem import Array


def kkt_residual(given: Given, point: Point) -> Callable[[Tensor], Tensor]:
    """F of (z, nu, y active), zero at the solution, in the graph of the user's arguments:

    Qz + p + A'nu + G_a'lam_a + mu_a,    Az - b,    G_a z - limit - tau lam_a,   z_a - limit - tau mu_a

    with the rows that are active. The value at the root, which is rounding, is subtracted, so that
    the Newton step of `implicit_root` leaves the answer alone.
    """  # noqa: E501 (one line a vector)
    assert point.jacobian is not None
    kkt = point.jacobian.kkt
    G = given.G.only(kkt.rows)
    rows, bounds = torch.as_tensor(kkt.rows), torch.as_tensor(kkt.bounds)
    upper = torch.as_tensor(point.side > 0)
    m = given.m
    limit = torch.cat(
        [
            torch.where(upper[:m], given.h, given.h_lower)[rows],
            torch.where(upper[m:], given.ub, given.lb)[bounds],
        ]
    )
    tau = torch.as_tensor(point.jacobian.tau)
    tau_rows, tau_bounds = tau[:m][rows], tau[m:][bounds]
    limit_rows, limit_bounds = limit.split([len(rows), len(bounds)])

    def residual(x: Tensor) -> Tensor:
        z, nu, lam, mu = x.split(kkt.widths)
        Qz = (given.Q.times(z) + given.Q.transposed_times(z)) / 2 + given.proximal * z
        dual = Qz + given.p + given.A.transposed_times(nu) + G.transposed_times(lam)
        dual = dual.index_add(0, bounds, mu)
        at_rows = G.times(z) - limit_rows - tau_rows * lam
        at_bounds = z[bounds] - limit_bounds - tau_bounds * mu
        out = torch.cat([dual, given.A.times(z) - given.b, at_rows, at_bounds])
        return out - out.detach()

    return residual


@dataclass(frozen=True)
class SparseKKT(Operator):
    """The Jacobian of `kkt_residual`, symmetric, through the factor that the polish left behind.

    Where active rows are dependent it is singular, and its pseudo-inverse is applied: vectors and
    solutions lose their component in the null space.
    """

    captures: ClassVar[bool] = True
    jacobian: Jacobian
    on_failure: OnFailure = "warn"
    rtol: float = 1e-9

    @property
    def name(self) -> str:
        return "the sparse KKT system of solve_qp_sparse"

    def solve(self, v: Tensor) -> Solution:
        r = self.jacobian.rows * self._in_range(v.detach().numpy())
        x, error = self.jacobian.kkt.solve(r)
        ok = error <= self.rtol
        status = torch.tensor(int(Status.CONVERGED if ok else Status.NUMERICAL_FAILURE))
        value = torch.from_numpy(self._in_range(self.jacobian.columns * x))
        return Solution(value, status, torch.ones_like(status), torch.tensor(error))

    def solve_transpose(self, v: Tensor) -> Solution:
        return self.solve(v)

    def _in_range(self, v: Array) -> Array:
        basis = self.jacobian.basis
        if basis.shape[1] == 0:
            return v
        z, y = np.split(v, [self.jacobian.kkt.qp.n])
        return np.concatenate([z, y - basis @ (basis.T @ y)])
