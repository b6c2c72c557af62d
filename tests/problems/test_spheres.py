"""Radii, labels, and that points are uniform in volume."""

import pytest
import torch

from problems.spheres import INNER, SHELL, concentric


@pytest.mark.parametrize("d", [1, 2, 3, 10])
def test_labels_say_where_a_point_is(d):
    points, labels = concentric(d=d)
    assert points.shape == (2000, d) and labels.shape == (2000, 1)
    assert points.dtype == labels.dtype == torch.float32
    radius = points.norm(dim=1)
    ball = labels.squeeze(1) == -1
    assert ball.sum() == 500 and (labels[~ball] == 1).all()
    assert radius[ball].max() <= INNER + 1e-6
    assert radius[~ball].min() >= SHELL[0] - 1e-6 and radius[~ball].max() <= SHELL[1] + 1e-6


@pytest.mark.parametrize("d", [1, 2, 3])
def test_uniform_in_volume(d):
    """|x|^d is uniform, the mean of x zero: within five standard deviations."""
    points, labels = concentric(4000, 4000, d, seed=1)
    for label, (least, most) in ((-1, (0.0, INNER)), (1, SHELL)):
        own = points[labels.squeeze(1) == label]
        share = (own.norm(dim=1) ** d - least**d) / (most**d - least**d)
        assert share.mean().item() == pytest.approx(0.5, abs=5 * (1 / 12 / 4000) ** 0.5)
        assert share.square().mean().item() == pytest.approx(1 / 3, abs=5 * (4 / 45 / 4000) ** 0.5)
        assert own.mean(0).abs().max() <= 5 * most / 4000**0.5


def test_order_and_seed():
    one, two, other = (concentric(seed=s) for s in (1, 1, 2))
    assert torch.equal(one.points, two.points) and not torch.equal(one.points, other.points)
    first = one.labels[:1000].mean().item()
    assert first == pytest.approx(0.5, abs=0.15)  # 750 of 1000, in random order


@pytest.mark.parametrize("bad", [{"inner": 0}, {"outer": 0}, {"d": 0}])
def test_bad_input(bad):
    with pytest.raises(ValueError, match="expected numbers of at least 1"):
        concentric(**bad)
