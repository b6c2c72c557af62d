"""Smoothed derivatives: those of a point of the central path instead of those of the solution.

For kappa > 0 the central-path point x(kappa) = (z, nu, y) satisfies, with a sum over the sides of
each row that are present,

    Qz + p + A'nu + C'y = 0,    Az = b,    y = kappa / (upper - Cz) - kappa / (Cz - lower).

It is a smooth function of the data, also where the solution has kinks or, as the vertices of a
linear program, does not move at all; as kappa -> 0 it tends to the solution. What is returned is
the exact solution with the exact derivatives, of any order, of x(kappa).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..iterate import Measure
from ..solution import Status
from ..unattended import Limits, run
from .interior_point import InteriorPoint, Setup
from .kkt import KKT, KKTFamily, unpack
from .newton import Iterate, Sides, centred, mean_product, residual, weights
from .path import CORRECTOR_RTOL
from .problem import QP, Products, digits, largest, matvec
from .scaling import Scaling, unscale
from .start import cold_start

PRECISE = 1e-9  # of the central point: of the equations, and of s y relative to kappa
SHRINK = 0.1  # the products are brought to kappa by this factor a step


class Center(NamedTuple):
    """The central-path point of each sample, in the user's units, and its linear system.

    Attributes:
        z, nu, y: `(B, n)`, `(B, e)`, `(B, k)`.
        kkt: the equilibrated system at the point, factorised; its t are the weights.
        fixed: rows whose limits are equal, bool `(B|1, k)`.
        status: `Status` codes of the search for it, `(B,)`.
    """

    z: Tensor
    nu: Tensor
    y: Tensor
    kkt: KKT
    fixed: Tensor
    status: Tensor


def center(setup: Setup, kappa: float, wanted: Tensor, solver: InteriorPoint) -> Center:
    """The point with products s y = `kappa`, in units of the user's objective.

    Args:
        wanted: samples for which to look for it, bool `(B,)`; the status of others is a failure,
            as that of samples that have none.
    """
    family, sides = setup.family, setup.sides
    goal = kappa * setup.scaling.objective.expand(family.qp.batch)  # s y in the scaled units
    found = run(_Centring(family, sides, goal, wanted, solver), cold_start(family, sides))
    x = found.value
    z, nu, y = unscale(setup.scaling, x.z, x.nu, x.multipliers())
    kkt = family.factorize(weights(sides, x))
    return Center(z, nu, y, kkt, sides.fixed, found.status)


@dataclass(frozen=True)
class _Centring:
    """The way to the points with s y = `goal`: a `Task` of `unattended`."""

    family: KKTFamily
    sides: Sides
    goal: Tensor  # (B,)
    wanted: Tensor  # (B,)
    solver: InteriorPoint

    @property
    def limits(self) -> Limits:
        return Limits(self.solver.max_steps, self.solver.patience)

    def measure(self, x: Iterate) -> Measure:
        found = self.family.qp.products(x.z, x.nu, x.multipliers())
        error = _off(self.family.qp, self.sides, x, found, self.goal)
        return Measure(error / digits(PRECISE, error.dtype), None, found)

    def suspects(self, x: Iterate, found: Products) -> Tensor:
        return ~self.wanted

    def verdict(self, x: Iterate, found: Products) -> Tensor:
        return torch.where(self.wanted, -1, int(Status.NUMERICAL_FAILURE))

    def step(self, x: Iterate, found: Products, attended: bool) -> Iterate:
        family = replace(self.family, attended=attended)
        target = torch.maximum(self.goal, SHRINK * mean_product(x, self.sides))
        return centred(family, self.sides, x, found, target, digits(CORRECTOR_RTOL, x.z.dtype))

    def sound(self, x: Iterate) -> Tensor:
        return x.z.isfinite().all(-1)


def _off(qp: QP, sides: Sides, x: Iterate, found: Products, goal: Tensor) -> Tensor:
    """How far x is from the central-path point, `(B,)`."""
    rest = residual(qp, sides, x, found)
    fixed = torch.where(sides.fixed, rest.fixed, 0.0)
    dual = largest(rest.dual) / (1 + largest(found.Qz, found.Ct_y))
    primal = largest(rest.primal, rest.sides.flatten(1), fixed) / (1 + largest(found.Cz))
    products = (x.s * x.y / goal[:, None, None] - 1) * sides.on
    return torch.maximum(torch.maximum(dual, primal), largest(products.flatten(1)))


def central_residual(
    qp: QP, scaling: Scaling, at: Center, kappa: float
) -> Callable[[Tensor], Tensor]:
    """F whose root is the central-path point, its rows scaled as those of the factor at it.

    Args:
        qp: the data, attached to the graph of the user's arguments.
    """
    # An absent limit, and the slack of zero of a search that failed, must not meet the graph.
    found = (at.status == int(Status.CONVERGED)).unsqueeze(-1)
    limits = [
        (torch.where(v.isfinite(), v, 0.0), v.isfinite() & ~at.fixed & found)
        for v in (qp.upper, qp.lower)
    ]

    def barrier(Cz: Tensor) -> Tensor:
        """kappa / (upper - Cz) - kappa / (Cz - lower)."""
        return sum(
            (torch.where(on, kappa / torch.where(on, v - Cz, 1.0), 0.0) for v, on in limits),
            torch.zeros_like(Cz),
        )

    def residual(v: Tensor) -> Tensor:
        x = unpack(v, qp)
        Cz = qp.rows(x.z)
        inner = at.kkt.t / scaling.y * (barrier(Cz) - x.y)
        equal = scaling.rows * (Cz - limits[0][0])
        rows = torch.where(at.fixed, equal, inner)
        dual = scaling.dual * qp.stationarity(x.z, x.nu, x.y)
        out = torch.cat([dual, scaling.equal * (matvec(qp.A, x.z) - qp.b), rows], -1)
        return out - out.detach()

    return residual
