"""Dependent active rows: where multipliers, and their derivatives, are not unique.

Let R stack the rows of A and the active rows of C, in the user's units. Multipliers eta of these
rows that differ by a vector N c of the null space of R' are equally good: R'eta is all that
stationarity sees. The package returns those of least Euclidean norm, and derivatives likewise:
those of the pseudo-inverse. N comes from an SVD, of the few samples only for which a Cholesky
factorisation of R R' says that it may be needed.

An active bound removes its unknown: eta is in the null space iff the rows of [A; G] restricted to
the free unknowns cancel, the multipliers of the bounds then cancelling the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..product import full, product
from .problem import QP, digits

# A row nearer than this to the span of the others, relative to its length, is looked at by SVD;
# the Gram matrix resolves 1e-8. A singular value below RANK times the largest is zero: nearly
# dependent rows with an angle of 1e-10 still count as independent.
SUSPECT, RANK = 1e-5, 1e-11


class Dependence(NamedTuple):
    """The directions in which the multipliers of a sample are free.

    Attributes:
        basis: N, orthonormal columns in the space of (nu, y), `(B, e + k, d)`; columns of zeros
            where a sample has fewer than d directions. d is 0 where no sample has any.
        alive: 0 for rows of A that are zero, whose multipliers are zero, else 1, `(B|1, e + k)`.
    """

    basis: Tensor
    alive: Tensor

    def least_norm(self, v: Tensor) -> Tensor:
        """v `(..., e + k)` without its part in the null space."""
        v = v * self.alive
        if self.basis.shape[-1] == 0:
            return v
        along = product(self.basis.mT, v.unsqueeze(-1)).squeeze(-1)
        return v - product(self.basis, along.unsqueeze(-1)).squeeze(-1)


def dependence(qp: QP, active: Tensor, unit: Tensor) -> Dependence:
    """The `Dependence` of the `active` rows of C, bool `(B, k)`, and all rows of A.

    Args:
        unit: of the unknowns, `(B|1, n)`: what is nearly dependent does not depend on theirs.
    """
    rows = _Rows.of(qp, active, unit)
    e, k = qp.A.shape[-2], active.shape[-1]
    zero = torch.zeros(active.shape[0], e + k, dtype=qp.p.dtype, device=qp.p.device)
    alive = torch.cat([(qp.A != 0).any(-1), torch.ones_like(active[:1]).expand(len(qp.A), -1)], -1)
    suspects = rows.suspects().nonzero().flatten()
    if len(suspects) == 0:
        return Dependence(zero.unsqueeze(-1)[..., :0], alive.to(zero.dtype))
    part = rows.take(suspects)
    basis = part.null_space(e, qp.m, qp.bounded)
    whole = zero.new_zeros(*zero.shape, basis.shape[-1])
    return Dependence(whole.index_copy(0, suspects, basis), alive.to(zero.dtype))


def places(mask: Tensor) -> Tensor:
    """Where `mask` `(B, r)` holds: indices of each sample, as many as the fullest has, in order.

    Those of a sample with fewer are filled up with places where it does not hold.
    """
    count = int(mask.sum(-1).amax()) if mask.numel() else 0
    return mask.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[:, :count]


class _Rows(NamedTuple):
    """The rows of A and the active rows of G, gathered to `(B, r, n)`.

    Attributes:
        rows: in the user's units.
        scaled: the same with the unknowns in units of their own.
        place: index of each row in (nu, lam), `(B, r)`.
        real: False for padding and for rows of zeros, `(B, r)`.
        free: unknowns that are at no bound, `(B, n)`.
    """

    rows: Tensor
    scaled: Tensor
    place: Tensor
    real: Tensor
    free: Tensor

    @classmethod
    def of(cls, qp: QP, active: Tensor, unit: Tensor) -> _Rows:
        batch, e = active.shape[0], qp.A.shape[-2]
        wanted = torch.cat([active.new_ones(batch, e), active[:, : qp.m]], -1)
        place = places(wanted)
        real = wanted.gather(1, place)
        if qp.A.shape[0] == 1 and qp.G.shape[0] == 1:
            rows = torch.cat([qp.A[0], qp.G[0]])[place]
        else:
            every = torch.cat([qp.A.expand(batch, -1, -1), qp.G.expand(batch, -1, -1)], 1)
            rows = every.gather(1, place.unsqueeze(-1).expand(-1, -1, qp.n))
        at_bound = active[:, qp.m :] if qp.bounded else active.new_zeros(batch, qp.n)
        scaled = rows * unit.unsqueeze(-2)
        # An SVD fails, for all samples, where the length of a row of one is not finite.
        real = real & (rows != 0).any(-1) & torch.linalg.vector_norm(scaled, dim=-1).isfinite()
        return cls(rows, scaled, place, real, ~at_bound)

    def take(self, index: Tensor) -> _Rows:
        return _Rows(*(v[index] for v in self))

    def unit(self) -> tuple[Tensor, Tensor]:
        """(rows of length one, restricted to the free unknowns `(B, r, f)`, their lengths)."""
        length = torch.linalg.vector_norm(self.scaled, dim=-1, keepdim=True)
        length = torch.where(self.real.unsqueeze(-1) & (length > 0), length, 1.0)
        first = places(self.free)
        keep = self.free.gather(1, first).unsqueeze(1) & self.real.unsqueeze(-1)
        restricted = self.scaled.gather(2, first.unsqueeze(1).expand(-1, self.rows.shape[1], -1))
        return torch.where(keep, restricted, 0.0) / length, length

    def suspects(self) -> Tensor:
        """Samples whose rows may be dependent, bool `(B,)`."""
        unit, _ = self.unit()
        gram = product(unit, unit.mT)
        gram = gram + torch.diag_embed((~self.real).to(gram.dtype))
        factor, info = torch.linalg.cholesky_ex(gram)
        diagonal = factor.diagonal(dim1=-2, dim2=-1)
        near = (diagonal < digits(SUSPECT, gram.dtype)).any(-1) if diagonal.shape[-1] else info > 0
        return near | (info > 0)

    def null_space(self, e: int, m: int, bounded: bool) -> Tensor:
        """N of every sample, `(B, e + k, d)`."""
        unit, length = self.unit()
        # Padding and zero rows get a column of their own, and are independent of all others.
        if not bool(self.real.all()):
            unit = torch.cat([unit, torch.diag_embed((~self.real).to(unit.dtype))], -1)
        U, sizes, _ = torch.linalg.svd(unit, full_matrices=True)
        missing = U.shape[-1] - sizes.shape[-1]
        sizes = torch.nn.functional.pad(sizes, (0, max(missing, 0)))
        null = sizes <= digits(RANK, sizes.dtype) * sizes[:, :1]
        d = int(null.sum(-1).amax())
        keep = null[:, null.shape[1] - d :].unsqueeze(1)
        eta = torch.where(keep & self.real.unsqueeze(-1), U[..., U.shape[-1] - d :], 0.0) / length
        rest = -product(self.rows.mT, eta) * ~self.free.unsqueeze(-1)
        n, k = rest.shape[1], m + (rest.shape[1] if bounded else 0)
        out = eta.new_zeros(len(eta), e + k, d)
        out = out.scatter(1, self.place.unsqueeze(-1).expand(-1, -1, d), eta)
        if bounded:
            out[:, e + m : e + m + n] = rest
        return _orthonormal(out, keep)


def _orthonormal(W: Tensor, keep: Tensor) -> Tensor:
    """W L^-T with L L' = W'W: orthonormal columns of the same span; `keep` `(B, 1, d)`."""
    gram = product(W.mT, W) + torch.diag_embed((~keep.squeeze(1)).to(W.dtype))
    factor = torch.linalg.cholesky_ex(gram)[0]
    return full(torch.linalg.solve_triangular, factor, W.mT, upper=False).mT
