"""Minimisers of f(z) + r(z) with a derivative: `projected_gradient`, `proximal_gradient`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backward import BackwardRecord, Direct, Method, check_operator
from ..linear import GMRES
from ..nodes import recorded
from ..solution import OnFailure, check_on_failure, fill_failed, report, succeeded
from .composite import Composite
from .fista import FISTA
from .proximal import L1, ElasticNet, GroupLasso, NonnegativeL1, Projected

__all__ = [
    "FISTA", "L1", "Direct", "ElasticNet", "GroupLasso", "NonnegativeL1", "Projected",
    "ProximalSolution", "projected_gradient", "proximal_gradient",
]  # fmt: skip


@dataclass(frozen=True)
class ProximalSolution:
    """The minimisers of a batch of functions; z is differentiable.

    Attributes:
        z: the minimiser, `(*B, n)`.
        status: `Status` codes, `(*B,)`.
        steps: steps of the solver, each with one gradient of the objective, `(*B,)`.
        residual: a bound on |z - prox(z - step grad f(z), step)| / step, `(*B,)`: the length of
            the gradient, where there is no constraint or penalty. Infinite if no z was found.
        backward: what the last backward pass did, see `BackwardRecord`.
    """

    z: Tensor
    status: Tensor
    steps: Tensor
    residual: Tensor
    backward: BackwardRecord


def projected_gradient(
    objective: Callable[[Tensor], Tensor],
    projection: Callable[[Tensor], Tensor],
    z0: Tensor,
    *,
    solver: FISTA = FISTA(),  # noqa: B008 (a frozen value)
    operator: Method | None = None,
    order: int = 1,
    on_failure: OnFailure = "warn",
) -> ProximalSolution:
    """The minimisers of a batch of smooth convex functions over convex sets, differentiable.

        minimise f(z)    subject to    z in C

    z is differentiable with respect to every tensor that `objective` and `projection` close over,
    parameters of modules included, with no list of them. The derivative is that of the condition
    z = projection(z - step grad f(z)) and does not depend on the step or on how z was found.

    Args:
        objective: f, from `(*B, n)` to one number a sample, `(*B)`: convex, with a continuous
            gradient, of sample i of z only, the same function at every call.
        projection: z -> the point of C nearest to z, `(*B, n)` both, C convex.
        z0: where to begin, `(*B, n)`, float32 or float64, in C or not. It gets no gradient.
        solver: the method and its settings.
        operator: how the derivative's linear system is solved, as in `fixed_point`: `GMRES()`
            (default, exact), `linear.Anderson()` (exact), `Direct()` (exact, n small),
            `Neumann(k)` or `Identity()` (biased).
        order: how many derivatives are exact; one more raises.
        on_failure: for a sample that was not solved, or whose linear system was not: "warn" (best
            iterate, zero gradient, one warning that names the samples), "raise", "nan" (NaN in
            the value), "ignore". Other samples never notice.

    Returns:
        `ProximalSolution`. A sample ends as NUMERICAL_FAILURE where f is not finite, and as
        INVALID_INPUT where `projection` moves a point that it has projected already.

    Raises:
        ValueError: if `z0` is no floating-point vector, or `objective` or `projection` return
            another shape or dtype than they must, or `objective` has no gradient in z, or an
            option does not fit.
        ConvergenceError: under ``on_failure="raise"``, if a sample failed.

    Accuracy: `residual` is as ``solver.tol`` says, and the distance of z from the minimiser at
    most about `residual` / (smallest curvature of f). Where gradients are recorded, z
    is moved by a Newton step on its face of the set, which leaves rounding only of a quadratic f,
    and then projected. The derivative is exact to the same error; at a kink (a constraint that is
    active with a multiplier of zero) it is the one that autograd gives to `projection` there.

    A sample whose data are NaN fails alone, but autograd multiplies its zero gradient by those
    data: a weight that enters f times them, and is shared, gets NaN. Mask such data.

    Example:
        minimise (z - x)^2 / 2 over z <= 1 has z = min(x, 1):

        >>> x = torch.tensor([[3.0], [0.5]], requires_grad=True)
        >>> sol = projected_gradient(
        ...     lambda z: ((z - x) ** 2 / 2).sum(-1), lambda z: z.clamp(max=1.0), torch.zeros(2, 1)
        ... )
        >>> sol.z.detach().flatten(), torch.autograd.grad(sol.z.sum(), x)[0].flatten()
        (tensor([1.0000, 0.5000]), tensor([0., 1.]))

    Source: Blondel et al., "Efficient and Modular Implicit Differentiation" (NeurIPS 2022), the
    projected-gradient and proximal-gradient fixed points; `fista` for the solver.
    """
    return proximal_gradient(
        objective,
        Projected(projection),
        z0,
        solver=solver,
        operator=operator,
        order=order,
        on_failure=on_failure,
    )


def proximal_gradient(
    objective: Callable[[Tensor], Tensor],
    prox: Callable[[Tensor, Tensor], Tensor],
    z0: Tensor,
    *,
    solver: FISTA = FISTA(),  # noqa: B008 (a frozen value)
    operator: Method | None = None,
    order: int = 1,
    on_failure: OnFailure = "warn",
) -> ProximalSolution:
    """The minimisers of a batch of sums f(z) + r(z), r convex but not smooth, differentiable.

    All is as in `projected_gradient`, whose r is 0 on the set and infinite outside.

    Args:
        objective: f, `(*B, n)` to `(*B)`.
        prox: the penalty r as its proximal operator (see `proximal`): (v, step), `(*B, n)` and
            `(*B, 1)`, to the minimiser over z of step r(z) + |z - v|^2 / 2, `(*B, n)`.
        z0, solver, operator, order, on_failure: as in `projected_gradient`.

    Returns:
        `ProximalSolution`. Entries that `prox` sets to zero are exactly zero.

    Raises:
        ValueError: as in `projected_gradient`, of `prox` for `projection`.
        ConvergenceError: under ``on_failure="raise"``, if a sample failed.

    Example:
        minimise |z - x|^2 / 2 + |z|_1 has z = x moved towards zero by 1:

        >>> x = torch.tensor([3.0, 0.5], requires_grad=True)
        >>> sol = proximal_gradient(lambda z: ((z - x) ** 2 / 2).sum(-1), L1(1.0), torch.zeros(2))
        >>> torch.round(sol.z.detach(), decimals=5)
        tensor([2., 0.])
        >>> torch.round(torch.autograd.grad(sol.z.sum(), x)[0], decimals=5)
        tensor([1., 0.])
    """
    check_on_failure(on_failure)
    method = GMRES() if operator is None else operator
    check_operator(method, order)
    problem = Composite.of(objective, prox, z0)
    found = problem.found(solver)
    report(found.status, found.residual, on_failure, "proximal gradient method")
    z, step = found.value
    record = BackwardRecord()
    if recorded():
        solved = succeeded(found.status).unsqueeze(-1)
        z, record = problem.attached(z, step, solved, method, on_failure, order)
    if on_failure == "nan":
        z = fill_failed(z, found.status, torch.nan)
    return ProximalSolution(z, found.status, found.steps, found.residual, record)
