"""The homogeneous embedding: an interior-point method that ends in a solution or in a proof.

The QP is embedded into one more pair of numbers tau, kappa >= 0 (per side of a row of C, with
sign +1 at upper and -1 at lower limits):

    Qz + A'nu + C'y + p tau = 0            Az = b tau
    sign (Cz - limit tau) + s = 0          p'z + b'nu + limits'y + z'Qz / tau + kappa = 0

It always has solutions. Where tau > 0, (z, nu, y) / tau solves the QP; where kappa > 0, (nu, y)
proves that no point is feasible, or z is a ray along which the objective falls for ever. So it
decides what the plain method leaves undecided, with the same factor and one more right-hand side
a step. Its end game is weaker than the plain method's, which is why it comes second.

Source: Andersen & Ye, "On a homogeneous algorithm for the monotone complementarity problem"
(Math. Prog. 84, 1999), here for quadratic objectives as Goulart & Chen, "Clarabel: An
interior-point solver for conic programs with quadratic objectives" (arXiv 2405.12762, 2024).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..iterate import Measure
from ..solution import Solution, proved
from ..unattended import run
from .interior_point import Gauge, InteriorPoint, Setup
from .kkt import KKT, KKTFamily
from .newton import (
    Iterate,
    Newton,
    Rest,
    Sides,
    advance,
    newton,
    origin,
    residual,
    step_length,
    weights,
)
from .path import CORRECTOR_RTOL, Path
from .problem import QP, Products, digits


class Embedded(NamedTuple):
    """A point of the embedding."""

    x: Iterate  # its `last` is zero: z itself is the candidate for a ray
    tau: Tensor  # (B,)
    kappa: Tensor  # (B,)

    def point(self) -> Iterate:
        """The point of the QP, everything divided by tau."""
        x, row, side = self.x, self.tau[:, None], self.tau[:, None, None]
        return Iterate(x.z / row, x.nu / row, x.s / side, x.y / side, x.last)


def solve_homogeneous(qp: QP, setup: Setup, solver: InteriorPoint) -> Solution:
    """The `Iterate` that solves each QP, or whose (nu, y) or z proves that there is none.

    Args and result as for `path.follow`; the status of a sample is undecided only where
    neither was found to the tolerances `eps` and `eps_infeasible` of `solver`.
    """
    start = _start(setup.family.qp, setup.sides)
    out = run(Embedding(qp, setup, solver, solver.eps), start)
    # A ray or multipliers are not to be divided by a tau near 0.
    tau = torch.where(proved(out.status), 1.0, out.value.tau)
    value = out.value._replace(tau=tau).point()
    return replace(out, value=value, residual=out.residual * solver.eps)


@dataclass(frozen=True)
class Embedding(Path):
    """The way of a batch to solutions or proofs: a `Task` of `unattended`."""

    def iterate(self, state: Embedded) -> Iterate:
        """What of a state may hold a proof."""
        return state.x

    def measure(self, state: Embedded) -> Measure:
        """The error of the point of the QP; the products carried are those of the embedding."""
        x, row = state.x, state.tau[:, None]
        found = self.setup.family.qp.products(x.z, x.nu, x.multipliers())
        products = Products(*(v / row for v in found))
        error = Gauge.at(self.qp, self.setup, state.point(), products).error()
        error = torch.where(error.isnan(), torch.finfo(error.dtype).max, error)
        return Measure(error / self.eps, None, found)

    def step(self, state: Embedded, found: Products, attended: bool) -> Embedded:
        """A predictor-corrector step."""
        family = replace(self.setup.family, attended=attended)
        return step(family, self.setup.sides, state, found)


def _start(qp: QP, sides: Sides) -> Embedded:
    one = qp.p.new_ones(qp.batch)
    return Embedded(origin(qp, sides), one, one)


def step(family: KKTFamily, sides: Sides, e: Embedded, found: Products) -> Embedded:
    """One predictor-corrector step."""
    qp, x = family.qp, e.x
    row = e.tau[:, None]
    # The residuals of the QP with right-hand sides times tau are those of the embedding.
    scaled = replace(qp, p=qp.p * row, b=qp.b * row)
    rest = residual(scaled, sides._replace(limit=sides.limit * row[..., None]), x, found)
    kkt = family.factorize(weights(sides, x))
    tangent = _tangent(kkt, sides, x, qp)
    gap = _slope(qp, sides, x.z, x.nu, x.y) + (x.z * found.Qz).sum(-1) / e.tau + e.kappa
    mu = _mean(e, sides)

    def direction(keep: Tensor, comp: Tensor, comp_tau: Tensor) -> tuple[Newton, Tensor, Tensor]:
        """Residuals times `keep`; products brought to their value plus comp."""
        shrunk = Rest(*(keep.view(-1, *[1] * (v.ndim - 1)) * v for v in rest))
        first = newton(kkt, sides, x, shrunk, comp, digits(CORRECTOR_RTOL, x.z.dtype))
        return _combine(qp, sides, e, found, first, tangent, -keep * gap, comp_tau)

    one = torch.ones_like(mu)
    affine, dtau, dkappa = direction(one, -x.s * x.y, -e.tau * e.kappa)
    reach = _length(e, affine, dtau, dkappa, sides).clamp(max=1.0)
    sigma = (1 - reach) ** 3
    goal = sigma * mu
    both, dtau, dkappa = direction(
        1 - sigma,
        goal[:, None, None] - x.s * x.y - affine.ds * affine.dy,
        goal - e.tau * e.kappa - dtau * dkappa,
    )
    length = (0.99 * _length(e, both, dtau, dkappa, sides)).clamp(max=1.0)
    moved = advance(x, both, length, sides)
    return Embedded(moved, e.tau + length * dtau, e.kappa + length * dkappa)


def _tangent(kkt: KKT, sides: Sides, x: Iterate, qp: QP) -> Newton:
    """How (z, nu, s, y) answers to tau: the direction for the right-hand sides of the QP."""
    limit = sides.limit.expand_as(x.s)
    b = qp.b.expand_as(x.nu)
    rest = Rest(-qp.p.expand_as(x.z), b, sides.sign * limit * sides.on, limit[:, 0])
    return newton(kkt, sides, x, rest, torch.zeros_like(x.s), digits(CORRECTOR_RTOL, x.z.dtype))


def _slope(qp: QP, sides: Sides, z: Tensor, nu: Tensor, y: Tensor) -> Tensor:
    """p'z + b'nu + limits'y, `(B,)`."""
    payment = (sides.sign * sides.limit * y).sum((1, 2))
    return (qp.p * z).sum(-1) + (qp.b * nu).sum(-1) + payment


def _combine(
    qp: QP,
    sides: Sides,
    e: Embedded,
    found: Products,
    first: Newton,
    tangent: Newton,
    gap: Tensor,
    comp_tau: Tensor,
) -> tuple[Newton, Tensor, Tensor]:
    """first + dtau tangent, with dtau from the linearised last equation, xi = z / tau:

    slope(d) + 2 xi'Q dz - xi'Q xi dtau + dkappa = gap,    kappa dtau + tau dkappa = comp_tau.
    """
    Qxi = found.Qz / e.tau[:, None]
    curvature = (Qxi * e.x.z).sum(-1) / e.tau

    def along(d: Newton) -> Tensor:
        return _slope(qp, sides, d.dz, d.dnu, d.dy) + 2 * (Qxi * d.dz).sum(-1)

    below = along(tangent) - curvature - e.kappa / e.tau
    dtau = (gap - comp_tau / e.tau - along(first)) / below
    d = Newton(
        *(a + dtau.view(-1, *[1] * (a.ndim - 1)) * b for a, b in zip(first, tangent, strict=True))
    )
    return d, dtau, (comp_tau - e.kappa * dtau) / e.tau


def _mean(e: Embedded, sides: Sides) -> Tensor:
    """The mean of the products s y and tau kappa, `(B,)`."""
    total = (e.x.s * e.x.y * sides.on).sum((1, 2)) + e.tau * e.kappa
    return total / (sides.on.sum((1, 2)) + 1)


def _length(e: Embedded, d: Newton, dtau: Tensor, dkappa: Tensor, sides: Sides) -> Tensor:
    """The step to the boundary."""
    pair = torch.maximum(-dtau / e.tau, -dkappa / e.kappa)
    return torch.minimum(step_length(e.x, d, sides), torch.where(pair > 0, 1 / pair, torch.inf))
