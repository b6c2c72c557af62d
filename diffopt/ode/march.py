"""Time stepping with adaptive steps: every sample at its own time, with its own step.

A step is tried by all samples together. Those whose error meets the tolerance move on; the others
stay, and try a shorter one. A sample that is done, or has failed, takes steps of length zero, which
leave it where it is bit for bit.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..solution import Status
from .control import first_step, next_step, scaled_error
from .dense import Output, Passed
from .methods import Adaptive
from .step import Slope, Step, explicit_step


class Place(NamedTuple):
    """Where the samples are.

    Attributes:
        t, y, slope: the time `(B,)`, the state and f there `(B, n)`.
        h: the step to try next, `(B,)`, with its sign.
        before: the error of the last accepted step.
        end: where a sample stops: at the last time, or where it failed.
        status, accepted, tried: `(B,)`, int64.
        last: y of the samples that failed, where they did.
        output: what was passed on the way; None if only the last state is wanted.
    """

    t: Tensor
    y: Tensor
    slope: Tensor
    h: Tensor
    before: Tensor
    end: Tensor
    status: Tensor
    accepted: Tensor
    tried: Tensor
    last: Tensor
    output: Output | None


@dataclass(frozen=True)
class March:
    """The loop.

    Attributes:
        solver: the method and its tolerances.
        f: the field, on flat states.
        follow: whether the choice of the steps is differentiated, too.
    """

    solver: Adaptive
    f: Slope
    follow: bool = False

    def start(self, times: Tensor, y: Tensor) -> Place:
        """The samples at the first of their `times` `(B, T)`."""
        t, end = times[:, 0], times[:, -1]
        slope = self.f(t, y)
        with self._unrecorded():
            h = first_step(self.solver, self.f, t, y, slope, end - t)
        count = torch.zeros_like(t, dtype=torch.int64)
        status = torch.full_like(count, int(Status.ITERATION_LIMIT))
        output = Output.at(times, self.solver.tableau, self.f) if times.shape[1] > 2 else None
        place = Place(
            t, y, slope, h, torch.ones_like(h), end, status, count, count, y.detach(), output
        )
        bad = ~slope.isfinite().all(1)
        failure = torch.full_like(status, int(Status.NUMERICAL_FAILURE))
        return _given_up(place, bad, failure) if bool(bad.any()) else place

    def run(self, at: Place, tries: int) -> Place:
        """`tries` steps further, or to the end."""
        for _ in range(tries):
            if not bool((at.t != at.end).any()):
                break
            at = self.step(at)
        return at

    def step(self, at: Place) -> Place:
        """One step, tried by every sample."""
        left = at.end - at.t
        final = at.h.abs() >= left.abs()
        h = torch.where(final, left, at.h)
        trial, error = self._tried(at, h)
        ok = error <= 1
        everyone = bool(ok.all())
        if not everyone and torch.is_grad_enabled():
            trial = self._without(~error.isfinite(), at, h, trial)
        with self._unrecorded():
            longer = next_step(self.solver, h, error, at.before, ok)
        running = left != 0
        new = Place(
            torch.where(final, at.end, at.t + h), trial.y, trial.slope, longer,
            error.clamp_min(1e-4), at.end, at.status, at.accepted + running, at.tried + running,
            at.last, at.output,
        )  # fmt: skip
        if at.output is not None:
            passed = Passed(at.t, new.t, h, at.y, trial.increments, ok)
            new = new._replace(output=at.output.after(passed))
        return new if everyone else self._partly(at, new, h, error, ok)

    def _tried(self, at: Place, h: Tensor) -> tuple[Step, Tensor]:
        """The step and its error in units of the tolerance."""
        tableau = self.solver.tableau
        trial = explicit_step(self.f, tableau, at.t, h, at.y, at.slope, ahead=True)
        with self._unrecorded():
            error = scaled_error(self.solver, at.y, trial.y, trial.increments)
            if not tableau.error[0][-1]:  # it has not seen the last slope
                error = error + 0 * trial.increments[-1].sum(1)
        return trial, error

    def _without(self, bad: Tensor, at: Place, h: Tensor, trial: Step) -> Step:
        """The step again, of no length for the samples that met infinities or NaN in it.

        They are to stay where they are, but zero times NaN would reach what f shares in the
        backward pass.
        """
        if not bool(bad.any()):
            return trial
        return self._tried(at, torch.where(bad, 0.0, h))[0]

    def _partly(self, at: Place, new: Place, h: Tensor, error: Tensor, ok: Tensor) -> Place:
        """`new` where the step is accepted, and `at` with a shorter step elsewhere."""
        wide = ok.unsqueeze(1)
        new = new._replace(
            t=torch.where(ok, new.t, at.t),
            y=torch.where(wide, new.y, at.y),
            slope=torch.where(wide, new.slope, at.slope),
            before=torch.where(ok, new.before, at.before),
            accepted=torch.where(ok, new.accepted, at.accepted),
        )
        short = ~ok & (h.abs() <= _least(at))
        if not bool(short.any()):
            return new
        status = torch.where(
            error.isfinite(), int(Status.STEP_UNDERFLOW), int(Status.NUMERICAL_FAILURE)
        )
        return _given_up(new, short & (at.t != at.end), status)

    def _unrecorded(self) -> nullcontext[None] | torch.no_grad:
        return nullcontext() if self.follow else torch.no_grad()


def _least(at: Place) -> Tensor:
    """The length of a step at which the sample is given up: some roundings of t."""
    size = torch.maximum(at.t.abs(), 1e-8 * at.end.abs())
    return 4 * torch.finfo(at.t.dtype).eps * size.detach()


def _given_up(at: Place, bad: Tensor, status: Tensor) -> Place:
    """`at`, its `bad` samples ended where they are, and at rest in zero, where f may be finite."""
    wide = bad.unsqueeze(1)
    return at._replace(
        end=torch.where(bad, at.t, at.end),
        status=torch.where(bad, status, at.status),
        last=torch.where(wide, at.y.detach(), at.last),
        y=torch.where(wide, 0.0, at.y),
        slope=torch.where(wide, 0.0, at.slope),
        h=torch.where(bad, 0.0, at.h),
    )
