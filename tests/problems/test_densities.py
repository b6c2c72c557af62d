"""The oracles are quadrature, distributions of torch, finite differences and counts."""

import math

import pytest
import torch

from problems.densities import Circles, Mixture, ring

F64 = torch.float64


def some(K, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    L = torch.randn(K, d, d, generator=generator, dtype=F64)
    weights = torch.rand(K, generator=generator, dtype=F64) + 0.1
    means = 2 * torch.randn(K, d, generator=generator, dtype=F64)
    return Mixture(weights / weights.sum(), means, L @ L.mT + 0.1 * torch.eye(d, dtype=F64))


MIXTURES = {  # name: mixture
    "one part": some(1, 2),
    "one dimension": some(3, 1),
    "plane": some(4, 2),
    "five dimensions": some(3, 5),
    "ring": ring(),
}
CIRCLES = {"defaults": Circles(), "much noise": Circles(0.8, 2.0), "one": Circles(0.3, 1.0)}


def points(mixture, *shape):
    torch.manual_seed(0)
    return mixture.distribution(1.0).sample(shape)


@pytest.mark.parametrize("variance", [0.0, 0.7, 30.0])
@pytest.mark.parametrize("name", MIXTURES)
class TestMixture:
    def test_the_density_is_that_of_torch(self, name, variance):
        mixture = MIXTURES[name]
        x = points(mixture, 3, 4)
        truth = mixture.distribution(variance).log_prob(x)
        torch.testing.assert_close(mixture.log_prob(x, variance), truth, rtol=1e-9, atol=1e-9)

    def test_the_score_is_the_gradient(self, name, variance):
        mixture = MIXTURES[name]
        x = points(mixture, 3, 4).requires_grad_()
        (g,) = torch.autograd.grad(mixture.log_prob(x, variance).sum(), x)
        torch.testing.assert_close(mixture.score(x, variance), g, rtol=1e-9, atol=1e-9)

    def test_a_variance_for_each_point(self, name, variance):
        mixture = MIXTURES[name]
        x, own = points(mixture, 2), torch.tensor([variance, 2.0], dtype=F64)
        for call in (mixture.log_prob, mixture.score):
            each = torch.stack([call(v, s.item()) for v, s in zip(x, own, strict=True)])
            torch.testing.assert_close(call(x, own), each)

    def test_the_density_obeys_the_heat_equation(self, name, variance):
        """dp/dv = 1/2 laplace p: with l = log p, dl/dv = 1/2 (div score + |score|^2)."""
        mixture, h = MIXTURES[name], 1e-4
        x = points(mixture, 1)[0].requires_grad_()
        J = torch.autograd.functional.jacobian(lambda v: mixture.score(v, variance + h), x)
        right = 0.5 * (J.trace() + mixture.score(x, variance + h).square().sum())
        left = (mixture.log_prob(x, variance + 2 * h) - mixture.log_prob(x, variance)) / (2 * h)
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_a_ring_has_long_axes_outwards():
    mixture = ring(5, 3.0, 0.7, 0.2)
    assert mixture.weights.tolist() == [0.2] * 5
    out = mixture.means / 3.0
    torch.testing.assert_close(out.norm(dim=1), torch.ones(5, dtype=F64))
    pulled = (mixture.covariances @ out.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(pulled, 0.49 * out)
    torch.testing.assert_close(mixture.covariances.det(), torch.full((5,), 0.14**2, dtype=F64))


@pytest.mark.parametrize("name", CIRCLES)
class TestCircles:
    def test_the_density_is_the_mean_over_the_angle(self, name):
        """Of normal densities about 20 000 points on each circle: exact for a smooth integrand."""
        circles, x = CIRCLES[name], CIRCLES[name].sample(20)
        angle = torch.arange(20_000, dtype=F64) * (2 * math.pi / 20_000)
        ring = torch.stack([angle.cos(), angle.sin()], -1)
        centres = torch.cat([ring, circles.factor * ring])
        s2 = circles.noise**2
        p = (-torch.cdist(x, centres).square() / (2 * s2)).exp().mean(1) / (2 * math.pi * s2)
        torch.testing.assert_close(circles.log_prob(x), p.log(), rtol=0, atol=1e-8)

    def test_the_density_integrates_to_one(self, name):
        circles = CIRCLES[name]
        end = max(1, circles.factor) + 8 * circles.noise
        line = torch.linspace(-end, end, 401, dtype=F64)
        p = circles.log_prob(torch.cartesian_prod(line, line)).exp().sum()
        assert (p * (line[1] - line[0]) ** 2).item() == pytest.approx(1, abs=1e-9)

    def test_the_entropy_is_the_mean_of_minus_log_p(self, name):
        """Over 200 000 draws: five standard deviations."""
        circles = CIRCLES[name]
        values = -circles.log_prob(circles.sample(200_000, seed=1))
        error = 5 * values.std().item() / 200_000**0.5
        assert values.mean().item() == pytest.approx(circles.entropy(), abs=error)

    def test_half_of_the_points_are_on_each_circle(self, name):
        """E|x|^2 = (1 + factor^2) / 2 + 2 noise^2, over 20 000 draws, within five per cent."""
        circles = CIRCLES[name]
        x = circles.sample(20_000)
        expected = (1 + circles.factor**2) / 2 + 2 * circles.noise**2
        assert x.square().sum(1).mean().item() == pytest.approx(expected, rel=0.05)
        assert x.mean(0).abs().max() < 0.05 * max(1, circles.factor)


def test_far_away_nothing_overflows():
    x = torch.tensor([[40.0, 0.0], [0.0, 0.0]], dtype=F64)
    found = Circles().log_prob(x)
    assert found.isfinite().all()
    assert found[0].item() == pytest.approx(-(39**2) / (2 * 0.06**2), rel=1e-4)


def test_the_seed_decides():
    one, two, other = (Circles().sample(3, seed=s) for s in (1, 1, 2))
    assert one.equal(two) and not one.equal(other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Circles(noise=0.0), "noise is 0.0: give a positive number"),
        (lambda: Circles(factor=-1.0), "factor is -1.0"),
        (lambda: Circles().sample(0), "count is 0: ask for 1 point"),
        (lambda: ring(0), "K is 0"),
        (lambda: Mixture(torch.ones(2), torch.zeros(2, 1), torch.ones(2, 1, 1)), "of sum 1"),
        (lambda: Mixture(torch.ones(1), torch.zeros(1, 1), torch.zeros(1, 1, 1)), "not positive"),
        (lambda: Mixture(torch.ones(2), torch.zeros(1, 1), torch.ones(1, 1, 1)), "have shapes"),
        (lambda: Mixture(torch.ones(1), torch.zeros(3), torch.ones(1, 1, 1)), "means has shape"),
    ],
)
def test_what_is_no_density_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
