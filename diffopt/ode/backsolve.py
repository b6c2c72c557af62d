"""The continuous adjoint: an ordinary differential equation for the derivative, solved backwards.

With a(t) = dL/dy(t) between the output times,

    a' = -f_y^T a,      dL/dtheta = int a^T f_theta dt,      a(t_j) jumps by dL/dy_j,

and y itself is found again on the way, from the state kept at each output time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..solution import ConvergenceError, OnFailure, caution, listed, report, succeeded
from .dense import Passed
from .march import March
from .methods import Adaptive, Solver
from .step import Slope, at_rest, combined, more_stages

# Gauss-Legendre on [0, 1], of order 6: nodes and weights
GAUSS = ((0.5 - 0.15**0.5, 5 / 18), (0.5, 4 / 9), (0.5 + 0.15**0.5, 5 / 18))
FAR = 1000.0  # times the tolerance: further off than what one solve adds up to


class BacksolveRecord:
    """What the last backward pass did: None before it.

    Attributes:
        mismatch: `(B,)`, the largest distance of y on the way back from the state of the forward
            pass at an output time, in units of the tolerance (the looser of the two ways; 1e-6 for
            fixed steps).
        evaluations: of f, `(B,)`.
    """

    def __init__(self) -> None:
        self.mismatch: Tensor | None = None
        self.evaluations: Tensor | None = None


def looser(forward: Solver, back: Adaptive) -> tuple[float, float]:
    """rtol and atol of the less accurate of the two."""
    if isinstance(forward, Adaptive):
        return max(forward.rtol, back.rtol), max(forward.atol, back.atol)
    return max(1e-6, back.rtol), max(1e-6, back.atol)


def captured(f: Slope, times: Tensor, states: Tensor) -> tuple[Tensor, ...]:
    """The leaves that f depends on besides t and y, at the first and the last time."""
    found: dict[int, Tensor] = {}
    for j in (0, -1):
        with torch.enable_grad():
            slope = f(times[:, j].detach(), states[:, j].detach())
        found |= {id(leaf): leaf for leaf in leaves_of(slope)}
    return tuple(found.values())


def leaves_of(v: Tensor) -> tuple[Tensor, ...]:
    """The leaves of the graph of v: parameters, and loose tensors."""
    found, seen, left = {}, set(), [v.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found[id(leaf)] = leaf
        left += [n for n, _ in node.next_functions]
    return tuple(found.values())


@dataclass(frozen=True)
class Sensitivity:
    """The integral of a^T f_theta over the steps so far, one sum for each of `leaves`."""

    f: Slope
    way_back: Slope
    leaves: tuple[Tensor, ...]
    solver: Adaptive
    totals: tuple[Tensor, ...]

    def after(self, step: Passed) -> Sensitivity:
        """With the step added, by Gauss quadrature on its polynomial."""
        tableau = self.solver.tableau
        increments = more_stages(self.way_back, tableau, step.t, step.h, step.y, step.increments)
        wide, totals = step.ok.unsqueeze(1), self.totals
        for node, weight in GAUSS:
            row = tuple(sum(p * node ** (d + 1) for d, p in enumerate(P)) for P in tableau.dense)
            state = torch.where(wide, combined(step.y, row, increments), step.y)
            y, a = state.chunk(2, 1)
            over = (-weight * step.h).to(a.dtype).unsqueeze(1)
            grads = _vjp(
                self.f, step.t + node * step.h, y, torch.where(wide, over * a, 0.0), self.leaves
            )
            totals = tuple(s + g for s, g in zip(totals, grads, strict=True))
        return replace(self, totals=totals)


@dataclass(frozen=True)
class Backsolver:
    """The pull-back of the states at the output times to y0, the times, and the leaves of f.

    Attributes:
        f: the field, on flat states.
        times: `(B, T)`.
        leaves: what f depends on.
        good: `(B,)`, which samples the forward pass has solved.
        solver: for the way back.
        tolerance: rtol and atol, in units of which the mismatch is said.
        record, on_failure: where to say how it went.
    """

    f: Slope
    times: Tensor
    leaves: tuple[Tensor, ...]
    good: Tensor
    solver: Adaptive
    tolerance: tuple[float, float]
    record: BacksolveRecord
    on_failure: OnFailure

    def __call__(
        self, w: Tensor, needed: Sequence[bool], ys: Tensor, *leaves: Tensor
    ) -> tuple[Tensor | None, ...]:
        """-w^T d(states)/d(y0, times, *leaves), with w and the states `(B, T n)`."""
        with torch.no_grad():
            B, T = self.times.shape
            states = at_rest(ys, ~self.good, self.good).view(B, T, -1)
            v = -w.detach().view(B, T, -1)
            a, totals = self._swept(states, v)
            of_times = self._of_times(states, v, a) if needed[1] else None
        grads = a, of_times, *totals
        if not w.requires_grad:
            return grads
        # The tie to w makes a further derivative raise; see `nodes`.
        return tuple(None if g is None else g + 0 * w.sum().to(g.dtype) for g in grads)

    def _of_times(self, states: Tensor, v: Tensor, a: Tensor) -> Tensor:
        """The derivatives in the times, `(B, T)`; a is that in the first state."""
        T = self.times.shape[1]
        slopes = [self.f(self.times[:, j], states[:, j]) for j in range(T)]
        later = [_dot(v[:, j], slopes[j]) for j in range(1, T)]
        return torch.stack([-_dot(a - v[:, 0], slopes[0]), *later], 1).to(self.times.dtype)

    def _swept(self, states: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """a at the first time, and the integrals for the leaves."""
        T = self.times.shape[1]
        a, totals = v[:, T - 1], tuple(torch.zeros_like(p) for p in self.leaves)
        worst = torch.zeros_like(self.times[:, 0])
        evaluations = torch.zeros_like(worst, dtype=torch.int64)
        march = March(self.solver, self._way_back)
        for j in range(T - 1, 0, -1):
            here = torch.cat([states[:, j], a], 1)
            at = march.start(self.times[:, [j, j - 1]].detach(), here)
            total = Sensitivity(self.f, self._way_back, self.leaves, self.solver, totals)
            at = march.run(at._replace(output=total), self.solver.max_steps)
            status, where = march.status(at), "back to t = {:.6g}"
            report(status, at.clock.t, self.on_failure, "Backsolve", None, where)
            y, a = at.y.chunk(2, 1)
            worst = torch.maximum(worst, self._distance(y, states[:, j - 1]))
            evaluations += march.evaluations(at)
            assert isinstance(at.output, Sensitivity)
            totals, ok = at.output.totals, succeeded(status)
            if not bool(ok.all()):  # nothing of it is right
                fill = torch.nan if self.on_failure == "nan" else 0.0
                a = torch.where(ok.unsqueeze(1), a, fill)
                v = torch.where(ok.view(-1, 1, 1), v, fill)
            a = a + v[:, j - 1]
        self.record.mismatch, self.record.evaluations = worst, evaluations
        self._warn(worst)
        return a, totals

    def _way_back(self, t: Tensor, state: Tensor) -> Tensor:
        """(f, -f_y^T a)."""
        y, a = state.chunk(2, 1)
        y = y.detach().requires_grad_()
        with torch.enable_grad():
            slope = self.f(t, y)
        if not slope.requires_grad:
            return torch.cat([slope, torch.zeros_like(a)], 1)
        (pulled,) = torch.autograd.grad(slope, y, -a, retain_graph=True, allow_unused=True)
        return torch.cat([slope.detach(), torch.zeros_like(a) if pulled is None else pulled], 1)

    def _distance(self, y: Tensor, state: Tensor) -> Tensor:
        rtol, atol = self.tolerance
        scale = atol + rtol * state.abs()
        return ((y - state) / scale).double().square().mean(1).sqrt()

    def _warn(self, mismatch: Tensor) -> None:
        far = (mismatch > FAR).nonzero().flatten().tolist()
        if not far or self.on_failure in ("nan", "ignore"):
            return
        message = (
            f"Backsolve: on the way back y misses the states of the forward pass by up to "
            f"{float(mismatch.max()):.1e} times the tolerance (sample {listed(far)}): the "
            "gradient is wrong there; use adjoint=Discrete(), or Checkpointed() for its memory"
        )
        if self.on_failure == "raise":
            raise ConvergenceError(message)
        caution(message)


def _check_leaves(
    f: Slope, t: Tensor, y: Tensor, slope: Tensor, leaves: tuple[Tensor, ...]
) -> None:
    """Raise a `RuntimeError` if f(t, y), which is `slope`, depends on more than the `leaves`."""
    known = {id(p) for p in leaves}
    new = [p for p in leaves_of(slope) if id(p) not in known]
    if not new:
        return
    with torch.enable_grad():  # what f makes anew at every call is its own affair
        again = {id(p) for p in leaves_of(f(t, y))}
    if any(id(p) in again for p in new):
        raise RuntimeError(
            "Backsolve: f depends on tensors inside the interval that it does not depend on at its "
            "first and last time, and their gradient would be lost: use adjoint=Discrete()"
        )


def _dot(v: Tensor, slope: Tensor) -> Tensor:
    """v^T slope, `(B,)`; zero without v, where f may not be finite."""
    return torch.where(v == 0, 0.0, v * slope).sum(1)


def _vjp(
    f: Slope, t: Tensor, y: Tensor, cotangent: Tensor, leaves: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """cotangent^T f_theta for the `leaves` theta."""
    with torch.enable_grad():
        slope = f(t, y)
    if not slope.requires_grad:
        return tuple(torch.zeros_like(p) for p in leaves)
    _check_leaves(f, t, y, slope, leaves)
    grads = torch.autograd.grad(slope, leaves, cotangent, retain_graph=True, allow_unused=True)
    return tuple(
        torch.zeros_like(p) if g is None else g for p, g in zip(leaves, grads, strict=True)
    )
