"""One Runge-Kutta step, of all samples at once, each over a step of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _native
from ..state import Form
from .tableaus import Row, Tableau

Slope = Callable[[Tensor, Tensor], Tensor]  # t (B,), y (B, n) -> dy/dt (B, n)


class Step(NamedTuple):
    """What a step has found.

    Attributes:
        y: at t + h, `(B, n)`.
        slope: f there, if it was asked for; else of the last stage.
        increments: h k_i, the slopes times the step, `(B, n)` each.
        evaluations: of f by each sample, `(B,)`, where that is not the same for all.
    """

    y: Tensor
    slope: Tensor
    increments: list[Tensor]
    evaluations: Tensor | None = None


def flat_field(f: Callable[[Tensor, Any], Any], form: Form) -> Slope:
    """The user's f on flat states; its t is `(B, 1, ..., 1)`, in the dtype of the state."""
    checked = form.flat(f)
    ones = [1] * len(form.shapes[0])
    plain = form.single and len(ones) == 1 and not torch.is_autocast_enabled(form.device.type)
    calls = 0

    def field(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if not plain or calls == 1:
            return checked(t.to(y.dtype).view(-1, *ones), y)
        # what the first call has shown to be right costs nothing to believe
        return f(t.to(y.dtype).unsqueeze(1), y)

    return field


def explicit_step(
    f: Slope, tableau: Tableau, times: Tensor, h: Tensor, y: Tensor, slope: Tensor, ahead: bool
) -> Step:
    """The step from y, where f is `slope`, over h `(B,)`.

    Args:
        times: t + c h, `(stages, B)`.
        ahead: whether f is wanted at the end of the step too.
    """
    over = h.to(y.dtype).unsqueeze(1)
    increments = [(over * slope).contiguous()]
    z, rows = y, times.unbind(0)
    last = len(tableau.a) - 1
    for i in range(1, last + 1):
        z = combined(y, tableau.a[i], increments)
        if i < last or ahead:
            slope = f(rows[i], z)
            increments.append((over * slope).contiguous())
    return Step(z, slope, increments)


def step_times(c: Row, t: Tensor, h: Tensor) -> Tensor:
    """t + c h, `(stages, B)`."""
    return t + nodes(c, h.device) * h


@cache
def nodes(c: Row, device: torch.device) -> Tensor:
    """c as a column, in float64."""
    return torch.tensor(c, dtype=torch.float64, device=device).unsqueeze(1)


def more_stages(
    f: Slope, tableau: Tableau, t: Tensor, h: Tensor, y: Tensor, increments: list[Tensor]
) -> list[Tensor]:
    """`increments` and those of the stages that only dense output needs."""
    over = h.to(y.dtype).unsqueeze(1)
    for c, row in zip(tableau.more_c, tableau.more, strict=True):
        slope = f(t + c * h, combined(y, row, increments))
        increments = [*increments, (over * slope).contiguous()]
    return increments


def combined(y: Tensor, weights: Row, increments: Sequence[Tensor]) -> Tensor:
    """y + sum_i weights_i increments_i; all of one shape and contiguous."""
    terms = [(w, v) for w, v in zip(weights, increments, strict=False) if w]
    native = None if torch.is_grad_enabled() else _native.kernel("combine", y)
    if native is not None:
        out = torch.empty_like(y)
        native(y.numel(), y.data_ptr(), addressed(terms), out.data_ptr())
        return out
    out = y
    for w, v in terms:
        # the sum is our own from the second term on
        out = torch.add(y, v, alpha=w) if out is y else out.add_(v, alpha=w)
    return out


def addressed(terms: Iterable[tuple[float, Tensor]]) -> list[tuple[float, int]]:
    """What the compiled core takes for weights and arrays."""
    return [(w, v.data_ptr()) for w, v in terms]
