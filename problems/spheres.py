"""Two classes of points, one all around the other: a ball, and a shell that surrounds it.

The flow of an ODE is continuous and invertible: it cannot take the ball out of the shell, and no
linear function of its output tells the two apart. In one more dimension it can.

Source: Dupont, Doucet & Teh, "Augmented Neural ODEs" (NeurIPS 2019), the experiments on
concentric spheres; the radii and counts are those of its code.
"""

from typing import NamedTuple

import torch
from torch import Tensor

INNER, SHELL = 0.5, (1.0, 1.5)  # the radius of the ball, and the two of the shell


class Spheres(NamedTuple):
    """Points `(N, d)` in random order, float32, and labels `(N, 1)`: -1 in the ball, 1 outside."""

    points: Tensor
    labels: Tensor


def concentric(inner: int = 500, outer: int = 1500, d: int = 2, *, seed: int = 0) -> Spheres:
    """Return points drawn uniformly from the ball |x| <= 0.5 and the shell 1 <= |x| <= 1.5.

    Args:
        inner, outer: how many of each, at least 1.
        d: dimension, at least 1.
        seed: of a generator of its own.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> few = concentric(1, 3)
        >>> tuple(few.points.shape), few.labels.sum().item()
        ((4, 2), 2.0)
    """
    if min(inner, outer, d) < 1:
        raise ValueError(f"inner={inner}, outer={outer}, d={d}: expected numbers of at least 1")
    generator = torch.Generator().manual_seed(seed)
    ball = _shell(inner, d, 0.0, INNER, generator)
    shell = _shell(outer, d, *SHELL, generator)
    labels = torch.cat([-torch.ones(inner, 1), torch.ones(outer, 1)])
    order = torch.randperm(inner + outer, generator=generator)
    return Spheres(torch.cat([ball, shell])[order], labels[order])


def _shell(count: int, d: int, least: float, most: float, generator: torch.Generator) -> Tensor:
    """Uniform in volume: |x|^d is uniform between least^d and most^d."""
    direction = torch.randn(count, d, generator=generator)
    direction = direction / direction.norm(dim=1, keepdim=True)
    share = torch.rand(count, 1, generator=generator)
    return direction * (least**d + share * (most**d - least**d)) ** (1 / d)
