"""Time stepping with fixed steps: every interval between two output times in equal ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .implicit_step import any_step
from .methods import FixedStep
from .step import Slope, Step, at_rest, step_times

MOST = 1e9  # steps in an interval; nobody waits for more


@dataclass(frozen=True)
class Ground:
    """Where the samples are.

    Attributes:
        y: `(B, n)`; after a failure where f was finite.
        before: the start of the last step, time `(B,)` and state `(B, n)`.
        last: `(B, n)`, y of the samples that failed, where they did.
        failed: `(B,)`.
        t: `(B,)`, the time reached.
        steps, evaluations: `(B,)`.
    """

    y: Tensor
    before: tuple[Tensor, Tensor]
    last: Tensor
    failed: Tensor
    t: Tensor
    steps: Tensor
    evaluations: Tensor

    @classmethod
    def at(cls, t: Tensor, y: Tensor) -> Ground:
        """At the start."""
        failed = torch.zeros_like(t, dtype=torch.bool)
        count = torch.zeros_like(t, dtype=torch.int64)
        return cls(y, (t, y), y.detach(), failed, t.detach(), count, count)

    def state(self) -> Tensor:
        """The last good state, `(B, n)`."""
        return torch.where(self.failed.unsqueeze(1), self.last, self.y)


@dataclass(frozen=True)
class Grid:
    """The loop; see `FixedStep`.

    Attributes:
        solver, f: the method, and the field on flat states.
        times: `(B, T)`.
        counts: into how many steps each sample divides each interval, `(B, T - 1)`.
        order: how many derivatives of an implicit step are exact.
    """

    solver: FixedStep
    f: Slope
    times: Tensor
    counts: Tensor
    order: int = 1

    @classmethod
    def over(cls, solver: FixedStep, f: Slope, times: Tensor, order: int = 1) -> Grid:
        """The grid of these output times."""
        spans = times.detach().diff(dim=1).abs()
        if solver.step is None:
            return cls(solver, f, times, torch.ones_like(spans, dtype=torch.int64), order)
        if spans.numel() and float(spans.max()) / solver.step > MOST:
            raise ValueError(
                f"{type(solver).__name__}(step={solver.step}) divides an interval of length "
                f"{float(spans.max()):.3g} into more than {MOST:.0e} steps: take a longer step"
            )
        # 1e-9: a span of three steps is three, not four, whatever its rounding
        counts = (spans / solver.step - 1e-9).ceil().long().clamp_min(1)
        return cls(solver, f, times, counts, order)

    def plan(self) -> list[tuple[int, int, bool]]:
        """(interval, step in it, whether it is the last one there), for the slowest sample."""
        counts = self.counts if len(self.counts) else self.counts.new_ones(1, self.counts.shape[1])
        most = counts.max(0).values.tolist()
        return [(j, s, s == m - 1) for j, m in enumerate(most) for s in range(m)]

    def run(self, ground: Ground, plan: list[tuple[int, int, bool]]) -> tuple[Ground, list[Tensor]]:
        """The steps of `plan`, and the states at the output times among them."""
        states = []
        for j, s, last in plan:
            ground = self.step(ground, j, s)
            if last:
                states.append(ground.state())
        return ground, states

    def step(self, ground: Ground, j: int, s: int) -> Ground:
        """Step s of interval j; of no length for the samples that are through with it."""
        counts, start = self.counts[:, j], self.times[:, j]
        h = (self.times[:, j + 1] - start) / counts
        # a sample that is through waits at the start of its last step, where f was finite
        t = torch.where(ground.failed, ground.before[0], start + h * (counts - 1).clamp(max=s))
        moving = (counts > s) & ~ground.failed
        h = torch.where(moving, h, 0.0)
        y, _, _, spent = self._stepped(t, h, ground.y)
        spent = moving * (len(self.solver.tableau.a) - 1 if spent is None else 1 + spent)
        ground = replace(ground, evaluations=ground.evaluations + spent)
        bad = ~y.isfinite().all(1) & moving
        if bool(bad.any()):
            ground, t, y = self._without(bad, ground, t, h)
        moving = moving & ~bad
        there, before = (t + h).detach(), (t, ground.y)
        if not bool(moving.all()):
            wide = moving.unsqueeze(1)
            y, there = torch.where(wide, y, ground.y), torch.where(moving, there, ground.t)
            before = (
                torch.where(moving, t, ground.before[0]),
                torch.where(wide, ground.y, ground.before[1]),
            )
        return replace(ground, y=y, before=before, t=there, steps=ground.steps + moving)

    def _without(
        self, bad: Tensor, ground: Ground, t: Tensor, h: Tensor
    ) -> tuple[Ground, Tensor, Tensor]:
        """The step again, with the samples that met infinities or NaN at rest one step before.

        Zero times NaN would reach what f shares among the samples in the backward pass.
        """
        wide = bad.unsqueeze(1)
        last = torch.where(wide, ground.y.detach(), ground.last)
        rest = torch.where(wide, ground.before[1].detach(), ground.y)
        rest = at_rest(rest, bad & (ground.steps == 0), ~bad & ~ground.failed)
        t = torch.where(bad, ground.before[0], t)
        ground = replace(ground, y=rest, last=last, failed=ground.failed | bad)
        return ground, t, self._stepped(t, torch.where(bad, 0.0, h), rest).y

    def _stepped(self, t: Tensor, h: Tensor, y: Tensor) -> Step:
        times = step_times(self.solver.tableau.c, t, h)
        return any_step(self.f, self.solver, times, h, y, self.f(t, y), False, self.order)
