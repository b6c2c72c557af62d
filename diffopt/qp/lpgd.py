"""Finite-perturbation gradients: what the solution does when the loss pulls at it by a finite tau.

A linear program's solution is a vertex, whose derivative is zero; a gradient step on p never
changes it, until it jumps. With cotangents (v_z, v_nu, v_y) of a loss, Lagrangian proximal
gradient descent solves the QP again with the loss added to the Lagrangian,

    p + tau v_z,    b - tau v_nu,    upper - tau v_y,    lower - tau v_y,

and puts u = (x_tau - x*) / tau in the place of -A^-T v, which it tends to as tau -> 0.
With a tau large enough to reach another vertex it says which data would lead there. Of p, h, b,
lb, ub this is the gradient of the Lagrangian at x_tau less that at x*, over tau; of the matrices
it is the same to first order in x_tau - x*.

Source: Paulus, Martius & Musil, "LPGD: A general framework for backpropagation through embedded
optimization layers" (ICML 2024, arXiv 2407.05920): its lower proximal map, unaugmented.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..operators import Operator
from ..solution import OnFailure, Solution, succeeded
from .engines import find
from .interior_point import InteriorPoint
from .kkt import Blocks, unpack
from .point import settle
from .problem import QP, matvec


class Sided(Blocks):
    """(z, nu, y) whose y are the multipliers y_0, y_1 >= 0 of the two sides, `(B, 2 k)`."""

    def joined(self) -> Blocks:
        """(z, nu, y_0 - y_1)."""
        above, below = self.y.chunk(2, -1)
        return Blocks(self.z, self.nu, above - below)


def sided(x: Blocks) -> Sided:
    """The two sides of the multipliers y."""
    return Sided(x.z, x.nu, torch.cat([x.y.clamp(min=0), (-x.y).clamp(min=0)], -1))


def lagrangian_residual(qp: QP) -> Callable[[Tensor], Tensor]:
    """The gradient of the Lagrangian in (z, nu, y_0, y_1), less its value at the solution."""
    upper, lower = (torch.where(v.isfinite(), v, 0.0) for v in (qp.upper, qp.lower))

    def residual(v: Tensor) -> Tensor:
        x = Sided(*unpack(v, qp))
        joined, Cz = x.joined(), qp.rows(x.z)
        out = torch.cat(
            [qp.stationarity(*joined), matvec(qp.A, x.z) - qp.b, Cz - upper, lower - Cz], -1
        )
        return out - out.detach()

    return residual


@dataclass(frozen=True)
class PerturbedSolve(Operator):
    """A^-T v of `lagrangian_residual` by solving the perturbed QP."""

    captures: ClassVar[bool] = True  # the data have their own batch dimension: no vmap over it
    qp: QP
    at: Blocks  # the solution, sided
    status: Tensor
    tau: float
    solver: InteriorPoint
    on_failure: OnFailure = "warn"

    def solve(self, v: Tensor) -> Solution:
        if bool((v != 0).any()):  # a tangent; the residual at the solution is zero
            raise NotImplementedError(
                "smoothing=LPGD(...) defines a gradient (reverse mode), not a forward-mode "
                "derivative: use smoothing=kappa, or none, with jvp and jacfwd"
            )
        return Solution(v, self.status * 0, self.status * 0, v.new_zeros(self.status.shape))

    def solve_transpose(self, v: Tensor) -> Solution:
        # `implicit_root` subtracts A^-1 F, so that v arrives as minus the gradient of the loss.
        n, e = self.at.z.shape[-1], self.at.nu.shape[-1]
        v_z, v_nu, v_y = (-v).split([n, e, v.shape[-1] - n - e], -1)
        above, below = (self.tau * part for part in v_y.chunk(2, -1))
        moved = replace(
            self.qp,
            p=self.qp.p + self.tau * v_z,
            b=self.qp.b - self.tau * v_nu,
            upper=self.qp.upper - above,
            lower=self.qp.lower + below,
        )
        found = find(moved, self.solver)
        point = settle(moved, found)
        there = torch.cat(sided(Blocks(point.z, point.nu, point.y)), -1)
        u = (there - torch.cat(self.at, -1)) / self.tau
        alive = succeeded(self.status)
        u = torch.where(alive.unsqueeze(-1), u, 0.0)
        status = torch.where(alive, found.status, 0)
        return Solution(u, status, found.steps, point.error)
