"""Where the interior-point method begins: cold, or warm from the solution of a similar problem.

Source: the retraction onto the central path as PIQP 0.6 starts (Schwan et al., "PIQP: A proximal
interior-point quadratic programming solver", CDC 2023, and its sources).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .kkt import Blocks, KKTFamily
from .newton import Iterate, Ray, Sides

FAR = 10.0  # a limit beyond it, in the equilibrated space, plays no part in the start


def cold_start(family: KKTFamily, sides: Sides) -> Iterate:
    """A point on the central path, from the solve with every weight one.

    Minimising 1/2 z'Qz + p'z + 1/2 |violations|^2 over Az = b gives multipliers v = C z - u of
    either sign, one a side, from which `_central` makes a point with the same primal residual.
    """
    qp = family.qp
    count = sides.present.sum(1).to(qp.p.dtype)
    t = torch.where(sides.fixed, 0.0, 1 / (1 + count)).expand(qp.batch, -1)
    # z is of size one here: a limit much farther away is none that z should be drawn to.
    near = sides.limit.clamp(-FAR, FAR)
    center = (near * sides.present).sum(1) * t + sides.limit[:, 0] * sides.fixed
    r = Blocks(-qp.p, qp.b, center)
    r = Blocks(*(v.expand(qp.batch, -1) for v in r))
    x, _ = family.factorize(t).solve(r)
    Cz = qp.rows(x.z).unsqueeze(1)
    mu = _start_mu(sides.sign * (Cz - near), sides.present)
    return _central(sides, x, sides.sign * (Cz - sides.limit), mu)


def warm_start(family: KKTFamily, sides: Sides, x: Blocks, mu: float) -> Iterate:
    """A point near x = (z, nu, y), the solution of a similar problem, with products `mu`.

    The multipliers of the sides minus their slacks, v = y - s, are those of x. Far from a limit
    and at one v is kept; where both are small they are lifted to sqrt(mu).
    """
    y = torch.stack([x.y.clamp(min=0), (-x.y).clamp(min=0)], 1)
    s = sides.sign * (sides.limit - family.qp.rows(x.z).unsqueeze(1))
    return _central(sides, x, y - s.clamp(min=0), x.z.new_full((1, 1, 1), mu))


def _central(sides: Sides, x: Blocks, v: Tensor, mu: Tensor) -> Iterate:
    """The point with s y = mu and y - s = v, the retraction of v: y = (v + sqrt(v^2 + 4 mu))/2."""
    root = (v * v + 4 * mu).sqrt()
    # Of y and s = y - v, the smaller is mu over the larger: no cancellation.
    y = torch.where(v > 0, (v + root) / 2, 2 * mu / (root - v))
    s = torch.where(v > 0, 2 * mu / (root + v), (root - v) / 2)
    s, y = torch.where(sides.present, s, 1.0), torch.where(sides.present, y, 0.0)
    y[:, 0] = torch.where(sides.fixed, x.y, y[:, 0])
    none = torch.zeros_like(x.z), torch.zeros_like(x.z), torch.zeros_like(x.nu)
    return Iterate(x.z, x.nu, s, y, Ray(*none, torch.zeros_like(x.y)))


def _start_mu(v: Tensor, present: Tensor) -> Tensor:
    """The mean product after shifting s = -v and y = v to be nonnegative, `(B, 1, 1)`."""
    v = torch.where(present, v, 0.0)
    if v.shape[-1] == 0:
        return v.new_ones(v.shape[0], 1, 1)
    s_shift, y_shift = v.amax((1, 2), True).clamp(min=0), (-v).amax((1, 2), True).clamp(min=0)
    products = torch.where(present, (s_shift - v) * (v + y_shift), 0.0)
    return (products.sum((1, 2), True) / present.sum((1, 2), True).clamp(min=1)).clamp(min=1e-10)
