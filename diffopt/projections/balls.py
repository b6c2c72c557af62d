"""Euclidean lengths: `L2Ball`, `L2Sphere`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import Round
from .vectors import length


@dataclass(frozen=True)
class L2Ball(Round):
    """The ball |z| <= radius: ``L2Ball(radius)(x)`` is its point nearest to x, `(*B, n)`.

    Args:
        radius: `(*B)` or a number, >= 0.

    Raises:
        ValueError: if the radius is negative; if shapes do not fit.

    Derivative: the identity in the ball and on its boundary; outside, z = radius x / |x| has the
    derivative radius (I - u u') / |x| in x and u = x / |x| in the radius. Of any order.

    Example:
        >>> L2Ball(2.0)(torch.tensor([3.0, 4.0]))
        tensor([1.2000, 1.6000])
    """

    def _nearest(self, x: Tensor, radius: Tensor) -> Tensor:
        return _ball(x, radius)


@dataclass(frozen=True)
class L2Sphere(Round):
    """The sphere |z| = radius: ``L2Sphere(radius)(x)`` is radius x / |x|, `(*B, n)`.

    It is no convex set. All of its points are nearest to x = 0, and the one on the first axis is
    returned, with a derivative of zero in x.

    Args:
        radius: `(*B)` or a number, >= 0.

    Raises:
        ValueError: if the radius is negative; if shapes do not fit.

    Example:
        >>> L2Sphere()(torch.tensor([[0.3, 0.4], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [1.0000, 0.0000]])
    """

    def _nearest(self, x: Tensor, radius: Tensor) -> Tensor:
        return _sphere(x, radius)


def _ball(x: Tensor, radius: Tensor) -> Tensor:
    inside = length(x.detach()) <= radius
    return torch.where(inside, x, _sphere(torch.where(inside, 1.0, x), radius))


def _sphere(x: Tensor, radius: Tensor) -> Tensor:
    axis = torch.eye(1, x.shape[-1], dtype=x.dtype, device=x.device)[0]
    x = torch.where((x == 0).all(-1, keepdim=True), axis, x)
    return radius * (x / length(x))
