"""Points with outliers, and robust means of them with a known answer.

A set of `count` numbers is its true centre plus noise of size `noise`, but for a share of outliers
that lie all on one side. The mean follows them; a robust mean does not. `huber_mean` finds the
Huber mean by sorting, without any optimiser: the judge of one that optimises.

Source of the penalties: Gould, Hartley & Campbell, "Deep Declarative Networks" (IEEE TPAMI 2022),
the example of robust pooling; Huber, "Robust Estimation of a Location Parameter" (1964).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Sets(NamedTuple):
    """Sets of points `(sets, count, dim)`, their true centres `(sets, dim)`, who is an outlier."""

    points: Tensor
    centre: Tensor
    outlier: Tensor


def sets(
    number: int = 100,
    count: int = 20,
    dim: int = 2,
    share: float = 0.2,
    noise: float = 0.1,
    far: float = 4.0,
    seed: int = 0,
) -> Sets:
    """Return sets of points around centres in [-1, 1]^dim, a `share` of them `far` away.

    The outliers of a set are all in one direction, at distances from far / 2 to 3 far / 2.

    Example:
        >>> sets(3, 10, share=0.2).outlier.sum(-1)
        tensor([2, 2, 2])
    """
    if not 0 <= share < 0.5:
        raise ValueError(f"share is {share}: expected 0 <= share < 1/2, or the outliers are right")
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    centre = 2 * draw(number, dim) - 1
    points = torch.randn(number, count, dim, generator=generator, dtype=torch.float64)
    outlier = (torch.arange(count) < round(share * count)).expand(number, -1)
    way = torch.nn.functional.normalize(draw(number, 1, dim) - 0.5, dim=-1)
    away = far * (0.5 + draw(number, count, 1)) * way
    near = centre.unsqueeze(1) + noise * points
    return Sets(near + torch.where(outlier.unsqueeze(-1), away, 0.0), centre, outlier)


def huber_mean(x: Tensor, width: float) -> Tensor:
    """Return the z that minimises the sum of Huber penalties of z - x, x `(*B, count)`.

    The derivative of the sum, sum of clamp(z - x_i, -width, width), increases in z and is linear
    between the places x_i - width and x_i + width: its zero is between two of them.

    >>> huber_mean(torch.tensor([0.0, 1.0, 2.0, 100.0]), 3.0)
    tensor(2.)
    """
    if not width > 0:
        raise ValueError(f"width is {width}: expected a positive number")
    knots = torch.cat([x - width, x + width], -1).sort(-1)[0]
    slope = (knots.unsqueeze(-1) - x.unsqueeze(-2)).clamp(-width, width).sum(-1)
    right = (slope >= 0).to(torch.int8).argmax(-1, keepdim=True).clamp(min=1)
    a, b = knots.gather(-1, right - 1), knots.gather(-1, right)
    fa, fb = slope.gather(-1, right - 1), slope.gather(-1, right)
    share = torch.where(fb > fa, -fa / (fb - fa), 0.5)
    return (a + share * (b - a)).squeeze(-1)
