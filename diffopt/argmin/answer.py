"""What `argmin` returns: `ArgminSolution`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..qp import Residuals
from ..solution import OnFailure, succeeded
from .problem import Multipliers, Problem
from .settle import Settled


@dataclass(frozen=True)
class ArgminSolution:
    """The solutions of a batch of smooth problems; z, lam, nu and mu are differentiable.

    Attributes:
        z: a local minimiser, `(*B, n)`.
        lam: multipliers of the inequalities, `(*B, m)`, >= 0.
        nu: multipliers of the equalities, `(*B, e)`.
        mu: multipliers of the bounds, `(*B, n)`: positive at ub, negative at lb.
        status: `Status` codes, `(*B,)`.
        iterations: steps of `SQP`, `(*B,)`; 0 of other solvers.
        residuals: `Residuals` (primal, dual, gap), each `(*B,)`, relative, of the float64 values.
        weakly_active: limits that are active with a multiplier of zero, where the derivative is
            one-sided: bool `(*B, m + n)`, the inequalities and then the bounds.
    """

    z: Tensor
    lam: Tensor
    nu: Tensor
    mu: Tensor
    status: Tensor
    iterations: Tensor
    residuals: Residuals
    weakly_active: Tensor


def shaped(
    problem: Problem,
    found: Settled,
    z: Tensor,
    y: Multipliers,
    steps: Tensor,
    like: Tensor,
    on_failure: OnFailure,
) -> ArgminSolution:
    """The solution in the user's shapes and dtype."""
    batch, good = like.shape[:-1], succeeded(found.status)
    weak = found.point.weak & good.unsqueeze(-1)
    weak = weak if problem.bounded else torch.nn.functional.pad(weak, (0, problem.n))
    # Added at the end, and not put in: the gradient of a failed sample is the operator's.
    lost = torch.where(good | (on_failure != "nan"), 0.0, torch.nan).unsqueeze(-1)

    def as_given(v: Tensor) -> Tensor:
        return (v + lost).to(like.dtype).reshape(*batch, v.shape[-1])

    return ArgminSolution(
        z=as_given(z),
        lam=as_given(y.lam),
        nu=as_given(y.nu),
        mu=as_given(y.mu),
        status=found.status.reshape(batch),
        iterations=steps.reshape(batch),
        residuals=Residuals(*(v.reshape(batch) for v in found.residuals)),
        weakly_active=weak.reshape(*batch, weak.shape[-1]),
    )


def nothing(problem: Problem, z0: Tensor) -> ArgminSolution:
    """The solution of a batch without samples."""
    batch, none = z0.shape[:-1], z0.detach()
    status = torch.zeros(batch, dtype=torch.int64, device=z0.device)
    return ArgminSolution(
        z=none,
        lam=none.new_zeros(*batch, problem.m),
        nu=none.new_zeros(*batch, problem.e),
        mu=none,
        status=status,
        iterations=status,
        residuals=Residuals(*(none.new_zeros(batch) for _ in range(3))),
        weakly_active=torch.zeros(*batch, problem.m + problem.n, dtype=torch.bool).to(none.device),
    )
