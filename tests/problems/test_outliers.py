"""The oracles are the definition of the Huber mean and the counts asked for."""

import pytest
import torch

from problems.outliers import huber_mean, sets


@pytest.mark.parametrize("width", [0.05, 0.5, 5.0, 100.0])
def test_huber_mean_balances_the_pulls(width):
    x = sets(50, 21, 1, 0.3, seed=1).points.squeeze(-1)
    z = huber_mean(x, width)
    assert (z.unsqueeze(-1) - x).clamp(-width, width).sum(-1).abs().max() <= 1e-12


def test_huber_mean_of_a_wide_penalty_is_the_mean():
    x = sets(5, 21, 1, 0.3).points.squeeze(-1)
    torch.testing.assert_close(huber_mean(x, 1e3), x.mean(-1))


def test_sets_are_as_asked_for():
    points, centre, outlier = sets(40, 20, 2, share=0.25, noise=0.1, far=4.0)
    assert points.shape == (40, 20, 2) and (outlier.sum(-1) == 5).all()
    distance = (points - centre.unsqueeze(1)).norm(dim=-1)
    assert distance[~outlier].max() < 0.6 and 1.4 < distance[outlier].min()
    assert torch.equal(points, sets(40, 20, 2, share=0.25, noise=0.1, far=4.0).points)


def test_bad_input():
    with pytest.raises(ValueError, match="share is 0.5"):
        sets(share=0.5)
    with pytest.raises(ValueError, match="width is 0"):
        huber_mean(torch.zeros(3), 0)
