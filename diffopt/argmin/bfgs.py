"""Limited-memory BFGS: an approximate Hessian of the Lagrangian from the last gradients.

From pairs (s, q), s a step and q the change of the gradient of the Lagrangian along it, oldest
first and starting from sigma I,

    B <- B - B s s'B / s'Bs + q q' / s'q

which for all pairs together, S and Y with a pair a column, S'Y = L + D + upper triangle, is

    B = sigma I - W M^-1 W',    W = [sigma S, Y],    M = [[sigma S'S, L], [L', -D]].

q is damped where the curvature along s is too small, so that B stays positive definite.

Source: Nocedal & Wright, Numerical Optimization (2nd ed., 2006), Procedure 18.2 for the damping,
Thm. 7.4 for the compact form.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..iterate import select
from ..qp.problem import matvec

DAMPING = 0.2


class Memory(NamedTuple):
    """The last pairs of each sample, oldest first; a pair of zeros is none.

    Attributes:
        S, Y: `(B, memory, n)`.
        B: `(B, n, n)`.
        z, pull: the point before, and the gradient of the Lagrangian there with the multipliers
            of now, `(B, n)`; NaN where there is none.
    """

    S: Tensor
    Y: Tensor
    B: Tensor
    z: Tensor
    pull: Tensor

    @classmethod
    def empty(cls, z: Tensor, pairs: int) -> Memory:
        """No pairs, and B = I; nothing at all where `pairs` is 0."""
        none, nowhere = z.new_zeros(len(z), pairs, z.shape[-1]), torch.full_like(z, torch.nan)
        B = torch.diag_embed(torch.ones_like(z) if pairs else z[:, :0])
        return cls(none, none, B, nowhere, nowhere)

    def updated(self, z: Tensor, pull: Tensor) -> Memory:
        """The memory with the pair that ends at z."""
        s, q = z - self.z, pull - self.pull
        new = (s.isfinite() & q.isfinite()).all(-1) & (s != 0).any(-1)
        s, q = (torch.where(new.unsqueeze(-1), v, 0.0) for v in (s, q))
        q = _damped(self.B, s, q)
        S = torch.cat([self.S[:, 1:], s.unsqueeze(1)], 1)
        Y = torch.cat([self.Y[:, 1:], q.unsqueeze(1)], 1)
        changed = self._replace(S=S, Y=Y, B=_compact(S, Y))
        usable = new & changed.B.isfinite().flatten(1).all(-1) & ((s * q).sum(-1) > 0)
        return select(usable, changed, self)


def _compact(S: Tensor, Y: Tensor) -> Tensor:
    """B of the pairs, whose rows are those of S and Y."""
    s, q = S[:, -1], Y[:, -1]
    sigma = ((q * q).sum(-1) / (s * q).sum(-1))[:, None, None]
    inner, none = S @ Y.mT, (S == 0).all(-1)
    D = torch.where(none, 1.0, inner.diagonal(dim1=-2, dim2=-1))
    L = inner.tril(-1)
    top = torch.cat([sigma * S @ S.mT + torch.diag_embed(none.to(S.dtype)), L], -1)
    M = torch.cat([top, torch.cat([L.mT, -torch.diag_embed(D)], -1)], -2)
    W = torch.cat([sigma * S, Y], 1)
    B = -W.mT @ torch.linalg.solve_ex(M, W)[0]
    B.diagonal(dim1=-2, dim2=-1).add_(sigma.squeeze(-1))
    return (B + B.mT) / 2


def _damped(B: Tensor, s: Tensor, q: Tensor) -> Tensor:
    """theta q + (1 - theta) B s, with a curvature of `DAMPING` s'Bs at least."""
    Bs = matvec(B, s)
    most, have = (s * Bs).sum(-1), (s * q).sum(-1)
    theta = torch.where(have < DAMPING * most, (1 - DAMPING) * most / (most - have), 1.0)
    theta = theta.unsqueeze(-1)
    return theta * q + (1 - theta) * Bs
