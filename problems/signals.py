"""Piecewise constant signals under white noise, the test bed of total-variation filters.

A signal is a vector of n samples with a few jumps. What is seen is y = signal + noise; a filter
is judged by its mean squared error to the signal. `oracle`, told where the jumps are, sets a mark.

Source: Amos & Kolter, "OptNet" (ICML 2017), the experiment on signal denoising.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Signals(NamedTuple):
    """Signals `(count, n)` and what is seen of them, float64; `piece` counts the jumps so far."""

    clean: Tensor
    noisy: Tensor
    piece: Tensor  # int64


def piecewise_constant(
    count: int,
    n: int = 100,
    *,
    pieces: tuple[int, int] = (1, 9),
    heights: tuple[int, int] = (10, 99),
    noise: float = 10.0,
    seed: int = 0,
) -> Signals:
    """Return `count` random signals of `n` samples, clean and noisy.

    The number of pieces is uniform, and so are their boundaries and their integer heights, each
    independent of the others; the noise is normal. The defaults are the numbers of the source.

    Args:
        count: signals, at least 1.
        n: samples of each.
        pieces: the fewest and the most pieces of a signal, within 1..n.
        heights: the least and the largest height.
        noise: standard deviation, >= 0.
        seed: of a generator of its own.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> one = piecewise_constant(1, 5, pieces=(2, 2), noise=0.0)
        >>> int((one.clean.diff() != 0).sum()), one.piece[0, [0, -1]].tolist()
        (1, [0, 1])
    """
    _check(count, n, pieces, heights, noise)
    generator = torch.Generator().manual_seed(seed)

    def integers(limits: tuple[int, int], *shape: int) -> Tensor:
        return torch.randint(limits[0], limits[1] + 1, shape, generator=generator)

    # The boundaries of k pieces are those k - 1 of the n - 1 places with the smallest random keys.
    keys = torch.rand(count, n - 1, generator=generator, dtype=torch.float64)
    jump = keys.argsort(-1).argsort(-1) < integers(pieces, count, 1) - 1
    piece = torch.nn.functional.pad(jump, (1, 0)).cumsum(-1)
    clean = integers(heights, count, pieces[1]).double().gather(-1, piece)
    white = torch.randn(count, n, generator=generator, dtype=torch.float64)
    return Signals(clean, clean + noise * white, piece)


def differences(n: int) -> Tensor:
    """Return the `(n - 1, n)` float64 matrix of differences, row i of it z -> z[i+1] - z[i].

    >>> differences(3).tolist()
    [[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0]]
    """
    return torch.eye(n, dtype=torch.float64).diff(dim=0)


def oracle(signals: Signals) -> Tensor:
    """Return the mean of the noisy samples over each piece, `(count, n)`: jumps told, heights not.

    This is the maximum-likelihood signal for known jumps. Its expected squared error, a sample,
    is noise^2 times pieces / n: 5 for the defaults of `piecewise_constant`.
    """
    same = (signals.piece[:, :, None] == signals.piece[:, None, :]).double()
    return (same @ signals.noisy[..., None]).squeeze(-1) / same.sum(-1)


def _check(
    count: int, n: int, pieces: tuple[int, int], heights: tuple[int, int], noise: float
) -> None:
    if count < 1 or n < 2:
        raise ValueError(f"count is {count}, n is {n}: ask for 1 signal of 2 samples at least")
    if not 1 <= pieces[0] <= pieces[1] <= n:
        raise ValueError(f"pieces is {pieces}: choose 1 <= fewest <= most <= n = {n}")
    if heights[0] > heights[1]:
        raise ValueError(f"heights is {heights}: the least comes first")
    if not noise >= 0:
        raise ValueError(f"noise is {noise}: give a standard deviation >= 0")
