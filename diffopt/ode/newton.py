"""The equation of an implicit stage, k = f(t, base + weight k), by Newton's method.

Of the corrections d_m = A^-1 (f(t, base + weight k_m) - k_m) with a constant A near
I - weight df/dy, each is `rate` times the one before. What is left after the last one is
rate / (1 - rate) |d_m|: the test for the end, and rate >= 1 means divergence. (Hairer & Wanner,
"Solving Ordinary Differential Equations II", 1996, IV.8.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..operators import Dense
from .step import Slope
from .stiff import Implicit

UNKNOWN = 0.5  # of a rate: the first correction is trusted if it is small itself
SLOW = 0.9  # a rate that counts as divergence


@dataclass(frozen=True)
class Stage:
    """One stage: the slope k is its unknown.

    Attributes:
        f: the field.
        t: `(B,)`.
        base: `(B, n)`.
        weight: gamma h, `(B, 1)`.
    """

    f: Slope
    t: Tensor
    base: Tensor
    weight: Tensor

    def state(self, k: Tensor) -> Tensor:
        """The state whose slope k should be."""
        return torch.addcmul(self.base, self.weight, k)

    def residual(self, k: Tensor) -> Tensor:
        """Zero at the solution."""
        return k - self.f(self.t, self.state(k))


class Newton(NamedTuple):
    """How a stage went.

    Attributes:
        k: the slope, `(B, n)`.
        running: neither converged nor failed, `(B,)`.
        failed: `(B,)`.
        rate: of the last correction to the one before, `(B,)`.
        evaluations: of f, `(B,)`.
    """

    k: Tensor
    running: Tensor
    failed: Tensor
    rate: Tensor
    evaluations: Tensor


def chord_matrix(f: Slope, t: Tensor, weight: Tensor, y: Tensor) -> Dense:
    """I - weight df/dy at (t, y), factorised."""
    return matrix_at(lambda z: z - weight * f(t, z), y)


def matrix_at(residual: Callable[[Tensor], Tensor], z: Tensor) -> Dense:
    """The Jacobian of `residual` at z `(B, n)`, as `Dense.at`, also inside torch's checkpoints.

    There torch.func does not work, and what is saved here must not wait to be computed again.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "an implicit solver needs df/dy, which torch.inference_mode() does not allow: use "
            "torch.no_grad()"
        )
    if torch._C._are_functorch_transforms_active():
        return Dense.at(residual, z)
    unit = torch.eye(z.shape[1], dtype=z.dtype, device=z.device).unsqueeze(1)
    unit = unit.expand(-1, len(z), -1)
    with torch.enable_grad(), saved_tensors_hooks(_same, _same):
        z = z.detach().requires_grad_()
        (rows,) = torch.autograd.grad(residual(z), z, unit, is_grads_batched=True)
    return Dense.of(rows.detach().movedim(0, 1))


def _same(v: Tensor) -> Tensor:
    return v


def solve_stage(stage: Stage, start: Newton, A: Dense, solver: Implicit, y: Tensor) -> Newton:
    """The slopes of the samples that are running; those of the others stay as they are.

    Args:
        start: a guess of k, and the rate of the stages before, which have the same A.
        A: I - weight df/dy, somewhere near.
        solver: says when a correction is small enough, and how many there may be.
        y: the state at the start of the step.
    """
    found = _iterated(stage, start, A, solver, y)
    again = found.failed & ~start.failed
    if not solver.refresh or not bool(again.any()):
        return found
    # those that failed, from their guess again, with df/dy at every iterate
    k = torch.where(again.unsqueeze(1), start.k, found.k)
    anew = found._replace(k=k, running=again, failed=start.failed)
    return _iterated(stage, anew, None, solver, y)._replace(rate=start.rate)


def _iterated(stage: Stage, now: Newton, A: Dense | None, solver: Implicit, y: Tensor) -> Newton:
    """With the constant A, or, without one, with that of every iterate."""
    k, running, failed, rate, evaluations = now
    steps, before = solver.newton_steps, torch.full_like(rate, torch.inf)
    for m in range(steps):
        here = matrix_at(stage.residual, k) if A is None else A
        r = stage.residual(k).unsqueeze(2)
        d = torch.linalg.lu_solve(here.factor, here.pivots, r).squeeze(2)
        size = _size(stage.weight * d, solver.unit(y, stage.state(k)))
        k = torch.where(running.unsqueeze(1), k - d, k)
        evaluations = evaluations + running
        if m:  # one lucky correction is no rate
            rate = torch.where(running, torch.maximum(size / before, 0.3 * rate), rate)
        left = size * torch.where(rate < SLOW, rate / (1 - rate), torch.inf)
        good = (left <= 1) | (size == 0)
        lost = ~size.isfinite()
        if A is not None and m:  # diverges, or would not get there
            lost = lost | (~good & ~(left * rate ** (steps - 1 - m) <= 1))
        before, failed = size, failed | (running & lost)
        running = running & ~good & ~lost
        if not bool(running.any()):
            break
    return Newton(k, torch.zeros_like(running), failed | running, rate, evaluations)


def _size(v: Tensor, unit: Tensor) -> Tensor:
    """The root mean square of v / unit, `(B,)`, in float64."""
    return torch.linalg.vector_norm(v / unit, dim=1).double() * v.shape[1] ** -0.5
