"""Proofs that a QP has no solution (Farkas), read off the iterates of any method.

    primal infeasible: multipliers (nu, y) with  A'nu + C'y = 0  and  b'nu + limits'y < 0
    dual infeasible:   a ray z with  Qz = 0, Az = 0, Cz <= 0 on finite upper limits, >= 0 on
                       finite lower ones, and  p'z < 0

An iterate satisfies the equations nearly. That it does so up to 1e-8 proves only that there is no
solution smaller than 1e8, so such an iterate is a suspect: of the vectors of the same support that
satisfy them up to rounding the nearest is taken, and has to satisfy the rest. All of it is tested
on the equilibrated QP. A proof is sound whatever produced the iterate; that one is found is up to
the method.

Source: Stellato et al., "OSQP" (Math. Prog. Comp. 2020), sec. 3.4, the conditions of sec. 2.3;
there too the ray is looked for in the change of the iterates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..product import full, product
from ..solution import Status
from ..tree import put, take
from .newton import Iterate, Ray, Sides
from .problem import QP, Products, digits, largest
from .scaling import Scaling

# Of vectors of size one: entries that count; singular values, and sums of terms of size one, that
# are zero; signs that may be rounding.
SUPPORT, RANK, ROUNDING = 1e-6, 1e-11, 1e-12


class Certificate(NamedTuple):
    """Why a QP has no solution, in numbers that anyone can check; zero for a sample that has one.

    A ray `z` of a problem with status DUAL_INFEASIBLE: Qz = 0, Az = 0, Gz <= 0 on finite h, Gz >= 0
    on finite h_lower, z <= 0 on finite ub, z >= 0 on finite lb, and p'z = -1: from any feasible
    point the objective falls for ever along it.

    Multipliers of one with status PRIMAL_INFEASIBLE, all but `nu` nonnegative:
    G'(lam_upper - lam_lower) + A'nu + mu_upper - mu_lower = 0, while
    h'lam_upper - h_lower'lam_lower + b'nu + ub'mu_upper - lb'mu_lower = -1: the constraints, added
    up with these weights, say 0 <= -1.

    Attributes:
        z: `(*B, n)`.
        nu: `(*B, e)`.
        lam_upper, lam_lower: `(*B, m)`, of h and h_lower.
        mu_upper, mu_lower: `(*B, n)`, of ub and lb.
    """

    z: Tensor
    nu: Tensor
    lam_upper: Tensor
    lam_lower: Tensor
    mu_upper: Tensor
    mu_lower: Tensor


def certificate(
    qp: QP, scaled: QP, scaling: Scaling, sides: Sides, x: Iterate, status: Tensor
) -> Certificate:
    """The proofs that the iterates hold for `status` `(B,)`, in the units of the user's `qp`."""
    out = no_proof(len(status), qp.n, qp.m, qp.A.shape[-2], qp.p)
    some = (status == int(Status.DUAL_INFEASIBLE)).nonzero().flatten()
    if len(some):
        d, _ = _ray(*(take(v, some) for v in (scaled, sides, x)))
        z = take(scaling.z, some) * d
        slope = (take(qp.p, some) * z).sum(-1, keepdim=True)
        out = out._replace(z=out.z.index_copy(0, some, z / slope.abs()))
    some = (status == int(Status.PRIMAL_INFEASIBLE)).nonzero().flatten()
    if len(some):
        qp, scaled, scaling, sides, x = (take(v, some) for v in (qp, scaled, scaling, sides, x))
        nu, y, _ = _multipliers(scaled, sides, x)
        out = put(out, some, _in_units(qp, scaling, sides, nu, y)._replace(z=out.z[some]))
    return out


def no_proof(batch: int, n: int, m: int, e: int, like: Tensor) -> Certificate:
    """The certificates of samples that need none: one zero, of the dtype and device of `like`."""
    zero = like.new_zeros(())
    return Certificate(*(zero.expand(batch, size) for size in (n, e, m, m, n, n)))


def _in_units(qp: QP, scaling: Scaling, sides: Sides, nu: Tensor, y: Tensor) -> Certificate:
    """The multipliers (nu, y by sides) in the units of the user, so that they pay -1."""
    nu, y = scaling.nu * nu, scaling.y.unsqueeze(1) * y
    # The multiplier of a row with equal limits may have either sign: it is kept in y_0.
    y = torch.stack([y[:, 0].clamp(min=0), y[:, 1] + (-y[:, 0]).clamp(min=0)], 1)
    limit = torch.stack(torch.broadcast_tensors(qp.upper, qp.lower), 1)
    paid = torch.where(limit.isfinite(), sides.sign * limit, 0.0) * y
    size = ((qp.b * nu).sum(-1) + paid.sum((1, 2))).abs()
    nu, y = nu / size[:, None], y / size[:, None, None]
    m, none = qp.m, nu.new_zeros(len(nu), qp.n)
    upper, lower = (y[:, j, m:] if qp.bounded else none for j in (0, 1))
    return Certificate(none, nu, y[:, 0, :m], y[:, 1, :m], upper, lower)


def verdict(qp: QP, sides: Sides, x: Iterate, products: Products, tolerance: float) -> Tensor:
    """`(B)`: the `Status` of an infeasibility that the iterate proves, or -1."""
    out = torch.full(x.z.shape[:1], -1, device=x.z.device)
    ray, farkas = suspects(qp, sides, x, products, tolerance)
    for suspected, prove, kind in (
        (ray, _ray, Status.DUAL_INFEASIBLE),
        (farkas, _multipliers, Status.PRIMAL_INFEASIBLE),
    ):
        some = suspected.nonzero().flatten()
        if len(some):
            *_, holds = prove(take(qp, some), take(sides, some), take(x, some))
            out[some] = torch.where(holds, int(kind), out[some])
    return out


def suspects(
    qp: QP, sides: Sides, x: Iterate, products: Products, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Samples that may hold a ray, and those that may hold multipliers that prove, bool `(B,)`."""
    # The iterates of an unbounded problem approach z_0 + growing multiples of a ray, so the ray is
    # in their change, free of z_0; at the first step the change is from zero: z itself.
    change = Ray(*(a - b for a, b in zip(Ray.of(x.z, products), x.last, strict=True)))
    return _is_ray(qp, change, tolerance), _is_farkas(qp, sides, x, products, tolerance)


def _is_farkas(qp: QP, sides: Sides, x: Iterate, products: Products, tolerance: float) -> Tensor:
    # By sides: where two limits of one row contradict each other their multipliers cancel in C'y.
    value = (qp.b * x.nu).sum(-1) + (sides.sign * sides.limit * x.y).sum((1, 2))
    size = largest(x.nu, x.y.flatten(1))
    combination = largest(products.At_nu + products.Ct_y)
    return (value < 0) & (combination <= tolerance * torch.minimum(-value, size))


def _is_ray(qp: QP, d: Ray, tolerance: float) -> Tensor:
    slope = (qp.p * d.z).sum(-1)
    above = torch.where(qp.upper.isfinite(), d.Cz, 0.0).clamp(min=0)
    below = torch.where(qp.lower.isfinite(), -d.Cz, 0.0).clamp(min=0)
    moved = largest(d.Qz, d.Az, above, below)
    return (slope < 0) & (moved <= tolerance * torch.minimum(-slope, largest(d.z)))


def _multipliers(qp: QP, sides: Sides, x: Iterate) -> tuple[Tensor, Tensor, Tensor]:
    """(nu, y by sides, whether they are a proof): the nearest that cancel up to rounding."""
    size = largest(x.nu, x.y.flatten(1)).clamp(min=torch.finfo(x.z.dtype).tiny)
    nu, y = x.nu / size[:, None], x.y / size[:, None, None]
    on = (sides.present & (y > digits(SUPPORT, y.dtype))) | (
        sides.fixed.unsqueeze(1) & (sides.sign > 0)
    )
    C = _rows_of_C(qp)
    rows = torch.cat([qp.A.expand(len(nu), -1, -1), C, -C], 1)
    v = torch.cat([nu, y.flatten(1)], -1)
    mask = torch.cat([torch.ones_like(nu).bool(), on.flatten(1)], -1)
    v, near = _nearest_null((rows * mask.unsqueeze(-1)).mT, torch.where(mask, v, 0.0))
    nu, y = v[:, : nu.shape[-1]], v[:, nu.shape[-1] :].view_as(y)
    signs = (y >= -digits(ROUNDING, y.dtype)) | ~sides.present
    terms = torch.cat([qp.b * nu, (sides.sign * sides.limit * y).flatten(1)], -1)
    falls = terms.sum(-1) < -digits(RANK, y.dtype) * terms.abs().sum(-1)
    return nu, torch.where(sides.present, y.clamp(min=0), y), near & signs.all(-1).all(-1) & falls


def _ray(qp: QP, sides: Sides, x: Iterate) -> tuple[Tensor, Tensor]:
    """(z, whether it is a proof): the nearest to the change of z that moves nothing it must not."""
    d = x.z - x.last.z
    d = d / largest(d).clamp(min=torch.finfo(d.dtype).tiny).unsqueeze(-1)
    C, side = _rows_of_C(qp), sides.sign * qp.rows(d).unsqueeze(1)
    still = ((side > -digits(SUPPORT, d.dtype)) & sides.present).any(1) | sides.fixed
    weight = 1.0 if qp.weight is None else qp.weight.unsqueeze(-1)
    parts = (weight * qp.Q, qp.A, C * still.unsqueeze(-1))
    M = torch.cat([v.expand(len(d), -1, -1) for v in parts], 1)
    d, near = _nearest_null(M, d)
    side = sides.sign * qp.rows(d).unsqueeze(1)
    inside = (side <= digits(ROUNDING, d.dtype)) | ~sides.present
    falls = (qp.p * d).sum(-1) < -digits(RANK, d.dtype) * (qp.p * d).abs().sum(-1)
    return d, near & inside.all(-1).all(-1) & falls


def _rows_of_C(qp: QP) -> Tensor:
    eye = torch.eye(qp.n, dtype=qp.p.dtype, device=qp.p.device)
    G = qp.G.expand(qp.batch, -1, -1)
    return torch.cat([G, eye.expand(qp.batch, -1, -1)], 1) if qp.bounded else G


def _nearest_null(M: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(the vector nearest to v with M v = 0 up to rounding, whether it is near)."""
    out = v
    for _ in range(2):  # the second pass takes out the rounding of the first
        inverse = full(torch.linalg.pinv, M, rtol=digits(RANK, v.dtype))
        out = out - product(inverse, product(M, out.unsqueeze(-1))).squeeze(-1)
    return out, largest(out - v) <= largest(v) / 2
