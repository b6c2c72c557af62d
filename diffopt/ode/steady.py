"""Where the solution of an autonomous ODE comes to rest: `steady_state`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..fixed_point import FixedPoint, FixedPointSolver, NewtonKrylov, fixed_point
from ..fixed_point.backward import Backward
from ..fixed_point.loop import Map, Settings, finished
from ..iterate import Measure
from ..solution import OnFailure, Solution, check_counts, check_positive, succeeded
from ..state import State, form_of
from .course import course_of
from .methods import Adaptive, Dopri5

NOISE = 100.0  # times its tolerance: closer to rest than this, time stepping jitters


class _Stretch(NamedTuple):
    """Where a sample is, and for how long it goes on, `(B, 1)`."""

    z: Tensor
    span: Tensor


@dataclass(frozen=True, kw_only=True)
class TimeStepping:
    """Follow y' = f(y) until it nearly rests, and let a fixed-point solver finish.

    Stretches of time span, 2 span, 4 span, ... are stepped through, until |f(y)| span is within
    100 times the tolerance of `method`. A steady state that is approached in this way is stable;
    a fixed-point solver alone may find any. One that has not been approached is not finished, and
    ends as ITERATION_LIMIT: y goes round, or off to infinity, or is slow.

    Attributes:
        method: the method of time stepping, with its tolerances.
        span: the first stretch, in units of t: a time in which y moves, if it is not at rest.
        stretches: the most of them, each ends early after `method.max_steps` steps; 20 of full
            length reach the time 1e6 span.
        finish: takes over near the steady state, with its own tolerances.

    Example:
        >>> flow = lambda y: y + (y - y**3)         # y' = y - y^3, as a fixed point: y + y'
        >>> TimeStepping().solve(flow, torch.tensor([[0.1], [-0.1]])).value.round(decimals=4)
        tensor([[ 1.],
                [-1.]])
    """

    method: Adaptive = Dopri5(rtol=1e-5, atol=1e-8, max_steps=200)
    span: float = 1.0
    stretches: int = 20
    finish: FixedPointSolver = NewtonKrylov()

    def __post_init__(self) -> None:
        check_positive(self, "span")
        check_counts(self, "stretches")
        if not isinstance(self.method, Adaptive):
            raise ValueError(
                f"TimeStepping(method={self.method!r}): expected a method with adaptive steps, "
                "for example Dopri5()"
            )

    def solve(self, f: Map, z0: Tensor) -> Solution:
        """z with f(z) = z, `(B, n)`, where y' = f(y) - y leads from z0."""
        near = self._stepped(f, z0)
        end = self.finish.solve(f, near.value)
        arrived = succeeded(near.status)
        return Solution(
            torch.where(arrived.unsqueeze(1), end.value, near.value),
            torch.where(arrived, end.status, near.status),
            near.steps + torch.where(arrived, end.steps, 0),
            torch.where(arrived, end.residual, near.residual),
        )

    def _stepped(self, f: Map, z0: Tensor) -> Solution:
        close = Settings(
            rtol=NOISE * self.method.rtol, atol=NOISE * self.method.atol, max_steps=self.stretches
        )

        def measure(at: _Stretch) -> Measure:
            error = close.error(self.span * (f(at.z) - at.z), at.z)
            return Measure(error, carry=error.unsqueeze(1) > 1)

        def step(at: _Stretch, moving: Tensor) -> _Stretch:
            ends = torch.where(moving, at.span, 0.0).double()
            times = torch.cat([torch.zeros_like(ends), ends], 1)
            way = course_of(lambda t, y: f(y) - y, times, at.z, self.method)
            return _Stretch(way.ys[:, -1], 2 * at.span)

        return finished(close, measure, step, _Stretch(z0, torch.full_like(z0[:, :1], self.span)))


def steady_state(
    f: Callable[[Any], Any],
    y0: State,
    *,
    solver: TimeStepping | FixedPointSolver | None = None,
    operator: Backward | None = None,
    order: int = 1,
    on_failure: OnFailure = "warn",
) -> FixedPoint:
    """The y with f(y) = 0 to which y' = f(y) leads from y0, differentiable in all f closes over.

    It is the fixed point of y + f(y), and `fixed_point` does the work: by the implicit function
    theorem dy/dtheta = -f'(y)^-1 df/dtheta. No step of time is differentiated, and y0 has no
    gradient.

    Args:
        f: y -> dy/dt, like y; sample i of f depends on sample i of y only.
        y0: `(B, ...)`, or a tuple of such tensors.
        solver: `TimeStepping()` (default), or a solver of `fixed_point`, which is faster and may
            find a steady state that y(t) never approaches, or none if |f'| is far from 1.
        operator, order, on_failure: see `fixed_point`.

    Returns:
        `FixedPoint`, whose `z` is the steady state; `steps` counts stretches of time and the steps
        of the solver that finishes.

    Raises:
        ValueError: as `fixed_point`.
        ConvergenceError: under ``on_failure="raise"``, if a sample failed.

    Accuracy: |f(y)| <= atol + rtol |y + f(y)|, with those of `TimeStepping.finish`.

    Example:
        y' = a - y^2 rests at sqrt(a), with derivative 1 / (2 sqrt(a)) in a:

        >>> a = torch.full((1, 1), 4.0, dtype=torch.float64, requires_grad=True)
        >>> y = steady_state(lambda y: a - y * y, torch.ones_like(a)).z
        >>> round(y.item(), 6), round(torch.autograd.grad(y.sum(), a)[0].item(), 6)
        (2.0, 0.25)

    Source: the relation of equilibrium models and ODEs: Bai, Kolter & Koltun, "Deep Equilibrium
    Models" (NeurIPS 2019); time stepping to a steady state: Kelley & Keyes, "Convergence analysis
    of pseudo-transient continuation" (SIAM J. Numer. Anal. 1998).
    """
    form = form_of(y0, "y0", "f(y)")
    flat = form.flat(f)
    found = fixed_point(
        lambda y: y + flat(y),
        form.pack(y0),
        solver=TimeStepping() if solver is None else solver,
        operator=operator,
        order=order,
        on_failure=on_failure,
    )
    return replace(found, z=form.unpack(found.z))
