"""Digits of which half of the labels are wrong, and some of which all are right.

Source: after Franceschi, Donini, Frasconi & Pontil, "Forward and Reverse Gradient-Based
Hyperparameter Optimization" (ICML 2017), data hyper-cleaning, where the images are those of MNIST.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot, pad

from . import digits


class Labelled(NamedTuple):
    """Pixels and a constant 1, float64 `(N, 65)`, and labels `(N,)`.

    A softmax regression for them is a vector z `(650,)`: the numbers x W, with W = z as `(65, 10)`,
    are the logarithms of probabilities, up to a constant.

    Example:
        >>> one = Labelled(torch.ones(1, 65), torch.tensor([3]))
        >>> one.losses(torch.zeros(650)).exp()                # each digit is as likely
        tensor([10.])
    """

    x: Tensor
    y: Tensor

    def losses(self, z: Tensor) -> Tensor:
        """Return the cross-entropy of each label, `(N,)`."""
        return cross_entropy(self.x @ z.view(65, 10), self.y, reduction="none")

    def gradient(self, z: Tensor, weights: Tensor) -> Tensor:
        """Return that of (weights * losses).mean() in z, `(650,)`; `weights` are `(N,)`."""
        missed = (self.x @ z.view(65, 10)).softmax(1) - one_hot(self.y, 10)
        return (self.x.mT @ (weights.unsqueeze(1) * missed) / len(missed)).flatten()

    def accuracy(self, z: Tensor) -> float:
        """Return the share of the labels that are the likeliest."""
        return ((self.x @ z.view(65, 10)).argmax(1) == self.y).double().mean().item()

    def joined(self, other: "Labelled") -> "Labelled":
        """These and those."""
        return Labelled(torch.cat([self.x, other.x]), torch.cat([self.y, other.y]))

    def only(self, chosen: Tensor) -> "Labelled":
        """Those that are `chosen`, bool `(N,)`."""
        return Labelled(self.x[chosen], self.y[chosen])


class Task(NamedTuple):
    """Labels to learn from, to choose by, and to be judged by."""

    train: Labelled
    dirty: Tensor  # which labels of `train` are wrong, bool (N,)
    valid: Labelled
    test: Labelled


def mislabelled(
    train: int = 1000,
    valid: int = 200,
    *,
    wrong: Literal["random", "next"] = "random",
    seed: int = 0,
) -> Task:
    """Return 539 digits to test on, and of the others `train` and `valid`.

    The labels of `train` // 2 images, at random, are made wrong: any of the nine other digits, or
    with "next" the digit that is one larger (and 0 for 9).

    Args:
        train, valid: at least 2 and 1, together 1258 at most.
        wrong: which labels the wrong ones are.
        seed: of the split and of the labels.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> task = mislabelled(100, 50, wrong="next")
        >>> task.train.x.shape, int(task.dirty.sum())
        (torch.Size([100, 65]), 50)
    """
    rest, last = digits.split(0.3, seed)
    if train < 2 or valid < 1 or train + valid > len(rest.digits):
        raise ValueError(
            f"train is {train}, valid is {valid}: ask for 2 and 1 at least, together "
            f"{len(rest.digits)} at most"
        )
    if wrong not in ("random", "next"):
        raise ValueError(f"wrong is {wrong!r}: expected 'random' or 'next'")
    generator = torch.Generator().manual_seed(seed)
    dirty = torch.randperm(train, generator=generator) < train // 2
    other = torch.randint(1, 10, (train,), generator=generator)
    shift = torch.where(dirty, other if wrong == "random" else torch.ones_like(other), 0)
    known, test = _labelled(rest), _labelled(last)
    seen = Labelled(known.x[:train], (known.y[:train] + shift) % 10)
    chosen = slice(train, train + valid)
    return Task(seen, dirty, Labelled(known.x[chosen], known.y[chosen]), test)


def _labelled(images: digits.Images) -> Labelled:
    return Labelled(pad(images.pixels.flatten(1).double(), (0, 1), value=1.0), images.digits)
