"""The border of `argmin`: the user's functions and bounds, checked once, as a `Problem`."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from .precision import Doubled
from .problem import Map, Problem

Limit = Tensor | float | None


def problem_of(
    objective: Map,
    z0: Tensor,
    inequality: Map | None,
    equality: Map | None,
    lb: Limit,
    ub: Limit,
) -> Problem:
    """The problem of the user's callables, checked by one evaluation at z0.

    Raises:
        ValueError: naming the argument, what it is, and what was expected.
    """
    _check_start(z0)
    shape, n = z0.shape, z0.shape[-1]
    flat = flatten(z0)
    f = _on_flat("objective", objective, shape, z0.dtype)
    bounds = _bounds(z0, lb, ub)
    start = torch.minimum(torch.maximum(flat, bounds[0].detach()), bounds[1].detach())
    maps, sizes = [], []
    for name, c in (("equality", equality), ("inequality", inequality)):
        own = _none if c is None else _on_flat(name, c, shape, z0.dtype)
        with torch.no_grad():
            sizes.append(own(start).shape[-1])
        maps.append(own)
    bounded = lb is not None or ub is not None
    problem = Problem(f, maps[1], maps[0], *bounds, n, sizes[1], sizes[0], bounded)
    _check_gradient(problem, start)
    return problem


def _none(z: Tensor) -> Tensor:
    return z.new_zeros(len(z), 0)


def flatten(z0: Tensor) -> Tensor:
    """z0 as `(B, n)` in float64, without a gradient."""
    return z0.detach().to(torch.float64).reshape(z0.shape[:-1].numel(), z0.shape[-1])


def _on_flat(name: str, function: Map, shape: torch.Size, dtype: torch.dtype) -> Map:
    """`function` as a map of `(B, n)` in float64, what it returns checked."""
    if not callable(function):
        raise ValueError(f"{name} is {_kind(function)}: expected a function of z, {tuple(shape)}")
    count, one = shape[:-1].numel(), name == "objective"

    def on_flat(z: Tensor) -> Tensor:
        device = z.device.type
        half = torch.is_autocast_enabled(device)
        with (
            torch.autocast(device, enabled=False) if half else nullcontext(),
            Doubled() if dtype == torch.float32 else nullcontext(),
        ):
            out = function(z.reshape(shape))
        _check_value(name, out, z.reshape(shape))
        return out.reshape(count) if one else out.reshape(count, out.shape[-1])

    return on_flat


def _check_value(name: str, out: object, z: Tensor) -> None:
    """That `out`, what the function `name` made of z `(*B, n)`, is `(*B)` or `(*B, rows)`."""
    batch, one = z.shape[:-1], name == "objective"
    fits = isinstance(out, Tensor) and out.shape[: len(batch)] == batch
    if not fits or not isinstance(out, Tensor) or out.ndim != len(batch) + (not one):
        sizes = ", ".join(map(str, batch)) if one else ", ".join(map(str, [*batch, "rows"]))
        hint = (
            "one number a sample: sum over the last dimension only"
            if one
            else "one number a constraint in the last dimension: for one constraint c.unsqueeze(-1)"
        )
        raise ValueError(
            f"{name}(z) is {_kind(out)}, but z is {_kind(z)}: expected shape ({sizes}), {hint}"
        )
    if out.dtype != z.dtype:
        raise ValueError(
            f"{name}(z) is {_kind(out)}, but z is {_kind(z)}: give it the dtype of z, and z0 that "
            "of the data"
        )


def _bounds(z0: Tensor, lb: Limit, ub: Limit) -> tuple[Tensor, Tensor]:
    """(lb, ub) as `(B|1, n)` in float64, in the graph of what the user gave."""
    batch, n = z0.shape[:-1], z0.shape[-1]
    out = []
    for name, value, absent in (("lb", lb, -torch.inf), ("ub", ub, torch.inf)):
        v = absent if value is None else value
        if isinstance(v, bool) or not isinstance(v, Tensor | int | float):
            raise ValueError(f"{name} is {_kind(v)}: expected a number or a tensor (*B, {n})")
        if not isinstance(v, Tensor):
            v = torch.full((n,), float(v), dtype=torch.float64, device=z0.device)
        if v.is_complex() or v.device != z0.device:
            raise ValueError(f"{name} is {_kind(v)} on {v.device}: expected real, on {z0.device}")
        v = v.to(torch.float64)
        try:
            full = v.expand(*batch, n) if v.ndim > 1 else v.expand(n)
        except RuntimeError:
            raise ValueError(
                f"{name} has shape {tuple(v.shape)}: expected what broadcasts to that of z0, "
                f"{tuple(z0.shape)}"
            ) from None
        out.append(full.reshape(-1, n))
    lower, upper = out
    if bool((lower.detach() > upper.detach()).any()):
        raise ValueError(
            "lb is above ub somewhere: no z is between them; swap or widen them (lb == ub fixes "
            "an unknown)"
        )
    return lower, upper


def _check_start(z0: Tensor) -> None:
    if not isinstance(z0, Tensor) or z0.ndim == 0 or z0.shape[-1] == 0:
        raise ValueError(
            f"z0 is {_kind(z0)}: expected a starting point of shape (*B, n); for one unknown use "
            "z0.reshape(1)"
        )
    if z0.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"z0 is {_kind(z0)}: expected float32 or float64; use z0.to(torch.float64)"
        )


def _check_gradient(problem: Problem, z: Tensor) -> None:
    """That every function has a gradient, and that no sample sees another's z."""
    if torch._C._are_functorch_transforms_active() or torch.is_inference_mode_enabled():
        return  # where a graph cannot be looked at
    if not len(z):
        return
    with torch.enable_grad():
        leaf = z.clone().requires_grad_()
        first = _with_gradient("objective", problem.objective(leaf))[0]
        for name, c in (
            ("equality", problem.equality(leaf)),
            ("inequality", problem.inequality(leaf)),
        ):
            if c.shape[-1]:
                # Weights of no meaning, so that nothing cancels.
                weight = torch.arange(1, c.shape[-1] + 1, dtype=c.dtype, device=c.device).sqrt()
                first = first + (weight * _with_gradient(name, c)[0]).sum()
        (slope,) = torch.autograd.grad(first, leaf)
    if bool((slope[1:].nan_to_num(0.0) != 0).any()):
        raise ValueError(
            "sample 0 of objective, inequality or equality depends on the z of other samples: each "
            "must be a function of its own z only (check sums and means over the batch)"
        )


def _with_gradient(name: str, value: Tensor) -> Tensor:
    """`value`, if it is in a graph. A constant would be taken for a limit that no z can move."""
    if value.requires_grad:
        return value
    hint = " (for a feasibility problem return 0 * z.sum(-1))" if name == "objective" else ""
    raise ValueError(
        f"{name}(z) has no gradient in z: compute it with differentiable operations of torch, "
        f"without no_grad or detach{hint}"
    )


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
