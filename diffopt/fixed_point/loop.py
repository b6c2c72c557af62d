"""What all fixed-point solvers share: the test of convergence, and a loop around one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..iterate import Measure, iterate
from ..linear import batched_norm
from ..solution import Solution, Status, check_counts

Map = Callable[[Tensor], Tensor]  # (B, n) to (B, n), each sample by itself
CLOSE = 100.0  # times the tolerance: near enough to be used where a sample stalls


class FixedPointSolver(Protocol):
    """Anything that finds z = f(z), a sample at a time, without gradients."""

    def solve(self, f: Map, z0: Tensor) -> Solution: ...


@dataclass(frozen=True, kw_only=True)
class Settings:
    """When a sample is done: |f(z) - z| <= atol + rtol |f(z)|, in Euclidean norms.

    f(z) - z is the true residual, whatever the solver does with it. A sample that stops above the
    tolerance, but within 100 times it, ends with REDUCED_ACCURACY, and further off with
    ITERATION_LIMIT.

    Attributes:
        rtol, atol: the tolerance; at least one is positive.
        max_steps: evaluations of f after the first.
        patience: a sample stops after this many steps without a better residual; None: never.
        history: keep the error of every step, in units of the tolerance.
    """

    rtol: float = 1e-6
    atol: float = 1e-9
    max_steps: int = 200
    patience: int | None = None
    history: bool = False

    def __post_init__(self) -> None:
        kind = type(self).__name__
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
                raise ValueError(f"{kind}({name}={value!r}): expected a number >= 0")
        if self.rtol == self.atol == 0:
            raise ValueError(f"{kind}: rtol and atol are both 0: make one positive")
        check_counts(self, "max_steps", *(["patience"] if self.patience is not None else []))

    def error(self, gap: Tensor, image: Tensor) -> Tensor:
        """|gap| in units of the tolerance, a sample."""
        size = batched_norm(gap)
        if self.atol > 0:
            return size / (batched_norm(image) * self.rtol + self.atol)
        return torch.where(size == 0, 0.0, size / (batched_norm(image) * self.rtol))

    def looking(self, propose: Callable[[Evaluation], Tensor]) -> Look:
        """(z, f(z)) to the error and what `propose` makes of it."""

        def look(z: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
            gap = image - z
            return self.error(gap, image), propose(Evaluation(z, image, gap))

        return look


class Point(NamedTuple):
    """The state of a sample."""

    z: Tensor


class Evaluation(NamedTuple):
    """f at a point: z, its image f(z), and the gap f(z) - z."""

    z: Tensor
    image: Tensor
    gap: Tensor


Look = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # (z, f(z)) to (error, the next z)


def run(settings: Settings, f: Map, z0: Tensor, look: Look) -> Solution:
    """Repeat z <- the next z until every sample is done.

    Returns:
        `Solution`: the best z of each sample, and |f(z) - z| in units of the tolerance.
    """

    def measure(state: Point) -> Measure:
        error, following = look(state.z, f(state.z))
        return Measure(error, carry=following)

    return finished(settings, measure, lambda _, following: Point(following), Point(z0))


def finished(
    settings: Settings,
    measure: Callable[[Any], Measure],
    step: Callable[[Any, Any], Any],
    state: Any,
) -> Solution:
    """`iterate`, whose value is the z of the state, with the samples that are close said to be."""
    out = iterate(
        measure,
        step,
        state,
        max_steps=settings.max_steps,
        patience=settings.patience,
        history=settings.history,
    )
    close = (out.status == int(Status.ITERATION_LIMIT)) & (out.residual <= CLOSE)
    status = torch.where(close, int(Status.REDUCED_ACCURACY), out.status)
    return Solution(out.value.z, status, out.steps, out.residual, out.history)
