"""Sets that are a product of intervals: `Box`, `Nonnegative`, `LinfBall`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import Parameter, check_point, check_size, parameter, size, unless


@dataclass(frozen=True)
class Box:
    """The box lb <= z <= ub: ``Box(lb, ub)(x)`` is x clipped, `(*B, n)`.

    Args:
        lb, ub: `(*B, n)` or a number; -inf and +inf mean no bound, lb == ub fixes an entry.

    Raises:
        ValueError: if a lower bound exceeds the upper one; if shapes do not fit.

    Derivative: 1 for an entry within its bounds or at one of them; where x is beyond a bound, that
    bound gets the 1; where lb == ub, ub does. All derivatives but the first are zero.

    Example:
        >>> x = torch.tensor([-1.0, 0.5, 3.0], requires_grad=True)
        >>> z = Box(0.0, 1.0)(x)
        >>> z.detach(), torch.autograd.grad(z.sum(), x)[0]
        (tensor([0.0000, 0.5000, 1.0000]), tensor([0., 1., 0.]))
    """

    lb: Parameter = -float("inf")
    ub: Parameter = float("inf")

    def __call__(self, x: Tensor) -> Tensor:
        check_point(x)
        n = x.shape[-1:]
        lb, ub = parameter("lb", self.lb, n, x), parameter("ub", self.ub, n, x)
        crossed = (lb > ub).any(-1, keepdim=True)
        ub = unless(crossed, ub, "a lower bound exceeds its upper bound: expected lb <= ub")
        return torch.where(lb <= ub, clipped(x, lb, ub), torch.nan)


@dataclass(frozen=True)
class Nonnegative:
    """The vectors z >= 0: ``Nonnegative()(x)`` is max(x, 0), `(*B, n)`.

    Derivative: 1 where x >= 0, the boundary included, otherwise 0.

    Example:
        >>> Nonnegative()(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """

    def __call__(self, x: Tensor) -> Tensor:
        check_point(x)
        return torch.where(x < 0, 0.0, x)


@dataclass(frozen=True)
class LinfBall:
    """The ball max |z_i| <= radius: ``LinfBall(radius)(x)`` is x clipped, `(*B, n)`.

    Args:
        radius: `(*B)` or a number, >= 0.

    Raises:
        ValueError: if the radius is negative; if shapes do not fit.

    Derivative: of an entry |x_i| <= radius it is 1 in x, beyond that sign(x_i) in the radius.

    Example:
        >>> LinfBall(1.0)(torch.tensor([-3.0, 0.5]))
        tensor([-1.0000,  0.5000])
    """

    radius: Parameter = 1.0

    def __post_init__(self) -> None:
        check_size(self, "radius")

    def __call__(self, x: Tensor) -> Tensor:
        check_point(x)
        radius = size("radius", self.radius, x)
        z = torch.where(x.abs() > radius, x.sign() * radius, x)
        return torch.where(radius.isnan(), torch.nan, z)


def clipped(x: Tensor, lb: Tensor, ub: Tensor) -> Tensor:
    """x clipped to the bounds; where they are equal the gradient is that of ub."""
    z = torch.where(x < lb, lb, x)
    return torch.where((x > ub) | ((lb == ub) & ~x.isnan()), ub, z)
