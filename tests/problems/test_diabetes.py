"""Splits against the data they come from, and moments against the sums they stand for."""

import pytest
import torch
from sklearn.datasets import load_diabetes

from problems.diabetes import Moments, splits


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_moments_know_the_loss_and_its_gradient(batch):
    X, y, w = numbers(*batch, 9, 4), numbers(*batch, 9, seed=1), numbers(*batch, 4, seed=2)
    data, w = Moments.of(X, y), w.requires_grad_()
    error = ((X @ w.unsqueeze(-1)).squeeze(-1) - y).square().mean(-1)
    assert (data.error(w) - error).abs().max() <= 1e-12
    (gradient,) = torch.autograd.grad(error.sum() / 2, w)
    assert (data.gradient(w) - gradient).abs().max() <= 1e-12


@pytest.mark.parametrize("noise", [0, 3])
def test_folds_make_up_the_whole_and_with_the_test_everything(noise):
    """Means over 272 and 68 patients add up to those over 340, and these and 102 to all 442."""
    data, d = splits(4, noise=noise, seed=2), 10 + noise
    assert data.train.gram.shape == data.valid.gram.shape == (4, 5, d, d)
    assert data.whole.gram.shape == data.test.gram.shape == (4, 1, d, d)
    parts = 0.8 * data.train.gram + 0.2 * data.valid.gram
    assert (parts - data.whole.gram).abs().max() <= 1e-12
    assert (data.valid.gram.mean(1, keepdim=True) - data.whole.gram).abs().max() <= 1e-12
    everything = (340 * data.whole.gram + 102 * data.test.gram) / 442
    X = torch.from_numpy(load_diabetes(return_X_y=True)[0])
    assert (everything[..., :10, :10] - 442 * X.T @ X / 442).abs().max() <= 1e-10
    assert (everything.diagonal(dim1=-2, dim2=-1)[..., :10] - 1).abs().max() <= 1e-10


def test_least_squares_on_the_whole_is_scikit_learns_problem():
    """At the minimum of the whole the gradient is zero, and the error that of the residuals."""
    data = splits(2, seed=1)
    w = torch.linalg.solve(data.whole.gram, data.whole.cross)
    assert data.whole.gradient(w).abs().max() <= 1e-9
    shift = data.whole.error(w + 0.1) - data.whole.error(w)
    assert (shift - 0.01 * data.whole.gram.sum((-2, -1))).abs().max() <= 1e-8


def test_the_targets_are_from_the_mean_of_what_is_trained_on():
    """Without features the error is the variance, and left out a little more."""
    data = splits(50)
    y = torch.from_numpy(load_diabetes(return_X_y=True)[1])
    zero = torch.zeros(10).double()
    assert (data.whole.error(zero) < data.test.square + 1e5).all()
    both = (340 * data.whole.square + 102 * data.test.square) / 442
    away = both - y.var(correction=0)  # the square of how far the two means are apart
    assert (away >= -1e-8).all() and away.max() < 200 and away.mean() > 1


def test_the_seed_decides():
    one, two, other = (splits(2, noise=1, seed=seed) for seed in (1, 1, 2))
    assert one.train.gram.equal(two.train.gram) and one.test.square.equal(two.test.square)
    assert not one.train.gram.equal(other.train.gram)


@pytest.mark.parametrize("arguments", [{"count": 0}, {"count": 1, "noise": -1}])
def test_what_cannot_be_drawn_is_refused(arguments):
    with pytest.raises(ValueError, match="ask for 1 split and 0 columns at least"):
        splits(**arguments)
