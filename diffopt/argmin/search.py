"""A line search on the l1 merit function, with a second-order correction.

    phi(z) = f(z) + rho (sum |e(z)| + sum max(c(z), 0))

A step is taken if phi falls by a share of what the model promises. Curved constraints can forbid
the full step however near the solution is (Maratos); then the step is corrected by the violation
that it leads to, and tried once more in full before it is shortened.

Source: Nocedal & Wright, Numerical Optimization (2nd ed., 2006), (18.27)-(18.30) for the merit
function and sec. 18.3 for the correction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..qp.problem import largest
from .problem import Problem, Slopes
from .subproblem import violation

ARMIJO = 1e-4
HALVINGS = 40
LONGEST = 1e3  # first step tried, in units of 1 + |z|: a model without curvature has no end


class Ahead(NamedTuple):
    """What is to be searched.

    Attributes:
        d: `(B, n)`.
        slope: the change of phi that the model promises, <= 0, `(B,)`.
        rho: `(B,)`.
        wanted: samples to move, bool `(B,)`.
    """

    d: Tensor
    slope: Tensor
    rho: Tensor
    wanted: Tensor


def search(
    problem: Problem,
    z: Tensor,
    at: Slopes,
    ahead: Ahead,
    correct: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """(the next point of each sample, whether one was found).

    Args:
        correct: (samples, e and c at the full step) -> the corrected step of these samples.
    """
    d, slope, rho, wanted = ahead
    phi = at.f + rho * violation(at.equality, at.inequality)
    noise = 1e-15 * (1 + at.f.abs() + rho)  # rounding of phi: less is no rise
    found, out = ~wanted, z
    alpha = (LONGEST * (1 + largest(z)) / largest(d)).clamp(max=1.0)

    def tried(point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(phi, e, c) there."""
        f, equality, inequality = problem.values(point)
        value = f + rho * violation(equality, inequality)
        return torch.where(value.isfinite(), value, torch.inf), equality, inequality

    for k in range(HALVINGS):
        point = problem.clamp(z + alpha.unsqueeze(-1) * d)
        value, equality, inequality = tried(point)
        good = ~found & (value <= phi + ARMIJO * alpha * slope + noise)
        out, found = torch.where(good.unsqueeze(-1), point, out), found | good
        if k == 0 and problem.e + problem.m:
            again = (~found & (value < torch.inf) & (alpha == 1)).nonzero().flatten()
            if len(again):
                step = correct(again, equality[again], inequality[again])
                point = problem.clamp(z + d.index_copy(0, again, step))
                after = tried(point)[0]
                good = ~found & (after <= phi + ARMIJO * slope + noise)
                out, found = torch.where(good.unsqueeze(-1), point, out), found | good
        if bool(found.all()):
            break
        # The parabola through phi, its slope and the value, kept within bounds.
        least = -slope * alpha.square() / (2 * (value - phi - alpha * slope))
        least = torch.where(least.isfinite(), least, 0.0)
        alpha = torch.minimum(torch.maximum(least, 0.1 * alpha), 0.5 * alpha)
    return out, found
