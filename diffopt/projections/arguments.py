"""The border of a projection: the point and the parameters of the set, checked and brought in line.

A set that is empty in one sample only (a negative radius among good ones) is handled as a NaN: an
emptiness that is seen becomes a NaN of a parameter, and `by_sample` keeps it in its sample.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Parameter = Tensor | float


class Projection(Protocol):
    """Anything that maps x to a point of a set, sample by sample; every class here is one."""

    def __call__(self, x: Tensor, /) -> Tensor: ...


class Argument(NamedTuple):
    """A tensor and what `by_sample` must know of it.

    Attributes:
        value: the tensor.
        event: how many of its dimensions are those of one sample.
        limit: whether infinity is valid.
        fill: what stands in for an entry that is not valid.
    """

    value: Tensor
    event: int = 1
    limit: bool = False
    fill: float = 1.0

    def valid(self) -> Tensor:
        """Which entries are what they may be."""
        return ~self.value.isnan() if self.limit else self.value.isfinite()

    def suspect(self) -> bool:
        """Whether an entry may be what it must not be; asked like this it costs next to nothing."""
        total = self.value.detach().sum().item()
        return math.isnan(total) if self.limit else not math.isfinite(total)


def may_ask(*values: object) -> bool:
    """Whether a condition on the values can be checked: on the CPU, outside of transforms."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return all(v.device.type == "cpu" for v in values if isinstance(v, Tensor))


def by_sample(formula: Callable[..., Tensor], *arguments: Argument) -> Tensor:
    """formula(*values), where all values of a sample are valid, and NaN in the other samples.

    The formula sees `fill` in place of what is not valid, and gets no gradient from it: nothing of
    a bad sample reaches its neighbours, nor a LAPACK routine that stops at a NaN. Its result has
    as many dimensions a sample as the first argument.
    """
    values = [a.value for a in arguments]
    if may_ask(*values) and not any(a.suspect() for a in arguments):
        return formula(*values)
    good = [a.valid() for a in arguments]
    z = formula(*(torch.where(g, a.value, a.fill) for g, a in zip(good, arguments, strict=True)))
    samples = (g.flatten(-a.event).all(-1) for g, a in zip(good, arguments, strict=True))
    alive = reduce(torch.logical_and, samples)
    return torch.where(alive.reshape(*alive.shape, *[1] * arguments[0].event), z, torch.nan)


@dataclass(frozen=True)
class Round(ABC):
    """A set of a shape of its own, and of the size `radius`."""

    radius: Parameter = 1.0

    def __post_init__(self) -> None:
        check_size(self, "radius")

    def __call__(self, x: Tensor) -> Tensor:
        check_point(x)
        return by_sample(self._nearest, Argument(x), Argument(size("radius", self.radius, x)))

    @abstractmethod
    def _nearest(self, x: Tensor, radius: Tensor) -> Tensor:
        """The point for `(*B, n)` and `(*B, 1)`, both finite."""


def check_point(x: Tensor, event: int = 1) -> None:
    """Raise a `ValueError` unless x is a batch of real vectors, or of matrices (`event` 2)."""
    expected = f"a real floating-point tensor of shape (*B, {'n' if event == 1 else 'n, m'})"
    if not isinstance(x, Tensor):
        raise ValueError(f"x is a {type(x).__name__}: expected {expected}")
    if not x.is_floating_point():
        raise ValueError(f"x has dtype {x.dtype}: expected {expected}; use x.to(torch.float64)")
    if x.ndim < event or 0 in x.shape[x.ndim - event :]:
        raise ValueError(f"x has shape {tuple(x.shape)}: expected {expected}, not empty")


def parameter(
    name: str, value: Parameter, shape: tuple[int | None, ...], x: Tensor, event: int = 1
) -> Tensor:
    """`value` in the dtype of x, checked to end in `shape` and to broadcast over the batch of x.

    A number fills the shape; None in the shape allows any size; the shape () stands for one
    number a sample, which comes back with a dimension of size one for each dimension of x.
    """
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, int | float) or len(shape) == 2:
            raise ValueError(f"{name}={value!r}: expected a tensor of shape {_dims(shape)}")
        value = x.new_full([s or 1 for s in shape], float(value))
    if value.device != x.device:
        raise ValueError(f"{name} is on {value.device}, but x is on {x.device}: move one of them")
    if value.is_complex():
        raise ValueError(f"{name} is complex ({value.dtype}): expected real numbers")
    if value.ndim == 0 and len(shape) == 1:
        value = value.expand([s or 1 for s in shape])
    tail = value.shape[max(value.ndim - len(shape), 0) :]
    fits = len(tail) == len(shape) and all(s in (None, t) for s, t in zip(shape, tail, strict=True))
    lead, batch = value.shape[: value.ndim - len(shape)], x.shape[: x.ndim - event]
    if not fits or not _broadcast(lead, batch):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}: expected {_dims(shape)} for x of shape "
            f"{tuple(x.shape)}, with batch dimensions *B that broadcast with {tuple(batch)}"
        )
    value = value.to(x.dtype)
    return value if shape else value.reshape(*value.shape, *[1] * event)


def check_size(owner: object, name: str, strictly: bool = False) -> None:
    """Raise a `ValueError` if the attribute is a number and negative (`strictly`: or zero)."""
    value = getattr(owner, name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, Tensor) or (number and (value > 0 if strictly else value >= 0)):
        return
    wanted = "a positive number" if strictly else "a number >= 0"
    raise ValueError(f"{type(owner).__name__}({name}={value!r}): expected {wanted}, or a tensor")


def size(name: str, value: Parameter, x: Tensor, event: int = 1, strictly: bool = False) -> Tensor:
    """One number a sample, which must be >= 0 (`strictly`: positive) for the set to have points."""
    return signed(name, parameter(name, value, (), x, event), event, strictly)


def signed(name: str, value: Tensor, event: int, strictly: bool) -> Tensor:
    """`value`, of which no entry of a sample may be negative (`strictly`: or zero)."""
    bad = value <= 0 if strictly else value < 0
    for dim in range(1, event + 1):
        bad = bad.any(-dim, keepdim=True)
    kind, wanted = ("a negative or zero", "> 0") if strictly else ("a negative", ">= 0")
    return unless(bad, value, f"{name} has {kind} entry: expected numbers {wanted}")


def unless(empty: Tensor, value: Tensor, message: str) -> Tensor:
    """`value` with NaN in the samples whose set is `empty`, or the `ValueError` if one may ask."""
    if may_ask(empty) and bool(empty.any()):
        where = empty.flatten().nonzero().flatten()[:5].tolist()
        raise ValueError(f"{message} (sample {', '.join(map(str, where))})")
    return torch.where(empty, torch.nan, value)


def _broadcast(a: torch.Size, b: torch.Size) -> bool:
    return all(i == j or 1 in (i, j) for i, j in zip(reversed(a), reversed(b), strict=False))


def _dims(shape: tuple[int | None, ...]) -> str:
    names = ["rows" if s is None else str(s) for s in shape]
    return f"(*B, {', '.join(names)})" if names else "(*B)"
