"""States of any shape as one matrix: a tensor `(B, ...)`, or a tuple of them, as `(B, n)`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

State = Tensor | tuple[Tensor, ...]


class Form(NamedTuple):
    """What a state looks like.

    Attributes:
        shapes: of a sample, part by part.
        single: whether it is a tensor and not a tuple.
        device: where it is.
        name, image: what the user calls the state, and f of it, for messages.
    """

    shapes: tuple[torch.Size, ...]
    single: bool
    device: torch.device
    name: str = "z0"
    image: str = "f(z)"

    def pack(self, z: State) -> Tensor:
        """`z` as `(B, n)`."""
        parts = (z,) if isinstance(z, Tensor) else z
        flat = [v if v.ndim == 2 else v.flatten(1) for v in parts]
        return flat[0] if len(flat) == 1 else torch.cat(flat, 1)

    def unpack(self, flat: Tensor) -> State:
        """The inverse of `pack`."""
        B = flat.shape[0]
        if len(self.shapes) == 1:
            z = flat if len(self.shapes[0]) == 1 else flat.view(B, *self.shapes[0])
            return z if self.single else (z,)
        parts = flat.split([shape.numel() for shape in self.shapes], 1)
        return tuple(v.reshape(B, *shape) for v, shape in zip(parts, self.shapes, strict=True))

    def flat(self, f: Callable[..., State]) -> Callable[..., Tensor]:
        """f as a map of `(B, n)`, what it returns checked; its other arguments come first."""

        device = self.device.type
        half = torch.is_autocast_enabled(device)

        def on_flat(*arguments: Tensor) -> Tensor:
            *before_it, v = arguments
            before = v._version if not v.is_inference() else 0
            # In the backward pass too f works in the precision of the call.
            with torch.autocast(device, enabled=half) if half else nullcontext():
                out = f(*before_it, self.unpack(v))
            self._check(out, v, half)
            if not v.is_inference() and v._version != before:
                raise ValueError("f changes its state in place: use out-of-place operations in f")
            image = self.pack(out)
            return image if image.dtype == v.dtype else image.to(v.dtype)

        return on_flat

    def _check(self, out: object, v: Tensor, half: bool) -> None:
        """That `out` is a state like the one that f was given, `v` flat."""
        parts = (out,) if self.single else out
        expected = [(v.shape[0], *shape) for shape in self.shapes]
        if not isinstance(parts, tuple) or not all(isinstance(p, Tensor) for p in parts):
            raise ValueError(
                f"{self.image} is {_kind(out)}: expected {self._described(expected)}, as "
                f"{self.name}"
            )
        if [tuple(p.shape) for p in parts] != expected:
            shapes = [tuple(p.shape) for p in parts]
            raise ValueError(
                f"{self.image} has shape {self._described(shapes)}, but {self.name} has "
                f"{self._described(expected)}: f must map a state to one of the same shape"
            )
        if any(p.device != v.device for p in parts):
            raise ValueError(
                f"{self.image} is on {parts[0].device}, but {self.name} on {v.device}: bring "
                f"{self.name} and the parameters of f to one device"
            )
        # Under autocast f works in half precision, and the state is kept in its own.
        if not half and any(p.dtype != v.dtype for p in parts):
            raise ValueError(
                f"{self.image} has dtype {parts[0].dtype}, but {self.name} has {v.dtype}: bring "
                f"{self.name} and the parameters of f to one dtype"
            )

    def _described(self, shapes: list[tuple[int, ...]]) -> str:
        return str(shapes[0]) if self.single else f"a tuple of {shapes}"


def form_of(z0: object, name: str = "z0", image: str = "f(z)") -> Form:
    """What z0 looks like.

    Raises:
        ValueError: if it is no tensor `(B, ...)` of real numbers, nor a tuple of such.
    """
    parts = (z0,) if isinstance(z0, Tensor) else z0
    if not isinstance(parts, tuple) or not parts or not all(isinstance(p, Tensor) for p in parts):
        raise ValueError(f"{name} is {_kind(z0)}: expected a tensor (B, ...) or a tuple of tensors")
    for p in parts:
        if p.ndim < 2 or p.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name} has shape {tuple(p.shape)} and dtype {p.dtype}: expected (B, ...), the "
                f"batch first (for one sample {name}.unsqueeze(0)), in float32 or float64 (for "
                "half precision inside f use torch.autocast)"
            )
    if len({(len(p), p.dtype, p.device) for p in parts}) > 1:
        raise ValueError(
            f"the parts of {name} have shapes {[tuple(p.shape) for p in parts]}: expected one "
            "batch size, one dtype and one device"
        )
    shapes = tuple(p.shape[1:] for p in parts)
    return Form(shapes, isinstance(z0, Tensor), parts[0].device, name, image)


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
