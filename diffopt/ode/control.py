"""How long the next step is: the error of a step, the first step, and the PI controller."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import _native
from .methods import Adaptive
from .step import Slope, addressed, combined, plain

SAFETY = 0.9  # of the step that would just meet the tolerance
SHORTEST, LONGEST = 0.2, 10.0  # times the last step
LEAST = 1e-20  # of the way: a first step that is not zero
BEST = 1e-4  # the smallest error that the controller remembers
MEMORY = 0.2  # weight of the previous error; Hairer & Wanner's beta = 0.04 for order 5


def scaled_error(solver: Adaptive, y: Tensor, new: Tensor, increments: list[Tensor]) -> Tensor:
    """The local error of a step over its tolerance, `(B,)`; NaN or inf if a slope is."""
    native = None if torch.is_grad_enabled() else _native.kernel("judge", y)
    if native is not None:
        return _judged(native, solver, y, new, increments)
    scale = torch.maximum(y.abs(), new.abs()).mul_(solver.rtol).add_(solver.atol)
    first, *rest = solver.tableau.error
    error = _size(_weighted(first, increments), scale)
    if rest:  # Hairer, Norsett & Wanner, II.10: E = e5^2 / sqrt(e5^2 + 0.01 e3^2)
        third = _size(_weighted(rest[0], increments), scale)
        square = error.square()
        error = square / (square + 0.01 * third.square()).clamp_min(1e-300).sqrt()
    if not first[-1]:  # the estimate has not seen the last slope
        error = error + 0 * increments[-1].sum(1)
    return error


def _judged(
    native: Callable[..., None], solver: Adaptive, y: Tensor, new: Tensor, increments: list[Tensor]
) -> Tensor:
    """The same by the compiled core."""
    rows = solver.tableau.error
    terms = [addressed((w, v) for w, v in zip(row, increments, strict=True) if w) for row in rows]
    unseen = 0 if rows[0][-1] else increments[-1].data_ptr()
    out = torch.empty(len(y), dtype=torch.float64, device="cpu")
    places = y.data_ptr(), new.data_ptr(), unseen, out.data_ptr()
    native(tuple(y.shape), (solver.rtol, solver.atol), terms, places)
    return out


def next_step(solver: Adaptive, h: Tensor, error: Tensor, before: Tensor, ok: Tensor) -> Tensor:
    """The step after one over h, `(B,)`, whose error was `error`; `ok` says which were accepted.

    h (SAFETY error^-alpha before^beta), with alpha = (1 - 3/4 MEMORY) / order and beta =
    MEMORY / order, where `before` is the error of the last accepted step. No longer than h after
    a rejection.
    """
    alpha, beta = exponents(solver)
    factor = error.clamp_min(1e-10).pow(-alpha).mul(before.pow(beta)).mul(SAFETY)
    factor = factor.nan_to_num(SHORTEST, SHORTEST, SHORTEST).clamp(SHORTEST, LONGEST)
    h = h * torch.where(ok, factor, factor.clamp(max=SAFETY))
    return h.clamp(-solver.max_step, solver.max_step)


def exponents(solver: Adaptive) -> tuple[float, float]:
    """alpha and beta of the controller."""
    beta = MEMORY / solver.tableau.order
    return 1 / solver.tableau.order - 0.75 * beta, beta


def first_step(
    solver: Adaptive, f: Slope, t: Tensor, y: Tensor, slope: Tensor, span: Tensor
) -> Tensor:
    """A first step, `(B,)`, with the sign of `span`, and no longer.

    Source: Hairer, Norsett & Wanner, II.4, "Starting step size".
    """
    direction, most = span.sign(), span.abs().clamp(max=solver.max_step)
    if solver.first_step is not None:
        return direction * most.clamp(max=solver.first_step)
    if _native.kernel("guess", y) is not None:
        return _compiled_first_step(solver, f, t, y, slope, span)
    scale = y.abs().mul(solver.rtol).add_(solver.atol)
    size, speed = _size(y, scale), _size(slope, scale)
    small = (size < 1e-5) | (speed < 1e-5)
    guess = torch.where(small, 1e-6, 0.01 * size / speed)
    guess = torch.minimum(guess, most).maximum(LEAST * most)
    step = direction * guess
    ahead = f(t + step, y + step.to(y.dtype).unsqueeze(1) * slope)
    bend = torch.maximum(_size(ahead - slope, scale) / guess, speed)
    longer = torch.where(
        bend <= 1e-15, (1e-3 * guess).clamp_min(1e-6), (0.01 / bend) ** (1 / (solver.tableau.order))
    )
    longer = torch.minimum(100 * guess, torch.where(longer.isfinite(), longer, guess))
    return direction * torch.minimum(longer, most).maximum(LEAST * most)


def _compiled_first_step(
    solver: Adaptive, f: Slope, t: Tensor, y: Tensor, slope: Tensor, span: Tensor
) -> Tensor:
    """The same by the compiled core."""
    guess, length = _native.kernel("guess", y), _native.kernel("length", y)
    assert guess is not None and length is not None
    step, speed = torch.empty_like(t), torch.empty_like(t)
    state, slope, span = torch.empty_like(y), plain(slope), plain(span)
    at = y.data_ptr(), slope.data_ptr(), span.data_ptr()
    limits = solver.rtol, solver.atol, solver.max_step
    guess(tuple(y.shape), limits, at, (step.data_ptr(), speed.data_ptr(), state.data_ptr()))
    ahead = plain(f(t + step.copysign(span), state))
    order, found = solver.tableau.order, step.data_ptr()
    length(tuple(y.shape), limits, at, ahead.data_ptr(), speed.data_ptr(), order, found)
    return step


def _weighted(weights: tuple[float, ...], increments: list[Tensor]) -> Tensor:
    first = next(i for i, w in enumerate(weights) if w)
    start = increments[first] * weights[first]
    rest = (0.0,) * (first + 1) + weights[first + 1 :]
    return combined(start, rest, increments)


def _size(v: Tensor, scale: Tensor) -> Tensor:
    """The root mean square of v / scale, `(B,)`, in float64."""
    return torch.linalg.vector_norm(v / scale, dim=1).double() * v.shape[1] ** -0.5
