"""Handwritten digits, 8x8 pixels: 1797 images that come with scikit-learn, no download.

They are the test set of "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak, 1998, UCI):
pixels 0..16 count the ink in 4x4 blocks of 32x32 bitmaps. scikit-learn is in the extra `examples`.
"""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from torch import Tensor


class Images(NamedTuple):
    """Images `(N, 8, 8)`, float32 from 0 (paper) to 1 (ink), and the digits `(N,)` they show."""

    pixels: Tensor
    digits: Tensor


def split(test: float = 0.25, seed: int = 0) -> tuple[Images, Images]:
    """Return `(train, test)`, disjoint, together all 1797 images, each in random order.

    Every digit gives the share `test` of its images, rounded, to the test set. The split depends
    on the seed alone. ValueError unless 0 < `test` < 1.

    Example:
        >>> train, test = split()
        >>> tuple(train.pixels.shape), tuple(test.pixels.shape)
        ((1347, 8, 8), (450, 8, 8))
    """
    if not 0 < test < 1:
        raise ValueError(f"test is {test}: choose a share between 0 and 1, for example 0.25")
    pixels, digits = (torch.from_numpy(v) for v in load_digits(return_X_y=True))
    pixels = pixels.view(-1, 8, 8).float() / 16
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits), generator=generator)
    rank = torch.zeros_like(digits)  # of an image among those of its digit, in random order
    for digit in range(10):
        mine = order[digits[order] == digit]
        rank[mine] = torch.arange(len(mine))
    tested = (rank < (test * digits.bincount()).round()[digits])[order]
    train, rest = order[~tested], order[tested]
    return Images(pixels[train], digits[train]), Images(pixels[rest], digits[rest])
