"""The user's functions in float64, whatever the dtype of what they close over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Doubled(TorchFunctionMode):
    """Inside, every function of torch gets and gives float64 in place of float32.

    A parameter in float32 is an exact number in float64; its gradient comes back through the
    conversion. So curvature, and a tolerance of 1e-8, mean something for models in float32.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _doubled(func(*_doubled(args), **_doubled(kwargs or {})))


def _doubled(value: Any) -> Any:
    """`value` with every float32 in it, tensor or dtype, as float64."""
    if isinstance(value, Tensor):
        return value.to(torch.float64) if value.dtype == torch.float32 else value
    if value is torch.float32:
        return torch.float64
    if isinstance(value, list):
        return [_doubled(v) for v in value]
    if isinstance(value, dict):
        return {k: _doubled(v) for k, v in value.items()}
    if type(value) is tuple:
        return tuple(_doubled(v) for v in value)
    return value
