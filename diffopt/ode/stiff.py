"""The implicit solvers that a user may pass, for stiff equations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..solution import check_counts, check_positive
from . import esdirk
from .methods import Adaptive, FixedStep


@dataclass(frozen=True)
class ImplicitFixedStep(FixedStep):
    """Equal steps, each the solution of an equation by Newton's method, sample by sample.

    A sample for which Newton's method finds no solution ends with NUMERICAL_FAILURE; shorter steps
    help. For systems of up to some hundred unknowns: df/dy is formed, by one vjp a row.

    Attributes:
        step: the largest step, in units of t; None for one step from each time to the next.
        newton_rtol: the correction, relative to the largest entry of y, at which Newton's method
            stops; no less than what the dtype can hold, 100 roundings.
        newton_steps: the most that it takes.
    """

    newton_rtol: float = 1e-12
    newton_steps: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "newton_rtol")
        check_counts(self, "newton_steps")

    @property
    def refresh(self) -> bool:
        """Whether df/dy is taken again, at every Newton step, where that of the start fails."""
        return True

    def unit(self, y: Tensor, z: Tensor) -> Tensor:
        """The size of a correction of the state z that is good enough, `(B, 1)`."""
        eps, tiny = torch.finfo(y.dtype).eps, torch.finfo(y.dtype).tiny
        size = torch.maximum(y.abs(), z.abs()).amax(1, keepdim=True)
        return size.mul(max(self.newton_rtol, 100 * eps)).add(tiny)


@dataclass(frozen=True, kw_only=True)
class ImplicitAdaptive(Adaptive):
    """As `Adaptive`; each stage of a step is the solution of an equation, by Newton's method.

    df/dy is formed and factorised once a step, by one vjp a row, for up to some hundred unknowns. A
    sample for which Newton's method does not converge tries a shorter step.

    Attributes:
        rtol, atol, first_step, max_step, max_steps: see `Adaptive`.
        newton_tol: the error of a stage, in units of the tolerance of the step; no less than ten
            roundings.
        newton_steps: the most for a stage.

    Source: Hairer & Wanner, "Solving Ordinary Differential Equations II" (1996), IV.8.
    """

    newton_tol: float = 1e-2
    newton_steps: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "newton_tol")
        check_counts(self, "newton_steps")

    @property
    def refresh(self) -> bool:
        """A shorter step is the cheaper remedy."""
        return False

    def unit(self, y: Tensor, z: Tensor) -> Tensor:
        """The size of a correction of a state that is good enough, `(B, n)`."""
        size = y.abs()
        floor = size.amax(1, keepdim=True).mul_(10 * torch.finfo(y.dtype).eps)
        return torch.maximum(size.mul_(self.rtol).add_(self.atol).mul_(self.newton_tol), floor)


class ImplicitEuler(ImplicitFixedStep):
    """The implicit Euler method, y+ = y + h f(t + h, y+); order 1, L-stable."""

    tableau = esdirk.IMPLICIT_EULER


class Trapezoid(ImplicitFixedStep):
    """The trapezoidal rule, y+ = y + h (f(t, y) + f(t + h, y+)) / 2; order 2, A-stable."""

    tableau = esdirk.TRAPEZOID


class Kvaerno3(ImplicitAdaptive):
    """Kvaerno, order 3(2), 3 implicit stages a step, L-stable. For loose tolerances.

    Output between the steps is by the cubic Hermite polynomial.

    Source: Kvaerno, "Singly diagonally implicit Runge-Kutta methods with an explicit first stage"
    (BIT 2004).
    """

    tableau = esdirk.KVAERNO3


class Kvaerno5(ImplicitAdaptive):
    """Kvaerno, order 5(4), 6 implicit stages a step, L-stable. For stiff equations.

    f is also asked for beyond the end of a step, by 0.23 of its length, past the last time too.
    Output between the steps is by the cubic Hermite polynomial, of third order only: for accurate
    output limit `max_step`.

    Source: Kvaerno, "Singly diagonally implicit Runge-Kutta methods with an explicit first stage"
    (BIT 2004).
    """

    tableau = esdirk.KVAERNO5


Implicit = ImplicitFixedStep | ImplicitAdaptive
