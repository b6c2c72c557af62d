"""The course of a batch of solutions: its states at the output times, and how it went."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..solution import Status
from .adjoint import EVERYTHING, Policy
from .dense import Output
from .grid import Grid, Ground
from .march import March, Place
from .methods import FixedStep, Solver
from .step import Slope, plain


class Course(NamedTuple):
    """What time stepping has found.

    Attributes:
        ys: the states at the output times, `(B, T, n)`; after a failure the last good one.
        status: `Status` codes, `(B,)`.
        t: the time that was reached, `(B,)`.
        accepted, tried: steps, `(B,)`.
        evaluations: of f, `(B,)`, while the sample was under way.
    """

    ys: Tensor
    status: Tensor
    t: Tensor
    accepted: Tensor
    tried: Tensor
    evaluations: Tensor


def course_of(
    f: Slope,
    times: Tensor,
    y: Tensor,
    solver: Solver,
    policy: Policy = EVERYTHING,
) -> Course:
    """Step through `times` `(B, T)` from y `(B, n)`; recorded by autograd if that is enabled.

    What `policy` does not keep is taken again in the backward pass.
    """
    y, every = plain(y), policy.every
    if isinstance(solver, FixedStep):
        return _on_grid(Grid.over(solver, f, times, policy.order), y, every)
    march = March(solver, f, policy.follow, policy.order)
    at = driven(march.run, march.start(times, y), solver.max_steps, every)
    return _finished(march, at, times, y)


def driven(run: Callable[[Any, int], Any], at: Any, tries: int, every: int | None) -> Any:
    """`run(at, tries)`, or, with `every`, so many tries at a time, each stretch a checkpoint.

    `at` says in `under_way` whether there is anything left to do.
    """
    if every is None:
        return run(at, tries)
    while tries > 0 and at.under_way:
        at = checkpoint(run, at, min(every, tries), use_reentrant=False)
        tries -= every
    return at


def _finished(march: March, at: Place, times: Tensor, y: Tensor) -> Course:
    last, _ = march.rest(at)
    if isinstance(at.output, Output):
        ys = at.output.states(y, last)
    else:
        ys = torch.stack([y, last][: times.shape[1]], 1)
    clock = at.clock
    spent = march.evaluations(at)
    status = march.status(at)
    return Course(ys, status, clock.t.detach(), clock.accepted, clock.tried, spent)


def _on_grid(grid: Grid, y: Tensor, every: int | None) -> Course:
    ground, states, plan = Ground.at(grid.times[:, 0], y), [y], grid.plan()
    size = every or max(len(plan), 1)
    for i in range(0, len(plan), size):
        part = plan[i : i + size]
        if every is None:
            ground, more = grid.run(ground, part)
        else:
            ground, more = checkpoint(grid.run, ground, part, use_reentrant=False)
        states += more
    failure, success = int(Status.NUMERICAL_FAILURE), int(Status.CONVERGED)
    status = torch.where(ground.failed, failure, success)
    ys = torch.stack(states, 1)
    return Course(ys, status, ground.t, ground.steps, ground.steps, ground.evaluations)
