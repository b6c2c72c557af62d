"""Motions along a spiral, each seen at times of its own, under noise: irregular time series.

Half of them turn counter-clockwise, outwards, the others clockwise, inwards, and they start
anywhere on the curve. Where one is at a time, and which way it goes, decides the rest.

Source: after Chen, Rubanova, Bettencourt & Duvenaud, "Neural Ordinary Differential Equations"
(NeurIPS 2018), the experiment with latent ODEs; there the times are those of a common grid.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

PITCH = 0.3  # of the radius, to one radian
TURN = 2 * math.pi


class Spirals(NamedTuple):
    """Series in float64: times `(count, T)`, points `(count, T, 2)`; `clockwise` `(count,)`."""

    t: Tensor
    clean: Tensor
    noisy: Tensor
    start: Tensor  # (count,), the smallest angle: at t = 0, or of the clockwise ones at the end
    clockwise: Tensor


def spirals(
    count: int,
    times: int = 40,
    *,
    until: float = 0.5 * TURN,
    beyond: int = 0,
    end: float = 0.75 * TURN,
    noise: float = 0.3,
    seed: int = 0,
) -> Spirals:
    """Return `count` series, each at its own random times: `times` up to `until`, the first of
    them 0, and `beyond` more in `until`..`end`.

    At the angle theta the radius is 0.3 theta. theta grows from `start` on at a rate of 1, or falls
    from `start` + `end` on; `start` is uniform within 1/4 and 7/4 turns. The noise is normal.

    Args:
        count: series, at least 1; every second one is clockwise.
        times: of a series within `until`, at least 1.
        until: where observation ends, > 0.
        beyond: further times, >= 0.
        end: where a series ends, > `until`.
        noise: standard deviation of both coordinates, >= 0.
        seed: of a generator of its own.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> one = spirals(1, noise=0.0)
        >>> theta = one.start[0] + one.t[0]
        >>> bool(torch.allclose(one.noisy[0].norm(dim=1), 0.3 * theta))
        True
    """
    _check(count, times, until, beyond, end, noise)
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    early = torch.cat([torch.zeros(count, 1).double(), until * uniform(count, times - 1)], 1)
    late = until + (end - until) * uniform(count, beyond)
    t = torch.cat([early.sort(1).values, late.sort(1).values], 1)
    start = TURN * (0.25 + 1.5 * uniform(count))
    clockwise = torch.arange(count) % 2 == 1
    clean = on_curve(t, start, clockwise, end)
    white = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    return Spirals(t, clean, clean + noise * white, start, clockwise)


def on_curve(t: Tensor, start: Tensor, clockwise: Tensor, end: float = 0.75 * TURN) -> Tensor:
    """Return the points `(count, T, 2)` of spirals at times t `(count, T)`, without noise.

    Args:
        start, clockwise, end: as of `spirals`, `(count,)` and a number.
    """
    theta = start.unsqueeze(1) + torch.where(clockwise.unsqueeze(1), end - t, t)
    return PITCH * theta.unsqueeze(-1) * torch.stack([theta.cos(), theta.sin()], -1)


def _check(count: int, times: int, until: float, beyond: int, end: float, noise: float) -> None:
    if count < 1 or times < 1 or beyond < 0:
        raise ValueError(
            f"count is {count}, times is {times}, beyond is {beyond}: ask for 1 series, 1 time, "
            "and 0 times beyond at least"
        )
    if not 0 < until < end:
        raise ValueError(f"until is {until}, end is {end}: choose 0 < until < end")
    if not noise >= 0:
        raise ValueError(f"noise is {noise}: give a standard deviation >= 0")
