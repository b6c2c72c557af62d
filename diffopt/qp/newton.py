"""A point of the interior-point method, and the Newton directions from it.

Both limits of a row of C share one row of the KKT matrix. Slack and multiplier of each side are
s, y >= 0 of shape `(B, 2, k)`, side 0 the upper limit and side 1 the lower one:

    side 0:  C z + s_0 = upper        side 1:  -C z + s_1 = -lower        y = y_0 - y_1

Absent sides are masked (s = 1, y = 0). A row with lower == upper has no interior: it is an
equality row of the KKT matrix (t = 0), its multiplier of any sign is kept in y_0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .kkt import KKT, Blocks, KKTFamily
from .problem import QP, Products

TINY = 1e-30  # s and y are kept above it


class Ray(NamedTuple):
    """z and its products at the step before: their change is a candidate for a ray."""

    z: Tensor
    Qz: Tensor
    Az: Tensor
    Cz: Tensor

    @classmethod
    def of(cls, z: Tensor, products: Products) -> Ray:
        return cls(z, products.Qz, products.Az, products.Cz)


class Iterate(NamedTuple):
    """A point of the method, in the equilibrated space."""

    z: Tensor  # (B, n)
    nu: Tensor  # (B, e)
    s: Tensor  # (B, 2, k)
    y: Tensor  # (B, 2, k)
    last: Ray

    def multipliers(self) -> Tensor:
        """y = y_0 - y_1, `(B, k)`."""
        return self.y[:, 0] - self.y[:, 1]


class Sides(NamedTuple):
    """The limits as stacked one-sided constraints, `(B|1, 2, k)`; `fixed` rows `(B|1, k)`."""

    limit: Tensor  # finite; 0 on absent sides
    present: Tensor  # bool: finite and not fixed
    fixed: Tensor  # bool: lower == upper
    sign: Tensor  # (1, 2, 1): +1, -1
    on: Tensor  # 1 where present, else 0: a product is several times faster than a where
    floor: Tensor  # the least y: tiny where present, none elsewhere
    total: Tensor  # (B|1,): number of sides present, at least 1

    @classmethod
    def of(cls, qp: QP) -> Sides:
        limit = torch.stack(torch.broadcast_tensors(qp.upper, qp.lower), 1)
        fixed = (qp.upper == qp.lower) & qp.upper.isfinite()
        present = limit.isfinite() & ~fixed.unsqueeze(1)
        limit = torch.where(limit.isfinite(), limit, 0.0)
        on = present.to(limit.dtype)
        floor = torch.where(present, TINY, -torch.inf)
        total = on.sum((1, 2)).clamp(min=1)
        return cls(limit, present, fixed, limit.new_tensor([[[1.0], [-1.0]]]), on, floor, total)


class Newton(NamedTuple):
    """A direction of the method."""

    dz: Tensor
    dnu: Tensor
    ds: Tensor
    dy: Tensor


def weights(sides: Sides, x: Iterate) -> Tensor:
    """t of the KKT matrix: (1 - t) / t is the sum of y / s over the sides of a row."""
    ratio = (x.y / x.s * sides.on).sum(1)
    return torch.where(sides.fixed, 0.0, 1 / (1 + ratio))


class Rest(NamedTuple):
    """What is left of the linear KKT equations at a point."""

    dual: Tensor  # (B, n)
    primal: Tensor  # (B, e)
    sides: Tensor  # (B, 2, k): sign (limit - C z) - s
    fixed: Tensor  # (B, k): limit - C z, of which the fixed rows count


def residual(qp: QP, sides: Sides, x: Iterate, products: Products) -> Rest:
    """The `Rest` at x."""
    rest = sides.limit - products.Cz.unsqueeze(1)
    return Rest(
        -(products.Qz + qp.p + products.At_nu + products.Ct_y),
        qp.b - products.Az,
        (sides.sign * rest - x.s) * sides.on,
        rest[:, 0],
    )


def newton(kkt: KKT, sides: Sides, x: Iterate, r: Rest, target: Tensor, rtol: float) -> Newton:
    """The direction with  sign C dz + ds = r.sides  and  s dy + y ds = target.

    Eliminating ds gives  dy = (y/s) sign C dz - q,  q = (y r.sides - target) / s, a side; summed
    with the signs, and times t (the sum of y/s is (1 - t)/t), the row of the KKT matrix.
    """
    q = (x.y * r.sides - target) / x.s * sides.on
    row = torch.where(sides.fixed, r.fixed, kkt.t * (sides.sign * q).sum(1))
    d = kkt.direction(Blocks(r.dual, r.primal, row), rtol)
    ds, dy = _split(kkt.qp.rows(d.z), d.y, sides, x, r, target, q)
    return Newton(d.z, d.nu, ds, dy)


def _split(
    Cdz: Tensor, dy_row: Tensor, sides: Sides, x: Iterate, r: Rest, target: Tensor, q: Tensor
) -> tuple[Tensor, Tensor]:
    """(ds, dy) of the two sides of each row from the dy of the row.

    On a side far from its limit (s > y) ds follows from C dz and dy from ds; on one near it
    (y >= s) the other way round, so that nothing is divided by what is nearly zero. What the sum
    over the sides lacks of the refined dy of the row goes to the near side.
    """
    move = sides.sign * Cdz.unsqueeze(1)
    dy = (x.y / x.s * move - q) * sides.on
    near = sides.present & (x.y >= x.s)
    lack = dy_row.unsqueeze(1) - (sides.sign * dy).sum(1, keepdim=True)
    heavier = near & (x.y * x.s.flip(1) >= x.y.flip(1) * x.s)
    dy = dy + heavier * (sides.sign * lack)
    ds = torch.where(near, (target - x.s * dy) / x.y, (r.sides - move) * sides.on)
    dy[:, 0] = torch.where(sides.fixed, dy_row, dy[:, 0])
    return ds, dy


def mean_product(x: Iterate, sides: Sides) -> Tensor:
    """Mean complementarity product over the present sides, `(B)`; 0 if there are none."""
    return (x.s * x.y * sides.on).sum((1, 2)) / sides.total


def step_length(x: Iterate, d: Newton, sides: Sides) -> Tensor:
    """The largest step that keeps s and y nonnegative, `(B)`; infinite if every step does."""
    if sides.on.shape[-1] == 0:
        return torch.full_like(x.z[:, 0], torch.inf)
    # The fastest relative decrease of any s or y; absent sides have ds = 0, and y replaced by 1.
    y = x.y * sides.on + (1 - sides.on)
    fastest = -torch.minimum(d.ds / x.s, d.dy * sides.on / y).amin((1, 2))
    return torch.where(fastest > 0, 1 / fastest, torch.inf)


def falling(x: Iterate, d: Newton, length: Tensor, sides: Sides) -> Tensor:
    """The step at which the mean product is least, where one of `length` would raise it, `(B)`.

    Along d the mean product is mu + a first + a^2 second. The second-order correction can make it
    rise, and the method then cycles (Cartis, "Some disadvantages of a Mehrotra-type primal-dual
    corrector interior point algorithm", Appl. Numer. Math. 59, 2009): one in 10^4 random QPs.
    """
    first = ((x.s * d.dy + x.y * d.ds) * sides.on).sum((1, 2))
    second = (d.ds * d.dy * sides.on).sum((1, 2))
    rises = (first < 0) & (first + length * second > 0)
    return torch.where(rises, -first / (2 * second), torch.inf)


def advance(x: Iterate, d: Newton, length: Tensor, sides: Sides) -> Iterate:
    """x + length d, with s and y of the present sides kept from rounding to zero."""
    row, side = length[:, None], length[:, None, None]
    s = (x.s + side * d.ds).clamp(min=TINY)
    y = torch.maximum(x.y + side * d.dy, sides.floor)
    return Iterate(x.z + row * d.dz, x.nu + row * d.dnu, s, y, x.last)


def origin(qp: QP, sides: Sides) -> Iterate:
    """z = 0, nu = 0 and every slack and multiplier one."""
    z, nu = qp.p.new_zeros(qp.batch, qp.n), qp.p.new_zeros(qp.batch, qp.A.shape[-2])
    s = torch.ones_like(sides.on).expand(qp.batch, -1, -1)
    ray = Ray(z, z, nu, torch.zeros_like(s[:, 0]))
    return Iterate(z, nu, s, sides.on.expand_as(s).clone(), ray)


def centred(
    family: KKTFamily, sides: Sides, x: Iterate, products: Products, goal: Tensor, rtol: float
) -> Iterate:
    """x after one damped Newton step towards the central-path point with s y = `goal` `(B,)`."""
    kkt, rest = family.factorize(weights(sides, x)), residual(family.qp, sides, x, products)
    d = newton(kkt, sides, x, rest, goal[:, None, None] - x.s * x.y, rtol)
    return advance(x, d, (0.9 * step_length(x, d, sides)).clamp(max=1.0), sides)
