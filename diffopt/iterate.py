"""The batched loop: every sample has its own stopping test, best iterate and status.

1. measure(state) says how far each running sample is from done (error <= 1).
2. Samples that converged, broke down, stalled or got a verdict are frozen.
3. step(state) moves the rest; a frozen sample keeps its state bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .solution import Solution, Status

State = Any  # a NamedTuple of tensors with the batch dimension first, or of such tuples


class Measure(NamedTuple):
    """What `measure` returns for a state.

    Attributes:
        error: `(B,)`, in units of the tolerance: <= 1 is converged; NaN is a breakdown.
        verdict: `(B,)` int64, a `Status` code that ends the sample now, or -1 to go on.
        carry: anything that `step` can reuse (residual vectors, a function value).
    """

    error: Tensor
    verdict: Tensor | None = None
    carry: Any = None


def select(mask: Tensor, new: State, old: State) -> State:
    """Sample by sample, `new` where `mask` `(B,)` holds and `old` elsewhere."""

    def pick(a: Any, b: Any) -> Any:
        if isinstance(a, tuple):
            return select(mask, a, b)
        return torch.where(mask.view(-1, *[1] * (a.ndim - 1)), a, b)

    return type(old)(*(pick(a, b) for a, b in zip(new, old, strict=True)))


def iterate(
    measure: Callable[[State], Measure],
    step: Callable[[State, Any], State],
    state: State,
    *,
    max_steps: int,
    patience: int | None = None,
    history: bool = False,
) -> Solution:
    """Run `step` until every sample is done, and return each sample's best state.

    Args:
        measure: state -> `Measure`; called once before each step and once after the last.
        step: (state, carry) -> state; may compute anything for frozen samples, it is dropped.
        state: a NamedTuple of tensors, each with the batch dimension `B` first.
        max_steps: steps after which a running sample ends with `ITERATION_LIMIT`.
        patience: a sample ends after this many steps without a better error (default: never).
        history: keep the errors of all steps.

    Returns:
        `Solution` whose value is the state of smallest error of each sample, or the one that got
        a verdict, and whose residual is its error. A sample whose error is not finite ends with
        `NUMERICAL_FAILURE`.
    """
    now = measure(state)
    max_steps = max_steps if now.error.numel() else 0
    best, best_error = state, torch.full_like(now.error, torch.inf)
    status = torch.full(now.error.shape, int(Status.ITERATION_LIMIT), device=now.error.device)
    steps, since = torch.full_like(status, max_steps), torch.zeros_like(status)
    running = torch.ones_like(status, dtype=torch.bool)
    everyone, errors = True, []  # everyone is running: a where is dear
    for k in range(max_steps + 1):
        if history:
            errors.append(now.error)
        better = running & (now.error < best_error)
        if patience is not None:
            since = torch.where(better, 0, since + 1)
        ends = running & ~_goes_on(now, since, patience)
        if ended := bool(ends.any()):  # seldom: most steps only ask
            ending, proved = _ending(now)
            status, steps = torch.where(ends, ending, status), torch.where(ends, k, steps)
            running, better, everyone = running & ~ends, better | (ends & proved), False
        if bool(better.all()):
            best, best_error = state, now.error
        else:
            best, best_error = select(better, state, best), now.error.where(better, best_error)
        if k == max_steps or (ended and not bool(running.any())):
            break
        new = step(state, now.carry)
        state = new if everyone else select(running, new, state)
        now = measure(state)
    return Solution(best, status, steps, best_error, torch.stack(errors) if history else None)


def _goes_on(now: Measure, since: Tensor, patience: int | None) -> Tensor:
    """Samples that neither converged, broke down, stalled nor got a verdict."""
    out = (now.error > 1) & (now.error < torch.inf)
    if patience is not None:
        out = out & (since < patience)
    return out if now.verdict is None else out & (now.verdict < 0)


def _ending(now: Measure) -> tuple[Tensor, Tensor]:
    """How samples end that do not go on, and which end by a verdict.

    Convergence outranks a verdict, which outranks a stall.
    """
    limit, failure = int(Status.ITERATION_LIMIT), int(Status.NUMERICAL_FAILURE)
    ending = torch.where(now.error.isfinite(), limit, failure)
    proved = torch.zeros_like(ending, dtype=torch.bool)
    if now.verdict is not None:
        proved = (now.verdict >= 0) & ~(now.error <= 1)
        ending = torch.where(proved, now.verdict, ending)
    return torch.where(now.error <= 1, int(Status.CONVERGED), ending), proved
