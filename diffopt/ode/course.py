"""The course of a batch of solutions: its states at the output times, and how it went."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..solution import Status
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
    *,
    follow: bool = False,
    every: int | None = None,
    order: int = 1,
) -> Course:
    """Step through `times` `(B, T)` from y `(B, n)`; recorded by autograd if that is enabled.

    Args:
        follow: whether the choice of adaptive steps is differentiated, too.
        every: keep only the state after so many steps in the graph, and take the steps between
            again in the backward pass; None to keep all.
        order: how many derivatives of an implicit step are exact.
    """
    y = plain(y)
    if isinstance(solver, FixedStep):
        return _on_grid(Grid.over(solver, f, times, order), y, every)
    march = March(solver, f, follow, order)
    return _finished(march, _driven(march, march.start(times, y), every), times, y)


def _driven(march: March, at: Place, every: int | None) -> Place:
    left = march.solver.max_steps
    if every is None:
        return march.run(at, left)
    while left > 0 and at.under_way:
        at = checkpoint(march.run, at, min(every, left), use_reentrant=False)
        left -= every
    return at


def _finished(march: March, at: Place, times: Tensor, y: Tensor) -> Course:
    status = march.status(at)
    failed = (status != int(Status.CONVERGED)) & (status != int(Status.ITERATION_LIMIT))
    last = torch.where(failed.unsqueeze(1), at.last, at.y) if bool(failed.any()) else at.y
    if isinstance(at.output, Output):
        ys = at.output.states(y, last)
    else:
        ys = torch.stack([y, last][: times.shape[1]], 1)
    clock = at.clock
    spent = march.evaluations(at)
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
