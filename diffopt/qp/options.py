"""What `solve_qp` may be asked for besides the problem, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..solution import OnFailure, check_on_failure, check_positive
from .interior_point import InteriorPoint

Degenerate = Literal["central", "active", "inactive"]
Infeasible = Literal["report", "closest", "elastic"]
CHOICES = {"degenerate": get_args(Degenerate), "infeasible": get_args(Infeasible)}
PENALTY = 1e3  # of infeasible="elastic"


@dataclass(frozen=True)
class LPGD:
    """Gradients by finite perturbation, for `smoothing`: see `qp.lpgd`.

    Attributes:
        tau: how strongly the loss pulls; the perturbation of p is tau times the incoming gradient.
    """

    tau: float

    def __post_init__(self) -> None:
        check_positive(self, "tau")


@dataclass(frozen=True)
class Options:
    """How to solve and how to differentiate; the attributes are documented by `solve_qp`."""

    solver: InteriorPoint = InteriorPoint()
    order: int = 1
    degenerate: Degenerate = "central"
    infeasible: Infeasible = "report"
    penalty: float | None = None
    smoothing: float | LPGD | None = None
    proximal: float = 0.0
    on_failure: OnFailure = "warn"

    def __post_init__(self) -> None:
        check_on_failure(self.on_failure)
        if not isinstance(self.solver, InteriorPoint):
            raise ValueError(
                f"solver={self.solver!r}: expected an InteriorPoint, for example InteriorPoint()"
            )
        if not isinstance(self.order, int) or isinstance(self.order, bool) or self.order < 1:
            raise ValueError(f"order={self.order!r}: expected a positive integer")
        for name in CHOICES:
            check_choice(name, getattr(self, name))
        self._check_penalty()
        self._check_smoothing()
        check_proximal(self.proximal)

    def _check_penalty(self) -> None:
        if self.penalty is None:
            return
        if self.infeasible != "elastic":
            raise ValueError(
                f"penalty={self.penalty!r}: it belongs to infeasible='elastic', leave it out"
            )
        if not _positive(self.penalty):
            raise ValueError(
                f"penalty={self.penalty!r}: expected a positive number, the price of a shift"
            )

    def _check_smoothing(self) -> None:
        if self.smoothing is None or _positive(self.smoothing):
            return
        if not isinstance(self.smoothing, LPGD):
            raise ValueError(
                f"smoothing={self.smoothing!r}: expected a positive number (the products s y of "
                "the central-path point that is differentiated), LPGD(tau), or None"
            )
        if self.order != 1:
            raise ValueError(
                f"order={self.order} with smoothing={self.smoothing}: only order=1 is defined"
            )

    def kappa(self) -> float | None:
        """The products of the central-path point to be differentiated, if one is."""
        smooth = self.smoothing
        return None if smooth is None or isinstance(smooth, LPGD) else float(smooth)

    def price(self) -> float:
        """What a unit of shift costs under ``infeasible="elastic"``."""
        return PENALTY if self.penalty is None else float(self.penalty)


def check_choice(name: str, value: object) -> None:
    """Raise a `ValueError` unless `value` is a choice for the option `name`."""
    if value not in CHOICES[name]:
        raise ValueError(f"{name}={value!r}: expected one of {CHOICES[name]}")


def check_proximal(weight: object) -> None:
    """Raise a `ValueError` unless `weight` is a finite number >= 0."""
    if weight != 0 and not _positive(weight):
        raise ValueError(f"proximal={weight!r}: expected a number >= 0, the weight of |z|^2 / 2")


def _positive(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value < float("inf")
