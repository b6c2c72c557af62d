"""The border of `solve_qp`: arguments as users give them, checked once, in; one flat batch out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .problem import QP

Limit = Tensor | float | None
# argument: the sizes of its dimensions
SHAPES = {
    "Q": ("n", "n"),
    "p": ("n",),
    "G": ("m", "n"),
    "h": ("m",),
    "A": ("e", "n"),
    "b": ("e",),
    "lb": ("n",),
    "ub": ("n",),
    "h_lower": ("m",),
}


@cache
def shapes_of(n: int, m: int, e: int) -> Mapping[str, tuple[int, ...]]:
    """The shape of a sample of each argument."""
    sizes = {"n": n, "m": m, "e": e}
    return {name: tuple(sizes[d] for d in dims) for name, dims in SHAPES.items()}


@dataclass(frozen=True)
class Data:
    """The arguments of `solve_qp`, checked.

    Attributes:
        given: those that are present, each with one batch dimension first, of size 1 where all
            samples share it; in one dtype, in the graph of what the user passed.
        n, m, e: number of unknowns, rows of G, rows of A.
        batch: the common batch shape.
        like: a tensor of the dtype and on the device of all.
    """

    given: dict[str, Tensor]
    n: int
    m: int
    e: int
    batch: torch.Size
    like: Tensor

    @property
    def bounded(self) -> bool:
        """Whether there are bounds on the unknowns."""
        return "lb" in self.given or "ub" in self.given

    def qp(self) -> QP:
        """The problem, absent blocks filled and the limits of the rows of C stacked."""
        n, m, e, inf = self.n, self.m, self.e, float("inf")

        def get(name: str, shape: tuple[int, ...], value: float) -> Tensor:
            held = self.given.get(name)
            return self.like.new_full((1, *shape), value) if held is None else held

        lower, upper = get("h_lower", (m,), -inf), get("h", (m,), inf)
        if self.bounded:
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
            bounded=self.bounded,
        )


def check(
    Q: Tensor | None,
    p: Tensor,
    G: Tensor | None,
    h: Limit,
    A: Tensor | None,
    b: Limit,
    lb: Limit,
    ub: Limit,
    h_lower: Limit,
    dtype: torch.dtype = torch.float64,
) -> Data:
    """Check the arguments of `solve_qp` and bring them to `dtype` and one batch dimension.

    Returns:
        What was given, attached to the graph of the arguments.

    Raises:
        ValueError: naming the argument, its shape and what was expected.
    """
    n = _unknowns(Q, p)
    m, e = _row_count("G", G, n), _row_count("A", A, n)
    check_partners(G, h, h_lower, A, b)
    like = p if p.dtype == dtype else p.to(dtype)
    shapes = shapes_of(n, m, e)
    values = zip(SHAPES, (Q, p, G, h, A, b, lb, ub, h_lower), strict=True)
    full = {k: _full(k, v, shapes[k], like) for k, v in values if v is not None}
    leads = {v.shape[: v.ndim - len(shapes[k])] for k, v in full.items()}
    try:
        batch = leads.pop() if len(leads) == 1 else torch.broadcast_shapes(*leads)
    except RuntimeError:
        given = ", ".join(f"{k} {tuple(v.shape)}" for k, v in full.items())
        raise ValueError(
            f"the batch dimensions (all but the last two of Q, G, A; all but the last of p, h, "
            f"b, lb, ub) do not broadcast together: {given}"
        ) from None
    flat = {k: _flatten(v, len(shapes[k]), batch) for k, v in full.items()}
    return Data(flat, n, m, e, batch, like)


def complete(problem: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of `solve_qp` by name, None where `problem` has none.

    Raises:
        ValueError: if `problem` is no mapping or has a key that is no argument.
    """
    if not isinstance(problem, Mapping):
        raise ValueError(
            f"a problem is a {type(problem).__name__}: expected a dict of arguments of solve_qp"
        )
    for name in problem:
        if name not in SHAPES:
            raise ValueError(f"{name!r} is no argument of a QP: expected one of {tuple(SHAPES)}")
    return {name: problem.get(name) for name in SHAPES}


def _stack(a: Tensor, b: Tensor) -> Tensor:
    (size,) = torch.broadcast_shapes(a.shape[:1], b.shape[:1])
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


def check_partners(G: object, h: Limit, h_lower: Limit, A: object, b: Limit) -> None:
    """Raise a `ValueError` unless G comes with h or h_lower, A with b, and the other way round."""
    if (G is None) != (h is None and h_lower is None):
        raise ValueError("G and its limits come together: give G with h, h_lower, or both")
    if (A is None) != (b is None):
        raise ValueError("A and b come together: give both or neither")


def _full(name: str, value: Tensor | float, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """`value` as `like` in dtype and device, checked to end in `shape`; numbers fill it."""
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, int | float) or len(shape) == 2:
            raise ValueError(
                f"{name} must be a tensor of shape (*B, {_dims(shape)}), not {value!r}"
            )
        return like.new_full(shape, float(value))
    if value is like:
        return value
    if value.device != like.device:
        raise ValueError(
            f"{name} is on {value.device}, but p is on {like.device}: move all to one device"
        )
    if value.layout != torch.strided:
        raise ValueError(f"{name} is sparse ({value.layout}): pass {name}.to_dense()")
    if value.is_complex():
        raise ValueError(f"{name} is complex ({value.dtype}): expected real numbers")
    if value.ndim == 0 and len(shape) == 1:
        value = value.expand(shape)
    if tuple(value.shape[value.ndim - len(shape) :]) != shape:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}: expected (*B, {_dims(shape)}), "
            f"with n = {like.shape[-1]} unknowns from p of shape {tuple(like.shape)}, one row per "
            "limit, any batch dimensions *B"
        )
    return value if value.dtype == like.dtype else value.to(like.dtype)


def _dims(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))


def _flatten(value: Tensor, event: int, batch: torch.Size) -> Tensor:
    """One batch dimension: 1 if all samples share `value`, else the whole batch."""
    lead = value.shape[: value.ndim - event]
    if len(lead) == 1 and (lead == batch or lead[0] == 1 != batch.numel()):
        return value
    tail = value.shape[value.ndim - event :]
    if lead.numel() == 1 and batch.numel() != 0:
        return value.reshape(1, *tail)
    return value.expand(*batch, *tail).reshape(batch.numel(), *tail)
