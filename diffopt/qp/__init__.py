"""Batched quadratic programs with a derivative: `solve_qp`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..solution import OnFailure
from .answer import QPSolution
from .arguments import Limit
from .certificates import Certificate
from .compiled import solve_compiled
from .diagnosis import check_kkt
from .eager import solve_eager
from .interior_point import InteriorPoint
from .options import LPGD, Degenerate, Infeasible, Options
from .problem import Residuals
from .relaxed import Shifts
from .stack import QPStack, stack_qps

__all__ = [
    "LPGD",
    "Certificate",
    "InteriorPoint",
    "QPSolution",
    "QPStack",
    "Residuals",
    "Shifts",
    "check_kkt",
    "solve_qp",
    "stack_qps",
]


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
    degenerate: Degenerate = "central",
    infeasible: Infeasible = "report",
    penalty: float | None = None,
    smoothing: float | LPGD | None = None,
    proximal: float = 0.0,
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
        warm_start: the `QPSolution` of a similar problem of the same shapes, whose active set is
            tried first; a sample that failed there, or is far off, loses nothing.
        order: how many derivatives are exact; one more raises.
        degenerate: what a weakly active limit (active with a multiplier of zero, where the
            solution has a kink) counts as in the derivative: "central" (its weight in the limit
            of the central path, between the one-sided derivatives), "active" or "inactive".
        infeasible: what to do where no point is feasible: "report" (a status), "closest" (shift
            the rows of G and A by the least Euclidean norm) or "elastic" (let them be violated at
            `penalty` a unit). Bounds always hold. See `Shifts`.
        penalty: of "elastic", positive; default 1000.
        smoothing: None for the exact derivative; a positive number kappa for that of the point of
            the central path with products s y = kappa, in units of the objective; `LPGD(tau)` for
            finite-perturbation gradients. The value is exact in each case.
        proximal: weight >= 0 of |z|^2 / 2, added to the objective: where solutions are not unique
            a small one picks the one of least norm.
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
        ConvergenceError: under ``on_failure="raise"``, if a sample failed.

    Where the answer is not unique: dependent active rows leave a choice of multipliers, and the
    valid ones of least Euclidean norm are returned, with derivatives by the pseudo-inverse. Of a
    row with h_lower == h, or an unknown with lb == ub, h and ub get the whole gradient. Where z
    itself is not unique, its derivative does not exist, which the linear solve reports as a
    failure; `proximal` makes it unique. At a vertex of a linear program the gradient in p is zero,
    and rightly so; `smoothing` gives one to learn from.

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
    the files of `diffopt.qp` name theirs.
    """
    arguments = {
        "Q": Q, "p": p, "G": G, "h": h, "A": A, "b": b, "lb": lb, "ub": ub, "h_lower": h_lower,
    }  # fmt: skip
    options = Options(
        solver, order, degenerate, infeasible, penalty, smoothing, proximal, on_failure
    )
    if torch.compiler.is_compiling():
        return solve_compiled(arguments, options, warm_start)
    return solve_eager(arguments, options, warm_start)
