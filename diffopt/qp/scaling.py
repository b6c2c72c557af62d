"""Equilibration: a diagonal change of variables that brings all rows and columns to size one.

    z = d * z^,   rows of A times e_A,   rows of G times e_G,   objective times c
    Q^ = c D Q D,  p^ = c D p,  A^ = E_A A D,  G^ = E_G G D,  limits^ = E limits
    nu = e_A nu^ / c,   y = e y^ / c            (e = e_G on rows of G, 1/d on the bounds)

The bounds use e = 1/d, so that their rows of C stay those of the identity.

Source: Ruiz, "A scaling algorithm to equilibrate both rows and columns norms in matrices" (RAL
2001), Alg. 1, in the infinity norm on [Q A' G'; A 0 0; G 0 0], with the cost factor of OSQP
(Stellato et al., Math. Prog. Comp. 2020), Alg. 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .problem import QP, Products, largest

PASSES = 8  # the log of each norm halves a pass: 1e8 is brought to 1e8^(1/256) = 1.07
SMALLEST, LARGEST = 1e-4, 1e4  # bounds on every factor, as in Clarabel


@dataclass(frozen=True)
class Scaling:
    """The factors: `d` `(B|1, n)`, `e_A` `(B|1, e)`, `e_C` `(B|1, k)`, `c` `(B|1, 1)`."""

    d: Tensor
    e_A: Tensor
    e_C: Tensor
    c: Tensor


def equilibrate(qp: QP) -> tuple[QP, Scaling]:
    """The scaled QP and its factors, each sample by its own data only."""
    size = max(qp.Q.shape[0], qp.A.shape[0], qp.G.shape[0])
    d, e_A, e_G = (qp.p.new_ones(size, k) for k in (qp.n, qp.A.shape[-2], qp.m))
    Q, A, G = qp.Q.abs(), qp.A.abs(), qp.G.abs()
    for _ in range(PASSES):
        # Norms of the scaled matrices without forming them: max_i |e_i M_ij d_j|.
        columns = torch.maximum(
            d * _max_rows(Q, d), d * torch.maximum(_max_rows(A, e_A), _max_rows(G, e_G))
        )
        rows_A, rows_G = e_A * _max_rows(A.mT, d), e_G * _max_rows(G.mT, d)
        d, e_A, e_G = (_shrink(*pair) for pair in ((d, columns), (e_A, rows_A), (e_G, rows_G)))
    c = _cost_factor(Q, qp.p, d)
    e_C = torch.cat([e_G, 1 / d], -1) if qp.bounded else e_G
    return _scaled(qp, d, e_A, e_G, e_C, c), Scaling(d, e_A, e_C, c)


def _max_rows(M: Tensor, weight: Tensor) -> Tensor:
    """max_i weight_i M_ij for each column j, `(B, n)`; zero if M has no rows."""
    if M.shape[-2] == 0:
        return M.new_zeros(weight.shape[0], M.shape[-1])
    return (M * weight.unsqueeze(-1)).amax(-2)


def _shrink(factor: Tensor, norm: Tensor) -> Tensor:
    """factor / sqrt(norm), kept within bounds; a zero row keeps its factor."""
    return (factor / torch.where(norm > 0, norm, 1.0).sqrt()).clamp(SMALLEST, LARGEST)


def _cost_factor(Q: Tensor, p: Tensor, d: Tensor) -> Tensor:
    """1 / max(mean column norm of D Q D, |D p|), so that the duals are of size one as well."""
    mean = (d * _max_rows(Q, d)).mean(-1)
    size = torch.maximum(mean, largest(p * d))
    return (1 / torch.where(size > 0, size, 1.0)).unsqueeze(-1)


def _scaled(qp: QP, d: Tensor, e_A: Tensor, e_G: Tensor, e_C: Tensor, c: Tensor) -> QP:
    column = d.unsqueeze(-2)
    return QP(
        Q=qp.Q * (c * d).unsqueeze(-1) * column,
        p=qp.p * c * d,
        G=qp.G * e_G.unsqueeze(-1) * column,
        A=qp.A * e_A.unsqueeze(-1) * column,
        b=qp.b * e_A,
        lower=qp.lower * e_C,
        upper=qp.upper * e_C,
        bounded=qp.bounded,
        batch=qp.batch,
    )


def unscale(scaling: Scaling, z: Tensor, nu: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(z, nu, y) in the units of the user's problem."""
    return scaling.d * z, scaling.e_A * nu / scaling.c, scaling.e_C * y / scaling.c


def unscale_products(scaling: Scaling, products: Products) -> Products:
    """The products in the units of the user's problem, without forming them again."""
    column = scaling.c * scaling.d
    return Products(
        products.Qz / column,
        products.Az / scaling.e_A,
        products.Cz / scaling.e_C,
        products.At_nu / column,
        products.Ct_y / column,
    )
