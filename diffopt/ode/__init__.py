"""Solutions of ordinary differential equations as layers: y' = f(t, y)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..implicit import implicit_root_of
from ..operators import Identity
from ..solution import OnFailure, report, succeeded
from ..state import Form, State, form_of
from .adjoint import Adjoint, Backsolve, Checkpointed, Discrete, Unrolled, policy_of
from .arguments import check_options, packed, times_of
from .backsolve import Backsolver, BacksolveRecord, captured, looser
from .course import Course, course_of
from .events import EventSolution, odeint_event
from .methods import RK4, Adaptive, Bosh3, Dopri5, Dopri8, Euler, Heun, Midpoint, Solver, Tsit5
from .regularise import JacobianNorm, Kinetic, Taylor, regularised
from .steady import TimeStepping, steady_state
from .step import Slope, flat_field
from .stiff import ImplicitEuler, Kvaerno3, Kvaerno5, Trapezoid

__all__ = [
    "Backsolve", "Bosh3", "Checkpointed", "Discrete", "Dopri5", "Dopri8", "Euler", "EventSolution",
    "Heun", "ImplicitEuler", "JacobianNorm", "Kinetic", "Kvaerno3", "Kvaerno5", "Midpoint",
    "ODESolution", "RK4", "Taylor", "TimeStepping", "Trapezoid", "Tsit5", "Unrolled", "odeint",
    "odeint_event", "regularised", "steady_state",
]  # fmt: skip


@dataclass(frozen=True)
class ODESolution:
    """A batch of solutions; ys is differentiable.

    Attributes:
        ys: the states at the times t, `(B, T, ...)`, or a tuple of such tensors, like y0.
        status: `Status` codes, `(B,)`; CONVERGED: the last time was reached.
        t: the time reached, `(B,)`: the last one, or where a failure happened.
        steps, rejected: steps accepted and not, `(B,)`.
        evaluations: of f in the steps while the sample was under way, `(B,)`; a Jacobian counts as
            one. (Output between the steps of `Dopri8` takes three more a step.)
        backward: what the last backward pass did, see `BacksolveRecord`; None but for `Backsolve`.
    """

    ys: Any
    status: Tensor
    t: Tensor
    steps: Tensor
    rejected: Tensor
    evaluations: Tensor
    backward: BacksolveRecord | None = None

    @property
    def y1(self) -> Any:
        """The states at the last time, `(B, ...)`."""
        if isinstance(self.ys, Tensor):
            return self.ys[:, -1]
        return tuple(y[:, -1] for y in self.ys)


def odeint(
    f: Callable[[Tensor, Any], Any],
    y0: State,
    t: Tensor,
    *,
    solver: Solver | None = None,
    adjoint: Adjoint | None = None,
    on_failure: OnFailure = "warn",
) -> ODESolution:
    """y with y' = f(t, y), and y0 at the first of the times t; differentiable in f, y0 and t.

    Every sample steps by itself: it has its own times, its own steps and its own status, and a
    stiff one does not slow its neighbours down.

    Args:
        f: (t, y) -> dy/dt, like y. t comes as `(B, 1, ..., 1)`, with as many dimensions as y (as
            its first part, of a tuple), so that it broadcasts, in the dtype of y; it differs from
            sample to sample. Sample i of f depends on sample i of y only. It must be the same
            function at every call: no fresh dropout masks, no running statistics, y not changed in
            place.
        y0: `(B, ...)`, or a tuple of such tensors.
        t: output times, `(T,)`, or `(B, T)` of every sample; increasing or decreasing. The first
            is that of y0.
        solver: adaptive: `Dopri5()` (default), `Tsit5()`, `Bosh3()`, `Dopri8()`, with their
            tolerances; with fixed steps: `Euler()`, `Midpoint()`, `Heun()`, `RK4()`. For stiff
            equations: `Kvaerno5()`, `Kvaerno3()`; with fixed steps `ImplicitEuler()`,
            `Trapezoid()`.
        adjoint: `Discrete()` (default): the exact derivative of what was computed.
            `Checkpointed(n)`: the same, with less memory and more time. `Backsolve()`: the
            continuous adjoint. `diffopt.ode.Unrolled()`: through the choice of the steps too.
        on_failure: for a sample that did not reach its last time: "warn" (the last good state
            from there on, zero gradient, one warning that names the samples), "raise", "nan",
            "ignore" (as "warn", without the warning).

    Returns:
        `ODESolution`: `ys` `(B, T, ...)`, `y1` the last of them, and how it went.

    Raises:
        ValueError: if y0 is no state, f(t, y) is not like y0, or t is not strictly monotonic.
        ConvergenceError: under ``on_failure="raise"``, if a sample failed.

    Accuracy: the local error of a step is held to the tolerance; the global one is larger by what
    the differential equation makes of it. Output between the steps is one order lower. t is kept
    in float64.

    Example:
        y' = a y has y(1) = exp(a), with derivative exp(a) in a:

        >>> a = torch.ones(1, dtype=torch.float64, requires_grad=True)
        >>> y0, t = torch.ones(1, 1, dtype=torch.float64), torch.tensor([0.0, 1.0])
        >>> y = odeint(lambda t, y: a * y, y0, t).y1
        >>> y.detach(), torch.autograd.grad(y.sum(), a)[0]
        (tensor([[2.7183]], dtype=torch.float64), tensor([2.7183], dtype=torch.float64))

    Source: Chen, Rubanova, Bettencourt & Duvenaud, "Neural Ordinary Differential Equations"
    (NeurIPS 2018); a step for every sample: Lienen & Gunnemann, "torchode" (NeurIPS 2022 workshop).
    """
    solver = Dopri5() if solver is None else solver
    adjoint = Discrete() if adjoint is None else adjoint
    check_options(solver, adjoint, on_failure)
    form = form_of(y0, "y0", "f(t, y)")
    y = packed(form, y0)
    times = times_of(t, y)
    field = flat_field(f, form)
    way, record = _solved(field, times, y, solver, adjoint, on_failure)
    report(way.status, way.t, on_failure, "odeint", None, "up to t = {:.6g}")
    return ODESolution(
        _shaped(_filled(way, on_failure), form),
        way.status,
        way.t,
        way.accepted,
        way.tried - way.accepted,
        way.evaluations,
        record,
    )


def _solved(
    field: Slope, times: Tensor, y: Tensor, solver: Solver, adjoint: Adjoint, on_failure: OnFailure
) -> tuple[Course, BacksolveRecord | None]:
    if not isinstance(adjoint, Backsolve):
        return course_of(field, times, y, solver, policy_of(adjoint)), None
    record = BacksolveRecord()
    with torch.no_grad():
        way = course_of(field, times, y, solver)
    if not torch.is_grad_enabled():
        return way, record
    back = adjoint.solver or Dopri5()
    if adjoint.solver is None and isinstance(solver, Adaptive) and not solver.tableau.implicit:
        back = solver
    leaves = captured(field, times, way.ys)
    pull_back = Backsolver(
        field, times.detach(), leaves, succeeded(way.status), back, looser(solver, back), record,
        on_failure,
    )  # fmt: skip
    states = way.ys.flatten(1)
    root = implicit_root_of(states, Identity(), pull_back, (states, *leaves), (y, times, *leaves))
    return way._replace(ys=root.view_as(way.ys)), record


def _filled(way: Course, on_failure: OnFailure) -> Tensor:
    """ys, without a derivative in the samples that failed."""
    ok = succeeded(way.status).view(-1, 1, 1)
    if bool(ok.all()):
        return way.ys
    return torch.where(ok, way.ys, torch.nan if on_failure == "nan" else way.ys.detach())


def _shaped(ys: Tensor, form: Form) -> Any:
    """`(B, T, n)` as the user's states, `(B, T, ...)`."""
    parts = ys.split([shape.numel() for shape in form.shapes], 2)
    shaped = tuple(
        v.unflatten(2, s) if len(s) != 1 else v for v, s in zip(parts, form.shapes, strict=True)
    )
    return shaped[0] if form.single else shaped
