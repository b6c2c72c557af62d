"""Few points of a curve, and the best that any increasing function can do with them.

The flow of an ODE in one dimension is increasing in where it starts. No such model fits points
better than isotonic regression does, whatever its dynamics: `isotonic` is the judge.

Source of the points: the regression of Duvenaud's tutorial on ODE-nets (in "Deep Implicit Layers",
NeurIPS 2020), y = x^3 + x / 10; isotonic regression: Barlow, Bartholomew, Bremner & Brunk,
"Statistical Inference under Order Restrictions" (1972).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Points(NamedTuple):
    """Inputs, increasing, and targets, `(count, 1)` each, float64."""

    x: Tensor
    y: Tensor


def cubic(count: int = 10) -> Points:
    """Return points of y = x^3 + x / 10, which is increasing, at equal distances on [-2, 2].

    >>> cubic(2).y.flatten().tolist()
    [-8.2, 8.2]
    """
    x = _inputs(count)
    return Points(x, x**3 + 0.1 * x)


def parabola(count: int = 10) -> Points:
    """Return points of y = x^2, which is not increasing, at equal distances on [-2, 2].

    >>> parabola(3).y.flatten().tolist()
    [4.0, 0.0, 4.0]
    """
    x = _inputs(count)
    return Points(x, x**2)


def crossing() -> Points:
    """Return the two points -1 -> 1 and 1 -> -1.

    An increasing function gets nothing right: the best one is 0, with a mean squared error of 1.

    Source: Dupont, Doucet & Teh, "Augmented Neural ODEs" (NeurIPS 2019), Proposition 1.
    """
    x = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    return Points(x, -x)


def isotonic(y: Tensor) -> Tensor:
    """Return the non-decreasing vector nearest to y `(n,)`, in the sum of squares.

    By pooling adjacent violators: a block whose mean is above that of the next one joins it.

    Example:
        >>> isotonic(torch.tensor([1.0, 3.0, 2.0, 4.0]))
        tensor([1.0000, 2.5000, 2.5000, 4.0000])
    """
    if y.ndim != 1:
        raise ValueError(f"y has shape {tuple(y.shape)}: expected one sequence, (n,)")
    blocks: list[tuple[float, int]] = []  # (sum, count)
    for value in y.tolist():
        block = (value, 1)
        while blocks and blocks[-1][0] * block[1] > block[0] * blocks[-1][1]:
            total, count = blocks.pop()
            block = (total + block[0], count + block[1])
        blocks.append(block)
    means = [total / count for total, count in blocks for _ in range(count)]
    return torch.tensor(means, dtype=y.dtype)


def increasing_bound(points: Points) -> float:
    """Return the least mean squared error of all non-decreasing functions of x on the points.

    >>> increasing_bound(cubic()), increasing_bound(crossing())
    (0.0, 1.0)
    """
    y = points.y.flatten()
    return (isotonic(y) - y).square().mean().item()


def _inputs(count: int) -> Tensor:
    if count < 2:
        raise ValueError(f"count is {count}: ask for 2 points at least")
    return torch.linspace(-2, 2, count, dtype=torch.float64).unsqueeze(1)
