"""The border of `solve_qp` on the way out: `QPSolution`, and its way back in as a warm start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..solution import succeeded
from .arguments import Data
from .certificates import Certificate
from .diagnosis import table
from .kkt import Blocks
from .layer import Answer
from .problem import QP, Residuals
from .relaxed import Shifts


@dataclass(frozen=True, repr=False)
class QPSolution:
    """The solution of a batch of QPs; z, lam, nu, mu and shifts are differentiable.

    Attributes:
        z: the minimiser, `(*B, n)`.
        lam: multipliers of the rows of G, `(*B, m)`: positive at h, negative at h_lower.
        nu: multipliers of the rows of A, `(*B, e)`.
        mu: multipliers of the bounds, `(*B, n)`: positive at ub, negative at lb.
        status: `Status` codes, `(*B,)`.
        iterations: steps of the interior-point method, `(*B,)`.
        residuals: `Residuals` (primal, dual, gap), each `(*B,)`, relative, of the float64 values
            before they were rounded to the dtype of the arguments.
        weakly_active: limits that are active with a multiplier of zero, where the derivative is
            one-sided: bool `(*B, m + n)`, the rows of G and then the bounds.
        polished: whether the values solve the linear KKT conditions of their active set, bool
            `(*B,)`. Where not, they and the derivatives are those of an interior point, accurate
            to `residuals` only.
        certificate: the proof of a status PRIMAL_INFEASIBLE or DUAL_INFEASIBLE, see `Certificate`;
            zero for other samples.
        shifts: by how much the rows were moved under ``infeasible="closest"`` or "elastic", see
            `Shifts`, differentiable too; None under "report".
    """

    z: Tensor
    lam: Tensor
    nu: Tensor
    mu: Tensor
    status: Tensor
    iterations: Tensor
    residuals: Residuals
    weakly_active: Tensor
    polished: Tensor
    certificate: Certificate
    shifts: Shifts | None = None

    def __repr__(self) -> str:
        return f"QPSolution of {tuple(self.z.shape)}\n{table(self)}"

    def table(self) -> str:
        """How the batch fared, as text: counts by status, worst and median residuals and steps."""
        return table(self)


def shaped(data: Data, answer: Answer, shifts: Shifts | None, dtype: torch.dtype) -> QPSolution:
    """The solution in the user's shapes and dtype."""
    x, facts, m, batch = answer.x, answer.facts, data.m, data.batch
    flat = len(batch) == 1
    lam, mu = x.y.split([m, data.n], -1) if data.bounded else (x.y, torch.zeros_like(x.z))

    def as_given(v: Tensor) -> Tensor:
        v = v if v.dtype == dtype else v.to(dtype)
        return v if flat else v.view(*batch, v.shape[-1])

    def number(v: Tensor) -> Tensor:
        return v if flat else v.view(batch)

    return QPSolution(
        z=as_given(x.z),
        lam=as_given(lam),
        nu=as_given(x.nu),
        mu=as_given(mu),
        status=number(facts.status),
        iterations=number(facts.steps),
        residuals=Residuals(*map(number, facts.residuals)),
        weakly_active=facts.weak if flat else facts.weak.view(*batch, m + data.n),
        polished=number(facts.polished),
        certificate=Certificate(*map(as_given, facts.certificate)),
        shifts=None if shifts is None else Shifts(*map(as_given, shifts)),
    )


def empty(qp: QP, batch: torch.Size, dtype: torch.dtype, relaxed: bool) -> QPSolution:
    """The solution of no problem at all, in the graph of the arguments like any other."""
    anchor = sum((v.sum() for v in (qp.Q, qp.p, qp.G, qp.A, qp.b)), qp.p.new_zeros(()))
    limits = (
        torch.where(qp.lower.isfinite(), qp.lower, 0.0).sum()
        + torch.where(qp.upper.isfinite(), qp.upper, 0.0).sum()
    )

    def values(size: int) -> Tensor:
        return (qp.p.new_zeros(*batch, size) + anchor + limits).to(dtype)

    status = torch.zeros(batch, dtype=torch.int64, device=qp.p.device)
    return QPSolution(
        z=values(qp.n),
        lam=values(qp.m),
        nu=values(qp.A.shape[-2]),
        mu=values(qp.n),
        status=status,
        iterations=status,
        residuals=Residuals(*(qp.p.new_zeros(batch) for _ in range(3))),
        weakly_active=torch.zeros(*batch, qp.m + qp.n, dtype=torch.bool, device=qp.p.device),
        polished=status == 0,
        certificate=Certificate(
            *(values(k).detach() for k in (qp.n, qp.A.shape[-2], qp.m, qp.m, qp.n, qp.n))
        ),
        shifts=Shifts(values(qp.m), values(qp.A.shape[-2])) if relaxed else None,
    )


def as_blocks(data: Data, solution: QPSolution) -> Blocks:
    """A solution of the past as a warm start, in the units of the user."""
    if not isinstance(solution, QPSolution):
        kind = type(solution).__name__
        raise ValueError(f"warm_start is a {kind}: expected the QPSolution of an earlier solve_qp")
    like, batch, n = data.like, data.batch, data.n
    sizes = {"z": n, "lam": data.m, "nu": data.e, "mu": n}
    parts = {}
    for name, size in sizes.items():
        value = getattr(solution, name).detach()
        if value.device != like.device:
            raise ValueError(
                f"warm_start.{name} is on {value.device}, but p is on {like.device}: pass a "
                "solution on the same device"
            )
        value = value.to(like.dtype)
        if value.shape != (*batch, size):
            raise ValueError(
                f"warm_start.{name} has shape {tuple(value.shape)}, but this problem needs "
                f"{(*batch, size)}: pass the solution of a problem of the same shapes"
            )
        parts[name] = value.reshape(batch.numel(), size)
    y = torch.cat([parts["lam"], parts["mu"]], -1) if data.bounded else parts["lam"]
    z = torch.where(succeeded(solution.status).view(-1, 1), parts["z"], torch.nan)
    return Blocks(z, parts["nu"], y)
