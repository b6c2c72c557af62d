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
    behind = torch.zeros_like(running)  # whose best is not the last state
    everyone, errors = True, []  # everyone is running: a where is dear
    for k in range(max_steps + 1):
        if history:
            errors.append(now.error)
        better = now.error < best_error
        better = better if everyone else running & better
        if patience is not None:
            since = torch.where(better, 0, since + 1)
        before, ends = running, _ends(now, running, everyone, since, patience)
        if ends is not None:
            end, proved = ending(now)
            status, steps = torch.where(ends, end, status), torch.where(ends, k, steps)
            running, better = running & ~ends, better | (ends & proved)
        if everyone and bool(better.all()):
            best, best_error = state, now.error
        else:
            behind = ~better & (before | behind)
            best = select(better, state, best) if bool(behind.any()) else state
            best_error = now.error.where(better, best_error)
        everyone = everyone and ends is None
        if k == max_steps or (ends is not None and not bool(running.any())):
            break
        new = step(state, now.carry)
        state = new if everyone else select(running, new, state)
        now = measure(state)
    return Solution(best, status, steps, best_error, torch.stack(errors) if history else None)


def _ends(
    now: Measure, running: Tensor, everyone: bool, since: Tensor, patience: int | None
) -> Tensor | None:
    """Running samples that converged, broke down, stalled or got a verdict; None if none did."""
    if patience is None and now.verdict is None and now.error.numel():  # most steps only ask
        error = now.error if everyone else torch.where(running, now.error, 2.0)
        least, most = error.aminmax()
        if least.item() > 1 and most.item() < torch.inf:  # false for NaN
            return None
    ends = ~((now.error > 1) & (now.error < torch.inf))
    if patience is not None:
        ends = ends | (since >= patience)
    if now.verdict is not None:
        ends = ends | (now.verdict >= 0)
    ends = running & ends
    return ends if bool(ends.any()) else None


def ending(now: Measure) -> tuple[Tensor, Tensor]:
    """How samples end that do not go on, and which end by a verdict.

    Convergence outranks a verdict, which outranks a stall.
    """
    limit, failure = int(Status.ITERATION_LIMIT), int(Status.NUMERICAL_FAILURE)
    end = torch.where(now.error.isfinite(), limit, failure)
    proved = torch.zeros_like(end, dtype=torch.bool)
    if now.verdict is not None:
        proved = (now.verdict >= 0) & ~(now.error <= 1)
        end = torch.where(proved, now.verdict, end)
    return torch.where(now.error <= 1, int(Status.CONVERGED), end), proved
