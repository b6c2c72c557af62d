"""The solvers that a user may pass: frozen settings, whose defaults are the documentation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..solution import check_counts, check_positive
from . import tableaus
from .tableaus import Tableau


@dataclass(frozen=True)
class FixedStep:
    """Equal steps between one output time and the next.

    Attributes:
        step: the largest step, in units of t; None for one step from each time to the next.
    """

    tableau: ClassVar[Tableau]
    step: float | None = None

    def __post_init__(self) -> None:
        if self.step is not None:
            check_positive(self, "step")


@dataclass(frozen=True, kw_only=True)
class Adaptive:
    """Steps chosen by every sample for itself, so that |local error| <= atol + rtol |y|.

    The norm is the root mean square over the entries of a sample, each over its own tolerance.
    A step is accepted if it meets the tolerance; the next one follows from a PI controller.

    Attributes:
        rtol, atol: the tolerance of the local error of one step.
        first_step: the first step to try; None to estimate it.
        max_step: the largest step.
        max_steps: steps, accepted or not, after which a sample ends with ITERATION_LIMIT.

    Source: Hairer, Norsett & Wanner, "Solving Ordinary Differential Equations I" (1993), II.4
    (error norm, first step); Hairer & Wanner, II (1996), IV.2 (PI control).
    """

    tableau: ClassVar[Tableau]
    rtol: float = 1e-6
    atol: float = 1e-8
    first_step: float | None = None
    max_step: float = math.inf
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        check_positive(self, "rtol", "atol", "max_step")
        check_counts(self, "max_steps")
        if self.first_step is not None:
            check_positive(self, "first_step")


class Euler(FixedStep):
    """Euler's method, order 1: a residual network's y + h f(t, y)."""

    tableau = tableaus.EULER


class Midpoint(FixedStep):
    """The explicit midpoint rule, order 2."""

    tableau = tableaus.MIDPOINT


class Heun(FixedStep):
    """Heun's method (the explicit trapezoidal rule), order 2."""

    tableau = tableaus.HEUN


class RK4(FixedStep):
    """The classical Runge-Kutta method, order 4."""

    tableau = tableaus.RK4


class Bosh3(Adaptive):
    """Bogacki & Shampine, order 3(2), 3 slopes a step.

    Source: Bogacki & Shampine, "A 3(2) pair of Runge-Kutta formulas" (Appl. Math. Lett. 1989).
    """

    tableau = tableaus.BOSH3


class Dopri5(Adaptive):
    """Dormand & Prince, order 5(4), 6 slopes a step, dense output of order 4. The default.

    Source: Dormand & Prince, "A family of embedded Runge-Kutta formulae" (J. Comput. Appl. Math.
    1980); dense output: Shampine, "Some practical Runge-Kutta formulas" (Math. Comp. 1986).
    """

    tableau = tableaus.DOPRI5


class Tsit5(Adaptive):
    """Tsitouras, order 5(4), 6 slopes a step, dense output of order 4.

    Source: Tsitouras, "Runge-Kutta pairs of order 5(4) satisfying only the first column
    simplifying assumption" (Comput. Math. Appl. 2011).
    """

    tableau = tableaus.TSIT5


class Dopri8(Adaptive):
    """Dormand & Prince, order 8(5, 3), 12 slopes a step, dense output of order 7.

    For tight tolerances (1e-9 and below). A step in which output is asked for takes three more.

    Source: DOP853 of Hairer, Norsett & Wanner (1993), II.5 (error) and II.6 (dense output).
    """

    tableau = tableaus.DOPRI8


Solver = FixedStep | Adaptive
