"""What a batched solve returns: a value and, a sample, a status, a step count and a residual."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

OnFailure = Literal["warn", "raise", "nan", "ignore"]


class ConvergenceWarning(UserWarning):
    """Some samples of a batch failed; the text names them, their status and what to try."""


class ConvergenceError(RuntimeError):
    """Raised in place of `ConvergenceWarning` under ``on_failure="raise"``."""


class Status(IntEnum):
    """How the solve of one sample ended; ``Status.X.message`` says it in words, with a remedy.

    Codes up to `REDUCED_ACCURACY` are successes: the value may be used and differentiated.

    Example:
        >>> Status(2).name
        'ITERATION_LIMIT'
    """

    CONVERGED = 0
    REDUCED_ACCURACY = 1
    ITERATION_LIMIT = 2
    PRIMAL_INFEASIBLE = 3
    DUAL_INFEASIBLE = 4
    NUMERICAL_FAILURE = 5
    INVALID_INPUT = 6
    STEP_UNDERFLOW = 7

    @property
    def message(self) -> str:
        """What happened, and what to try."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "converged to the tolerance",
    Status.REDUCED_ACCURACY: "stalled above the tolerance, but close enough to it to be used",
    Status.ITERATION_LIMIT: "stopped before the tolerance was reached; raise max_steps, loosen "
    "the tolerance, or check that the problem is feasible and well scaled",
    Status.PRIMAL_INFEASIBLE: "no point satisfies the constraints (solve_qp has a proof in its "
    "certificate; argmin found none nearby, and may from another z0); relax them or add slack",
    Status.DUAL_INFEASIBLE: "the objective is unbounded below (solve_qp has a proof in its "
    "certificate); add bounds or a quadratic term",
    Status.NUMERICAL_FAILURE: "a singular system or a non-finite value was met: check the data and "
    "the functions of them; the derivative may not exist here (of a QP whose solution is not "
    "unique: see proximal and smoothing), or the problem needs scaling or regularisation",
    Status.INVALID_INPUT: "the data hold NaN, or an infinity where none is allowed, or Q is not "
    "positive semidefinite, or a projection moves a point that it has projected already",
    Status.STEP_UNDERFLOW: "no step, however short, meets the tolerance; loosen it, check f for a "
    "jump or a pole, or use an implicit solver if f is stiff",
}


def succeeded(status: Tensor) -> Tensor:
    """Which samples may be used and differentiated: boolean, the shape of `status`."""
    return status <= Status.REDUCED_ACCURACY


def proved(status: Tensor) -> Tensor:
    """Which samples are proved to have no solution: boolean, the shape of `status`."""
    return (status == Status.PRIMAL_INFEASIBLE) | (status == Status.DUAL_INFEASIBLE)


@dataclass(frozen=True)
class Solution:
    """The outcome of a batched solve.

    Attributes:
        value: the answer, `(*B, ...)`, or a tuple of such tensors; of a sample that failed, the
            best iterate seen.
        status: `Status` codes, `(*B,)`, int64.
        steps: steps taken by each sample, `(*B,)`, int64.
        residual: the error that the solver tested, in the unit that it documents, `(*B,)`.
        history: the residual before every step, `(steps, *B)`, if it was asked for.
    """

    value: Any
    status: Tensor
    steps: Tensor
    residual: Tensor
    history: Tensor | None = None


class Part(NamedTuple):
    """The places of some samples in the user's batch, and how many that has."""

    places: Sequence[int]
    total: int


def check_on_failure(on_failure: str) -> None:
    """Raise a `ValueError` unless `on_failure` is one of the four policies."""
    if on_failure not in get_args(OnFailure):
        raise ValueError(f"on_failure={on_failure!r} is not one of {get_args(OnFailure)}")


def check_positive(settings: object, *names: str) -> None:
    """Raise a `ValueError` unless the attributes `names` of `settings` are positive numbers."""
    for name in names:
        value = getattr(settings, name)
        if not isinstance(value, int | float) or not value > 0:
            kind = type(settings).__name__
            raise ValueError(f"{kind}({name}={value!r}): expected a positive number")


def check_counts(settings: object, *names: str) -> None:
    """Raise a `ValueError` unless the attributes `names` of `settings` are whole numbers >= 1."""
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            kind = type(settings).__name__
            raise ValueError(f"{kind}({name}={value!r}): expected a positive whole number")


def report(
    status: Tensor,
    residual: Tensor,
    on_failure: OnFailure,
    what: str,
    part: Part | None = None,
    measure: str = "residual {:.1e}",
) -> None:
    """Say which samples failed, once: a `ConvergenceWarning`, or the error under "raise".

    Args:
        status: `Status` codes, `(*B,)`.
        residual: the error that each sample stopped at, `(*B,)`.
        on_failure: "warn", "raise", "nan" or "ignore"; the last two say nothing here.
        what: the name of the solve, for the message.
        part: which samples of the user's batch these are, if not all.
        measure: how `residual` is said in the message.

    Raises:
        ConvergenceError: under "raise", if a sample failed.
    """
    if on_failure in ("nan", "ignore"):
        return
    failed = ~succeeded(status)
    if not bool(failed.any()):
        return
    status, residual, failed = status.flatten(), residual.flatten(), failed.flatten()
    if part is None or len(part.places) != len(status):
        part = Part(range(len(status)), len(status))
    message = _explain(status, residual, failed, what, part, measure)
    if on_failure == "raise":
        raise ConvergenceError(message)
    caution(message)


def caution(message: str) -> None:
    """A `ConvergenceWarning` at the line of the user."""
    warnings.warn(message, ConvergenceWarning, stacklevel=_depth_of_the_user())


def _depth_of_the_user() -> int:
    """The stack level, for `report`, of the first frame that is neither ours nor torch's."""
    ours = tuple(str(Path(module).parent) for module in (__file__, torch.__file__))
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(ours):
        frame, depth = frame.f_back, depth + 1
    return depth


def _explain(
    status: Tensor, residual: Tensor, failed: Tensor, what: str, part: Part, measure: str
) -> str:
    """One line a status, naming up to five of its samples."""
    lines = [f"{what}: {int(failed.sum())} of {part.total} samples failed"]
    for code in status[failed].unique().tolist():
        where = (status == code).nonzero().flatten().tolist()
        names = listed([part.places[i] for i in where])
        worst = float(residual[where].max())
        kind = Status(code)
        lines.append(f"  sample {names}: {kind.name} ({measure.format(worst)}): {kind.message}")
    return "\n".join(lines)


def listed(samples: Sequence[int]) -> str:
    """Up to five of them, as a message names them."""
    return ", ".join(str(i) for i in samples[:5]) + (", ..." if len(samples) > 5 else "")


def fill_failed(value: Tensor, status: Tensor, fill: float) -> Tensor:
    """`value` `(*B, n)` with `fill` in the samples that failed."""
    return torch.where(succeeded(status).unsqueeze(-1), value, fill)
