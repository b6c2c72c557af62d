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
from .problem import QP, largest, matvec


def verdict(qp: QP, z: Tensor, nu: Tensor, y: Tensor, tolerance: float = 1e-8) -> Tensor:
    """`(B)`: the `Status` of an infeasibility that the vectors prove, or -1."""
    out = torch.full(z.shape[:1], -1, device=z.device)
    out = torch.where(_is_ray(qp, z, tolerance), int(Status.DUAL_INFEASIBLE), out)
    return torch.where(_is_farkas(qp, nu, y, tolerance), int(Status.PRIMAL_INFEASIBLE), out)


def _is_farkas(qp: QP, nu: Tensor, y: Tensor, tolerance: float) -> Tensor:
    limit = torch.where(y > 0, qp.upper, qp.lower)
    y = torch.where(limit.isfinite(), y, 0.0)
    value = (qp.b * nu).sum(-1) + (qp.limits(y) * y).sum(-1)
    combination = largest(matvec(qp.A.mT, nu) + qp.rows_transposed(y))
    return (value < 0) & (combination <= tolerance * torch.minimum(-value, largest(nu, y)))


def _is_ray(qp: QP, z: Tensor, tolerance: float) -> Tensor:
    slope = (qp.p * z).sum(-1)
    Cz = qp.rows(z)
    above = torch.where(qp.upper.isfinite(), Cz, 0.0).clamp(min=0)
    below = torch.where(qp.lower.isfinite(), -Cz, 0.0).clamp(min=0)
    moved = torch.maximum(largest(matvec(qp.Q, z), matvec(qp.A, z)), largest(above, below))
    return (slope < 0) & (moved <= tolerance * torch.minimum(-slope, largest(z)))
