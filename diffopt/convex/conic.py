"""A CVXPY problem with other cones, solved and differentiated by cvxpylayers: `Conic`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..nodes import Solve, applied
from ..operators import Identity
from ..qp import Residuals
from ..solution import OnFailure, Status, report, succeeded
from .arguments import Arguments
from .program import ConvexSolution


class Conic:
    """A `CvxpyLayer` with a status for each sample.

    cvxpylayers raises for the whole batch if one sample fails. Then the samples are solved one by
    one, so that the others get their answer. It never sees those that have no finite data.

    Args:
        layer: the `CvxpyLayer`.
        shapes: of its parameters.
        failures: what its solvers raise.
    """

    def __init__(
        self, layer: Any, shapes: tuple[tuple[int, ...], ...], failures: tuple[type[Exception], ...]
    ) -> None:
        self.layer, self.shapes, self.failures = layer, shapes, failures

    def __repr__(self) -> str:
        return f"cvxpylayers with {self.layer.ctx.solver}"

    def __deepcopy__(self, memo: Any) -> Conic:
        """Itself: it never changes, and torch copies none of the sparse matrices in the layer."""
        return self

    def solve(self, arguments: Arguments, on_failure: OnFailure) -> ConvexSolution:
        """The variables for these parameters, which live on the CPU while they are solved for."""
        size = arguments.batch.numel()
        device = arguments.values[0].device
        pairs = zip(arguments.values, self.shapes, strict=True)
        given = [_once(v.cpu()).expand(size, -1).reshape(size, *s) for v, s in pairs]
        variables, status = self._usable(given, size)
        report(status, torch.full((size,), torch.nan), on_failure, "convex layer")
        fill = torch.nan if on_failure == "nan" else 0.0
        shaped = tuple(
            arguments.shaped(_filled(v, status, fill).to(device, arguments.dtype), v.ndim - 1)
            for v in variables
        )
        status = arguments.shaped(status.to(device), 0)
        unknown = torch.full(status.shape, torch.nan, device=device, dtype=torch.float64)
        residuals = Residuals(unknown, unknown, unknown)
        return ConvexSolution(shaped, status, torch.zeros_like(status), residuals)

    def _usable(self, given: list[Tensor], size: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """The same as `_solved`, of batches in which some data are not finite."""
        valid = torch.stack([_valid(v) for v in self._canonical(given)]).all(0)
        if valid.all():
            return self._solved(given, size)
        good = valid.nonzero().flatten()
        found, own = self._solved([v[good] for v in given], len(good))
        status = torch.full((size,), int(Status.INVALID_INPUT)).index_copy(0, good, own)
        return tuple(v.new_zeros(size, *v.shape[1:]).index_copy(0, good, v) for v in found), status

    def _canonical(self, given: list[Tensor]) -> list[Tensor]:
        """What the solver is given: of a geometric program logarithms, NaN of what is negative."""
        logs = self.layer.ctx.gp_log_mask if self.layer.ctx.gp else None
        pairs = zip(given, logs or [False] * len(given), strict=True)
        return [v.detach().log() if log else v.detach() for v, log in pairs]

    def _solved(self, given: list[Tensor], size: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """The variables of all samples, `(size, *shape)`, and who failed."""
        status = torch.zeros(size, dtype=torch.int64)
        shapes = [v.shape for v in self.layer.ctx.var_recover]
        tie = sum(v.flatten()[:0].sum() for v in given)  # a zero, in the graph of the parameters
        none = tuple(given[0].new_zeros(shape) + tie for shape in shapes)
        if not size:
            return tuple(v.expand(0, *v.shape) for v in none), status
        try:
            return self.layer(*given), status
        except self.failures:
            pass
        rows: list[tuple[Tensor, ...] | None] = []
        for i in range(size):
            try:
                rows.append(self.layer(*(v[i] for v in given)))
            except self.failures as failure:
                rows.append(None)
                status[i] = _status(failure)
        columns = zip(*(none if row is None else row for row in rows), strict=True)
        return tuple(torch.stack(column) for column in columns), status


def _status(failure: Exception) -> int:
    """What a solver's message says of the problem."""
    said = str(failure).lower()
    if "unbounded" in said or "dual infeasible" in said or "dualinfeasible" in said:
        return Status.DUAL_INFEASIBLE
    if "infeasible" in said:
        return Status.PRIMAL_INFEASIBLE
    return Status.NUMERICAL_FAILURE


def _once(v: Tensor) -> Tensor:
    """`v`, past which no second derivative goes: cvxpylayers leaves its part out silently."""
    return applied(Solve, v, Identity(), False, 1)


def _valid(v: Tensor) -> Tensor:
    return v.isfinite().unsqueeze(-1).flatten(1).all(1)


def _filled(v: Tensor, status: Tensor, fill: float) -> Tensor:
    ok = succeeded(status).view(-1, *[1] * (v.ndim - 1))
    return torch.where(ok, v, fill)
