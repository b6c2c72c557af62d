"""The accelerated proximal-gradient method, FISTA, for a batch of problems.

    minimise f(z) + r(z),   f smooth and known by its values, r known by prox(v, step)

    1. At the extrapolated point y: the gradient g of f, and the trial z+ = prox(y - step g, step).
    2. Test: f(z+) <= f(y) + g'(z+ - y) + |z+ - y|^2 / (2 step). If not: a shorter step, go to 1;
       if by far: a longer step next time.
    3. Done if |y - z+| / step is small: y = prox(y - step g, step) is the optimality condition.
    4. If (y - z+)'(z+ - z) > 0, the momentum leads uphill: y = z+, t = 1. Otherwise
       t+ = (1 + sqrt(1 + 4 t^2)) / 2,   y = z+ + (t - 1) / t+ (z+ - z).

A rejected trial counts as a step of its sample, so that the batch never waits for one sample.

Source: Beck & Teboulle, "A Fast Iterative Shrinkage-Thresholding Algorithm" (SIAM J. Imaging
Sciences, 2009), eq. (4.1)-(4.3) and "FISTA with backtracking"; O'Donoghue & Candes, "Adaptive
Restart for Accelerated Gradient Schemes" (Foundations of Computational Mathematics, 2015), the
gradient scheme.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..iterate import Measure, iterate
from ..linear import batched_norm
from ..nodes import recorded
from ..solution import Solution, check_positive

Objective = Callable[[Tensor], Tensor]
Prox = Callable[[Tensor, Tensor], Tensor]


class _State(NamedTuple):
    """Where a sample stands; each `(B, n)` or `(B, 1)`."""

    z: Tensor  # the last trial that was accepted
    y: Tensor  # the point extrapolated from it
    t: Tensor  # 1 where y = z
    step: Tensor
    trial: Tensor  # prox(y - step g, step)
    factor: Tensor  # of the next step: >= 1 if the trial is accepted, 0 if f(y) is not finite
    largest: Tensor  # curvature times 1 + |z| at the start, or the largest |g| so far
    error: Tensor  # of the last trial that was accepted, in units of the tolerance

    @classmethod
    def at(cls, start: Tensor, step: Tensor) -> _State:
        """Nothing seen yet."""
        one, never = torch.ones_like(step), torch.full_like(step, torch.finfo(step.dtype).max)
        largest = (1 + _norm(start)) / step
        return cls(start, start, one, step, start, 0 * one, largest, never)


@dataclass(frozen=True)
class FISTA:
    """Settings of the accelerated proximal-gradient method; the defaults are the documentation.

    Attributes:
        tol: absolute and relative tolerance: a sample is done when |y - prox(y - step g, step)|
            <= step tol (1 + scale), g the gradient at y and scale = |g| + |y| / step the size of
            what it is computed from. Steps that collapse, where f is not smooth, do not count:
            scale is at most the largest of every |g| so far and (1 + |y|) / step at the start.
            None means 1e-8 in float64, 1e-5 in float32.
        max_steps: limit on the steps of a sample, each with one gradient.
        step: the step for all samples, at most 1 / (the largest curvature of f), or None: found
            for each sample by backtracking, at the price of one more value of f a step.
        restart: forget the momentum of a sample where it leads uphill.
        patience: a sample ends after this many steps without a smaller residual.
    """

    tol: float | None = None
    max_steps: int = 10_000
    step: float | None = None
    restart: bool = True
    patience: int = 1000

    def __post_init__(self) -> None:
        given = [name for name in ("tol", "step") if getattr(self, name) is not None]
        check_positive(self, "max_steps", "patience", *given)

    def solve(self, objective: Objective, prox: Prox, start: Tensor) -> Solution:
        """The point of smallest residual of each sample, without gradients.

        Args:
            objective: f, `(B, n)` to `(B,)`, sample by sample.
            prox: (v, step) -> the proximal point of v, for `(B, n)` and `(B, 1)`.
            start: `(B, n)`.

        Returns:
            `Solution` whose value is (z, step), `(B, n)` and `(B, 1)`, and whose residual is
            |y - z| / step with z = prox(y - step g, step). That of z itself is no larger: for a
            convex f and a step of at most 2 / curvature, such a step takes two points no further
            apart, and so y and z.
        """
        tol = self.tol or (1e-8 if start.dtype == torch.float64 else 1e-5)
        with torch.no_grad():
            out = iterate(
                lambda state: Measure(state.error.squeeze(-1)),
                lambda state, _: self._look(objective, prox, tol, self._advance(state)),
                self._look(objective, prox, tol, _State.at(start, self._first(objective, start))),
                max_steps=self.max_steps,
                patience=self.patience,
            )
        best = out.value
        accepted = best.factor >= 1  # or there was none, and best is the start
        z = torch.where(accepted, best.trial, best.z)
        residual = torch.where(accepted, _norm(best.trial - best.y) / best.step, torch.inf)
        return replace(out, value=(z, best.step), residual=residual.squeeze(-1))

    def _first(self, objective: Objective, start: Tensor) -> Tensor:
        """The first step, if it is not given: 1 / (curvature along the gradient), `(B, 1)`.

        That is at most the largest curvature, so the test only has to shorten the step. Where
        none is seen (f is linear there, or not finite), a trial as far away as `start` is large.
        """
        if self.step is not None:
            return start.new_full((len(start), 1), self.step)
        _, g = value_and_gradient(objective, start)
        reach = (1 + _norm(start)) / torch.where(g.any(-1, keepdim=True), _norm(g), 1.0)
        _, near = value_and_gradient(objective, start - 1e-3 * reach * g)
        step = 1e-3 * reach * _norm(g) / _norm(near - g)
        return torch.where(step.isfinite() & (step > 0), step, reach)

    def _look(self, objective: Objective, prox: Prox, tol: float, state: _State) -> _State:
        """The trial from y, its test and its residual."""
        y, step, eps = state.y, state.step, torch.finfo(state.y.dtype).eps
        value, g = value_and_gradient(objective, y)
        trial = prox(y - step * g, step)
        d = trial - y
        length, size, far = _norm(d), _norm(g), _norm(y)
        finite = (value.unsqueeze(-1) + size).isfinite()
        factor = torch.ones_like(step)
        if self.step is None:
            there = objective(trial)
            above = (there - value).unsqueeze(-1) - (g * d).sum(-1, keepdim=True)
            terms = (value.abs() + there.abs()).unsqueeze(-1) + size * far
            factor = _factor(above, length**2 / (2 * step), terms)
        factor = torch.where(finite, factor, 0.0)
        largest = torch.where(finite, torch.maximum(state.largest, size), state.largest)
        scale = torch.minimum(largest, size + far / step)
        error = torch.where(factor >= 1, length / (step * tol * (1 + scale)), state.error)
        # There is no way on from a point where f is not finite, unless it was extrapolated; nor
        # from one where not even a trial at rounding distance is accepted.
        close = (factor < 1) & (length <= eps * (far + eps))
        stuck = torch.where(finite, close, state.t == 1)
        error = torch.where(stuck, torch.nan, error)
        return state._replace(trial=trial, factor=factor, largest=largest, error=error)

    def _advance(self, state: _State) -> _State:
        """On from an accepted trial; back to z if f(y) is not finite; else y with another step."""
        z, y, t, step, trial, factor = state[:6]
        accepted, lost = factor >= 1, factor == 0
        ahead = trial - z
        longer = (1 + (1 + 4 * t * t).sqrt()) / 2
        momentum = (t - 1) / longer
        if self.restart:
            uphill = ((y - trial) * ahead).sum(-1, keepdim=True) > 0
            longer = torch.where(uphill, 1.0, longer)
            momentum = torch.where(uphill, 0.0, momentum)
        return state._replace(
            z=torch.where(accepted, trial, z),
            y=torch.where(accepted, trial + momentum * ahead, torch.where(lost, z, y)),
            t=torch.where(accepted, longer, torch.where(lost, 1.0, t)),
            step=torch.where(lost, step, step * factor),
        )


def _factor(above: Tensor, allowed: Tensor, terms: Tensor) -> Tensor:
    """The test of a trial y + d: what to multiply the step by; 1 or more if the trial passes.

    Args:
        above: f(y + d) - f(y) - g'd, which is |d|^2 / 2 times the curvature of f along d.
        allowed: |d|^2 / (2 step), so that allowed / above is what the step may be, of itself.
        terms: the size of what `above` is the difference of.
    """
    eps = torch.finfo(terms.dtype).eps
    # Near the minimiser `above` is all rounding, which must not shorten the step.
    passed = (above <= allowed + 8 * eps * terms) & above.isfinite()
    # A start where f is steep must not keep the steps short for ever. They grow only while `above`
    # has half of its digits, so that the last of the growth is seen by the test.
    longer = (above < allowed / 4) & (allowed > eps**0.5 * terms)
    # Not by less than 0.7, trials are dear; not by more than 0.1, f(y + d) may be infinite.
    shorter = (allowed / above).nan_to_num(0.0).clamp(0.1, 0.7)
    return torch.where(passed, torch.where(longer, 2.0, 1.0), shorter)


def value_and_gradient(objective: Objective, y: Tensor) -> tuple[Tensor, Tensor]:
    """f(y) `(*B)` and its gradient `(*B, n)`, differentiable if the objective is and grad is on.

    Without grad, or transforms of torch.func, plain autograd does the same in half the time.

    Raises:
        ValueError: if f does not depend on y in a way that autograd can follow.
    """
    if recorded():
        out = torch.func.vjp(objective, y)
        return out[0], out[1](torch.ones_like(out[0]))[0]
    with torch.enable_grad():
        y = y.detach().requires_grad_()
        value = objective(y)
        g = None
        if value.requires_grad:
            (g,) = torch.autograd.grad(value.sum(), y, allow_unused=True)
    if g is None:
        raise ValueError(
            "objective(z) has no gradient in z: make it of torch operations on z, without "
            "detach(), item() or numpy()"
        )
    return value.detach(), g


def _norm(v: Tensor) -> Tensor:
    return batched_norm(v).unsqueeze(-1)
