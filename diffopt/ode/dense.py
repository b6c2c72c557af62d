"""Output at given times, by the polynomials inside the steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .step import Slope, more_stages
from .tableaus import Tableau


@dataclass(frozen=True)
class Passed:
    """A step from (t, y) over h, for those samples that are `ok`.

    Attributes:
        t, new_t, h: `(B,)`.
        y: `(B, n)`.
        increments: the slopes in it times h, `(B, n)` each.
        ok: `(B,)`.
    """

    t: Tensor
    new_t: Tensor
    h: Tensor
    y: Tensor
    increments: list[Tensor]
    ok: Tensor


class Collector(Protocol):
    """What takes something along from every step, and is another one after it."""

    def after(self, step: Passed) -> Collector: ...


@dataclass(frozen=True)
class Output:
    """The states at the output times that the steps have passed so far.

    Attributes:
        times: `(B, T)`; the samples start at the first of them.
        forward: `(B, 1)`, 1 or -1: the direction of time.
        ordered: `(B, T)`, the times in that direction, increasing.
        tableau: the method, whose `dense` is the polynomial.
        f: the field, for the methods whose polynomial needs further slopes.
        reached: `(B,)`, how many of its times a sample has passed.
        found: `(*, n)` each, rows of one long table.
        place: `(B, T)`, which row of it is the state at a time; -1 before it is found.
    """

    times: Tensor
    forward: Tensor
    ordered: Tensor
    tableau: Tableau
    f: Slope
    reached: Tensor
    place: Tensor
    found: tuple[Tensor, ...] = ()

    @classmethod
    def at(cls, times: Tensor, tableau: Tableau, f: Slope) -> Output:
        """With nothing found yet."""
        forward = (times[:, -1:] - times[:, :1]).detach().sign()
        reached = torch.ones_like(times[:, 0], dtype=torch.int64)
        place = torch.full_like(times, -1, dtype=torch.int64)
        ordered = (forward * times).detach().contiguous()
        return cls(times, forward, ordered, tableau, f, reached, place)

    def after(self, step: Passed) -> Output:
        """With the states inside `step`, which are polynomials in the time."""
        now = (self.forward * step.new_t.unsqueeze(1)).detach()
        reached = torch.searchsorted(self.ordered, now, right=True).squeeze(1)
        reached = torch.where(step.ok, reached, self.reached)
        rows = (reached > self.reached).nonzero().squeeze(1)
        if not len(rows):
            return self
        low, high = int(self.reached[rows].min()), int(reached[rows].max())
        columns = torch.arange(low, high, device=rows.device)
        inside = (columns >= self.reached[rows, None]) & (columns < reached[rows, None])
        values = self._values(step, rows, self.times[rows, low:high], inside)
        size = sum(len(v) for v in self.found)
        new = size + torch.arange(inside.numel(), device=rows.device).view(inside.shape)
        place = self.place.clone()
        place[rows, low:high] = torch.where(inside, new, place[rows, low:high])
        return replace(self, reached=reached, place=place, found=(*self.found, values))

    def _values(self, step: Passed, rows: Tensor, times: Tensor, inside: Tensor) -> Tensor:
        """The states of `rows` at their `times`, as one column of rows; anything outside."""
        increments = more_stages(self.f, self.tableau, step.t, step.h, step.y, step.increments)
        theta = (times - step.t[rows, None]) / step.h[rows, None]
        theta = torch.where(inside, theta, 0.0).to(step.y.dtype).unsqueeze(-1)
        values = step.y[rows].unsqueeze(1)
        # sums entry by entry: a product of matrices rounds differently in another batch
        for w, v in zip(_weights(self.tableau, theta).split(1, -1), increments, strict=True):
            values = torch.addcmul(values, w, v[rows].unsqueeze(1))
        return values.flatten(0, 1)

    def states(self, first: Tensor, last: Tensor) -> Tensor:
        """`(B, T, n)`, with `first` at the first time, and `last` where none was found."""
        samples = torch.arange(len(last), device=last.device).unsqueeze(1)
        place = torch.where(self.place < 0, samples, self.place + len(last))
        inner = torch.cat([last, *self.found])[place[:, 1:-1]]
        return torch.cat([first.unsqueeze(1), inner, last.unsqueeze(1)], 1)


def _weights(tableau: Tableau, theta: Tensor) -> Tensor:
    """sum_d P_id theta^d for all slopes i, `(R, J, 1)` to `(R, J, stages)`; Horner's rule."""
    out = torch.zeros_like(theta)
    for column in reversed(theta.new_tensor(tableau.dense).unbind(1)):
        out = (out + column) * theta
    return out
