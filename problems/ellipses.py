"""Ellipses, and the nearest point of one, which is a projection on a set that is not convex.

    {z : (z_0 / a_0)^2 + (z_1 / a_1)^2 = 1}

The nearest point to x has the signs of x and z = a^2 x / (t + a^2) with the t > -min(a^2) at which
it is on the ellipse; that is one decreasing function of one number, and is found by bisection.

Source: Eberly, "Distance from a Point to an Ellipse, an Ellipsoid, or a Hyperellipsoid" (2013).
"""

import torch
from torch import Tensor

HALVINGS = 200


def project(x: Tensor, axes: Tensor) -> Tensor:
    """Return the point of the ellipse nearest to each x `(*B, 2)`, for `axes` a `(2,)`.

    x must not be on the long axis, where two points may be nearest.

    Example:
        >>> project(torch.tensor([0.6, 1.6]), torch.tensor([1.0, 1.0]))
        tensor([0.3511, 0.9363])
    """
    if axes.shape != (2,) or not bool((axes > 0).all()):
        raise ValueError(f"axes is {axes}: expected two positive numbers")
    square = axes.square()
    low = -square.min().expand(x.shape[:-1])
    high = low + (axes * x).norm(dim=-1) + axes.max()  # there each term is below 1
    for _ in range(HALVINGS):
        t = (low + high) / 2
        inside = (axes * x / (t.unsqueeze(-1) + square)).square().sum(-1) < 1
        low, high = torch.where(inside, low, t), torch.where(inside, t, high)
    return square * x / (high.unsqueeze(-1) + square)


def points(count: int, seed: int = 0) -> Tensor:
    """Return points `(count, 2)` of the square [-2, 2]^2, none of them near an axis."""
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(count, 2, generator=generator, dtype=torch.float64) - 2
    return torch.where(x < 0, x - 0.2, x + 0.2)
