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

import torch
from torch import Tensor

from ..solution import Status
from .newton import Iterate, Ray, Sides
from .problem import QP, Products, largest


def verdict(qp: QP, sides: Sides, x: Iterate, products: Products, tolerance: float) -> Tensor:
    """`(B)`: the `Status` of an infeasibility that the iterate proves, or -1."""
    out = torch.full(x.z.shape[:1], -1, device=x.z.device)
    # The iterates of an unbounded problem approach z_0 + growing multiples of a ray, so the ray is
    # in their change, free of z_0; at the first step the change is from zero: z itself.
    change = Ray(*(a - b for a, b in zip(Ray.of(x.z, products), x.last, strict=True)))
    ray = _is_ray(qp, change, tolerance)
    farkas = _is_farkas(qp, sides, x, products, tolerance)
    out = torch.where(ray, int(Status.DUAL_INFEASIBLE), out)
    return torch.where(farkas, int(Status.PRIMAL_INFEASIBLE), out)


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
