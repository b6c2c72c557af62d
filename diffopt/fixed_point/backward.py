"""How a fixed point is differentiated: the choices of `fixed_point(operator=...)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..backward import BackwardRecord, Method, operator_at, watched
from ..linear import GMRES
from ..operators import MatrixFree, Operator
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

    @property
    def biased(self) -> bool:
        """Whether the gradient is not exact."""
        return self.refine is None


@dataclass(frozen=True)
class Unrolled:
    """Backpropagation through `steps` Picard steps from the fixed point, recorded in the graph.

    A reference to compare with: memory and time grow with `steps`, and the gradient is the Neumann
    series of so many terms, which needs a contraction. The value stays the fixed point.
    """

    steps: int = 100

    def __post_init__(self) -> None:
        check_counts(self, "steps")


Backward = Method | Handover | Unrolled


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

    @property
    def name(self) -> str:
        return "Handover"

    def solve(self, v: Tensor) -> Solution:
        right = _Right(self.method, self.near.solve)
        return MatrixFree(self.residual, self.root, right).solve(v)

    def solve_transpose(self, v: Tensor) -> Solution:
        right = _Right(self.method, self.near.solve_transpose)
        return MatrixFree(self.residual, self.root, right).solve_transpose(v)


def operator_for(
    residual: Callable[[Tensor], Tensor],
    root: Tensor,
    backward: Method | Handover,
    inverse: BroydenInverse | None,
    on_failure: OnFailure,
) -> tuple[Operator, BackwardRecord]:
    """The operator that `backward` asks for, and where it writes what it did."""
    if not isinstance(backward, Handover):
        return watched(operator_at(residual, root, backward), on_failure)
    assert inverse is not None
    if backward.refine is None:
        return watched(inverse, on_failure)
    return watched(Preconditioned(residual, root, backward.refine, inverse), on_failure)
