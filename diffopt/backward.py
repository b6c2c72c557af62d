"""How the derivative of a fixed point is solved: the choices of `operator`, and what they did.

A layer whose answer is z = f(z) (`fixed_point`, `projected_gradient`) differentiates it as the root
of F(z) = z - f(z). The user chooses how systems with A = I - f' are solved; here the choice becomes
an `Operator`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .implicit import check_order
from .linear import LinearMethod
from .operators import Dense, Identity, MatrixFree, Operator
from .solution import OnFailure, Solution

Residual = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Direct:
    """A formed by n vjps in the forward pass and LU-factorised: exact, for n up to some hundreds.

    The one choice that `torch.func.vmap` can map, and with it jacrev, jacfwd and hessian. A solve
    counts as failed where A is singular, as in `operators.Dense`.
    """


Method = LinearMethod | Identity | Direct
METHODS = "GMRES()", "linear.Anderson()", "Neumann(k)", "Direct()", "Identity()"


class BackwardRecord:
    """What the last backward pass did: None before it.

    Attributes:
        status, steps, residual: of the linear solve, `(*B,)`; see `Solution`. The residual is
            relative to the incoming gradient; NaN where it was not measured.
    """

    def __init__(self) -> None:
        self.status: Tensor | None = None
        self.steps: Tensor | None = None
        self.residual: Tensor | None = None

    def keep(self, solution: Solution) -> None:
        """Keep what `solution` says of a linear solve."""
        self.status, self.steps = solution.status.detach(), solution.steps.detach()
        self.residual = solution.residual.detach()


@dataclass(frozen=True)
class Watched(Operator):
    """An operator whose last solve with the transpose is kept in `record`."""

    inner: Operator
    record: BackwardRecord
    on_failure: OnFailure = "warn"

    @property
    def captures(self) -> bool:  # type: ignore[override]
        return self.inner.captures

    @property
    def name(self) -> str:
        return self.inner.name

    def solve(self, v: Tensor) -> Solution:
        return self.inner.solve(v)

    def solve_transpose(self, v: Tensor) -> Solution:
        out = self.inner.solve_transpose(v)
        self.record.keep(out)
        return out


def check_operator(operator: object, order: object, *further: type) -> None:
    """Raise a `ValueError` unless `operator` is a choice that has `order` derivatives.

    Args:
        operator: a `Method`, or an object of one of the types `further`, which say in `biased`
            whether they are.
        order: see `check_order`.
    """
    kind: Any = Identity, Direct, *further
    method = callable(getattr(operator, "solve", None)) and not isinstance(operator, Operator)
    if isinstance(operator, type) or not (method or isinstance(operator, kind)):
        names = *METHODS, *(f"{k.__name__}()" for k in further)
        raise ValueError(
            f"operator={operator!r}: expected {', '.join(names[:-1])} or {names[-1]}, or another "
            "method with solve(matvec, v)"
        )
    check_order(order)
    if order != 1 and getattr(operator, "biased", False):
        raise ValueError(f"order={order!r} with a biased gradient: use operator=GMRES()")


def operator_at(residual: Residual, root: Tensor, method: Method) -> Operator:
    """A at the root of `residual`, solved by `method`."""
    if isinstance(method, Identity):
        return method
    if isinstance(method, Direct):
        return Dense.at(residual, root)
    return MatrixFree(residual, root, method)


def watched(operator: Operator, on_failure: OnFailure) -> tuple[Operator, BackwardRecord]:
    """`operator` with this policy, and where it writes what it did."""
    record = BackwardRecord()
    return Watched(operator, record, on_failure), record
