"""The data of a batch of QPs, with one flat batch dimension, and the KKT residuals.

    minimise 1/2 z'Qz + p'z    subject to    h_lower <= Gz <= h,   Az = b,   lb <= z <= ub

The rows of G and the bounds are handled together as rows of C = [G; I], limits `lower` and `upper`
and multipliers y = (lam, mu): positive at an upper limit, negative at a lower one, so that
stationarity reads  Qz + p + A'nu + C'y = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..product import product
from ..tree import mapped, tensors


def matvec(M: Tensor, x: Tensor) -> Tensor:
    """M x for `(*B, r, n)` and `(*B, n)`; a matrix that the batch shares is one GEMM.

    The GEMM also keeps the gradient of a shared M in its own shape: autograd sums over the
    batch inside the product, instead of forming one outer product a sample.
    """
    if M.shape[0] == 1 and x.ndim == 2:
        return product(x, M[0].mT)
    return product(M, x.unsqueeze(-1)).squeeze(-1)


def digits(tolerance: float, dtype: torch.dtype) -> float:
    """A tolerance meant for float64 as the same share of the digits of `dtype`: 1e-12 is 5e-6."""
    share = math.log(torch.finfo(dtype).eps) / math.log(torch.finfo(torch.float64).eps)
    return float(tolerance**share)


class Residuals(NamedTuple):
    """Relative errors of the KKT conditions, one number a sample; infinity norms throughout.

    Attributes:
        primal: largest violation of Gz <= h, Gz >= h_lower, Az = b, lb <= z <= ub, divided by
            1 + max(|Gz|, |Az|, |b|).
        dual: |Qz + p + G'lam + A'nu + mu| / (1 + max(|Qz|, |p|, |mu|)); a multiplier whose sign
            belongs to an absent limit counts as an error of its own size.
        gap: |z'Qz + p'z + h'lam + b'nu + limits'mu| / (1 + |1/2 z'Qz + p'z|), the sum running
            over the limit that each multiplier belongs to.
    """

    primal: Tensor
    dual: Tensor
    gap: Tensor

    def worst(self) -> Tensor:
        """The largest of the three."""
        return torch.maximum(torch.maximum(self.primal, self.dual), self.gap)


class Products(NamedTuple):
    """The data times a point (z, nu, y): all that residuals and certificates are made of."""

    Qz: Tensor
    Az: Tensor
    Cz: Tensor
    At_nu: Tensor
    Ct_y: Tensor


@dataclass(frozen=True)
class QP:
    """A batch of QPs: every tensor has one batch dimension first, of size 1 where all samples
    share it.

    Absent blocks have no rows (`G` `(1, 0, n)`), absent limits are infinite; `bounded` says
    whether the rows of the identity belong to C at all.
    """

    Q: Tensor  # (B|1, n, n), symmetric
    p: Tensor  # (B|1, n)
    G: Tensor  # (B|1, m, n)
    A: Tensor  # (B|1, e, n)
    b: Tensor  # (B|1, e)
    lower: Tensor  # (B|1, k): h_lower, then lb if bounded
    upper: Tensor  # (B|1, k): h, then ub if bounded
    bounded: bool
    weight: Tensor | None = None  # (B|1, 1): multiplies Q, so that a shared Q can stay shared

    @property
    def batch(self) -> int:
        """Number of samples."""
        return max(v.shape[0] for v in tensors(self))

    @property
    def n(self) -> int:
        """Number of unknowns."""
        return self.p.shape[-1]

    @property
    def m(self) -> int:
        """Number of rows of G."""
        return self.G.shape[-2]

    def differentiated(self) -> bool:
        """Whether a derivative, reverse or forward, may be asked of any of the data.

        A tensor inside a transform of torch.func does not tell of those around it.
        """
        if torch._C._are_functorch_transforms_active():
            return True
        held = list(tensors(self))
        if torch.is_grad_enabled() and any(v.requires_grad for v in held):
            return True
        return any(forward_ad.unpack_dual(v).tangent is not None for v in held)

    def valid(self) -> Tensor:
        """Samples whose data are finite where they must be, bool `(batch,)`."""
        ok = torch.ones(self.batch, dtype=torch.bool, device=self.p.device)
        for value in (self.Q, self.p, self.G, self.A, self.b):
            ok = ok & value.isfinite().flatten(1).all(-1)
        limits = (self.lower < torch.inf) & (self.upper > -torch.inf)  # False for NaN
        return ok & limits.all(-1)

    def convex(self) -> Tensor:
        """Samples whose Q is positive semidefinite, up to 1e-4 of its diagonal, bool `(B|1,)`.

        Q is brought to unit diagonal first, so the units of the unknowns do not matter. The
        allowance is for a semidefinite Q that was rounded, or perturbed by finite differences.
        """
        size = self.Q.diagonal(dim1=-2, dim2=-1).abs()
        size = torch.maximum(size, 1e-12 * self.Q.abs().amax((-2, -1)).unsqueeze(-1))
        unit = 1 / torch.where(size > 0, size, 1.0).sqrt()
        eye = torch.eye(self.n, dtype=self.Q.dtype, device=self.Q.device)
        Q = unit.unsqueeze(-1) * self.Q * unit.unsqueeze(-2)
        return torch.linalg.cholesky_ex(Q + 1e-4 * eye)[1] == 0

    def without_nonfinite(self) -> QP:
        """The same QP with zeros for what is not finite, and no limit for a limit that is NaN."""

        def finite(v: Tensor) -> Tensor:
            return torch.where(v.isfinite(), v, 0.0)

        qp: QP = mapped(self, finite)
        lower = torch.where(self.lower < torch.inf, self.lower, -torch.inf)
        upper = torch.where(self.upper > -torch.inf, self.upper, torch.inf)
        return replace(qp, lower=lower, upper=upper)

    def empty_rows(self) -> Tensor:
        """Rows of G that are zero and so bind nothing, bool `(B|1, m)`."""
        return (self.G == 0).all(-1)

    def proximal(self, weight: float) -> QP:
        """The same QP with weight/2 |z|^2 added to the objective."""
        eye = torch.eye(self.n, dtype=self.Q.dtype, device=self.Q.device)
        return replace(self, Q=self.Q + weight * eye)

    def curvature(self, z: Tensor) -> Tensor:
        """weight Q z, `(B, n)`."""
        Qz = matvec(self.Q, z)
        return Qz if self.weight is None else self.weight * Qz

    def rows(self, z: Tensor) -> Tensor:
        """C z = (G z, z), `(B, k)`."""
        Gz = matvec(self.G, z)
        return torch.cat([Gz, z], -1) if self.bounded else Gz

    def rows_transposed(self, y: Tensor) -> Tensor:
        """C'y = G'lam + mu, `(B, n)`."""
        out = matvec(self.G.mT, y[..., : self.m])
        return out + y[..., self.m :] if self.bounded else out

    def stationarity(self, z: Tensor, nu: Tensor, y: Tensor) -> Tensor:
        """Qz + p + A'nu + C'y, `(B, n)`."""
        return self.curvature(z) + self.p + matvec(self.A.mT, nu) + self.rows_transposed(y)

    def products(self, z: Tensor, nu: Tensor, y: Tensor) -> Products:
        """The five products of the data with a point."""
        return Products(
            self.curvature(z),
            matvec(self.A, z),
            self.rows(z),
            matvec(self.A.mT, nu),
            self.rows_transposed(y),
        )

    def payment(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """(limits'y, multipliers of absent limits), the limit of each being that of its sign."""
        limit = torch.where(y > 0, self.upper, self.lower)
        absent = limit.isinf()
        return (torch.where(absent, 0.0, limit) * y).sum(-1), torch.where(absent, y, 0.0)

    def residuals(
        self,
        z: Tensor,
        nu: Tensor,
        y: Tensor,
        products: Products | None = None,
        payment: Tensor | None = None,
    ) -> Residuals:
        """How far (z, nu, y) is from the KKT conditions.

        `products` of the point and `payment`, the sum of the limits times their multipliers, if
        they are known; then no multiplier may belong to an absent limit.
        """
        Qz, Az, Cz, At_nu, Ct_y = self.products(z, nu, y) if products is None else products
        Gz, mu = Cz[..., : self.m], y[..., self.m :]
        violation = torch.maximum(Cz - self.upper, self.lower - Cz).clamp(min=0)
        primal = torch.maximum(largest(violation), largest(Az - self.b))
        dual = largest(Qz + self.p + At_nu + Ct_y)
        if payment is None:
            payment, stray = self.payment(y)
            dual = torch.maximum(dual, largest(stray))  # it earns nothing in the gap: count it
        quadratic, linear = (z * Qz).sum(-1), (self.p * z).sum(-1)
        gap = quadratic + linear + (self.b * nu).sum(-1) + payment
        return Residuals(
            primal / (1 + largest(Gz, Az, self.b)),
            dual / (1 + largest(Qz, self.p, mu)),
            gap.abs() / (1 + (quadratic / 2 + linear).abs()),
        )


def largest(*vectors: Tensor) -> Tensor:
    """The infinity norm of each sample over all `vectors` `(B|1, ...)`; 0 for empty ones."""
    norms = [v.abs().amax(-1) for v in vectors if v.shape[-1]]
    if not norms:
        return vectors[0].new_zeros(vectors[0].shape[:-1])
    out = norms[0]
    for norm in norms[1:]:
        out = torch.maximum(out, norm)
    return out
