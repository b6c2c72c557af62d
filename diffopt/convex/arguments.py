"""The border of a convex layer: parameters as users give them in, one flat batch out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor


@dataclass(frozen=True)
class Arguments:
    """The parameters of a call, checked.

    Attributes:
        values: `(B|1, size)` each, float64, in the graph of what was given.
        batch: the common batch shape.
        dtype: that the parameters promote to.
    """

    values: tuple[Tensor, ...]
    batch: torch.Size
    dtype: torch.dtype

    @classmethod
    def of(
        cls,
        given: Sequence[Tensor | float],
        names: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
    ) -> Arguments:
        """The parameters `given` in the order of `names`.

        Raises:
            ValueError: naming the parameter, its shape and what was expected.
        """
        if len(given) != len(names):
            raise ValueError(
                f"{len(given)} parameters given: expected {len(names)}, in this order: "
                f"{', '.join(names)}"
            )
        device = next((v.device for v in given if isinstance(v, Tensor)), torch.device("cpu"))
        tensors = [_tensor(v, n, s, device) for v, n, s in zip(given, names, shapes, strict=True)]
        leads = [v.shape[: v.ndim - len(s)] for v, s in zip(tensors, shapes, strict=True)]
        try:
            batch = torch.broadcast_shapes(*leads)
        except RuntimeError:
            said = ", ".join(f"{n} {tuple(v.shape)}" for n, v in zip(names, tensors, strict=True))
            raise ValueError(
                f"the batch dimensions of the parameters do not broadcast together: {said}"
            ) from None
        values = tuple(
            _flat(v, lead, math.prod(s), batch)
            for v, lead, s in zip(tensors, leads, shapes, strict=True)
        )
        return cls(values, batch, _common(tensors))

    def shaped(self, v: Tensor, event: int) -> Tensor:
        """`v`, whose last `event` dimensions are of a sample, with the user's batch dimensions."""
        own = v.shape[v.ndim - event :]
        return v.expand(self.batch.numel(), *own).reshape((*self.batch, *own))


def _tensor(
    value: Tensor | float, name: str, shape: tuple[int, ...], device: torch.device
) -> Tensor:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = torch.tensor(value, dtype=torch.get_default_dtype(), device=device)
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}: expected a torch.Tensor")
    if value.layout != torch.strided or value.is_complex():
        raise ValueError(
            f"{name} is {value.layout}, {value.dtype}: expected real numbers in a dense tensor"
        )
    if value.device != device:
        raise ValueError(
            f"{name} is on {value.device}, but the first parameter on {device}: move all to one "
            "device"
        )
    if tuple(value.shape[value.ndim - len(shape) :]) != shape or value.ndim < len(shape):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}: expected {('*B', *shape)}, any batch "
            "dimensions *B before that of the cvxpy.Parameter"
        )
    return value


def _common(tensors: Sequence[Tensor]) -> torch.dtype:
    """What the tensors with a dimension promote to, or all; the default dtype if not real."""
    wide = [v.dtype for v in tensors if v.ndim] or [v.dtype for v in tensors]
    dtype = reduce(torch.promote_types, wide)
    return dtype if dtype.is_floating_point else torch.get_default_dtype()


def _flat(value: Tensor, lead: torch.Size, size: int, batch: torch.Size) -> Tensor:
    """One batch dimension: 1 if all samples share `value`, else the whole batch."""
    value = value.to(torch.float64)
    if lead.numel() == 1:
        return value.reshape(1, size)
    own = value.shape[len(lead) :]
    return value.expand(*batch, *own).reshape(batch.numel(), size)
