"""A positive definite matrix in place of an indefinite Hessian, the same wherever it matters.

Of the Hessian H of the Lagrangian only the part along the constraints is positive definite at a
minimum. With J the rows of the equalities and of the active limits, H + J' diag(gamma) J is
positive definite for all gamma large enough (Finsler; Nocedal & Wright, Numerical Optimization,
2nd ed., 2006, Thm. 17.5): it is the Hessian of the augmented Lagrangian. On steps with Jd fixed
the term is a constant, so a QP with it has the same d, and multipliers that differ by gamma Jd.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

GAMMAS = (1.0, 10.0, 1e2, 1e3, 1e4)  # tried in turn, in units of |H| / |row|^2
LEAST = 1e-12  # eigenvalue that counts as positive, where the diagonal of H is scaled to one
FLOOR = 1e-8  # least eigenvalue where H has to be changed
NONE = 1e-10  # eigenvalue that counts as zero for a derivative, in units of |g| / (1 + |z|)
FLAT, LIFTED = 1e-6, 1e-3  # LEAST and FLOOR of a step, in these units: its length is bounded


class Convex(NamedTuple):
    """Q = H + J' diag(gamma) J where that is definite, and something definite elsewhere.

    Attributes:
        Q: `(B, n, n)`.
        gamma: `(B, r)`, zero where H itself is definite.
        sound: whether Q is that sum, bool `(B,)`.
    """

    Q: Tensor
    gamma: Tensor
    sound: Tensor


def convexify(H: Tensor, rows: Tensor, wanted: Tensor, unit: Tensor, step: bool = False) -> Convex:
    """The `Convex` of H `(B, n, n)`.

    Args:
        rows: J, `(B, r, n)`.
        wanted: the rows to use, bool `(B, r)`.
        unit: what counts as a curvature of one where H is smaller, `(B,)`, positive.
        step: whether next to no curvature counts as none, as it asks for steps without end.
    """
    own = H.abs().amax((-2, -1))
    size = torch.maximum(own, unit)
    flat, floor = (FLAT * unit, LIFTED * unit) if step else (NONE * unit, FLOOR * unit)
    length = rows.square().sum(-1)
    weight = torch.where(wanted & (length > 0), size.unsqueeze(-1) / length, 0.0)
    Q, gamma = H.clone(), torch.zeros_like(weight)
    diagonal = H.diagonal(dim1=-2, dim2=-1).abs()
    least = torch.diag_embed(torch.maximum(LEAST * diagonal, flat.unsqueeze(-1)))
    left = (~_definite(H - least)).nonzero().flatten()
    for factor in GAMMAS if rows.shape[1] else ():
        if not len(left):
            break
        trial = factor * weight[left]
        J = rows[left]
        lifted = H[left] + J.mT @ (trial.unsqueeze(-1) * J)
        good = _definite(lifted - least[left])
        Q = Q.index_copy(0, left[good], lifted[good])
        gamma = gamma.index_copy(0, left[good], trial[good])
        left = left[~good]
    sound = torch.ones_like(size, dtype=torch.bool).index_fill(0, left, False)
    if len(left):
        J, w, floor = rows[left], GAMMAS[1] * weight[left], torch.maximum(FLOOR * own, floor)
        Q = Q.index_copy(0, left, _folded(H[left] + J.mT @ (w.unsqueeze(-1) * J), floor[left]))
        gamma = gamma.index_copy(0, left, w)
    return Convex(Q, gamma, sound)


def _definite(M: Tensor) -> Tensor:
    return torch.linalg.cholesky_ex(M)[1] == 0


def _folded(M: Tensor, floor: Tensor) -> Tensor:
    """M with its eigenvalues replaced by their absolute values, `floor` `(B,)` at least."""
    values, V = torch.linalg.eigh(M)
    values = torch.maximum(values.abs(), floor.unsqueeze(-1))
    return V @ (values.unsqueeze(-1) * V.mT)
