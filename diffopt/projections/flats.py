"""Sets given by linear equations, or one inequality: `Hyperplane`, `Halfspace`, `Affine`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .arguments import Argument, Parameter, by_sample, check_point, parameter, unless
from .vectors import length, times


@dataclass(frozen=True)
class Hyperplane:
    """The hyperplane a'z = b: ``Hyperplane(a, b)(x)`` is x - (a'x - b) a / |a|^2, `(*B, n)`.

    Args:
        a: `(*B, n)`; zero with b = 0 is the whole space.
        b: `(*B)` or a number.

    Raises:
        ValueError: if a = 0 and b != 0; if shapes do not fit.

    Derivative: exact, of any order, in x, a and b.

    Example:
        >>> Hyperplane(torch.tensor([1.0, 1.0]), 1.0)(torch.tensor([2.0, 1.0]))
        tensor([1., 0.])
    """

    a: Tensor
    b: Parameter = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        check_point(x)
        a, b = parameter("a", self.a, x.shape[-1:], x), parameter("b", self.b, (), x)
        empty = (a == 0).all(-1, keepdim=True) & (b != 0)
        b = unless(empty, b, "a = 0 and b != 0: no point satisfies a'z = b; expected a != 0")
        return by_sample(_hyperplane, Argument(x), Argument(a), Argument(b))


@dataclass(frozen=True)
class Halfspace:
    """The half-space a'z <= b: ``Halfspace(a, b)(x)`` is its point nearest to x, `(*B, n)`.

    Args:
        a: `(*B, n)`; zero with b >= 0 is the whole space.
        b: `(*B)` or a number.

    Raises:
        ValueError: if a = 0 and b < 0; if shapes do not fit.

    Derivative: the identity in the set and on its boundary; outside, that of `Hyperplane`.

    Example:
        >>> Halfspace(torch.tensor([1.0, 1.0]), 1.0)(torch.tensor([[2.0, 1.0], [0.0, 0.5]]))
        tensor([[1.0000, 0.0000],
                [0.0000, 0.5000]])
    """

    a: Tensor
    b: Parameter = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        check_point(x)
        a, b = parameter("a", self.a, x.shape[-1:], x), parameter("b", self.b, (), x)
        empty = (a == 0).all(-1, keepdim=True) & (b < 0)
        b = unless(empty, b, "a = 0 and b < 0: no point satisfies a'z <= b; expected a != 0")
        return by_sample(_halfspace, Argument(x), Argument(a), Argument(b))


@dataclass(frozen=True)
class Affine:
    """The affine set A z = b: ``Affine(A, b)(x)`` is x - A^+ (A x - b), `(*B, n)`.

    A^+ is the pseudo-inverse, from the singular values of A with rows of length one: rows may be
    dependent or zero. What is below eps^0.7 of the largest (1e-11 in float64, 1e-5 in float32)
    counts as zero. An A that the batch shares is decomposed once.

    Args:
        A: `(*B, m, n)`.
        b: `(*B, m)` or a number.

    Raises:
        ValueError: if the rows contradict each other by more than sqrt(eps) of their size; if
            shapes do not fit.

    Derivative: exact in x, of any order. In A and b too if the rows are independent; otherwise it
    is the one at constant rank, and the gradient in b is the one of least norm.

    Accuracy: rounding times the condition number of A.

    Example:
        The line z_0 = z_1 = z_2, by three equations of which one is redundant:

        >>> A = torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0], [1.0, 0.0, -1.0]])
        >>> z = Affine(A, 0.0)(torch.tensor([0.0, 3.0, 6.0]))
        >>> z.round(decimals=4)
        tensor([3., 3., 3.])

    Source: Golub & Pereyra, "The differentiation of pseudo-inverses and nonlinear least squares
    problems whose variables separate" (SIAM J. Numer. Anal. 10, 1973), for the derivative of A^+.
    """

    A: Tensor
    b: Parameter = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        check_point(x)
        A = parameter("A", self.A, (None, x.shape[-1]), x)
        b = parameter("b", self.b, A.shape[-2:-1], x)
        z = by_sample(_affine, Argument(x), Argument(A, 2), Argument(b))
        apart = _contradicted(*(v.detach() for v in (x, z, A, b)))  # False for NaN
        return unless(apart, z, "the rows of A z = b contradict each other; remove or relax one")


def _hyperplane(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return x - _step(x, a, b) * a


def _halfspace(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    step = _step(x, a, b)
    return torch.where(step <= 0, x, x - step * a)


def _step(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """(a'x - b) / |a|^2, in units of the largest entry of a lest the square overflow."""
    top = a.detach().abs().amax(-1, keepdim=True)
    top = torch.where(top == 0, 1.0, top)
    u = a / top
    square = u.square().sum(-1, keepdim=True)
    square = torch.where(square == 0, 1.0, square)  # a = 0: u'x - b <= 0, and no step
    return ((u * x).sum(-1, keepdim=True) - b / top) / (square * top)


def _affine(x: Tensor, A: Tensor, b: Tensor) -> Tensor:
    size = length(torch.where((A == 0).all(-1, keepdim=True), 1.0, A))
    A, b = A / size, b / size.squeeze(-1)
    inverse = torch.linalg.pinv(A, rtol=torch.finfo(A.dtype).eps ** 0.7)
    return x - times(inverse, times(A, x) - b)


def _contradicted(x: Tensor, z: Tensor, A: Tensor, b: Tensor) -> Tensor:
    """Whether A z misses b by more than sqrt(eps) of what the row is made of: `(*B, 1)`."""
    size = x.abs().amax(-1, keepdim=True) + z.abs().amax(-1, keepdim=True)
    scale = A.abs().sum(-1) * size + b.abs()
    left = (times(A, z) - b).abs()
    return (left > torch.finfo(A.dtype).eps ** 0.5 * scale).any(-1, keepdim=True)
