"""Batched quadratic programs with a derivative: `solve_qp`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..implicit import implicit_root
from ..solution import OnFailure, Status, check_on_failure, fill_failed, report, succeeded
from .arguments import Limit, build
from .interior_point import InteriorPoint, Setup
from .kkt import Blocks
from .polish import Point, polished
from .problem import QP, Residuals
from .root import KKTOperator, kkt_residual, pack, unpack

__all__ = ["InteriorPoint", "QPSolution", "Residuals", "solve_qp"]


@dataclass(frozen=True)
class QPSolution:
    """The solution of a batch of QPs. The first four are differentiable, the others never are.

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


def solve_qp(
    Q: Tensor | None,
    p: Tensor,
    G: Tensor | None = None,
    h: Limit = None,
    A: Tensor | None = None,
    b: Limit = None,
    lb: Limit = None,
    ub: Limit = None,
    *,
    h_lower: Limit = None,
    solver: InteriorPoint = InteriorPoint(),  # noqa: B008 (a frozen value)
    warm_start: QPSolution | None = None,
    order: int = 1,
    degenerate: Literal["central", "active", "inactive"] = "central",
    infeasible: Literal["report", "closest", "elastic"] = "report",
    on_failure: OnFailure = "warn",
) -> QPSolution:
    """The minimisers of a batch of convex QPs, with their multipliers, differentiable.

        minimise 1/2 z'Qz + p'z    subject to    h_lower <= Gz <= h,   Az = b,   lb <= z <= ub

    The answer satisfies the KKT conditions: feasibility, Qz + p + G'lam + A'nu + mu = 0, and each
    multiplier is zero unless its limit is active, positive at an upper limit and negative at a
    lower one. z, lam, nu and mu are differentiable with respect to every argument.

    Args:
        Q: `(*B, n, n)`, positive semidefinite; its symmetric part counts, and its gradient is
            symmetric. None means zero (a linear program).
        p: `(*B, n)`.
        G: `(*B, m, n)`, with `h` and/or `h_lower`.
        h: `(*B, m)` or a number; +inf switches a row off.
        A: `(*B, e, n)`, with `b`.
        b: `(*B, e)` or a number.
        lb, ub: `(*B, n)` or a number; -inf and +inf mean no bound, lb == ub fixes an unknown.
        h_lower: `(*B, m)` or a number; -inf switches a lower limit off, h_lower == h makes the
            row an equality.
        solver: the method and its settings.
        warm_start: not supported yet.
        order: how many derivatives are exact; one more raises.
        degenerate: the derivative where a limit is active with a zero multiplier; "central" (the
            weight of the central path, between the two one-sided derivatives) for now.
        infeasible: "report" (a status) for now.
        on_failure: for a sample that has no solution, or was not solved: "warn" (best iterate,
            zero gradient, one warning that names the samples; NaN for a sample whose data are not
            finite), "raise", "nan" (NaN in the value, and in the gradient if the value was used),
            "ignore" (as "warn", without the warning). Other samples never notice.

    Every argument has batch dimensions of its own, which broadcast; an argument without them is
    shared by the batch and gets the summed gradient. All of them live on one device, which is
    where the work is done, in float64 whatever their dtype; the answers have the dtype that the
    arguments promote to.

    Returns:
        `QPSolution`.

    Raises:
        ValueError: if shapes, devices, or the presence of arguments do not fit, naming them.
        NotImplementedError: for the options above that are said to be for later.
        ConvergenceError: under ``on_failure="raise"``, if a sample failed.

    Where the answer is not unique: dependent active rows leave a choice of multipliers, and of
    gradients of the rows, and the ones returned are nearest to the interior point's in the
    equilibrated problem (finite, but not the least in norm). Of a row with h_lower == h, or an
    unknown with lb == ub, h and ub get the whole gradient. Where z itself is not unique, its
    derivative does not exist, which the linear solve reports as a failure.

    Accuracy: `residuals` of 1e-8 at most where the status is CONVERGED, 1e-12 typically. Where
    `polished`, the derivatives are exact for the active set, up to the condition number times a
    residual of the linear solve that is checked (1e-10 at most, 1e-14 typically).

    Example:
        The point of the line z_0 + z_1 = 1, z >= 0, nearest to -p = (0.9, 0.5) is (0.7, 0.3),
        with z + p + nu = 0. Moving p_0 by d moves it by (-d/2, d/2):

        >>> p = torch.tensor([-0.9, -0.5], requires_grad=True)
        >>> sol = solve_qp(torch.eye(2), p, A=torch.ones(1, 2), b=1.0, lb=0.0)
        >>> sol.z.detach(), sol.nu.detach()
        (tensor([0.7000, 0.3000]), tensor([0.2000]))
        >>> torch.autograd.grad(sol.z[1], p)[0]
        tensor([ 0.5000, -0.5000])

    Source: Amos & Kolter, "OptNet" (ICML 2017), eq. (3)-(8), for the layer and its derivative;
    `qp.interior_point`, `qp.kkt` and `qp.polish` name theirs.
    """
    _check_options(warm_start, order, degenerate, infeasible, on_failure)
    qp, batch = build(Q, p, G, h, A, b, lb, ub, h_lower)
    dtype = _common_dtype(Q, p, G, h, A, b, lb, ub, h_lower)
    if batch.numel() == 0:
        return _empty(qp, batch, dtype)
    valid = qp.valid()
    qp = qp if bool(valid.all()) else qp.without_nonfinite()
    found = _find(qp.map(Tensor.detach), valid, solver)
    residual = found.point.error.view(batch)
    report(found.status.view(batch), residual, on_failure, "solve_qp")
    x = _differentiable(qp, found, valid, order, on_failure)
    return _shaped(qp, x, found, batch, dtype)


class _Found(NamedTuple):
    """What the solver found, without gradients."""

    setup: Setup
    point: Point
    status: Tensor
    steps: Tensor


@torch.no_grad()
def _find(qp: QP, valid: Tensor, solver: InteriorPoint) -> _Found:
    """The polished point of each sample, with the status that its residual deserves."""
    setup = Setup.of(qp, solver)
    found = solver.solve(qp, setup)
    point = polished(qp, setup, found.value)
    status = solver.judge(found.status, point.error)
    status = torch.where(valid & qp.convex(), status, int(Status.INVALID_INPUT))
    return _Found(setup, point, status, found.steps)


def _differentiable(
    qp: QP, found: _Found, valid: Tensor, order: int, on_failure: OnFailure
) -> Blocks:
    """(z, nu, y) re-attached to the graph of `qp`, failed samples treated as `on_failure` says."""
    point, alive, loud = found.point, succeeded(found.status), on_failure == "nan"
    z = torch.where(valid.unsqueeze(-1) | loud, point.z, torch.nan)
    x = Blocks(z, point.nu, point.y)
    if not qp.differentiated():
        return Blocks(*(fill_failed(v, found.status, torch.nan) for v in x)) if loud else x
    # Under "nan" the operator puts NaN in, and in the gradient too.
    operator = KKTOperator.at(point, found.setup.scaling, alive, on_failure)
    residual = kkt_residual(qp, found.setup.scaling, point)
    return unpack(implicit_root(residual, pack(x), operator, order), qp)


def _shaped(qp: QP, x: Blocks, found: _Found, batch: torch.Size, dtype: torch.dtype) -> QPSolution:
    """The solution in the user's shapes and dtype."""
    point, m, n = found.point, qp.m, qp.n
    mu = x.y[:, m:] if qp.bounded else torch.zeros_like(x.z)
    weak = point.weak if qp.bounded else torch.nn.functional.pad(point.weak, (0, n))

    def shaped(v: Tensor) -> Tensor:
        return v.to(dtype).view(*batch, v.shape[-1])

    return QPSolution(
        z=shaped(x.z),
        lam=shaped(x.y[:, :m]),
        nu=shaped(x.nu),
        mu=shaped(mu),
        status=found.status.view(batch),
        iterations=found.steps.view(batch),
        residuals=Residuals(*(r.view(batch) for r in point.residuals)),
        weakly_active=weak.view(*batch, m + n),
        polished=(point.polished & succeeded(found.status)).view(batch),
    )


def _empty(qp: QP, batch: torch.Size, dtype: torch.dtype) -> QPSolution:
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
    )


def _check_options(
    warm_start: object, order: int, degenerate: str, infeasible: str, on_failure: str
) -> None:
    check_on_failure(on_failure)
    if not isinstance(order, int) or order < 1:
        raise ValueError(f"order={order!r}: expected a positive integer")
    if degenerate not in ("central", "active", "inactive"):
        raise ValueError(f"degenerate={degenerate!r}: expected 'central', 'active' or 'inactive'")
    if infeasible not in ("report", "closest", "elastic"):
        raise ValueError(f"infeasible={infeasible!r}: expected 'report', 'closest' or 'elastic'")
    later = {
        "warm_start": warm_start is not None,
        f"degenerate={degenerate!r}": degenerate != "central",
        f"infeasible={infeasible!r}": infeasible != "report",
    }
    for name, asked in later.items():
        if asked:
            raise NotImplementedError(f"solve_qp: {name} is not supported yet; leave it out")


def _common_dtype(*arguments: Tensor | float | None) -> torch.dtype:
    """What the tensors with a dimension promote to; the default dtype if that is not real."""
    dtypes = [a.dtype for a in arguments if isinstance(a, Tensor) and a.ndim]
    dtype = reduce(torch.promote_types, dtypes)
    return dtype if dtype.is_floating_point else torch.get_default_dtype()
