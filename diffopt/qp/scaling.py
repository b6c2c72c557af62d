"""Equilibration: a diagonal change of variables that brings all data to size one.

    z = r d * z^,   rows of A times e_A / r,   rows of G times e_G / r,   objective times c / r
    Q^ = c r D Q D,  p^ = c D p,  A^ = E_A A D,  G^ = E_G G D,  limits^ = E limits / r
    nu = e_A nu^ / c,   y = e y^ / c            (e = e_G on rows of G, 1/d on the bounds)

The diagonals d and e equilibrate the matrices; the numbers r (the size of z) and c (one over that
of the multipliers) make the answer independent of the units of the data: z^ and y^ are of size
one whatever they are, which the tolerances and the regularisation count on. The bounds use
e = 1/d, so that their rows of C stay those of the identity.

Source: Ruiz, "A scaling algorithm to equilibrate both rows and columns norms in matrices" (RAL
2001), Alg. 1, in the infinity norm on [Q A' G'; A 0 0; G 0 0].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .problem import QP, Products, largest

PASSES = 8  # the log of each norm halves a pass: 1e8 is brought to 1e8^(1/256) = 1.07
SMALLEST, LARGEST = 1e-4, 1e4  # bounds on every factor, as in Clarabel
NEVER = 1e20  # a limit this far from a z of size one says nothing: a row of rounding, z / 1e33 <= 1


@dataclass(frozen=True)
class Scaling:
    """What a unit of the equilibrated problem is in the user's, or one over it for the rows."""

    z: Tensor  # r d, (B|1, n)
    nu: Tensor  # e_A / c, (B|1, e)
    y: Tensor  # e_C / c, (B|1, k)
    dual: Tensor  # stationarity: c d, (B|1, n)
    equal: Tensor  # Az: e_A / r, (B|1, e)
    rows: Tensor  # Cz: e_C / r, (B|1, k)
    objective: Tensor  # the objective: c / r, (B|1,)


def equilibrate(qp: QP) -> tuple[QP, Scaling]:
    """The scaled QP and its factors, each sample by its own data only."""
    d, e_A, e_G = _ruiz(qp)
    e_C = torch.cat([e_G, 1 / d], -1) if qp.bounded else e_G
    r, c = _sizes(qp, d, e_A, e_C)
    scaling = Scaling(r * d, e_A / c, e_C / c, c * d, e_A / r, e_C / r, (c / r).squeeze(-1))
    column = d.unsqueeze(-2)
    lower, upper = qp.lower * scaling.rows, qp.upper * scaling.rows
    scaled = QP(
        Q=qp.Q * d.unsqueeze(-1) * column,
        p=qp.p * scaling.dual,
        G=qp.G * e_G.unsqueeze(-1) * column,
        A=qp.A * e_A.unsqueeze(-1) * column,
        b=qp.b * scaling.equal,
        lower=torch.where(lower < -NEVER, -torch.inf, lower),
        upper=torch.where(upper > NEVER, torch.inf, upper),
        bounded=qp.bounded,
        weight=c * r if qp.lower.shape[-1] else _weight(qp, d),
    )
    return scaled, scaling


def _ruiz(qp: QP) -> tuple[Tensor, Tensor, Tensor]:
    """(d, e_A, e_G) that bring the rows and columns of [Q A' G'; A 0 0; G 0 0] to norm one."""
    size = max(qp.Q.shape[0], qp.A.shape[0], qp.G.shape[0])
    d, e_A, e_G = (qp.p.new_ones(size, k) for k in (qp.n, qp.A.shape[-2], qp.m))
    Q, A, G = qp.Q.abs(), qp.A.abs(), qp.G.abs()
    # The unit of a row is free too, and may be anything: out of the way of the clipping below.
    unit_A, unit_G = (1 / _positive_or_one(M.amax(-1)) for M in (A, G))
    A, G = A * unit_A.unsqueeze(-1), G * unit_G.unsqueeze(-1)
    Q = Q / _positive_or_one(Q.amax((-2, -1), keepdim=True))  # the unit of the objective is free
    for _ in range(PASSES):
        # Norms of the scaled matrices without forming them: max_i |e_i M_ij d_j|.
        columns = torch.maximum(
            d * _max_rows(Q, d), d * torch.maximum(_max_rows(A, e_A), _max_rows(G, e_G))
        )
        rows_A, rows_G = e_A * _max_rows(A.mT, d), e_G * _max_rows(G.mT, d)
        d, e_A, e_G = (_shrink(*pair) for pair in ((d, columns), (e_A, rows_A), (e_G, rows_G)))
    return d, e_A * unit_A, e_G * unit_G


def _sizes(qp: QP, d: Tensor, e_A: Tensor, e_C: Tensor) -> tuple[Tensor, Tensor]:
    """(r, c), `(B|1, 1)`: the size that z is expected to have, and one over that of the duals.

    z must reach Az = b and the limits that exclude 0; from there the objective pulls it towards
    its free minimiser, of size |D p| / |D Q D|, but not past the other limits; a linear program has
    none, and of its limits, some of which may mean "never", the median counts. Too small an r does
    no harm, since all tests are relative to what is large; too large a one would hide errors.
    """
    q = _curvature(qp, d)
    g = largest(d * qp.p)
    lower, upper = e_C * qp.lower, e_C * qp.upper
    needed = largest(e_A * qp.b, lower.clamp(min=0), (-upper).clamp(min=0))
    size = max(lower.shape[0], upper.shape[0])
    parts = lower.expand(size, -1), upper.expand(size, -1), lower.new_zeros(size, 1)
    limits = torch.cat(parts, -1)
    limits = torch.where(limits.isfinite() & (limits != 0), limits.abs(), torch.nan)
    far, typical = largest(limits.nan_to_num()), limits.nanmedian(-1)[0].nan_to_num()
    free = torch.where(q > 0, g / q, typical)
    r = torch.maximum(needed, torch.where(far > 0, torch.minimum(free, far), free))
    r = _positive_or_one(torch.where(r > 0, r, far))
    c = 1 / _positive_or_one(torch.maximum(q * r, g))
    return r.unsqueeze(-1), c.unsqueeze(-1)


def _weight(qp: QP, d: Tensor) -> Tensor:
    """c r where there are no limits, `(B|1, 1)`: there r q >= g in `_sizes`, so that c r = 1 / q.

    The samples then share it, and with it the factor, if they share Q and A.
    """
    return 1 / _positive_or_one(_curvature(qp, d)).unsqueeze(-1)


def _curvature(qp: QP, d: Tensor) -> Tensor:
    """The size of D Q D, the mean of its columns' norms, `(B|1,)`."""
    return (d * _max_rows(qp.Q.abs(), d)).mean(-1)


def _positive_or_one(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 1.0)


def _max_rows(M: Tensor, weight: Tensor) -> Tensor:
    """max_i weight_i M_ij for each column j, `(B, n)`; zero if M has no rows."""
    if M.shape[-2] == 0:
        return M.new_zeros(weight.shape[0], M.shape[-1])
    return (M * weight.unsqueeze(-1)).amax(-2)


def _shrink(factor: Tensor, norm: Tensor) -> Tensor:
    """factor / sqrt(norm), kept within bounds; a zero row keeps its factor."""
    return (factor / _positive_or_one(norm).sqrt()).clamp(SMALLEST, LARGEST)


def unscale(scaling: Scaling, z: Tensor, nu: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(z, nu, y) in the units of the user's problem."""
    return scaling.z * z, scaling.nu * nu, scaling.y * y


def unscale_products(scaling: Scaling, products: Products) -> Products:
    """The products in the units of the user's problem, without forming them again."""
    return Products(
        products.Qz / scaling.dual,
        products.Az / scaling.equal,
        products.Cz / scaling.rows,
        products.At_nu / scaling.dual,
        products.Ct_y / scaling.dual,
    )
