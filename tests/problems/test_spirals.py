"""The oracles are the equation of the curve, the order of times, and the noise asked for."""

import pytest
import torch

from problems.spirals import TURN, on_curve, spirals

CASES = {  # name: (until, end, series)
    "defaults": (0.5 * TURN, 0.75 * TURN, spirals(1000, beyond=10, seed=1)),
    "no noise": (0.5 * TURN, 0.75 * TURN, spirals(6, noise=0.0)),
    "long": (TURN, 2 * TURN, spirals(7, 80, until=TURN, beyond=80, end=2 * TURN)),
    "one": (0.5 * TURN, 0.75 * TURN, spirals(1, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_series_are_on_their_curve(name):
    """The radius is 0.3 theta, theta the angle at the point, and grows or falls with time."""
    _, end, data = CASES[name]
    theta = data.start[:, None] + data.t
    back = data.start[:, None] + end - data.t
    theta = torch.where(data.clockwise[:, None], back, theta)
    radius = data.clean.norm(dim=-1)
    assert (radius - 0.3 * theta).abs().max() <= 1e-12
    angle = torch.atan2(data.clean[..., 1], data.clean[..., 0])
    turned = torch.remainder(theta - angle + 1.0, TURN) - 1.0
    assert turned.abs().max() <= 1e-12


@pytest.mark.parametrize("name", CASES)
def test_times_are_in_order_and_within_their_parts(name):
    until, end, data = CASES[name]
    assert data.t.dtype == data.clean.dtype == torch.float64
    assert data.clean.shape == data.noisy.shape == (*data.t.shape, 2)
    assert (data.t[:, 0] == 0).all() and (data.t.diff(dim=1) > 0).all()
    times = data.t.shape[1] // 2 if name == "long" else min(data.t.shape[1], 40)
    assert data.t[:, :times].max() <= until and (data.t[:, times:] >= until).all()
    assert data.t.max() <= end


@pytest.mark.parametrize("name", CASES)
def test_every_second_series_is_clockwise(name):
    _, end, data = CASES[name]
    x, y = on_curve(torch.tensor([[0.0, 0.1]]).double().expand(len(data.t), -1),
                    data.start, data.clockwise, end).unbind(-1)  # fmt: skip
    turning = x[:, 0] * y[:, 1] - y[:, 0] * x[:, 1]
    assert (turning < 0).equal(data.clockwise)
    assert data.clockwise.tolist() == [i % 2 == 1 for i in range(len(data.t))]


def test_the_noise_is_that_asked_for():
    """100 000 numbers: five standard deviations."""
    noise = CASES["defaults"][2].noisy - CASES["defaults"][2].clean
    assert noise.mean().item() == pytest.approx(0, abs=5 * 0.3 / 100_000**0.5)
    assert noise.std().item() == pytest.approx(0.3, rel=5 / 200_000**0.5)
    assert CASES["no noise"][2].noisy.equal(CASES["no noise"][2].clean)


def test_starts_are_uniform_within_their_limits():
    start = CASES["defaults"][2].start / TURN
    assert start.min() >= 0.25 and start.max() <= 1.75
    assert start.mean().item() == pytest.approx(1.0, abs=5 * 0.433 / 1000**0.5)


def test_the_seed_decides():
    one, two, other = (spirals(3, seed=s) for s in (1, 1, 2))
    assert one.noisy.equal(two.noisy) and one.t.equal(two.t)
    assert not one.noisy.equal(other.noisy) and not one.t.equal(other.t)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count is 0, times is 40, beyond is 0: ask for 1 series"),
        ({"count": 1, "times": 0}, "times is 0"),
        ({"count": 1, "beyond": -1}, "beyond is -1"),
        ({"count": 1, "until": 0.0}, "until is 0.0, end is 4.7"),
        ({"count": 1, "end": 1.0}, "end is 1.0: choose 0 < until < end"),
        ({"count": 1, "noise": -0.1}, "noise is -0.1: give a standard deviation >= 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        spirals(**arguments)
