"""Tensors inside nested dataclasses and named tuples: listed, replaced, and picked by sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor


def tensors(part: Any) -> Iterator[Tensor]:
    """Every tensor inside `part`, in the order of the fields, those of parts inside it included."""
    if isinstance(part, Tensor):
        yield part
    for value in _values(part):
        yield from tensors(value)


def mapped(part: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`part` with `change` applied to every tensor, in the order of `tensors`."""
    if isinstance(part, Tensor):
        return change(part)
    if isinstance(part, tuple):
        values = (mapped(value, change) for value in part)
        return type(part)(*values) if hasattr(part, "_fields") else tuple(values)
    if is_dataclass(part) and not isinstance(part, type):
        held = {f.name: getattr(part, f.name) for f in fields(part)}
        changed = {name: mapped(value, change) for name, value in held.items()}
        return replace(part, **{k: v for k, v in changed.items() if v is not held[k]})
    return part


def rebuilt(part: Any, new: Iterator[Tensor]) -> Any:
    """`part` with its tensors replaced by `new`, in the order of `tensors`."""
    return mapped(part, lambda _: next(new))


def take(part: Any, index: Tensor) -> Any:
    """The samples `index` of `part`; a tensor with one sample is shared by all and stays."""
    return mapped(part, lambda v: v if v.shape[0] == 1 else v[index])


def put(part: Any, index: Tensor, new: Any) -> Any:
    """`part` with the samples `index` replaced by those of `new`, made from ``take(part, index)``.

    A tensor with one sample is the only one, or shared and so the same in `new`.
    """
    if not len(index):
        return part
    pairs = iter(list(tensors(new)))

    def change(v: Tensor) -> Tensor:
        own = next(pairs)
        if v.shape[0] == 1:
            return own
        return v.index_copy(0, index, own.expand(len(index), *v.shape[1:]))

    return mapped(part, change)


def _values(part: Any) -> Iterator[Any]:
    if isinstance(part, tuple):
        yield from part
    elif is_dataclass(part) and not isinstance(part, type):
        for f in fields(part):
            yield getattr(part, f.name)
