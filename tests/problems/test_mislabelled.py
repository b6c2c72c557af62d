"""Half of the labels are wrong, in the way asked for, and all others are right."""

import pytest
import torch

from problems import digits
from problems.mislabelled import mislabelled


def truth(x):
    """The digits of images, looked up in the data set."""
    everything = torch.cat([part.pixels.flatten(1) for part in digits.split()]).double()
    labels = torch.cat([part.digits for part in digits.split()])
    return labels[torch.cdist(x[:, :64], everything).argmin(1)]


@pytest.mark.parametrize(("train", "valid"), [(1000, 100), (301, 50), (1158, 100)])
@pytest.mark.parametrize("wrong", ["random", "next"])
def test_half_is_wrong(train, valid, wrong):
    task = mislabelled(train, valid, wrong=wrong, seed=3)
    shift = (task.train.y - truth(task.train.x)) % 10
    assert len(task.train.y) == len(task.dirty) == train and len(task.valid.y) == valid
    assert (shift != 0).equal(task.dirty) and task.dirty.sum() == train // 2
    assert set(shift[task.dirty].tolist()) == (set(range(1, 10)) if wrong == "random" else {1})
    assert task.valid.y.equal(truth(task.valid.x)) and task.test.y.equal(truth(task.test.x))


def test_no_image_is_used_twice_and_each_has_its_constant():
    task = mislabelled()
    x = torch.cat([task.train.x, task.valid.x, task.test.x])
    assert x.dtype == torch.float64 and (x[:, 64] == 1).all()
    assert len(x.unique(dim=0)) == len(x) == 1000 + 200 + 539


def test_wrong_labels_are_spread_evenly():
    """Of 500 each of nine shifts comes 56 times, give or take five standard deviations."""
    task = mislabelled(seed=1)
    shift = (task.train.y - truth(task.train.x))[task.dirty] % 10
    assert (shift.bincount(minlength=10)[1:] - 500 / 9).abs().max() <= 5 * 7.1
    assert abs(task.dirty[:500].sum() - 250) <= 5 * 8


def test_parts_are_taken_and_joined():
    task = mislabelled(20, 10)
    both = task.train.only(~task.dirty).joined(task.valid)
    assert both.x.shape == (20, 65) and both.y[10:].equal(task.valid.y)
    assert both.y[:10].equal(task.train.y[~task.dirty])


def test_the_regression_has_its_gradient_and_counts_what_is_right():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(650, generator=generator, dtype=torch.float64, requires_grad=True)
    data, weights = mislabelled(40, 5).train, torch.rand(40, generator=generator).double()
    (gradient,) = torch.autograd.grad((weights * data.losses(z)).mean(), z)
    assert (data.gradient(z, weights) - gradient).abs().max() <= 1e-14
    likely = (data.x @ z.view(65, 10)).argmax(1)
    assert 0 < data.accuracy(z) < 1
    assert data.accuracy(z) == pytest.approx((likely == data.y).double().mean().item())
    chance = data.losses(z).neg().exp()  # the probability of the label
    assert (chance > 0).all() and (chance < 1).all()
    assert (chance[likely == data.y] > 0.1).all()  # the largest of ten


def test_the_seed_decides():
    one, two, other = (mislabelled(seed=seed) for seed in (1, 1, 2))
    assert one.train.x.equal(two.train.x) and one.train.y.equal(two.train.y)
    assert not one.dirty.equal(other.dirty)


@pytest.mark.parametrize("sizes", [(1, 100), (100, 0), (1200, 100)])
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match="together 1258 at most"):
        mislabelled(*sizes)


def test_another_kind_of_wrong_is_refused():
    with pytest.raises(ValueError, match="wrong is 'all': expected 'random' or 'next'"):
        mislabelled(wrong="all")
