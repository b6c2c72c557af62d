"""Time stepping that watches a function of the state for a change of its sign.

A sample in whose step the sign changes goes back to the start of that step, and rests there. When
all are done, the length of that last step is one scalar unknown a sample: the root s of

    g(t + s, Phi(s)) = 0,      Phi(s): the step of the solver from (t, y) over s,

which is bracketed by 0 and the length of the step that was tried. Phi is the numerical solution,
so that the state at the event is as exact as any other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..implicit import implicit_root
from ..nodes import recorded
from ..solution import Status
from .implicit_step import any_step
from .march import March, Place, given_up
from .step import at_rest, step_times

Event = Callable[[Tensor, Tensor], Tensor]  # t (B,), y (B, n) -> (B,)


class Seen(NamedTuple):
    """What has been seen so far.

    Attributes:
        at: where the samples are; of those with an event, the start of the step that it is in.
        sign: the last sign of g that was not zero, `(B,)`.
        span: that step, `(B,)`; zero without an event.
        happened: `(B,)`.
    """

    at: Place
    sign: Tensor
    span: Tensor
    happened: Tensor

    @property
    def under_way(self) -> bool:
        """Whether any sample is."""
        return self.at.under_way


@dataclass(frozen=True)
class Watch:
    """The loop.

    Attributes:
        march: how the steps are taken.
        event: g.
        direction: 1, -1, or 0: which changes of the sign count.
    """

    march: March
    event: Event
    direction: int

    def start(self, times: Tensor, y: Tensor) -> Seen:
        """The samples at the first of their `times` `(B, 2)`."""
        at = self.march.start(times, y)
        value = self._value(at.clock.t, at.y)
        seen = Seen(at, value.sign(), torch.zeros_like(value), torch.zeros_like(value) > 0)
        return _without(~value.isfinite(), seen)

    def run(self, seen: Seen, tries: int) -> Seen:
        """`tries` steps further, or to the end."""
        for _ in range(tries):
            if not seen.under_way:
                break
            seen = self.step(seen)
        return seen

    def step(self, seen: Seen) -> Seen:
        """One step, tried by every sample."""
        at = seen.at
        new = self.march.step(at)
        moved = new.clock.accepted > at.clock.accepted
        value = self._value(new.clock.t, new.y)
        sign = torch.where(moved & value.isfinite(), value.sign(), seen.sign)
        crossed = (sign != seen.sign) & (seen.sign != 0)
        if self.direction:
            crossed = crossed & (seen.sign == -self.direction)
        span = torch.where(crossed, (new.clock.t - at.clock.t).detach(), seen.span)
        bad = moved & ~value.isfinite()
        if bool((crossed | bad).any()):
            new = _back(new, at, crossed | bad)
        sign = torch.where(crossed | (sign == 0), seen.sign, sign)
        return _without(bad, Seen(new, sign, span, seen.happened | crossed))

    def ended(self, seen: Seen) -> tuple[Tensor, Tensor, Tensor]:
        """(t, y, status), at the events, or where the samples ended without one."""
        at, here, happened = seen.at, seen.at.clock.t, seen.happened.unsqueeze(1)
        status, (rest, failed) = self.march.status(at), self.march.rest(at)

        def state(t: Tensor) -> Tensor:
            return torch.where(happened, self._stepped(at, seen.happened * (t - here)), rest)

        def residual(t: Tensor) -> Tensor:
            t = t.squeeze(1)
            # of a sample that failed g may not be finite
            g = self.event(t, at_rest(state(t), failed, ~failed)).to(t.dtype)
            return torch.where(seen.happened, g, t - here).unsqueeze(1)

        with torch.no_grad():
            t = here + self._crossing(seen)
        if recorded():
            t = implicit_root(residual, t.unsqueeze(1), None, self.march.order).squeeze(1)
        return t, state(t), status

    def _value(self, t: Tensor, y: Tensor) -> Tensor:
        """g in float64, without a record."""
        with torch.no_grad():
            return self.event(t, y).double()

    def _stepped(self, at: Place, h: Tensor) -> Tensor:
        march = self.march
        times = step_times(march.solver.tableau.c, at.clock.t, h)
        return any_step(march.f, march.solver, times, h, at.y, at.slope, False, march.order).y

    def _crossing(self, seen: Seen) -> Tensor:
        """The last step, up to rounding, by the Illinois variant of the regula falsi.

        Every third point is the middle, so that the bracket shrinks in any case.
        """
        at, t, span = seen.at, seen.at.clock.t, seen.span
        low, high = torch.zeros_like(span), torch.ones_like(span)
        left = self._value(t, at.y)
        right = self._value(t + span, self._stepped(at, span))
        best, least, side = high, right.abs(), torch.zeros_like(span)
        enough = 4 * torch.finfo(span.dtype).eps * torch.maximum(t.abs(), span.abs())
        for i in range(150):
            running = ((high - low) * span.abs() > enough) & (least > 0)
            if not bool(running.any()):
                break
            middle, secant = (low + high) / 2, low + (high - low) * left / (left - right)
            inside = (secant > low) & (secant < high) & (i % 3 < 2)
            theta = torch.where(running, torch.where(inside, secant, middle), best)
            value = self._value(t + theta * span, self._stepped(at, theta * span))
            before = value.sign() == seen.sign
            better = running & (value.abs() < least)
            best, least = torch.where(better, theta, best), torch.where(better, value.abs(), least)
            low, high = torch.where(before, theta, low), torch.where(before, high, theta)
            # an end that stays twice counts half
            left = torch.where(before, value, torch.where(side < 0, left / 2, left))
            right = torch.where(before, torch.where(side > 0, right / 2, right), value)
            side = torch.where(before, 1.0, -1.0)
        return best * span


def _without(bad: Tensor, seen: Seen) -> Seen:
    """With the samples given up whose g is not finite."""
    if not bool(bad.any()):
        return seen
    status = torch.full_like(seen.at.status, int(Status.NUMERICAL_FAILURE))
    return seen._replace(at=given_up(seen.at, bad, status))


def _back(new: Place, at: Place, crossed: Tensor) -> Place:
    """`new`, with the samples that have `crossed` at rest at the start of the step."""
    wide = crossed.unsqueeze(1)
    t = torch.where(crossed, at.clock.t, new.clock.t)
    end = torch.where(crossed, at.clock.t, new.clock.end)
    return new._replace(
        clock=new.clock._replace(t=t, end=end),
        y=torch.where(wide, at.y, new.y),
        slope=torch.where(wide, at.slope, new.slope),
        under_way=bool((t != end).any()),
    )
