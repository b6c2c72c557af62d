"""The oracle is the definition: on the ellipse, and no point of it is nearer."""

import pytest
import torch

from problems.ellipses import points, project


@pytest.mark.parametrize("axes", [(1.0, 1.0), (2.0, 0.5), (0.3, 1.7)])
def test_no_point_of_the_ellipse_is_nearer(axes):
    axes = torch.tensor(axes).double()
    x = points(200, seed=1)
    z = project(x, axes)
    assert ((z / axes).square().sum(-1) - 1).abs().max() <= 1e-12
    angle = torch.linspace(0, 2 * torch.pi, 20001).double()
    curve = axes * torch.stack([angle.cos(), angle.sin()], -1)
    nearest = torch.cdist(x, curve).amin(-1)
    assert ((z - x).norm(dim=-1) <= nearest + 1e-12).all()


def test_points_keep_off_the_axes():
    x = points(100)
    assert x.shape == (100, 2) and x.abs().min() >= 0.2 and x.abs().max() <= 2.2


def test_bad_input():
    with pytest.raises(ValueError, match="two positive numbers"):
        project(torch.ones(2), torch.tensor([1.0, 0.0]))
