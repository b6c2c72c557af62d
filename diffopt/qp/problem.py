"""The data of a batch of QPs: checks once at the border, one flat batch dimension inside.

    minimise 1/2 z'Qz + p'z    subject to    h_lower <= Gz <= h,   Az = b,   lb <= z <= ub

The rows of G and the bounds are handled together as rows of C = [G; I], limits `lower` and `upper`
and multipliers y = (lam, mu): positive at an upper limit, negative at a lower one, so that
stationarity reads  Qz + p + A'nu + C'y = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

Limit = Tensor | float | None


def matvec(M: Tensor, x: Tensor) -> Tensor:
    """M x for `(*B, r, n)` and `(*B, n)`; a matrix that the batch shares is one GEMM.

    The GEMM also keeps the gradient of a shared M in its own shape: autograd sums over the
    batch inside the product, instead of forming one outer product a sample.
    """
    if M.shape[0] == 1 and x.ndim == 2:
        return x @ M[0].mT
    return (M @ x.unsqueeze(-1)).squeeze(-1)


class Residuals(NamedTuple):
    """Relative errors of the KKT conditions, one number a sample; infinity norms throughout.

    Attributes:
        primal: largest violation of Gz <= h, Gz >= h_lower, Az = b, lb <= z <= ub, divided by
            1 + max(|Gz|, |Az|, |b|).
        dual: |Qz + p + G'lam + A'nu + mu| / (1 + max(|Qz|, |p|, |mu|)).
        gap: |z'Qz + p'z + h'lam + b'nu + limits'mu| / (1 + |1/2 z'Qz + p'z|), the sum running
            over the limit that each multiplier belongs to.
    """

    primal: Tensor
    dual: Tensor
    gap: Tensor

    def worst(self) -> Tensor:
        """The largest of the three."""
        return torch.maximum(torch.maximum(self.primal, self.dual), self.gap)


@dataclass(frozen=True)
class QP:
    """A batch of QPs: every tensor has one batch dimension, of size `batch`, or 1 where shared.

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
    batch: int

    @property
    def n(self) -> int:
        """Number of unknowns."""
        return self.p.shape[-1]

    @property
    def m(self) -> int:
        """Number of rows of G."""
        return self.G.shape[-2]

    def map(self, change: Callable[[Tensor], Tensor]) -> QP:
        """The same QP with `change` applied to every tensor."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return QP(**{k: change(v) if isinstance(v, Tensor) else v for k, v in values.items()})

    def requires_grad(self) -> bool:
        """Whether any of the data is differentiable."""
        return any(v.requires_grad for v in vars(self).values() if isinstance(v, Tensor))

    def valid(self) -> Tensor:
        """Samples whose data are finite where they must be, bool `(batch,)`."""
        ok = torch.ones(self.batch, dtype=torch.bool, device=self.p.device)
        for value in (self.Q, self.p, self.G, self.A, self.b):
            ok = ok & value.isfinite().flatten(1).all(-1)
        limits = (self.lower < torch.inf) & (self.upper > -torch.inf)  # False for NaN
        return ok & limits.all(-1)

    def without_nonfinite(self) -> QP:
        """The same QP with zeros for what is not finite, and no limit for a limit that is NaN."""

        def finite(v: Tensor) -> Tensor:
            return torch.where(v.isfinite(), v, 0.0)

        qp = self.map(finite)
        lower = torch.where(self.lower < torch.inf, self.lower, -torch.inf)
        upper = torch.where(self.upper > -torch.inf, self.upper, torch.inf)
        return replace(qp, lower=lower, upper=upper)

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
        return matvec(self.Q, z) + self.p + matvec(self.A.mT, nu) + self.rows_transposed(y)

    def limits(self, y: Tensor) -> Tensor:
        """The limit that each multiplier belongs to, by its sign; 0 where it is infinite."""
        limit = torch.where(y > 0, self.upper, self.lower)
        return torch.where(limit.isfinite(), limit, 0.0)

    def residuals(self, z: Tensor, nu: Tensor, y: Tensor) -> Residuals:
        """How far (z, nu, y) is from the KKT conditions."""
        Qz, Az, Cz = matvec(self.Q, z), matvec(self.A, z), self.rows(z)
        Gz, mu = Cz[..., : self.m], y[..., self.m :]
        violation = torch.maximum(Cz - self.upper, self.lower - Cz).clamp(min=0)
        primal = torch.maximum(largest(violation), largest(Az - self.b))
        dual = largest(self.stationarity(z, nu, y))
        quadratic, linear = (z * Qz).sum(-1), (self.p * z).sum(-1)
        gap = quadratic + linear + (self.b * nu).sum(-1) + (self.limits(y) * y).sum(-1)
        # A multiplier of the wrong sign for an infinite limit earns nothing in the gap: count it.
        stray = torch.where(torch.where(y > 0, self.upper, self.lower).isinf(), y, 0.0)
        return Residuals(
            primal / (1 + largest(Gz, Az, self.b)),
            torch.maximum(dual, largest(stray)) / (1 + largest(Qz, self.p, mu)),
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


def build(
    Q: Tensor | None,
    p: Tensor,
    G: Tensor | None,
    h: Limit,
    A: Tensor | None,
    b: Limit,
    lb: Limit,
    ub: Limit,
    h_lower: Limit,
) -> tuple[QP, torch.Size]:
    """Check the arguments of `solve_qp` and bring them to float64 and one batch dimension.

    Returns:
        The QP, attached to the graph of the arguments, and their common batch shape.

    Raises:
        ValueError: naming the argument, its shape and what was expected.
    """
    n = _unknowns(Q, p)
    m, e = _row_count("G", G, n), _row_count("A", A, n)
    given = {
        "Q": (Q, (n, n)), "p": (p, (n,)), "G": (G, (m, n)), "A": (A, (e, n)),
        "h": (h, (m,)), "h_lower": (h_lower, (m,)), "b": (b, (e,)), "lb": (lb, (n,)),
        "ub": (ub, (n,)),
    }  # fmt: skip
    _check_partners(given)
    like = p.double()
    full = {k: _full(k, v, shape, like) for k, (v, shape) in given.items() if v is not None}
    try:
        batch = torch.broadcast_shapes(
            *(v.shape[: v.ndim - len(given[k][1])] for k, v in full.items())
        )
    except RuntimeError:
        shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in full.items())
        raise ValueError(
            f"the batch dimensions (all but the last two of Q, G, A; all but the last of p, h, "
            f"b, lb, ub) do not broadcast together: {shapes}"
        ) from None
    flat = {k: _flatten(v, len(given[k][1]), batch) for k, v in full.items()}
    return _assemble(flat, n, m, e, batch.numel(), like), batch


def _assemble(flat: dict[str, Tensor], n: int, m: int, e: int, batch: int, like: Tensor) -> QP:
    """Fill the absent blocks and stack the limits of the rows of C."""

    def get(name: str, shape: tuple[int, ...], value: float) -> Tensor:
        return flat[name] if name in flat else like.new_full((1, *shape), value)

    inf = float("inf")
    lower, upper = get("h_lower", (m,), -inf), get("h", (m,), inf)
    bounded = "lb" in flat or "ub" in flat
    if bounded:
        lower, upper = _stack(lower, get("lb", (n,), -inf)), _stack(upper, get("ub", (n,), inf))
    Q = get("Q", (n, n), 0.0)
    return QP(
        Q=(Q + Q.mT) / 2,
        p=get("p", (n,), 0.0),
        G=get("G", (m, n), 0.0),
        A=get("A", (e, n), 0.0),
        b=get("b", (e,), 0.0),
        lower=lower,
        upper=upper,
        bounded=bounded,
        batch=batch,
    )


def _stack(a: Tensor, b: Tensor) -> Tensor:
    size = max(a.shape[0], b.shape[0])
    return torch.cat([a.expand(size, -1), b.expand(size, -1)], -1)


def _unknowns(Q: Tensor | None, p: Tensor) -> int:
    for name, value in (("Q", Q), ("p", p)):
        if value is not None and not isinstance(value, Tensor):
            raise ValueError(f"{name} is a {type(value).__name__}: expected a torch.Tensor")
    if p is None or p.ndim == 0:
        raise ValueError(
            "p is missing or has no dimension: expected shape (*B, n); for a problem without a "
            "linear term pass torch.zeros(n)"
        )
    if p.shape[-1] == 0:
        raise ValueError(f"p has shape {tuple(p.shape)}: expected at least one unknown")
    return p.shape[-1]


def _row_count(name: str, M: Tensor | None, n: int) -> int:
    if M is None:
        return 0
    if not isinstance(M, Tensor) or M.ndim < 2:
        raise ValueError(f"{name} must be a tensor of shape (*B, rows, {n}), got {_shown(M)}")
    return M.shape[-2]


def _shown(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _check_partners(given: dict[str, tuple[Limit, tuple[int, ...]]]) -> None:
    """G comes with h or h_lower, A with b, and the other way round."""

    def absent(name: str) -> bool:
        return given[name][0] is None

    if absent("G") != (absent("h") and absent("h_lower")):
        raise ValueError("G and its limits come together: give G with h, h_lower, or both")
    if absent("A") != absent("b"):
        raise ValueError("A and b come together: give both or neither")


def _full(name: str, value: Tensor | float, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """`value` in float64 on the device of p, checked to end in `shape`; numbers fill it."""
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, int | float) or len(shape) == 2:
            raise ValueError(f"{name} must be a tensor of shape (*B, {_dims(shape)}), not {value!r}")
        return like.new_full(shape, float(value))
    if value.device != like.device:
        raise ValueError(
            f"{name} is on {value.device}, but p is on {like.device}: move all to one device"
        )
    if value.is_complex():
        raise ValueError(f"{name} is complex ({value.dtype}): expected real numbers")
    if value.ndim == 0 and len(shape) == 1:
        value = value.expand(shape)
    if tuple(value.shape[value.ndim - len(shape) :]) != shape:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}: expected (*B, {_dims(shape)}), "
            "with n unknowns from p, one row per limit, any batch dimensions *B"
        )
    return value.double()


def _dims(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _flatten(value: Tensor, event: int, batch: torch.Size) -> Tensor:
    """One batch dimension: 1 if all samples share `value`, else the whole batch."""
    lead, tail = value.shape[: value.ndim - event], value.shape[value.ndim - event :]
    if lead.numel() == 1 and batch.numel() != 0:
        return value.reshape(1, *tail)
    return value.expand(*batch, *tail).reshape(batch.numel(), *tail)
