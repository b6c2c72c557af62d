"""Minimisers of smooth problems with a derivative: `argmin`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..implicit import check_order
from ..nodes import recorded
from ..qp.options import Degenerate, check_choice
from ..solution import OnFailure, Status, check_on_failure, report, succeeded
from .answer import ArgminSolution, nothing, shaped
from .arguments import Limit, flatten, problem_of
from .foreign import Foreign, ScipyMinimize
from .problem import Multipliers, Problem
from .root import attached
from .settle import Candidate, multipliers_at, settled
from .sqp import SQP

__all__ = ["SQP", "ArgminSolution", "Problem", "ScipyMinimize", "argmin"]


def argmin(
    objective: Callable[[Tensor], Tensor],
    z0: Tensor,
    *,
    inequality: Callable[[Tensor], Tensor] | None = None,
    equality: Callable[[Tensor], Tensor] | None = None,
    lb: Limit = None,
    ub: Limit = None,
    solver: SQP | Foreign = SQP(),  # noqa: B008 (a frozen value)
    warm_start: ArgminSolution | None = None,
    order: int = 1,
    degenerate: Degenerate = "central",
    on_failure: OnFailure = "warn",
) -> ArgminSolution:
    """Local minimisers of a batch of smooth problems, with their multipliers, differentiable.

        minimise f(z)    subject to    c(z) <= 0,   e(z) = 0,   lb <= z <= ub

    The answer satisfies the KKT conditions: feasibility, grad f + c'(z)'lam + e'(z)'nu + mu = 0,
    and multipliers that are zero unless their limit is active, with lam >= 0 and mu positive at ub
    and negative at lb. z, lam, nu and mu are differentiable with respect to every tensor that the
    functions close over, parameters of modules included, with no list of them, and to lb and ub.

    Args:
        objective: f, `(*B, n)` to `(*B)`, twice differentiable by autograd, convex or not. Sample
            i of f(z) depends on sample i of z only. It must be the same function at every call.
        z0: where to begin, `(*B, n)`, float32 or float64. Which of several local minima is found
            depends on it. It gets no gradient.
        inequality: c, `(*B, n)` to `(*B, m)`, as smooth as f; None for no such constraint.
        equality: e, `(*B, n)` to `(*B, e)`, likewise.
        lb, ub: numbers, or tensors that broadcast to `(*B, n)`; infinite entries mean no bound,
            lb == ub fixes an unknown. Every point at which the functions are evaluated is within
            them, so that a logarithm can be protected.
        solver: `SQP()`; `ScipyMinimize()`; or any function `(problem, z0) -> z`, where problem is
            a `Problem`, z0 and z are `(B, n)` in float64, the batch flattened. It may return
            (z, nu, lam, mu) in place of z, multipliers of the signs above, each `(B, ...)` or
            None. It is called under `torch.no_grad`, and is not believed: a sample whose KKT
            residual is above 1e-4 is a failure, and others are brought to rounding by a few steps
            of Newton.
        warm_start: the `ArgminSolution` of a similar problem, whose z and multipliers are where
            the samples that succeeded there begin, in place of z0.
        order: how many derivatives are exact; one more raises.
        degenerate: what a weakly active limit (active with a multiplier of zero, where the
            solution has a kink) counts as in the derivative: "central", "active" or "inactive",
            as in `solve_qp`.
        on_failure: for a sample that was not solved, or has no derivative: "warn" (best iterate,
            zero gradient, one warning that names the samples), "raise", "nan" (NaN in the value,
            and in the gradient if the value was used), "ignore". Other samples never notice, but
            a parameter that all share has a gradient of NaN if it has one of NaN in any sample.

    Returns:
        `ArgminSolution`. A status PRIMAL_INFEASIBLE means that the violation of the constraints
        has a local minimum there, DUAL_INFEASIBLE that f fell below -1e20.

    Raises:
        ValueError: if z0 is no such tensor, a function returns another shape or dtype than it
            must, f has no gradient, samples are mixed, lb > ub, or an option does not fit.
        ConvergenceError: under ``on_failure="raise"``, if a sample failed.

    The work is done in float64 whatever the dtype: for a z0 in float32 the functions see float64
    wherever torch would have float32, and the answers and gradients are float32. The functions
    are evaluated for the whole batch, also when only some samples still need them.

    Without constraints the method is Newton's with a line search, with equalities only one linear
    system a step; else a step is a batch of QPs, see `SQP`. The derivative is that of the KKT
    conditions with the active set held, as in `solve_qp`: dependent constraints leave a choice of
    multipliers, and get those of least Euclidean norm and derivatives by the pseudo-inverse.
    Where the Hessian of the Lagrangian has a direction of no or negative curvature along the
    constraints (no strict local minimum) there is no derivative, which the backward pass
    reports.

    Accuracy: `residuals` of ``solver.tol`` at most where CONVERGED, and, at a strict minimum,
    1e-14 typically, as Newton steps end every solve. Derivatives are exact up to that.

    Example:
        The point of the parabola z_1 = z_0^2 nearest to (0, x): z_0^2 = x - 1/2 for x > 1/2, so
        that z = (1, 1) for x = 3/2, with dz/dx = (1/2, 1):

        >>> x = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
        >>> sol = argmin(
        ...     lambda z: z[..., 0] ** 2 + (z[..., 1] - x) ** 2,
        ...     torch.tensor([[2.0, 0.0]], dtype=torch.float64),
        ...     equality=lambda z: z[..., 1:] - z[..., :1] ** 2,
        ... )
        >>> torch.round(sol.z.detach(), decimals=8)
        tensor([[1., 1.]], dtype=torch.float64)
        >>> [round(torch.autograd.grad(v, x, retain_graph=True)[0].item(), 8) for v in sol.z[0]]
        [0.5, 1.0]

    Source: Gould, Hartley & Campbell, "Deep Declarative Networks" (IEEE TPAMI 2022), for such
    layers; Fiacco, "Sensitivity analysis for nonlinear programming using penalty methods" (Math.
    Programming 10, 1976), for the derivative; Nocedal & Wright, Numerical Optimization (2nd ed.,
    2006), chapter 18, for SQP.
    """
    _check_options(solver, warm_start, order, degenerate, on_failure)
    problem = problem_of(objective, z0, inequality, equality, lb, ub)
    if not z0.numel():
        return nothing(problem, z0)
    with torch.no_grad():
        z, y = _start(problem, z0, warm_start)
        found = _found(problem, z, y, solver)
        tol = solver.tol if isinstance(solver, SQP) else SQP.tol
        out = settled(problem, found, tol, degenerate)
    report(out.status, out.residuals.worst(), on_failure, "argmin")
    z, y = out.z, out.y
    if recorded():
        z, y = attached(problem, out, order, on_failure)
    return shaped(problem, out, z, y, found.steps, z0, on_failure)


def _start(problem: Problem, z0: Tensor, warm: ArgminSolution | None) -> tuple[Tensor, Multipliers]:
    """Where each sample begins, flat."""
    z = flatten(z0)
    y = problem.none(z)
    if warm is None:
        return problem.clamp(z), y
    parts = []
    for name, own in zip(("z", "nu", "lam", "mu"), (z, *y), strict=True):
        value = getattr(warm, name).detach()
        if value.shape != (*z0.shape[:-1], own.shape[-1]) or value.device != own.device:
            raise ValueError(
                f"warm_start.{name} has shape {tuple(value.shape)}, but this problem needs "
                f"{(*z0.shape[:-1], own.shape[-1])} on {own.device}: pass the solution of a "
                "problem of the same sizes"
            )
        value = value.to(own.dtype).reshape(own.shape)
        good = succeeded(warm.status).reshape(-1, 1) & value.isfinite()
        parts.append(torch.where(good, value, own))
    return problem.clamp(parts[0]), Multipliers(*parts[1:])


def _found(problem: Problem, z0: Tensor, y0: Multipliers, solver: SQP | Foreign) -> Candidate:
    """What the solver says is the minimiser."""
    if isinstance(solver, SQP):
        out = solver.solve(problem, z0, y0)
        return Candidate(out.value.z, out.value.y, out.status, out.steps)
    answer = solver(problem, z0)
    z, *given = answer if isinstance(answer, tuple) else (answer,)
    z = problem.clamp(_returned("z", z, z0))
    if len(given) not in (0, 3):
        raise ValueError(
            f"solver returned a tuple of {len(given) + 1}: expected z, or (z, nu, lam, mu)"
        )
    missing = not given or any(value is None for value in given)
    y = list(multipliers_at(problem, z) if missing else problem.none(z))
    for i, (name, value) in enumerate(zip(("nu", "lam", "mu"), given, strict=False)):
        y[i] = y[i] if value is None else _returned(name, value, y[i])
    status = torch.full((len(z),), int(Status.ITERATION_LIMIT), device=z.device)
    return Candidate(z, Multipliers(*y), status, torch.zeros_like(status))


def _returned(name: str, value: object, like: Tensor) -> Tensor:
    """What a foreign solver returned for `name`, checked."""
    if not isinstance(value, Tensor) or value.shape != like.shape:
        shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"
        raise ValueError(
            f"solver returned {name} of {shape}: expected a tensor of shape {tuple(like.shape)}"
        )
    return value.detach().to(like)


def _check_options(
    solver: object, warm_start: object, order: object, degenerate: object, on_failure: str
) -> None:
    check_on_failure(on_failure)
    check_order(order)
    if isinstance(solver, type) or not (isinstance(solver, SQP) or callable(solver)):
        raise ValueError(
            f"solver={solver!r}: expected an SQP(), a ScipyMinimize() or a function of "
            "(problem, z0)"
        )
    if warm_start is not None and not isinstance(warm_start, ArgminSolution):
        kind = type(warm_start).__name__
        raise ValueError(f"warm_start is a {kind}: expected the ArgminSolution of an earlier call")
    check_choice("degenerate", degenerate)
