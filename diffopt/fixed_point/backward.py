"""How a fixed point is differentiated: the choices of `fixed_point(operator=...)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..linear import GMRES, LinearMethod
from ..operators import Identity, MatrixFree, Operator
from ..solution import OnFailure, Solution, check_counts
from .broyden import BroydenInverse


@dataclass(frozen=True)
class Handover:
    """The inverse that the forward `Broyden` has learned, handed over to the backward pass.

    Attributes:
        refine: None to use it as it is (SHINE: biased, two products); a `GMRES` to use it as
            preconditioner of an exact solve.

    Source: Ramzi et al., "SHINE: SHaring the INverse Estimate from the forward pass for bi-level
    optimization and implicit models" (ICLR 2022).
    """

    refine: GMRES | None = None


@dataclass(frozen=True)
class Unrolled:
    """Backpropagation through `steps` Picard steps from the fixed point, recorded in the graph.

    A reference to compare with: memory and time grow with `steps`, and the gradient is the Neumann
    series of so many terms, which needs a contraction. The value stays the fixed point.
    """

    steps: int = 100

    def __post_init__(self) -> None:
        check_counts(self, "steps")


Backward = LinearMethod | Identity | Handover | Unrolled


class BackwardRecord:
    """What the last backward pass did: None before it.

    Attributes:
        status, steps, residual: of the linear solve, `(B,)`; see `Solution`. The residual is
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

    def solve(self, v: Tensor) -> Solution:
        return self.inner.solve(v)

    def solve_transpose(self, v: Tensor) -> Solution:
        out = self.inner.solve_transpose(v)
        self.record.keep(out)
        return out


@dataclass(frozen=True)
class _Right:
    """`method` on A M x' = v, x = M x'."""

    method: GMRES
    M: Callable[[Tensor], Solution]

    def solve(self, matvec: Callable[[Tensor], Tensor], v: Tensor) -> Solution:
        out = self.method.solve(lambda y: matvec(self.M(y).value), v)
        return replace(out, value=self.M(out.value).value)


@dataclass(frozen=True)
class Preconditioned(Operator):
    """A = dF/dz at the root, solved by `method` with the help of `near`, which is about A^-1."""

    captures: ClassVar[bool] = True
    residual: Callable[[Tensor], Tensor]
    root: Tensor
    method: GMRES
    near: BroydenInverse
    on_failure: OnFailure = "warn"

    def solve(self, v: Tensor) -> Solution:
        right = _Right(self.method, self.near.solve)
        return MatrixFree(self.residual, self.root, right).solve(v)

    def solve_transpose(self, v: Tensor) -> Solution:
        right = _Right(self.method, self.near.solve_transpose)
        return MatrixFree(self.residual, self.root, right).solve_transpose(v)


def operator_at(
    residual: Callable[[Tensor], Tensor],
    root: Tensor,
    backward: LinearMethod | Identity | Handover,
    inverse: BroydenInverse | None,
    on_failure: OnFailure,
) -> tuple[Operator, BackwardRecord]:
    """The operator that `backward` asks for, and where it writes what it did."""
    record = BackwardRecord()
    if isinstance(backward, Identity):
        inner: Operator = backward
    elif isinstance(backward, Handover):
        assert inverse is not None
        inner = inverse
        if backward.refine is not None:
            inner = Preconditioned(residual, root, backward.refine, inverse)
    else:
        inner = MatrixFree(residual, root, backward)
    return Watched(inner, record, on_failure), record
