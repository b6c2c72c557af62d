"""A linear or quadratic CVXPY problem with its derivative: `Program`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..qp import InteriorPoint, QPSolution, Residuals, solve_qp
from ..tree import mapped
from .arguments import Arguments
from .canonical import Canonical
from .presolve import presolve
from .recovery import Recovery
from .reduced import Reduced


@dataclass(frozen=True, repr=False)
class ConvexSolution:
    """The variables of a `ConvexLayer` and how their computation went; `*B` is the batch shape.

    Attributes:
        values: one tensor for each of the layer's variables, `(*B, *shape)`, differentiable.
        status: `Status` codes, `(*B,)`; ``Status(code).message`` says what happened.
        iterations: steps taken, `(*B,)`; zero where cvxpylayers solved the problem, which does
            not say.
        residuals: of the program that was solved, each `(*B,)`; NaN where cvxpylayers did.
        qp: the solution of that program in its own unknowns, a warm start for the next call; None
            where cvxpylayers solved the problem.
    """

    values: tuple[Tensor, ...]
    status: Tensor
    iterations: Tensor
    residuals: Residuals
    qp: QPSolution | None = None

    def __repr__(self) -> str:
        shapes = ", ".join(str(tuple(v.shape)) for v in self.values)
        return f"ConvexSolution of {shapes}" + (f": {self.qp!r}" if self.qp is not None else "")


class Program:
    """A linear or quadratic program with parameters, ready to be solved in batches.

    Args:
        whole: the canonical program.
    """

    def __init__(self, whole: Canonical) -> None:
        plan = presolve(whole)
        reduced = Reduced.of(whole, plan)
        self._recovery = Recovery.of(whole, plan, reduced)
        self._on = lru_cache(maxsize=4)(self._moved)  # the blocks on each device

    def __repr__(self) -> str:
        r = self._recovery.reduced
        e, m, _, upper, lower = r.counts
        return (
            f"{r.K} unknowns ({r.J} substituted), {e} equalities, {m} inequalities, "
            f"{lower} lower and {upper} upper bounds"
        )

    def __getstate__(self) -> Recovery:
        return self._recovery

    def __setstate__(self, recovery: Recovery) -> None:
        self._recovery = recovery
        self._on = lru_cache(maxsize=4)(self._moved)

    def solve(
        self,
        arguments: Arguments,
        solver: InteriorPoint,
        warm_start: QPSolution | None,
        options: Mapping[str, Any],
    ) -> ConvexSolution:
        """The variables for these parameters; see `ConvexLayer`."""
        values = arguments.values
        recovery = self._on(values[0].device)
        found = recovery.reduced.chain(values)
        data = recovery.reduced.problem(values, found)
        Q, p = data.pop("Q", None), data.pop("p")
        p = p.expand(arguments.batch.numel(), -1)
        sol = solve_qp(Q, p, **data, solver=solver, warm_start=warm_start, **options)
        variables = recovery.variables(values, found, sol)
        if recovery.reduced.idle:  # in the graph all the same: their gradient is zero, not None
            tie = sum(values[k][:, :0].sum() for k in recovery.reduced.idle)
            variables = tuple(v + tie for v in variables)
        shaped = tuple(arguments.shaped(v, v.ndim - 1).to(arguments.dtype) for v in variables)
        status, iterations, *residuals = (
            arguments.shaped(v, 0) for v in (sol.status, sol.iterations, *sol.residuals)
        )
        return ConvexSolution(shaped, status, iterations, Residuals(*residuals), sol)

    def _moved(self, device: torch.device) -> Recovery:
        moved: Recovery = mapped(self._recovery, lambda v: v.to(device))
        return moved
