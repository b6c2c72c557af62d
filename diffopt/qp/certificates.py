"""Proofs that a QP has no solution (Farkas), read off the iterates of any method.

    primal infeasible: multipliers (nu, y) with  A'nu + C'y = 0  and  b'nu + limits'y < 0
    dual infeasible:   a ray z with  Qz = 0, Az = 0, Cz <= 0 on finite upper limits, >= 0 on
                       finite lower ones, and  p'z < 0

Both are tested on the equilibrated QP, up to a tolerance relative to the smaller of the negative
number and the size of the vector: so neither a large p nor a large b can pass for a proof. They
are sound whatever produced the vectors; that they are found is up to the method.

Source: Stellato et al., "OSQP" (Math. Prog. Comp. 2020), sec. 3.4, eq. (23) and (24) of the
conditions in sec. 2.3, applied to the iterates themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..solution import Status
from .problem import QP, Products, largest


def verdict(
    qp: QP, z: Tensor, nu: Tensor, y: Tensor, products: Products, tolerance: float
) -> Tensor:
    """`(B)`: the `Status` of an infeasibility that the vectors prove, or -1."""
    out = torch.full(z.shape[:1], -1, device=z.device)
    ray = _is_ray(qp, z, products, tolerance)
    farkas = _is_farkas(qp, nu, y, products, tolerance)
    out = torch.where(ray, int(Status.DUAL_INFEASIBLE), out)
    return torch.where(farkas, int(Status.PRIMAL_INFEASIBLE), out)


def _is_farkas(qp: QP, nu: Tensor, y: Tensor, products: Products, tolerance: float) -> Tensor:
    limit = qp.limits(y)
    absent = limit.isinf()
    value = (qp.b * nu).sum(-1) + (torch.where(absent, 0.0, limit) * y).sum(-1)
    combination = largest(products.At_nu + products.Ct_y, torch.where(absent, y, 0.0))
    return (value < 0) & (combination <= tolerance * torch.minimum(-value, largest(nu, y)))


def _is_ray(qp: QP, z: Tensor, products: Products, tolerance: float) -> Tensor:
    slope = (qp.p * z).sum(-1)
    above = torch.where(qp.upper.isfinite(), products.Cz, 0.0).clamp(min=0)
    below = torch.where(qp.lower.isfinite(), -products.Cz, 0.0).clamp(min=0)
    moved = largest(products.Qz, products.Az, above, below)
    return (slope < 0) & (moved <= tolerance * torch.minimum(-slope, largest(z)))
