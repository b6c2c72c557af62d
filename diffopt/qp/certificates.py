"""Proofs that a QP has no solution (Farkas), read off the iterates of any method.

    primal infeasible: multipliers (nu, y) with  A'nu + C'y = 0  and  b'nu + limits'y < 0
    dual infeasible:   a ray z with  Qz = 0, Az = 0, Cz <= 0 on finite upper limits, >= 0 on
                       finite lower ones, and  p'z < 0

Both are tested on the equilibrated QP, up to a tolerance relative to the smaller of the negative
number and the size of the vector: so neither a large p nor a large b can pass for a proof. They
are sound whatever produced the vectors; that they are found is up to the method.

Source: Stellato et al., "OSQP" (Math. Prog. Comp. 2020), sec. 3.4, the conditions of sec. 2.3;
there too the ray is looked for in the change of the iterates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..solution import Status
from .newton import Iterate, Ray, Sides
from .problem import QP, Products, largest
from .scaling import Scaling


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


def certificate(qp: QP, scaling: Scaling, sides: Sides, x: Iterate, status: Tensor) -> Certificate:
    """The proofs that the iterates hold for `status` `(B,)`, in the units of the user's `qp`."""
    unbounded = (status == int(Status.DUAL_INFEASIBLE))[:, None]
    infeasible = (status == int(Status.PRIMAL_INFEASIBLE))[:, None]
    ray = torch.where(unbounded, scaling.z * (x.z - x.last.z), 0.0)
    ray = ray / _one_if_zero((qp.p * ray).sum(-1, keepdim=True).abs())
    nu = torch.where(infeasible, scaling.nu * x.nu, 0.0)
    y = torch.where(infeasible.unsqueeze(1), scaling.y.unsqueeze(1) * x.y, 0.0)
    # The multiplier of a row with equal limits may have either sign: it is kept in y_0.
    y = torch.stack([y[:, 0].clamp(min=0), y[:, 1] + (-y[:, 0]).clamp(min=0)], 1)
    limit = torch.stack(torch.broadcast_tensors(qp.upper, qp.lower), 1)
    paid = torch.where(limit.isfinite(), sides.sign * limit, 0.0) * y
    size = _one_if_zero(((qp.b * nu).sum(-1) + paid.sum((1, 2))).abs())
    nu, y = nu / size[:, None], y / size[:, None, None]
    m, none = qp.m, torch.zeros_like(ray)
    upper, lower = (y[:, j, m:] if qp.bounded else none for j in (0, 1))
    return Certificate(ray, nu, y[:, 0, :m], y[:, 1, :m], upper, lower)


def _one_if_zero(x: Tensor) -> Tensor:
    return torch.where(x == 0, 1.0, x)


def verdict(qp: QP, sides: Sides, x: Iterate, products: Products, tolerance: float) -> Tensor:
    """`(B)`: the `Status` of an infeasibility that the iterate proves, or -1."""
    out = torch.full(x.z.shape[:1], -1, device=x.z.device)
    # The iterates of an unbounded problem approach z_0 + growing multiples of a ray, so the ray is
    # in their change, free of z_0; at the first step the change is from zero: z itself.
    change = Ray(*(a - b for a, b in zip(Ray.of(x.z, products), x.last, strict=True)))
    noise = torch.finfo(x.z.dtype).eps * largest(products.Qz, products.Az, products.Cz)
    ray = _is_ray(qp, change, noise, tolerance)
    farkas = _is_farkas(qp, sides, x, products, tolerance)
    out = torch.where(ray, int(Status.DUAL_INFEASIBLE), out)
    return torch.where(farkas, int(Status.PRIMAL_INFEASIBLE), out)


def _is_farkas(qp: QP, sides: Sides, x: Iterate, products: Products, tolerance: float) -> Tensor:
    # By sides: where two limits of one row contradict each other their multipliers cancel in C'y.
    value = (qp.b * x.nu).sum(-1) + (sides.sign * sides.limit * x.y).sum((1, 2))
    size = largest(x.nu, x.y.flatten(1))
    combination = largest(products.At_nu + products.Ct_y)
    return (value < 0) & (combination <= tolerance * torch.minimum(-value, size))


def _is_ray(qp: QP, d: Ray, noise: Tensor, tolerance: float) -> Tensor:
    """`noise` is the rounding error of the products, of which d holds differences."""
    slope = (qp.p * d.z).sum(-1)
    above = torch.where(qp.upper.isfinite(), d.Cz, 0.0).clamp(min=0)
    below = torch.where(qp.lower.isfinite(), -d.Cz, 0.0).clamp(min=0)
    moved = largest(d.Qz, d.Az, above, below) + 10 * noise
    return (slope < 0) & (moved <= tolerance * torch.minimum(-slope, largest(d.z)))
