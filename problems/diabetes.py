"""Regressions with known test errors: 442 patients that come with scikit-learn, no download.

Ten features of a patient (age, sex, body mass index, blood pressure, six blood serum measurements),
and how far diabetes had progressed a year later, from 25 to 346.

Source: Efron, Hastie, Johnstone & Tibshirani, "Least Angle Regression" (Annals of Statistics 2004).
scikit-learn is in the extra `examples`.
"""

from typing import NamedTuple

import torch
from sklearn.datasets import load_diabetes  # type: ignore[import-untyped]
from torch import Tensor

FEATURES = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")
TRAIN, FOLDS = 340, 5


class Moments(NamedTuple):
    """All that a quadratic loss knows of X `(*B, n, d)` and y `(*B, n)`.

    Example:
        >>> data = Moments.of(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]))
        >>> data.error(torch.tensor([1.0]))      # (0 + 4) / 2
        tensor(2.)
    """

    gram: Tensor  # X'X / n, (*B, d, d)
    cross: Tensor  # X'y / n, (*B, d)
    square: Tensor  # y'y / n, (*B)

    @classmethod
    def of(cls, X: Tensor, y: Tensor) -> "Moments":
        """Those of X and y."""
        n = X.shape[-2]
        return cls(X.mT @ X / n, (X.mT @ y.unsqueeze(-1)).squeeze(-1) / n, y.square().mean(-1))

    def gradient(self, w: Tensor) -> Tensor:
        """Return that of |X w - y|^2 / 2n, `(*B, d)`."""
        return (self.gram @ w.unsqueeze(-1)).squeeze(-1) - self.cross

    def error(self, w: Tensor) -> Tensor:
        """Return |X w - y|^2 / n, `(*B)`."""
        return (w * (self.gradient(w) - self.cross)).sum(-1) + self.square


class Splits(NamedTuple):
    """`count` ways to part the patients, float64.

    `train` and `valid` are what is kept and what is left out in each of five folds, `(count, 5)`;
    `whole` is all five together, and `test` the rest, `(count, 1)`.
    """

    train: Moments
    valid: Moments
    whole: Moments
    test: Moments


def splits(count: int, *, noise: int = 0, seed: int = 0) -> Splits:
    """Return `count` random splits into 340 patients to train on, in five folds, and 102 to test.

    Features have mean 0 and variance 1 over all patients. In place of an intercept, the mean of y
    over what a fold, or the whole, trains on is taken from all of its y.

    Args:
        count: splits, at least 1.
        noise: columns of normal noise that are appended to the ten, >= 0.
        seed: of a generator of its own.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> splits(3, noise=2).train.gram.shape
        torch.Size([3, 5, 12, 12])
    """
    if count < 1 or noise < 0:
        raise ValueError(
            f"count is {count}, noise is {noise}: ask for 1 split and 0 columns at least"
        )
    generator = torch.Generator().manual_seed(seed)
    X, y = (torch.from_numpy(v) for v in load_diabetes(return_X_y=True))
    white = torch.randn(len(X), noise, generator=generator, dtype=torch.float64)
    X = torch.cat([X * len(X) ** 0.5, white], 1)
    order = torch.stack([torch.randperm(len(X), generator=generator) for _ in range(count)])
    folds, last = order[:, :TRAIN].view(count, FOLDS, -1), order[:, None, TRAIN:]
    others = [[j for j in range(FOLDS) if j != k] for k in range(FOLDS)]
    kept, whole = folds[:, others].flatten(2), folds.flatten(1).unsqueeze(1)
    parts = (kept, kept), (folds, kept), (whole, whole), (last, whole)
    return Splits(*(Moments.of(X[i], y[i] - y[j].mean(-1, keepdim=True)) for i, j in parts))
