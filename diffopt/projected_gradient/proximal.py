"""Proximal operators: prox(v, step) minimises step r(z) + |z - v|^2 / 2 over z, in closed form.

Each is a frozen dataclass that holds the penalty r and is called with a point and a step. All are
made of plain torch operations: autograd differentiates them, in the weights too, wherever they are
differentiable, and takes one of the one-sided derivatives at a kink. Another penalty is another
callable of the same two arguments.

    L1             weight |z|_1                                soft thresholding
    NonnegativeL1  weight |z|_1, z >= 0
    ElasticNet     weight |z|_1 + ridge |z|^2 / 2
    GroupLasso     sum over the groups of weight |z_group|     block soft thresholding
    Projected      0 on a set, infinite outside                the projection, whatever the step

Source: Parikh & Boyd, "Proximal Algorithms" (Foundations and Trends in Optimization, 2014),
section 6.5; Yuan & Lin (JRSS B, 2006) for the group lasso.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Weight = Tensor | float


@dataclass(frozen=True)
class L1:
    """The lasso penalty weight |z|_1: entries move towards zero by step weight, and stop there.

    Args:
        weight: a number >= 0, or a tensor that broadcasts against `(*B, n)`.

    Raises:
        ValueError: if `weight` is a negative number.

    Example:
        >>> L1(0.5)(torch.tensor([3.0, -0.2, -2.0]), 2.0)
        tensor([ 2.,  0., -1.])
    """

    weight: Weight

    def __post_init__(self) -> None:
        _check_least_zero(self, "weight")

    def __call__(self, v: Tensor, step: Tensor | float) -> Tensor:
        """The proximal point of v `(*B, n)`; `step` is a number or `(*B, 1)`."""
        return _soft(v, step * self.weight)


@dataclass(frozen=True)
class NonnegativeL1:
    """The penalty weight |z|_1 on z >= 0: entries fall by step weight, and stop at zero.

    Args:
        weight: a number >= 0, or a tensor that broadcasts against `(*B, n)`.

    Raises:
        ValueError: if `weight` is a negative number.

    Example:
        >>> NonnegativeL1(0.5)(torch.tensor([3.0, 0.2, -2.0]), 2.0)
        tensor([2., 0., 0.])
    """

    weight: Weight

    def __post_init__(self) -> None:
        _check_least_zero(self, "weight")

    def __call__(self, v: Tensor, step: Tensor | float) -> Tensor:
        """The proximal point of v `(*B, n)`; `step` is a number or `(*B, 1)`."""
        return torch.relu(v - step * self.weight)


@dataclass(frozen=True)
class ElasticNet:
    """The penalty weight |z|_1 + ridge |z|^2 / 2: soft thresholding, then a shrinkage.

    Args:
        weight, ridge: numbers >= 0, or tensors that broadcast against `(*B, n)`.

    Raises:
        ValueError: if one of them is a negative number.

    Example:
        >>> ElasticNet(0.5, ridge=1.0)(torch.tensor([4.0, -0.2]), 2.0)       # (4 - 1) / (1 + 2)
        tensor([1., 0.])
    """

    weight: Weight
    ridge: Weight

    def __post_init__(self) -> None:
        _check_least_zero(self, "weight", "ridge")

    def __call__(self, v: Tensor, step: Tensor | float) -> Tensor:
        """The proximal point of v `(*B, n)`; `step` is a number or `(*B, 1)`."""
        return _soft(v, step * self.weight) / (1 + step * self.ridge)


@dataclass(frozen=True)
class GroupLasso:
    """The penalty that adds up weight |z_group| over groups: a group is zero as a whole, or not.

    Args:
        weight: a number >= 0, or a tensor that broadcasts against `(*B, n)` and has one value in
            each group; of numbers w for each group, ``w[groups]``.
        groups: the number of the group of each unknown, 0 to n - 1: `(n)`, int64.

    Raises:
        ValueError: if `weight` is a negative number, or `groups` no such vector; in the call, if
            it has another length than z.

    Example:
        The group (3, 4) has the norm 5, and keeps (5 - 1) / 5 of it; (0.6, 0.8) has the norm 1:

        >>> GroupLasso(0.5, torch.tensor([0, 0, 1, 1]))(torch.tensor([3.0, 4.0, 0.6, 0.8]), 2.0)
        tensor([2.4000, 3.2000, 0.0000, 0.0000])
    """

    weight: Weight
    groups: Tensor

    def __post_init__(self) -> None:
        _check_least_zero(self, "weight")
        groups = self.groups
        whole = isinstance(groups, Tensor) and groups.dtype == torch.int64 and groups.ndim == 1
        if not whole or bool(((groups < 0) | (groups >= len(groups))).any()):
            raise ValueError(
                f"GroupLasso(groups={groups!r}): expected the number of the group of each unknown, "
                "an int64 vector of 0 to n - 1 such as torch.tensor([0, 0, 1])"
            )

    def __call__(self, v: Tensor, step: Tensor | float) -> Tensor:
        """The proximal point of v `(*B, n)`; `step` is a number or `(*B, 1)`."""
        if v.shape[-1] != len(self.groups):
            raise ValueError(
                f"z has {v.shape[-1]} unknowns, but GroupLasso has groups for {len(self.groups)}: "
                "give one group number an unknown"
            )
        sums = torch.zeros_like(v).index_add(-1, self.groups, v * v)
        squares = sums.index_select(-1, self.groups)  # |v_group|^2 for each unknown
        threshold = step * self.weight
        # The root is not taken of a group that goes: that of zero has no derivative.
        stays = squares > threshold**2
        norm = torch.where(stays, squares, 1.0).sqrt()
        return torch.where(stays, v * (1 - threshold / norm), 0.0)


@dataclass(frozen=True)
class Projected:
    """The penalty that keeps z in a set: its proximal point is the projection, for every step.

    Args:
        projection: z -> the point of the set nearest to z, both `(*B, n)`.

    Example:
        >>> Projected(lambda z: z.clamp(0, 1))(torch.tensor([-2.0, 0.5, 3.0]), 2.0)
        tensor([0.0000, 0.5000, 1.0000])
    """

    projection: Callable[[Tensor], Tensor]

    def __call__(self, v: Tensor, step: Tensor | float) -> Tensor:
        """The projection of v `(*B, n)`."""
        return self.projection(v)


def _soft(v: Tensor, threshold: Tensor | float) -> Tensor:
    """v moved towards zero by `threshold`; zero, exactly, where it would cross."""
    return torch.relu(v - threshold) - torch.relu(-v - threshold)


def _check_least_zero(penalty: Any, *names: str) -> None:
    """Raise a `ValueError` if an attribute is a negative number; tensors are not looked into."""
    for name in names:
        value = getattr(penalty, name)
        kind = type(penalty).__name__
        if not isinstance(value, Tensor | int | float):
            raise ValueError(f"{kind}({name}={value!r}): expected a number or a tensor")
        if not isinstance(value, Tensor) and not value >= 0:
            raise ValueError(f"{kind}({name}={value!r}): expected a number >= 0")
