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
from .clock import Clock
from .control import first_step, scaled_error
from .dense import Collector, Output, Passed
from .implicit_step import any_step
from .methods import Adaptive
from .step import Slope, Step, at_rest, owned, step_times


class Place(NamedTuple):
    """Where the samples are.

    Attributes:
        clock: their times and steps.
        y, slope: the state and f there, `(B, n)`.
        status: `(B,)`, ITERATION_LIMIT while a sample is under way.
        spent: `(B,)`, evaluations of f by an implicit solver in the steps so far.
        last: `(B, n)`, y of the samples that failed, where they did.
        output: what was collected on the way; None if only the last state is wanted.
        under_way: whether any sample is.
    """

    clock: Clock
    y: Tensor
    slope: Tensor
    status: Tensor
    spent: Tensor
    last: Tensor
    output: Collector | None
    under_way: bool = True


@dataclass(frozen=True)
class March:
    """The loop.

    Attributes:
        solver: the method and its tolerances.
        f: the field, on flat states.
        follow: whether the choice of the steps after the first is differentiated, too.
        order: how many derivatives of an implicit step are exact.
    """

    solver: Adaptive
    f: Slope
    follow: bool = False
    order: int = 1

    def start(self, times: Tensor, y: Tensor) -> Place:
        """The samples at the first of their `times` `(B, T)`."""
        slope = owned(self.f(times[:, 0], y))
        bad = ~slope.isfinite().all(1)
        if not bool(bad.any()):
            return self._begun(times, y, slope)
        # again without them: zero times NaN would reach what f shares in the backward pass
        rest = at_rest(y, bad, ~bad)
        at = self._begun(times, rest, owned(self.f(times[:, 0], rest)))
        failure = torch.full_like(at.status, int(Status.NUMERICAL_FAILURE))
        return given_up(at, bad, failure)._replace(last=y.detach())

    def _begun(self, times: Tensor, y: Tensor, slope: Tensor) -> Place:
        t, end = (v.contiguous() for v in (times[:, 0], times[:, -1]))
        with torch.no_grad():
            h = first_step(self.solver, self.f, t, y, slope, end - t)
        count = torch.zeros_like(t, dtype=torch.int64)
        clock = Clock(t, h, end, torch.ones_like(h), count, count)
        output = Output.at(times, self.solver.tableau, self.f) if times.shape[1] > 2 else None
        status = torch.full_like(count, int(Status.ITERATION_LIMIT))
        return Place(clock, y, slope, status, count, y.detach(), output, times.shape[1] > 1)

    def run(self, at: Place, tries: int) -> Place:
        """`tries` steps further, or to the end."""
        for _ in range(tries):
            if not at.under_way:
                break
            at = self.step(at)
        return at

    def status(self, at: Place) -> Tensor:
        """How the samples ended, `(B,)`."""
        limit = at.status == int(Status.ITERATION_LIMIT)
        arrived = limit & (at.clock.t == at.clock.end)
        return torch.where(arrived, int(Status.CONVERGED), at.status)

    def rest(self, at: Place) -> tuple[Tensor, Tensor]:
        """The last good states `(B, n)`, and which samples failed `(B,)`."""
        failed = at.status != int(Status.ITERATION_LIMIT)
        if not bool(failed.any()):
            return at.y, failed
        return torch.where(failed.unsqueeze(1), at.last, at.y), failed

    def evaluations(self, at: Place) -> Tensor:
        """Of f, `(B,)`; a Jacobian counts as one."""
        start = 1 if self.solver.first_step is not None else 2
        explicit = at.clock.tried * (len(self.solver.tableau.a) - 1)
        return start + (at.spent if self.solver.tableau.implicit else explicit)

    def step(self, at: Place) -> Place:
        """One step, tried by every sample."""
        h, times = at.clock.stride(self.solver.tableau.c)
        trial, error = self._tried(at, times, h)
        clock, everyone, under_way = at.clock.advance(self.solver, h, error)
        if not everyone and torch.is_grad_enabled():
            trial = self._without(~error.isfinite(), at, h, trial)
        new = at._replace(clock=clock, y=trial.y, slope=trial.slope, under_way=under_way)
        if trial.evaluations is not None:
            spent = trial.evaluations * (at.clock.t != at.clock.end)
            new = new._replace(spent=at.spent + spent)
        if at.output is not None:
            # what is rejected may not be finite, in its further stages too
            length = h if everyone else torch.where(error <= 1, h, 0.0)
            passed = Passed(at.clock.t, clock.t, length, at.y, trial.increments, error <= 1)
            new = new._replace(output=at.output.after(passed))
        return new if everyone else self._partly(at, new, h, error)

    def _tried(self, at: Place, times: Tensor, h: Tensor) -> tuple[Step, Tensor]:
        """The step and its error in units of the tolerance."""
        trial = any_step(self.f, self.solver, times, h, at.y, at.slope, True, self.order)
        with self._unrecorded():
            return trial, scaled_error(self.solver, at.y, trial.y, trial.increments)

    def _without(self, bad: Tensor, at: Place, h: Tensor, trial: Step) -> Step:
        """The step again, of no length for the samples that met infinities or NaN in it.

        They are to stay where they are, but zero times NaN would reach what f shares in the
        backward pass.
        """
        if not bool(bad.any()):
            return trial
        h = torch.where(bad, 0.0, h)
        return self._tried(at, step_times(self.solver.tableau.c, at.clock.t, h), h)[0]

    def _partly(self, at: Place, new: Place, h: Tensor, error: Tensor) -> Place:
        """`new` where the step is accepted, and `at` with a shorter step elsewhere."""
        ok = error <= 1
        wide = ok.unsqueeze(1)
        new = new._replace(
            y=torch.where(wide, new.y, at.y), slope=torch.where(wide, new.slope, at.slope)
        )
        short = ~ok & (h.abs() <= _least(at.clock)) & (at.clock.t != at.clock.end)
        if not bool(short.any()):
            return new
        underflow, failure = int(Status.STEP_UNDERFLOW), int(Status.NUMERICAL_FAILURE)
        return given_up(new, short, torch.where(error.isfinite(), underflow, failure))

    def _unrecorded(self) -> nullcontext[None] | torch.no_grad:
        return nullcontext() if self.follow else torch.no_grad()


def _least(clock: Clock) -> Tensor:
    """The length of a step at which a sample is given up: some roundings of t."""
    size = torch.maximum(clock.t.abs(), 1e-8 * clock.end.abs())
    return 4 * torch.finfo(clock.t.dtype).eps * size.detach()


def given_up(at: Place, bad: Tensor, status: Tensor) -> Place:
    """`at`, its `bad` samples ended where they are: at rest where f was finite."""
    wide, clock = bad.unsqueeze(1), at.clock
    clock = clock._replace(
        end=torch.where(bad, clock.t, clock.end), h=torch.where(bad, 0.0, clock.h)
    )
    return at._replace(
        clock=clock,
        status=torch.where(bad, status, at.status),
        last=torch.where(wide, at.y.detach(), at.last),
        under_way=bool((clock.t != clock.end).any()),
    )
