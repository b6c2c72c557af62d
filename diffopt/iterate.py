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
    if bool(mask.all()):  # the usual case, and a where is dear
        return new

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
    best, best_error = state, torch.full_like(now.error, torch.inf)
    status = torch.full(now.error.shape, int(Status.ITERATION_LIMIT), device=now.error.device)
    steps, since = torch.zeros_like(status), torch.zeros_like(status)
    running = torch.ones_like(status, dtype=torch.bool)
    errors = []
    for k in range(max_steps + 1):
        errors.append(now.error)
        better = running & (now.error < best_error)
        since = torch.where(better, 0, since + 1)
        status, running, proved = _judge(now, status, running, since, patience)
        better = better | proved
        best, best_error = select(better, state, best), torch.where(better, now.error, best_error)
        if k == max_steps or not bool(running.any()):
            break
        state = select(running, step(state, now.carry), state)
        steps = steps + running
        now = measure(state)
    return Solution(best, status, steps, best_error, torch.stack(errors) if history else None)


def _judge(
    now: Measure, status: Tensor, running: Tensor, since: Tensor, patience: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """(status, which run on, which end here by a verdict).

    Convergence outranks a verdict, which outranks a stall.
    """
    ending = torch.full_like(status, -1)
    if patience is not None:
        ending = torch.where(since >= patience, int(Status.ITERATION_LIMIT), ending)
    ending = torch.where(now.error.isfinite(), ending, int(Status.NUMERICAL_FAILURE))
    proved = torch.zeros_like(running)
    if now.verdict is not None:
        proved = running & (now.verdict >= 0) & ~(now.error <= 1)
        ending = torch.where(proved, now.verdict, ending)
    ending = torch.where(now.error <= 1, int(Status.CONVERGED), ending)
    ends = running & (ending >= 0)
    return torch.where(ends, ending, status), running & ~ends, proved
