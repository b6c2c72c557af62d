"""One solve without gradients: any QP in, the settled point of each sample out.

The solve is a function of tensors to tensors for torch, so that `torch.func.vmap` over a layer
folds the mapped dimension into the batch instead of tracing the loops of the solver.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function

from ..solution import OnFailure, Part, Status, report, succeeded
from ..tree import mapped, rebuilt, tensors
from .certificates import Certificate
from .engines import find
from .interior_point import InteriorPoint
from .kkt import Blocks
from .options import Degenerate
from .point import Point, settle
from .problem import QP
from .smooth import Center, center


class Outcome(NamedTuple):
    """The settled point of each sample, the steps it took, the proof where there is none.

    `center` is the point whose derivatives are wanted instead, where smoothing was asked for.
    """

    point: Point
    steps: Tensor
    certificate: Certificate
    center: Center | None


@dataclass
class Job:
    """What to solve, and how.

    Attributes:
        solver: the settings.
        degenerate: see `degeneracy`.
        on_failure: see `solution.report`.
        kappa: the products of the point to be differentiated in place of the solution.
        part: which samples of the user's batch these are, for warnings.
        finite: after `run`, whether all data were valid; if not, it was the QP of
            `without_nonfinite` that was solved.
    """

    solver: InteriorPoint
    degenerate: Degenerate = "central"
    on_failure: OnFailure = "warn"
    kappa: float | None = None
    part: Part | None = None
    finite: bool = True
    _request: Any = field(default=None, repr=False)
    _outcome: Any = field(default=None, repr=False)

    def run(self, qp: QP, warm: Blocks | None = None) -> Outcome:
        """The outcome for `qp`, from a cold start or the solution `warm` of a similar one."""
        self._request = mapped((qp, warm), Tensor.detach)
        flat = _Engine.apply(self, *tensors(self._request))
        outcome: Outcome = rebuilt(self._outcome, iter(flat))
        return outcome

    def solve(self, data: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """`run`, between flat tuples of tensors."""
        qp, warm = rebuilt(self._request, iter(data))
        valid = qp.valid()
        self.finite = bool(valid.all())
        qp = qp if self.finite else qp.without_nonfinite()
        found = find(qp, self.solver, warm)
        fit = valid & qp.convex()
        status = torch.where(fit, found.status, int(Status.INVALID_INPUT))
        point = settle(qp, found._replace(status=status), self.degenerate)
        report(status, point.error, self.on_failure, "solve_qp", self.part)
        if self.on_failure != "nan":  # there the operator puts NaN in, and in the gradient too
            point = point._replace(z=torch.where(valid.unsqueeze(-1), point.z, torch.nan))
        central = None
        if self.kappa is not None:
            central = center(found.setup, self.kappa, succeeded(status), self.solver)
        proof = mapped(found.certificate, lambda v: torch.where(fit.unsqueeze(-1), v, 0.0))
        self._outcome = Outcome(point, found.steps, proof, central)
        return tuple(tensors(self._outcome))


class _Engine(Function):
    """`Job.solve` as torch sees it: nothing to differentiate, and a batch dimension to fold."""

    @staticmethod
    def forward(job: Job, *data: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return job.solve(data)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise AssertionError("the inputs are detached")

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], job: Job, *data: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
        """The mapped dimension, in front, and the batch dimension behind it become one."""
        size = info.batch_size
        moved = [
            v if d is None else v.movedim(d, 0) for v, d in zip(data, in_dims[1:], strict=True)
        ]
        mapped_too = [d is not None for d in in_dims[1:]]
        batch = max(v.shape[m] for v, m in zip(moved, mapped_too, strict=True))
        folded = [_fold(v, m, size, batch) for v, m in zip(moved, mapped_too, strict=True)]
        out = _Engine.apply(job, *folded)
        shared = [v.shape[0] != size * batch or size * batch == 1 for v in out]
        values = (
            v if s else v.view(size, batch, *v.shape[1:]) for v, s in zip(out, shared, strict=True)
        )
        return tuple(values), tuple(None if s else 0 for s in shared)


def _fold(v: Tensor, is_mapped: bool, size: int, batch: int) -> Tensor:
    """`(size * batch, ...)` of `(size, batch|1, ...)`; a tensor shared by all stays shared."""
    if not is_mapped and v.shape[0] == 1:
        return v
    v = v if is_mapped else v.unsqueeze(0)
    return v.expand(size, batch, *v.shape[2:]).reshape(size * batch, *v.shape[2:])
