"""The potentials of an entropic transport plan, found without gradients.

The plan Z_ij = rows_i softmax_j(X_i / epsilon + g) has the right row sums for every g. The column
sums are right at the minimum of the convex function

    phi(g) = rows' logsumexp(X / epsilon + g) - columns'g,      grad phi = Z'1 - columns.

Sinkhorn's iteration, on logarithms, lowers phi in every step, slowly where epsilon is small.
Newton's method is fast near the minimum. Each step here tries Newton's direction in three lengths
and Sinkhorn's point, and takes the lowest. Epsilon itself starts at a tenth of the range of X and
shrinks to its goal by factors of 0.7, whenever the column sums are right to 1 %: so the start is
always near.
For 64 normal X of 30 x 20 with random marginals that takes at most 5 steps at epsilon = 1, 25 at
0.1 and 50 at 0.01; Sinkhorn alone takes 18, 2000, and more than 2000 for 49 of them. What is left
are plans of parts that hardly touch (epsilon below a hundredth of the range of X, and marginals
of which some sums agree): a few of those stop short of the tolerance, and say so.

Source: Cuturi, "Sinkhorn distances" (NIPS 2013), Alg. 1; Peyre & Cuturi, "Computational optimal
transport" (2019), Sec. 4.4, for the logarithmic domain; Schmitzer, "Stabilized sparse scaling
algorithms for entropy regularized transport problems" (SIAM J. Sci. Comput. 41, 2019), for the
scaling of epsilon.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..iterate import Measure, iterate
from ..operators import Dense
from ..solution import OnFailure, Solution

START, SHRINK, NEAR = 0.1, 0.7, 0.01  # epsilon: at first, by stage, and when the next begins
LENGTHS = (1.0, 1 / 4, 1 / 16)  # of Newton's step


class _Potential(NamedTuple):
    """epsilon g `(B, m)`, which hardly changes with epsilon; epsilon `(B, 1)`."""

    scaled: Tensor
    epsilon: Tensor


class _Point(NamedTuple):
    """What is known of a potential: X / epsilon, g, the plan, the error of the column sums."""

    S: Tensor
    g: Tensor
    plan: Tensor
    gap: Tensor
    near: Tensor


def potentials(
    X: Tensor, rows: Tensor, columns: Tensor, epsilon: Tensor, tol: float, max_steps: int
) -> Solution:
    """g `(B, m)` for X `(B, n, m)`, rows `(B, n)`, columns `(B, m)` and epsilon `(B, 1)`.

    The residual is the error of the column sums in units of the whole, plus 2, which is more
    than it can be, if epsilon did not reach its goal.
    """
    weight = columns.sum(-1, keepdim=True)

    def measure(state: _Potential) -> Measure:
        S, g = X / state.epsilon.unsqueeze(-1), state.scaled / state.epsilon
        plan = rows.unsqueeze(-1) * (S + g.unsqueeze(-2)).softmax(-1)
        gap = plan.sum(-2) - columns
        error = gap.abs().sum(-1, keepdim=True) / weight
        at_goal = state.epsilon == epsilon
        residual = torch.where(at_goal, error, error + 2).squeeze(-1)
        return Measure(residual / tol, carry=_Point(S, g, plan, gap, error <= NEAR))

    def step(state: _Potential, now: _Point) -> _Potential:
        g = _best(_candidates(now, rows, columns), now, rows, columns)
        smaller = torch.maximum(SHRINK * state.epsilon, epsilon)
        return _Potential(g * state.epsilon, torch.where(now.near, smaller, state.epsilon))

    spread = X.flatten(1).amax(-1, keepdim=True) - X.flatten(1).amin(-1, keepdim=True)
    start = _Potential(torch.zeros_like(columns), torch.maximum(START * spread, epsilon))
    out = iterate(measure, step, start, max_steps=max_steps)
    return Solution(out.value.scaled / epsilon, out.status, out.steps, out.residual * tol)


def jacobian(plan: Tensor, rows: Tensor, on_failure: OnFailure = "warn") -> Dense:
    """The Hessian of phi, diag(Z'1) - Z' diag(rows)^-1 Z, without the last row and column.

    phi does not see a constant added to g: the rows of the Hessian sum to zero, and without the
    last it is positive definite. Its diagonal is computed as that sum: where the plan is nearly
    an assignment, the difference above would cancel.
    """
    couplings = plan.mT @ (plan / rows.unsqueeze(-1))
    couplings = couplings - torch.diag_embed(couplings.diagonal(dim1=-2, dim2=-1))
    hessian = torch.diag_embed(couplings.sum(-1)) - couplings
    return Dense.of(hessian[..., :-1, :-1], on_failure)


def _candidates(now: _Point, rows: Tensor, columns: Tensor) -> Tensor:
    """Sinkhorn's point, and Newton's for each length: `(4, B, m)`."""
    f = rows.log() - (now.S + now.g.unsqueeze(-2)).logsumexp(-1)
    sinkhorn = columns.log() - (now.S + f.unsqueeze(-1)).logsumexp(-2)
    newton = jacobian(now.plan, rows).solve(-now.gap[..., :-1]).value
    newton = torch.nn.functional.pad(newton, (0, 1))
    return torch.stack([sinkhorn, *(now.g + t * newton for t in LENGTHS)])


def _best(candidates: Tensor, now: _Point, rows: Tensor, columns: Tensor) -> Tensor:
    """The candidate with the lowest phi, `(B, m)`; a Newton step that failed has none.

    Near the minimum phi is flat up to rounding, and the error of the column sums decides.
    """
    shifted = now.S + candidates.unsqueeze(-2)
    phi = (rows * shifted.logsumexp(-1)).sum(-1) - (columns * candidates).sum(-1)
    sums = (rows.unsqueeze(-1) * shifted.softmax(-1)).sum(-2)
    merit = torch.where(now.near.squeeze(-1), (sums - columns).abs().sum(-1), phi)
    best = torch.where(merit.isfinite(), merit, torch.inf).argmin(0)
    return candidates.take_along_dim(best[None, :, None], 0).squeeze(0)
