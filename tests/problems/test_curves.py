"""The oracles are the definition of isotonic regression and scikit-learn's."""

import pytest
import torch
from sklearn.isotonic import IsotonicRegression

from problems.curves import crossing, cubic, increasing_bound, isotonic, parabola

GENERATOR = torch.Generator().manual_seed(0)
SEQUENCES = {
    "cubic": cubic().y.flatten(),
    "parabola": parabola().y.flatten(),
    "parabola, many": parabola(1001).y.flatten(),
    "crossing": crossing().y.flatten(),
    "decreasing": -torch.arange(9.0).double(),
    "ties": torch.tensor([1.0, 1.0, 0.0, 0.0, 2.0, 2.0]).double(),
    "one": torch.tensor([3.0]).double(),
    "noise": torch.randn(300, generator=GENERATOR, dtype=torch.float64),
    "noise around a line": torch.linspace(0, 3, 300).double()
    + torch.randn(300, generator=GENERATOR, dtype=torch.float64),
}


@pytest.mark.parametrize("name", SEQUENCES)
class TestIsotonic:
    def test_optimality(self, name):
        """z is the projection on the cone of non-decreasing vectors: y - z is at a right angle to
        z, and at an obtuse one to every step (0, ..., 0, 1, ..., 1) and to both constants."""
        y = SEQUENCES[name]
        z = isotonic(y)
        assert z.dtype == y.dtype and (z.diff() >= 0).all()
        tails = (y - z).flip(0).cumsum(0).flip(0)
        assert abs(tails[0]) <= 1e-9 and (tails <= 1e-9).all()
        assert abs(((y - z) * z).sum()) <= 1e-9

    def test_scikit_learn_agrees(self, name):
        y = SEQUENCES[name]
        expected = IsotonicRegression().fit_transform(range(len(y)), y.numpy())
        torch.testing.assert_close(isotonic(y), torch.from_numpy(expected))


def test_the_bounds():
    """On all of [-2, 2] the best increasing fit of x^2 is 1 up to x = 1, and leaves 0.9."""
    assert increasing_bound(cubic()) == 0
    assert increasing_bound(parabola()) == pytest.approx(1.311, abs=5e-4)
    assert isotonic(parabola().y.flatten())[0].item() == pytest.approx(1.2346, abs=1e-4)
    # the integral of (x^2 - 1)^2 over [-2, 1] is 33/5 - 6 + 3 = 18/5: a quarter of it is 0.9
    assert increasing_bound(parabola(4001)) == pytest.approx(0.9, abs=2e-3)
    assert increasing_bound(crossing()) == 1


def test_the_points():
    x, y = cubic()
    assert x.shape == y.shape == (10, 1) and x.dtype == y.dtype == torch.float64
    assert x.flatten()[[0, -1]].tolist() == [-2.0, 2.0]
    torch.testing.assert_close(y, x**3 + x / 10)
    assert torch.equal(parabola().y, x**2)
    assert crossing().y.tolist() == [[1.0], [-1.0]]


def test_bad_input():
    with pytest.raises(ValueError, match="count is 1"):
        cubic(1)
    with pytest.raises(ValueError, match=r"y has shape \(2, 1\)"):
        isotonic(torch.zeros(2, 1))
