"""A box cut by a hyperplane: `BoxHyperplane`.

The KKT conditions leave one unknown, the multiplier t of a'z = b: z(t) = clip(x - t a, lb, ub).
phi(t) = a'z(t) never rises and is linear between the 2n breakpoints at which an entry meets a
bound. Sort them, and halve the list until two neighbours enclose the root; between them it is
known which entries are free (F) and which are at a bound, and

    t = (sum_F a_i x_i + sum_not F a_i bound_i - b) / sum_F a_i^2

is exact. This formula, with the sets held fixed, is what autograd differentiates. Each halving
evaluates phi anew: there are no running sums to lose digits in.

Source: Brucker, "An O(n) algorithm for quadratic knapsack problems" (Oper. Res. Letters 3, 1984);
Kiwiel, "Breakpoint searching algorithms for the continuous quadratic knapsack problem" (Math.
Programming 112, 2008).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import Argument, Parameter, by_sample, check_point, parameter, unless
from .vectors import within


@dataclass(frozen=True)
class BoxHyperplane:
    """{lb <= z <= ub, a'z = b}: ``BoxHyperplane(a, b, lb, ub)(x)`` is its point nearest to x.

    The capped simplex is ``BoxHyperplane(torch.ones(n), k, 0.0, 1.0)``.

    Args:
        a: `(*B, n)`; entries may be zero or negative.
        b: `(*B)` or a number.
        lb, ub: `(*B, n)` or a number; infinite for no bound, lb == ub fixes an entry.

    Returns (the call):
        `(*B, n)`, within the bounds exactly, and a'z = b up to rounding.

    Raises:
        ValueError: if no point of the box satisfies a'z = b; if shapes do not fit.

    Derivative: exact for the entries that are free. At a tie (an entry meets its bound at the very
    t) it is that on the side of larger t, up to the rounding of t; where no entry is free (a
    vertex) z follows the bounds, and the derivative in x and b is zero. lb == ub: ub gets all.

    Example:
        The bound 0.6 leaves 0.4 for the others, 0.3 - t and 0 - t, so t = -0.05:

        >>> x = torch.tensor([0.9, 0.3, 0.0], requires_grad=True)
        >>> z = BoxHyperplane(torch.ones(3), 1.0, 0.0, 0.6)(x)
        >>> z.detach(), torch.autograd.grad(z[1], x)[0]
        (tensor([0.6000, 0.3500, 0.0500]), tensor([ 0.0000,  0.5000, -0.5000]))
    """

    a: Tensor
    b: Parameter
    lb: Parameter = -float("inf")
    ub: Parameter = float("inf")

    def __call__(self, x: Tensor) -> Tensor:
        check_point(x)
        n = x.shape[-1:]
        a, b = parameter("a", self.a, n, x), parameter("b", self.b, (), x)
        lb, ub = parameter("lb", self.lb, n, x), parameter("ub", self.ub, n, x)
        top = a.detach().abs().amax(-1, keepdim=True)  # the set is that of (a, b) / top
        top = torch.where((top > 0) & top.isfinite(), top, 1.0)
        a, b = a / top, b / top
        crossed = (lb > ub).any(-1, keepdim=True)
        b = unless(crossed, b, "a lower bound exceeds its upper bound: expected lb <= ub")
        b = unless(_missed(a, b, lb, ub), b, "no point with lb <= z <= ub satisfies a'z = b")
        limits = Argument(lb, limit=True), Argument(ub, limit=True)
        return by_sample(_section, Argument(x), Argument(a), Argument(b), *limits)


class _Sides(NamedTuple):
    """Which entries are free, and which of the others are at their upper bound."""

    free: Tensor
    upper: Tensor


def _section(x: Tensor, a: Tensor, b: Tensor, lb: Tensor, ub: Tensor) -> Tensor:
    free, upper = _sides(*(v.detach() for v in (x, a, b, lb, ub)))
    bound = torch.where(free, 0.0, torch.where(upper, ub, lb))
    moving = torch.where(free, a, 0.0)
    weight = moving.square().sum(-1, keepdim=True)
    excess = (moving * x + a * bound).sum(-1, keepdim=True) - b
    t = torch.where(weight == 0, 0.0, excess / torch.where(weight == 0, 1.0, weight))
    return within(torch.where(free, x - t * a, bound), lb.detach(), ub.detach())


def _sides(x: Tensor, a: Tensor, b: Tensor, lb: Tensor, ub: Tensor) -> _Sides:
    """The sides of all entries at the root of phi; an entry with a_i = 0 has its side from x."""
    still = a == 0
    slope = torch.where(still, 1.0, a)
    begin = torch.where(still, 0.0, (x - torch.where(a > 0, ub, lb)) / slope)
    end = torch.where(still, 0.0, (x - torch.where(a > 0, lb, ub)) / slope)
    low, high = _bracket(torch.cat(torch.broadcast_tensors(begin, end), -1), x, a, b, lb, ub)
    free = torch.where(still, (lb <= x) & (x <= ub), (begin <= low) & (end >= high))
    upper = torch.where(still, x > ub, (begin >= high) == (a > 0))
    return _Sides(free & (lb < ub), upper | (lb == ub))


def _bracket(breakpoints: Tensor, *problem: Tensor) -> tuple[Tensor, Tensor]:
    """Neighbours low < high among the breakpoints and -inf, inf: phi(low) >= b > phi(high).

    Where b is an end of the range of phi it is the first or the last pair.
    """
    b = problem[2]
    times = torch.nn.functional.pad(breakpoints.sort(-1).values, (1, 0), value=-torch.inf)
    times = torch.nn.functional.pad(times, (0, 1), value=torch.inf)
    times = times.expand(*torch.broadcast_shapes(times.shape[:-1], b.shape[:-1]), -1)
    low = torch.zeros_like(times[..., :1], dtype=torch.int64)
    high = torch.full_like(low, times.shape[-1] - 1)
    for _ in range((times.shape[-1] - 1).bit_length()):
        middle = (low + high) // 2
        before = _not_past(times.gather(-1, middle), *problem)
        # once they are neighbours the middle is `low`, and neither may move
        low = torch.where(before, middle, low)
        high = torch.where(before | (middle == low), high, middle)
    return times.gather(-1, low), times.gather(-1, high)


def _not_past(t: Tensor, x: Tensor, a: Tensor, b: Tensor, lb: Tensor, ub: Tensor) -> Tensor:
    """Whether phi(t) >= b; an infinite t is a breakpoint only where phi is infinite, too."""
    infinite = t.isinf()
    z = torch.clamp(x - torch.where(infinite, 0.0, t) * a, lb, ub)
    return torch.where(infinite, t < 0, (a * z).sum(-1, keepdim=True) >= b)


def _missed(a: Tensor, b: Tensor, lb: Tensor, ub: Tensor) -> Tensor:
    """Whether b is out of the range of a'z over the box, by more than rounding: `(*B, 1)`."""
    a, b, lb, ub = (v.detach() for v in (a, b, lb, ub))
    least = torch.where(a == 0, 0.0, a * torch.where(a > 0, lb, ub))
    most = torch.where(a == 0, 0.0, a * torch.where(a > 0, ub, lb))
    size = (
        torch.where(least.isfinite(), least, 0.0).abs()
        + torch.where(most.isfinite(), most, 0.0).abs()
    )
    slack = a.shape[-1] * torch.finfo(a.dtype).eps * (size.sum(-1, keepdim=True) + b.abs())
    too_low = b < least.sum(-1, keepdim=True) - slack
    return too_low | (b > most.sum(-1, keepdim=True) + slack)
