"""The simplex and what follows from it by signs: `Simplex`, `L1Ball`, `L1Sphere`.

The nearest point of {z >= 0, sum z = s} is z = max(x - tau, 0), with tau such that the sum is s.
Sorting finds the support {i: x_i > tau}; on it tau = (sum of x over the support - s) / its size,
and this formula, with the support held fixed, is what autograd differentiates. Nothing of the
sort is kept for the backward pass.

Source: Held, Wolfe & Crowder, "Validation of subgradient optimization" (Math. Programming 6,
1974); Duchi, Shalev-Shwartz, Singer & Chandra, "Efficient projections onto the l1-ball" (ICML
2008), Fig. 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import Argument, Parameter, Round, by_sample, check_point, check_size, size
from .vectors import within


@dataclass(frozen=True)
class Simplex:
    """The simplex z >= 0, sum z = scale: ``Simplex(scale)(x)`` is its point nearest to x.

    For scale 1 this is the map known as sparsemax.

    Args:
        scale: `(*B)` or a number, >= 0.

    Returns (the call):
        `(*B, n)`, of sum `scale` up to rounding; exact zeros outside of the support.

    Raises:
        ValueError: if the scale is negative; if shapes do not fit.

    Derivative: with k entries in the support S, dz_i/dx_j = (i == j) - 1/k and dz_i/dscale = 1/k
    for i, j in S, otherwise 0. At a tie, x_i = tau, the entry counts as outside of the support.
    Second derivatives are zero.

    Example:
        From (0.9, 0.5, -1) by tau = 0.2:

        >>> x = torch.tensor([0.9, 0.5, -1.0], requires_grad=True)
        >>> z = Simplex()(x)
        >>> z.detach(), torch.autograd.grad(z[0], x)[0]
        (tensor([0.7000, 0.3000, 0.0000]), tensor([ 0.5000, -0.5000,  0.0000]))
    """

    scale: Parameter = 1.0

    def __post_init__(self) -> None:
        check_size(self, "scale")

    def __call__(self, x: Tensor) -> Tensor:
        check_point(x)
        scale = size("scale", self.scale, x)
        return by_sample(simplex, Argument(x), Argument(scale))


@dataclass(frozen=True)
class L1Ball(Round):
    """The ball sum |z_i| <= radius: ``L1Ball(radius)(x)`` is its point nearest to x.

    Args:
        radius: `(*B)` or a number, >= 0.

    Returns (the call):
        `(*B, n)`: x in the ball; outside of it x with its entries shrunk, many to exactly zero.

    Raises:
        ValueError: if the radius is negative; if shapes do not fit.

    Derivative: the identity in the ball and on its boundary; outside, that of `Simplex` with the
    signs of x, a tie |x_i| = tau counting as zero.

    Example:
        >>> L1Ball()(torch.tensor([0.9, -0.5, 0.1]))
        tensor([ 0.7000, -0.3000,  0.0000])
    """

    def _nearest(self, x: Tensor, radius: Tensor) -> Tensor:
        return _l1_ball(x, radius)


@dataclass(frozen=True)
class L1Sphere(Round):
    """The sphere sum |z_i| = radius: ``L1Sphere(radius)(x)`` is a point of it nearest to x.

    It is no convex set. From inside, the nearest point is in the orthant of x and every entry
    grows by (radius - sum |x_i|) / n; if an entry of x is 0 there are two or more, and the one
    with the sign + is returned. From outside it is that of `L1Ball`.

    Args:
        radius: `(*B)` or a number, >= 0.

    Raises:
        ValueError: if the radius is negative; if shapes do not fit.

    Derivative: that of `Simplex` with the signs of x.

    Example:
        >>> L1Sphere()(torch.tensor([0.5, -0.1]))
        tensor([ 0.7000, -0.3000])
    """

    def _nearest(self, x: Tensor, radius: Tensor) -> Tensor:
        return _l1_sphere(x, radius)


def simplex(x: Tensor, scale: Tensor) -> Tensor:
    """The projection of `(*B, n)` on the simplexes of sum `scale` `(*B, 1)`, all finite.

    The projection of x + c is that of x for any constant c. With the largest entry at 0 those of
    the support are in [-scale, 0], and nothing is lost by cancellation.
    """
    y = x - x.detach().amax(-1, keepdim=True)
    support = _support(y.detach(), scale.detach())
    total = torch.where(support, y, 0.0).sum(-1, keepdim=True)
    tau = (total - scale) / support.sum(-1, keepdim=True)
    z = torch.where(support, y - tau, 0.0)
    return within(z, 0.0, torch.inf)


def _support(y: Tensor, scale: Tensor) -> Tensor:
    """Which entries are positive; the largest, which is 0, counts among them always.

    With u the sorted entries, u_1 >= u_2 >= ..., the support has the k entries that satisfy
    k u_k > u_1 + ... + u_k - scale.
    """
    u = y.sort(-1, descending=True).values
    sums = u.cumsum(-1) - scale
    count = torch.arange(1, y.shape[-1] + 1, device=y.device, dtype=y.dtype)
    size = (count * u > sums).sum(-1, keepdim=True).clamp(min=1)
    tau = sums.gather(-1, size - 1) / size
    return (y > tau) | (y == 0)


def _l1_ball(x: Tensor, radius: Tensor) -> Tensor:
    inside = x.detach().abs().sum(-1, keepdim=True) <= radius
    return torch.where(inside, x, x.sign() * simplex(x.abs(), radius))


def _l1_sphere(x: Tensor, radius: Tensor) -> Tensor:
    sign = torch.where(x.detach() < 0, -1.0, 1.0).to(x.dtype)
    return sign * simplex(sign * x, radius)
