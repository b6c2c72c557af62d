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
        before = 0 if y.is_inference() else y._version
        out = f(t.to(y.dtype).unsqueeze(1), y)
        if like(out, y) and (y.is_inference() or y._version == before):
            return out
        return checked(t.to(y.dtype).view(-1, *ones), y)  # which says what is wrong

    return field


def explicit_step(
    f: Slope, tableau: Tableau, times: Tensor, h: Tensor, y: Tensor, slope: Tensor, ahead: bool
) -> Step:
    """The step from y, where f is `slope`, over h `(B,)`.

    Args:
        times: t + c h, `(stages, B)`.
        ahead: whether f is wanted at the end of the step too.
    """
    native = None if torch.is_grad_enabled() else _native.kernel("stage", y)
    if native is not None and ahead:
        return _compiled_step(native, f, tableau, times, h, y, slope)
    over = h.to(y.dtype).unsqueeze(1)
    increments = [(over * slope).contiguous()]
    z, rows = y, times.unbind(0)
    last = len(tableau.a) - 1
    for i in range(1, last + 1):
        z = combined(y, tableau.a[i], increments)
        if i < last or ahead:
            slope = f(rows[i], z)
            increments.append((over * slope).contiguous())
    return Step(z, owned(slope), increments)


def _compiled_step(
    native: Callable[..., None],
    f: Slope,
    tableau: Tableau,
    times: Tensor,
    h: Tensor,
    y: Tensor,
    slope: Tensor,
) -> Step:
    """The same with the sums of a stage in one call of the compiled core."""
    rows, count, bytes_each = (*tableau.a[1:], ()), len(tableau.a), y.numel() * y.element_size()
    increments, states = y.new_empty(count, *y.shape), y.new_empty(count - 1, *y.shape)
    first, out, ends = increments.data_ptr(), states.data_ptr(), states.unbind(0)
    for i, (row, t) in enumerate(zip(rows, (*times.unbind(0)[1:], None), strict=True)):
        slope = plain(slope)
        assert like(slope, y)
        here = out + i * bytes_each if t is not None else 0
        at = y.data_ptr(), h.data_ptr(), slope.data_ptr(), first, here
        native((*y.shape, i + 1), row, at)
        if t is not None:
            slope = f(t, ends[i])
    return Step(ends[-1], owned(slope), list(increments.unbind(0)))


def step_times(c: Row, t: Tensor, h: Tensor) -> Tensor:
    """t + c h, `(stages, B)`."""
    return t + nodes(c, h.device) * h


@cache
def nodes(c: Row, device: torch.device) -> Tensor:
    """c as a column, in float64."""
    with torch.inference_mode(False):  # it is kept for all modes
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
    """y + sum_i weights_i increments_i, all of one shape."""
    out = y
    for w, v in zip(weights, increments, strict=False):
        if w:
            # the sum is our own from the second term on
            out = torch.add(y, v, alpha=w) if out is y else out.add_(v, alpha=w)
    return out


def addressed(terms: Iterable[tuple[float, Tensor]]) -> list[tuple[float, int]]:
    """What the compiled core takes for weights and arrays."""
    return [(w, v.data_ptr()) for w, v in terms]


def owned(slope: Tensor) -> Tensor:
    """A slope to keep: f may use the memory that it has returned again, if nothing is recorded."""
    return slope if torch.is_grad_enabled() else slope.clone()


def at_rest(y: Tensor, bad: Tensor, good: Tensor) -> Tensor:
    """y with the `bad` samples where the first `good` one is, if there is one; else in zero.

    f is evaluated there on, and is likely to be finite, and its derivative too.
    """
    places = good.nonzero()
    rest = y.detach()[places[0]] if len(places) else torch.zeros_like(y[:1])
    return torch.where(bad.unsqueeze(1), rest, y)


def like(v: object, y: Tensor) -> bool:
    """Whether v is a tensor of the shape, dtype and device of y."""
    if not isinstance(v, Tensor):
        return False
    return v.shape == y.shape and v.dtype == y.dtype and v.device == y.device


def plain(v: Tensor) -> Tensor:
    """v as the compiled core reads it: row after row, nothing left to be done."""
    return v.contiguous().resolve_neg()
