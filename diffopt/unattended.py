"""The batched loop of `iterate` on a device that the host does not wait for (see `device`).

1. A step moves the samples that run; those that are done keep their state. Nothing is looked at.
2. How many run is seen late, which changes no answer: at worst some steps were for nothing.
3. What only the host can do, a sample waits for, held at its state: a verdict that takes a proof,
   a step that failed. It is attended when the host sees that somebody waits.
4. When half of the samples are done the others go on as a batch of their own.

So a sample's states, and with them its answer, do not depend on when the host looks, but for the
rounding of products in batches of another size. What it sees is a fixed number of looks old, so
that a solve gives the same bits again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from . import device
from .iterate import Measure, State, ending, iterate, select
from .replay import replayed
from .solution import Solution, Status
from .tree import mapped, put, take, tensors

# Samples below which half of them are taken to last as long as all: fewer do not fill a device.
FULL = 64
# Looks for a step, at most: one is seen late, and one that the host attends costs a few.
LOOKS = 10


class Task(Protocol):
    """What is iterated, a dataclass of tensors that `take` restricts to some samples."""

    @property
    def limits(self) -> Limits:
        """When to give up."""

    def measure(self, state: State) -> Measure:
        """The error of each sample, without verdicts, and what a step can reuse."""

    def suspects(self, state: State, carry: State) -> Tensor | None:
        """Samples whose verdict should be looked at, bool `(B,)`; no others have one."""

    def verdict(self, state: State, carry: State) -> Tensor | None:
        """`Measure.verdict`; may look at numbers."""

    def step(self, state: State, carry: State, attended: bool) -> State:
        """The next state. Only where `attended` it may look at numbers; where it would have to,
        the state of a sample is not `sound` instead."""

    def sound(self, state: State) -> Tensor:
        """Samples whose step was computed, bool `(B,)`."""


class Limits(NamedTuple):
    """When a sample gives up.

    Attributes:
        max_steps: after that many steps.
        patience: after that many steps without a better error.
    """

    max_steps: int
    patience: int


class Progress(NamedTuple):
    """Where each sample is.

    Attributes:
        state, error: the last state and its error.
        carry: of the last `Measure`; that of the state only for samples that are neither done nor
            held.
        best, best_error: the state of least error.
        status, steps: as in `Solution`.
        since: steps without a better error.
        running: not done, bool.
        held: waiting for the host, bool.
        failed: held at the state before the step that was not sound, bool.
    """

    state: State
    carry: State
    error: Tensor
    best: State
    best_error: Tensor
    status: Tensor
    steps: Tensor
    since: Tensor
    running: Tensor
    held: Tensor
    failed: Tensor


def run(task: Task, start: State, graph: bool = False) -> Solution:
    """The best state of each sample, as `iterate` returns it, by the loop for the device.

    Args:
        task: what is iterated.
        start: a NamedTuple of tensors, each with the batch dimension first; the first of them has
            the dtype of the errors.
        graph: on a CUDA device, replay one captured iteration instead of queueing its kernels one
            by one; the batch then stays whole.
    """
    first = next(tensors(start))
    if not device.on_cuda(first):
        return _attended(task, start)
    p = _begun(task, start, first)
    if graph:  # whose memory is used again
        p = mapped(_finished(task, p, replayed(advanced, task, p)), Tensor.clone)
    else:
        p = _finished(task, p)
    return Solution(p.best, p.status, p.steps, p.best_error)


def _attended(task: Task, start: State) -> Solution:
    def measure(state: State) -> Measure:
        now = task.measure(state)
        return now._replace(verdict=task.verdict(state, now.carry))

    def step(state: State, carry: State) -> State:
        return task.step(state, carry, attended=True)

    return iterate(measure, step, start, **task.limits._asdict())


def _begun(task: Task, start: State, first: Tensor) -> Progress:
    """Everyone measured at `start`, which is no step."""
    everyone = torch.ones(first.shape[0], dtype=torch.bool, device=first.device)
    none = torch.zeros_like(everyone)
    worst = torch.full(everyone.shape, torch.inf, dtype=first.dtype, device=first.device)
    status = torch.full(everyone.shape, int(Status.ITERATION_LIMIT), device=first.device)
    steps = torch.full_like(status, -1)
    p = Progress(start, None, worst, start, worst, status, steps, steps, everyone, none, none)
    return _moved(task, p, start, everyone)


def _finished(
    task: Task, p: Progress, replay: Callable[[Progress], Progress] | None = None
) -> Progress:
    """p when everyone is done."""
    glance = device.Glance()
    for _ in range(LOOKS * (task.limits.max_steps + LOOKS)):
        running, held = glance.look(_counts(p)) or (len(p.error), 0)
        if running == 0:
            return p
        if held:
            p, glance = _helped(task, p), device.Glance()
        elif replay is None and len(p.error) >= max(FULL, 2 * running):
            index = p.running.to(torch.int8).argsort(descending=True, stable=True)[:running]
            return put(p, index, _finished(take(task, index), take(p, index)))
        p = advanced(task, p) if replay is None else replay(p)
    raise RuntimeError("the device makes no progress: the steps that were queued had no effect")


def _counts(p: Progress) -> Tensor:
    return torch.stack([p.running.sum(), p.held.sum()])


def advanced(task: Task, p: Progress) -> Progress:
    """p one step later; nothing is looked at."""
    new = task.step(p.state, p.carry, attended=False)
    moving, sound = p.running & ~p.held, task.sound(new)
    failed = moving & ~sound
    p = p._replace(held=p.held | failed, failed=p.failed | failed)
    return _moved(task, p, new, moving & sound)


def _moved(task: Task, p: Progress, new: State, who: Tensor) -> Progress:
    """p with the samples `who` at the state `new`, measured and judged."""
    now = task.measure(new)
    error = torch.where(who, now.error, p.error)
    better = error < p.best_error  # of no other samples
    suspect = who & ~(error <= 1) & _suspects(task, new, now)
    p = Progress(
        state=select(who, new, p.state),
        carry=now.carry,
        error=error,
        best=select(better, new, p.best),
        best_error=torch.where(better, error, p.best_error),
        status=p.status,
        steps=p.steps + who,
        since=torch.where(better, 0, p.since + who),
        running=p.running,
        held=p.held | suspect,
        failed=p.failed,
    )
    return _ended(task, p, who & ~suspect)


def _suspects(task: Task, state: State, now: Measure) -> Tensor:
    found = task.suspects(state, now.carry)
    return torch.zeros_like(now.error, dtype=torch.bool) if found is None else found


def _ended(task: Task, p: Progress, who: Tensor, verdict: Tensor | None = None) -> Progress:
    """p with those of the samples `who` done that `iterate` would end here."""
    ends = ~((p.error > 1) & (p.error < torch.inf))
    ends = ends | (p.since >= task.limits.patience) | (p.steps >= task.limits.max_steps)
    end, proved = ending(Measure(p.error, verdict))
    if verdict is not None:
        ends, proved = ends | (verdict >= 0), proved & who
        best_error = torch.where(proved, p.error, p.best_error)
        p = p._replace(best=select(proved, p.state, p.best), best_error=best_error)
    ends = ends & who
    return p._replace(status=torch.where(ends, end, p.status), running=p.running & ~ends)


def _helped(task: Task, p: Progress) -> Progress:
    """p after the host has attended those that wait for it."""
    waiting = p.held.nonzero().flatten()
    if not len(waiting):
        return p
    part, own = take(task, waiting), take(p, waiting)
    now, failed = part.measure(own.state), own.failed
    none = torch.zeros_like(failed)
    own = own._replace(carry=now.carry, held=none, failed=none)
    own = _ended(part, own, ~failed, part.verdict(own.state, now.carry))
    if bool(failed.any()):
        own = _moved(part, own, part.step(own.state, now.carry, attended=True), failed)
        own = own._replace(carry=select(failed, own.carry, now.carry))
    return put(p, waiting, own)
