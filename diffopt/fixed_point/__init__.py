"""Layers whose output is a fixed point, z = f(z): deep equilibrium models and their relatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backward import BackwardRecord, Direct, check_operator
from ..implicit import implicit_root, still
from ..linear import GMRES
from ..nodes import recorded
from ..solution import OnFailure, Solution, check_on_failure, report, succeeded
from ..state import Form, State, form_of
from .anderson import Anderson
from .backward import Backward, Handover, Unrolled, operator_for
from .broyden import Broyden, BroydenInverse
from .jacobian import jacobian_penalty, spectral_radius
from .loop import FixedPointSolver, Map
from .newton_krylov import NewtonKrylov
from .picard import Picard

__all__ = [
    "Anderson", "Broyden", "Direct", "FixedPoint", "FixedPointSolver", "Handover", "NewtonKrylov",
    "Picard", "Unrolled", "fixed_point", "jacobian_penalty", "spectral_radius",
]  # fmt: skip


@dataclass(frozen=True)
class FixedPoint:
    """A batch of fixed points; z is differentiable.

    Attributes:
        z: `(B, ...)` or a tuple of such tensors, like z0; of a sample that failed, the best seen.
        status: `Status` codes, `(B,)`.
        steps: evaluations of f after the first, `(B,)`.
        residual: |f(z) - z| in units of the tolerance, `(B,)`: at most 1 where CONVERGED.
        backward: what the last backward pass did, see `BackwardRecord`.
        history: the residual before every step, `(steps, B)`, if the solver keeps it.
    """

    z: Any
    status: Tensor
    steps: Tensor
    residual: Tensor
    backward: BackwardRecord
    history: Tensor | None = None


def fixed_point(
    f: Callable[[Any], Any],
    z0: State,
    *,
    solver: FixedPointSolver | None = None,
    operator: Backward | None = None,
    order: int = 1,
    on_failure: OnFailure = "warn",
) -> FixedPoint:
    """z with z = f(z), for every sample, differentiable in all that f closes over.

    By the implicit function theorem dz/dtheta = (I - f'(z))^-1 df/dtheta, whatever solver found z
    and from wherever it started: z0 has no gradient.

    Args:
        f: maps a state to one like it; sample i of f(z) depends on sample i of z only. It must be
            the same function at every call: no fresh dropout masks, no running statistics.
        z0: `(B, ...)`, or a tuple of such tensors (several scales); where to begin.
        solver: `Anderson()` (default), `Broyden()`, `NewtonKrylov()` or `Picard()`, with their
            tolerances.
        operator: how (I - f')^T u = v is solved in the backward pass. A method of `linear`:
            `GMRES()` (default, exact), `linear.Anderson()` (exact), `Neumann(k)` (k terms: the
            phantom gradient, biased). `Direct()`: by a factor of I - f' (exact, n small).
            `Identity()`: the Jacobian-free gradient, biased.
            `Handover()`: the inverse that a forward `Broyden` has learned, as it is (biased) or as
            a preconditioner (exact). `Unrolled(k)`: backpropagation through k more steps.
        order: how many derivatives are exact; one more raises.
        on_failure: for a sample that did not converge: "warn" (best iterate, zero gradient, one
            warning that names the samples), "raise", "nan", "ignore" (as "warn", without the
            warning). One within 100 times the tolerance counts as converged (REDUCED_ACCURACY).

    The backward pass evaluates f again: what f closes over must not have changed since.
    A sample whose data are NaN gives NaN to the gradient of what f shares among the samples,
    because f itself multiplies zero by NaN there.

    Returns:
        `FixedPoint`.

    Raises:
        ValueError: if z0 is no state, f(z) is not like z0, or an option does not fit.
        ConvergenceError: under ``on_failure="raise"``, if a sample failed.

    Accuracy: z to the tolerance of the solver over the distance of f from slope 1; an exact
    gradient to the same and the tolerance of its linear solve (1e-10 relative by default).

    Example:
        z = 1 + a z / 2 has z = 1 / (1 - a / 2), and dz/da = 1/2 / (1 - a / 2)^2 = 2 at a = 1:

        >>> a = torch.ones(1, 1, requires_grad=True)
        >>> z = fixed_point(lambda z: 1 + a * z / 2, torch.zeros(1, 1)).z
        >>> z.detach(), torch.autograd.grad(z.sum(), a)[0]
        (tensor([[2.0000]]), tensor([[2.0000]]))

    Source: Bai, Kolter & Koltun, "Deep Equilibrium Models" (NeurIPS 2019), Theorem 1.
    """
    solver = Anderson() if solver is None else solver
    check_on_failure(on_failure)
    form = form_of(z0)
    operator = _default(form) if operator is None else operator
    _check_options(solver, operator, order)
    flat = form.flat(f)
    with torch.no_grad():
        start = form.pack(z0).detach().clone()
        handover = isinstance(operator, Handover)
        found, inverse = _solved(solver, flat, start, handover)
    report(found.status, found.residual, on_failure, "fixed_point", None)
    z, record = _attached(flat, found, operator, inverse, order, on_failure)
    return FixedPoint(
        form.unpack(z), found.status, found.steps, found.residual, record, found.history
    )


def _default(form: Form) -> GMRES:
    """Exact; of products in half precision no more can be had than their rounding errors."""
    return GMRES(rtol=1e-2) if torch.is_autocast_enabled(form.device.type) else GMRES()


def _solved(
    solver: FixedPointSolver, f: Map, z0: Tensor, handover: bool
) -> tuple[Solution, BroydenInverse | None]:
    if handover and isinstance(solver, Broyden):
        return solver.solve_with_inverse(f, z0)
    return solver.solve(f, z0), None


def _attached(
    f: Map,
    found: Solution,
    backward: Backward,
    inverse: BroydenInverse | None,
    order: int,
    on_failure: OnFailure,
) -> tuple[Tensor, BackwardRecord]:
    """z in the graph of what f closes over, and the record of its backward pass."""
    good, z = succeeded(found.status).unsqueeze(-1), found.value.detach()
    record = BackwardRecord()
    if recorded():
        if isinstance(backward, Unrolled):
            rooted = still(_steps(f, z, backward.steps)) + z
        else:
            operator, record = operator_for(lambda v: v - f(v), z, backward, inverse, on_failure)
            rooted = implicit_root(_gap(f, order), z, operator, order)
        z = torch.where(good, rooted, z)
    return (torch.where(good, z, torch.nan) if on_failure == "nan" else z), record


def _gap(f: Map, order: int) -> Map:
    """F(v) = v - f(v). For one derivative its value is taken away, exactly.

    The Newton step of `implicit_root` then solves nothing in the forward pass and leaves the root
    where it is, within the tolerance that was asked for.
    """

    return lambda v: still(v - f(v)) if order == 1 else v - f(v)


def _steps(f: Map, z: Tensor, count: int) -> Tensor:
    for _ in range(count):
        z = f(z)
    return z


def _check_options(solver: object, operator: object, order: int) -> None:
    if not callable(getattr(solver, "solve", None)) or isinstance(solver, type):
        raise ValueError(
            f"solver={solver!r}: expected an Anderson(), Broyden(), NewtonKrylov() or Picard()"
        )
    check_operator(operator, order, Handover, Unrolled)
    if isinstance(operator, Handover) and not isinstance(solver, Broyden):
        raise ValueError(
            f"operator={operator!r}: only solver=Broyden() has an inverse to hand over, "
            f"not {type(solver).__name__}"
        )
