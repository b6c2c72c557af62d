"""The user's functions in float64, whatever the dtype of what they close over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

WRITING = ("__setitem__",) + tuple(
    f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
)


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
        _check_target(func, args, kwargs or {})
        return _doubled(func(*_doubled(args), **_doubled(kwargs or {})))


def _check_target(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """That nothing is written to a tensor in float32: it would go to a copy, and be lost."""
    name = getattr(func, "__name__", "")
    into = args[0] if args and _writes(name) else kwargs.get("out")
    if isinstance(into, Tensor) and into.dtype == torch.float32:
        raise ValueError(
            f"a function given to argmin writes to a float32 tensor in place ({name}): make a new "
            "tensor of the result, or give z0 and the data in float64"
        )


def _writes(name: str) -> bool:
    """Whether a function of that name changes its first argument: add_, __iadd__, __setitem__."""
    if name.startswith("__"):
        return name in WRITING
    return name.endswith("_") and name != "requires_grad_"


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
