"""Solutions that end at an event: where a function of the state changes its sign."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..solution import OnFailure, report, succeeded
from ..state import Form, State, form_of
from .adjoint import Adjoint, Backsolve, Discrete, policy_of
from .arguments import check_options, packed, times_of
from .course import driven
from .march import March
from .methods import Adaptive, Dopri5
from .step import flat_field
from .watch import Event, Watch


@dataclass(frozen=True)
class EventSolution:
    """Where a batch of solutions met its events; t and y are differentiable.

    Attributes:
        t: the time of the event, `(B,)`, float64; the last time where there was none.
        y: the state there, `(B, ...)`, or a tuple of such tensors, like y0.
        happened: whether there was one, `(B,)`.
        status: `Status` codes, `(B,)`; CONVERGED: an event, or the last time, was reached.
        steps, rejected: steps accepted and not, `(B,)`.
        evaluations: of f while the sample was under way, `(B,)`.
    """

    t: Tensor
    y: Any
    happened: Tensor
    status: Tensor
    steps: Tensor
    rejected: Tensor
    evaluations: Tensor


def odeint_event(
    f: Callable[[Tensor, Any], Any],
    y0: State,
    t: Tensor,
    event: Callable[[Tensor, Any], Tensor],
    *,
    direction: int = 0,
    solver: Adaptive | None = None,
    adjoint: Adjoint | None = None,
    on_failure: OnFailure = "warn",
) -> EventSolution:
    """The first t at which event(t, y) = 0, and y there; differentiable in everything.

    Every sample ends at its own event. By the implicit function theorem for the one unknown t,
    dt = -(dg + g_y dy) / (g_t + g_y f), with g the event and dy the derivative of the state at a
    fixed time.

    Args:
        f, y0, solver, on_failure: as in `odeint`; the solver is adaptive.
        t: `(2,)`, or `(B, 2)`: the time of y0, and the last time; t may run backwards.
        event: (t, y) -> g `(B,)`, with t `(B,)` in the dtype of y, and y like y0. Its parameters
            get their derivatives, too. An event is a change of the sign of g from one step to the
            next: two changes within one step are missed (see `max_step` of the solver), and so is
            a touch without a crossing. Where g is exactly zero at the start, the first sign that
            it takes afterwards counts as that of the start.
        direction: 1 for events at which g rises as the solution goes on, -1 for those at which it
            falls, 0 for both. Where a solution starts on an event, up to rounding, say which.
        adjoint: `Discrete()` (default), `Checkpointed(n)` or `Unrolled()`.

    Returns:
        `EventSolution`: `t`, `y`, `happened`, and how it went. Of a sample without an event t is
        the last time, and that is no failure.

    Raises:
        ValueError: as `odeint`; if event(t, y) is not `(B,)`, or the solver has fixed steps.
        ConvergenceError: under ``on_failure="raise"``, if a sample failed.

    Accuracy: t is a root of g on one step of the solver, up to rounding; the step from where the
    last one ended to t is as accurate as any other.

    Example:
        A ball dropped from h = 20, under g = 10, meets the ground at t = sqrt(2 h / g) = 2, with
        dt/dh = 1 / (g t) = 0.05, dt/dv = t / (g t) = 0.1, and a velocity of -g t = -20:

        >>> y0 = torch.tensor([[20.0, 0.0]], dtype=torch.float64, requires_grad=True)
        >>> fall = lambda t, y: torch.stack([y[:, 1], -10 + 0 * y[:, 0]], 1)
        >>> sol = odeint_event(fall, y0, torch.tensor([0.0, 9.0]), lambda t, y: y[:, 0])
        >>> sol.t.detach(), sol.y[:, 1].detach()
        (tensor([2.], dtype=torch.float64), tensor([-20.], dtype=torch.float64))
        >>> torch.autograd.grad(sol.t.sum(), y0)[0]
        tensor([[0.0500, 0.1000]], dtype=torch.float64)

    Source: Chen, Amos & Nickel, "Learning Neural Event Functions for Ordinary Differential
    Equations" (ICLR 2021); the derivative here is that of the steps that were taken.
    """
    solver = Dopri5() if solver is None else solver
    adjoint = Discrete() if adjoint is None else adjoint
    check_options(solver, adjoint, on_failure)
    _check(solver, adjoint, direction, t)
    form = form_of(y0, "y0", "f(t, y)")
    y = packed(form, y0)
    times = times_of(t, y)
    policy = policy_of(adjoint)
    march = March(solver, flat_field(f, form), policy.follow, policy.order)
    watch = Watch(march, _flat_event(event, form), direction)
    seen = driven(watch.run, watch.start(times, y), solver.max_steps, policy.every)
    when, y, status = watch.ended(seen)
    report(status, when.detach(), on_failure, "odeint_event", None, "up to t = {:.6g}")
    ok, fill = succeeded(status), torch.nan if on_failure == "nan" else y.detach()
    if not bool(ok.all()):
        y = torch.where(ok.unsqueeze(1), y, fill)
        when = torch.where(ok, when, torch.nan if on_failure == "nan" else when.detach())
    clock, spent = seen.at.clock, march.evaluations(seen.at)
    rejected = clock.tried - clock.accepted
    return EventSolution(
        when, form.unpack(y), seen.happened, status, clock.accepted, rejected, spent
    )


def _flat_event(event: Callable[[Tensor, Any], Tensor], form: Form) -> Event:
    """The user's event on flat states, what it returns checked."""

    def flat(t: Tensor, y: Tensor) -> Tensor:
        value = event(t.to(y.dtype), form.unpack(y))
        if not isinstance(value, Tensor) or value.shape != t.shape:
            kind = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"event(t, y) is {kind}: expected one number a sample, shape {tuple(t.shape)}"
            )
        return value

    return flat


def _check(solver: object, adjoint: object, direction: object, t: Tensor) -> None:
    if not isinstance(solver, Adaptive):
        raise ValueError(f"solver={solver!r}: expected an adaptive one, for example Dopri5()")
    if isinstance(adjoint, Backsolve):
        raise ValueError(f"adjoint={adjoint!r}: expected Discrete(), Checkpointed() or Unrolled()")
    if direction not in (-1, 0, 1):
        raise ValueError(f"direction={direction!r}: expected 1 (g rises), -1 (g falls) or 0 (both)")
    if isinstance(t, Tensor) and (t.ndim not in (1, 2) or t.shape[-1] != 2):
        raise ValueError(
            f"t has shape {tuple(t.shape)}: expected (2,) or (B, 2), the time of y0 and "
            "the last one"
        )
