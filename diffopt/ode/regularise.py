"""Penalties that keep a learned ODE easy to solve, accumulated along the solution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..solution import check_counts

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Kinetic:
    """|f|^2: its integral is the kinetic energy of the path, small for short and straight ones.

    Source: Finlay, Jacobsen, Nurbekyan & Oberman, "How to Train Your Neural ODE: the World of
    Jacobian and Kinetic Regularization" (ICML 2020).
    """

    def rate(self, f: Field, t: Tensor, y: Tensor, slope: Tensor) -> Tensor:
        """`(B, 1)`; `slope` is f(t, y)."""
        return _squared(slope)


@dataclass(frozen=True)
class JacobianNorm:
    """|eps^T df/dy|^2, whose mean over random signs eps is the squared Frobenius norm of df/dy.

    eps stays the same along the solution: the field must be one function.

    Attributes:
        eps: like y, `(B, ...)`; see `like`.

    Source: Finlay et al. (ICML 2020), with the estimate of Hutchinson (1990).
    """

    eps: Tensor

    @classmethod
    def like(cls, y: Tensor, generator: torch.Generator | None = None) -> JacobianNorm:
        """With random signs for states like `y`: draw anew for every solve."""
        signs = torch.randint(0, 2, y.shape, generator=generator, device=y.device)
        return cls((2 * signs - 1).to(y.dtype))

    def rate(self, f: Field, t: Tensor, y: Tensor, slope: Tensor) -> Tensor:
        """`(B, 1)`; one evaluation of f and one vjp."""
        if self.eps.shape != y.shape:
            raise ValueError(
                f"JacobianNorm: eps has shape {tuple(self.eps.shape)}, and y has "
                f"{tuple(y.shape)}: use JacobianNorm.like(y0)"
            )
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            at = y if y.requires_grad else y.detach().requires_grad_()
            image = f(t, at)
            if not image.requires_grad:  # f does not depend on y
                return torch.zeros_like(_squared(y))
            (pulled,) = torch.autograd.grad(
                image, at, self.eps, create_graph=wanted, allow_unused=True, materialize_grads=True
            )
        return _squared(pulled)


@dataclass(frozen=True)
class Taylor:
    """|d^K y / dt^K|^2 along the solution: small where a method of order K - 1 takes long steps.

    d y / dt = f, and d/dt of any g(t, y) is its derivative along (1, f): K - 1 nested
    `torch.func.jvp`, about 2^(K - 1) evaluations of f. K = 1 is `Kinetic`.

    Attributes:
        order: K, at least 1; the published choice is 2 or 3.

    Source: Kelly, Bettencourt, Johnson & Duvenaud, "Learning Differential Equations that are Easy
    to Solve" (NeurIPS 2020).
    """

    order: int = 2

    def __post_init__(self) -> None:
        check_counts(self, "order")

    def rate(self, f: Field, t: Tensor, y: Tensor, slope: Tensor) -> Tensor:
        """`(B, 1)`."""
        g = f
        for _ in range(self.order - 1):
            g = along(f, g)
        return _squared(g(t, y) if self.order > 1 else slope)


Penalty = Kinetic | JacobianNorm | Taylor


def along(f: Field, g: Field) -> Field:
    """d/dt g(t, y(t)) where y' = f(t, y), as a function of (t, y).

    Example:
        The second derivative of y with y' = t y is y + t^2 y, 10 at t = 3 and y = 1:

        >>> f = lambda t, y: t * y
        >>> along(f, f)(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
        tensor([[10.]])
    """

    def derivative(t: Tensor, y: Tensor) -> Tensor:
        t = t.contiguous()  # forward mode takes no tensor that is expanded
        return torch.func.jvp(g, (t, y), (torch.ones_like(t), f(t, y)))[1]

    return derivative


class Regularised(nn.Module):
    """The field of `regularised`; if f is a module, its parameters are this one's.

    Attributes:
        f, penalties: as they were given.
    """

    def __init__(self, f: Field, penalties: tuple[Penalty, ...]) -> None:
        super().__init__()
        self.f, self.penalties = f, penalties

    def start(self, y0: Tensor) -> tuple[Tensor, ...]:
        """(y0, 0, 0, ...): the state at the first time, `(B, ...)` and `(B, 1)` a penalty."""
        if not isinstance(y0, Tensor):
            raise ValueError(
                f"y0 is a {type(y0).__name__}: expected a tensor (B, ...); join the parts of a "
                "state before regularising its field"
            )
        return (y0, *(y0.new_zeros(len(y0), 1) for _ in self.penalties))

    def forward(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """d/dt of the state."""
        y, slope = state[0], self.f(t, state[0])
        return (slope, *(penalty.rate(self.f, t, y, slope) for penalty in self.penalties))


def regularised(f: Field, *penalties: Penalty) -> Regularised:
    """A field whose state carries, after y, the integral of each penalty from the first time on.

    Args:
        f: (t, y) -> dy/dt, y a tensor `(B, ...)`, as for `odeint`.
        penalties: `Kinetic()`, `JacobianNorm.like(y0)`, `Taylor(K)`.

    Returns:
        `Regularised`, a module: pass it to `odeint` with the state ``regularised(...).start(y0)``;
        y1 is then (y, penalty, ...), the penalties `(B, 1)`, ready for a loss. They take part in
        the choice of the steps. Backwards in time they are negative.

    Raises:
        ValueError: if one of `penalties` is none.

    Accuracy: that of the solver.

    Example:
        y' = y from 1 has |f|^2 = exp(2 t), of integral (e^2 - 1) / 2, and y'' = y:

        >>> from diffopt import odeint
        >>> g = regularised(lambda t, y: y, Kinetic(), Taylor(2))
        >>> y0 = torch.ones(1, 1, dtype=torch.float64)
        >>> odeint(g, g.start(y0), torch.tensor([0.0, 1.0])).y1[1:]
        (tensor([[3.1945]], dtype=torch.float64), tensor([[3.1945]], dtype=torch.float64))
    """
    for penalty in penalties:
        if not isinstance(penalty, Penalty):
            raise ValueError(
                f"penalties: {penalty!r} is none; expected Kinetic(), JacobianNorm.like(y0) or "
                "Taylor(K)"
            )
    return Regularised(f, penalties)


def _squared(v: Tensor) -> Tensor:
    """The squared Euclidean norm of each sample, `(B, 1)`."""
    return v.flatten(1).square().sum(1, keepdim=True)
