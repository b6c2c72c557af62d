"""The weather against what it says it is made of, and the forecasts against the weather."""

import math

import pytest
import torch

from problems.weather import DAY, OCCUPIED, STEP, comfort, weather

WINTER = weather(400, days=3, beyond=5, seed=1)
HOUR = STEP * torch.arange(3 * DAY + 5) % 24


def test_the_air_is_a_mean_a_wave_and_correlated_noise():
    """Of 400 spells: the mean of means is within five standard errors, and so is the rest."""
    air = WINTER.outdoor
    assert air.shape == (400, 3 * DAY + 5) and air.dtype == torch.float64
    assert air.mean().item() == pytest.approx(4, abs=5 * math.hypot(4, 2.5) / 20)
    wave = -4 * (2 * math.pi / 24 * (HOUR - 3)).cos()
    assert (air.mean(0) - wave - 4).abs().max() <= 5 * math.hypot(4, 2.5) / 20
    jump = (air - wave).diff(dim=1)  # of an AR(1): variance 2 (1 - 0.97) 2.5^2
    assert jump.std().item() == pytest.approx(2.5 * math.sqrt(0.06), rel=0.02)
    assert (air - wave).std().item() == pytest.approx(math.hypot(4, 2.5), rel=0.15)


def test_the_sun_is_up_by_day_only():
    sun = WINTER.solar
    night = (HOUR <= 8) | (HOUR >= 17)
    assert (sun[:, night] == 0).all() and (sun[:, ~night] > 0).all() and sun.max() <= 0.5
    noon = sun[:, HOUR == 12.5]  # 0.5 times a number of the day
    assert noon.shape == (400, 3)
    assert noon.mean().item() == pytest.approx(0.25, abs=5 * 0.5 / math.sqrt(12 * 1200))
    day = sun[:, :DAY] / noon[:, :1]
    assert (day - day[:1]).abs().max() <= 1e-12  # within a day only the height changes
    assert day[0, HOUR[:DAY] == 9.5] == pytest.approx(0.5)  # sin(pi / 6)


def test_people_and_prices_keep_hours():
    assert WINTER.occupied[:, :DAY].sum(1).eq(31).all()  # 15.5 hours
    assert WINTER.occupied[0, [12, 13, 43, 44]].tolist() == [0, 1, 1, 0]
    assert WINTER.price[0, [33, 34, 41, 42]].tolist() == [1, 3, 3, 1]
    assert WINTER.d.shape == (400, 3 * DAY + 5, 3)


def test_comfort_is_as_it_says():
    low, high, weight = comfort(torch.tensor([1.0, 0.0]))
    assert low.tolist() == [20, 16] and high.tolist() == [23, 26]
    assert weight[0] == OCCUPIED and weight[1] == pytest.approx(0.1)


def test_forecasts_are_what_comes():
    """d and the price of the steps themselves; comfort at the end of each."""
    ahead = WINTER.forecasts(4)
    assert ahead.d.shape == (400, 3 * DAY + 1, 4, 3)
    low = comfort(WINTER.occupied)[0]
    for k in (0, 12, 33, 3 * DAY):
        now = ahead.at(slice(None), k)
        assert now.d.equal(WINTER.d[:, k : k + 4])
        assert now.price.equal(WINTER.price[:, k : k + 4])
        assert now.low.equal(low[:, k + 1 : k + 5])
    one = ahead.at(torch.tensor([3, 5]), torch.tensor([0, 7]))
    assert one.d[1].equal(WINTER.d[5, 7:11]) and one.high.shape == (2, 4)


def test_the_seed_decides():
    one, two, other = (weather(2, days=1, seed=seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, one, two))
    assert not one.outdoor.equal(other.outdoor) and not one.solar.equal(other.solar)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count is 0, days is 7, beyond is 0: ask for 1 spell"),
        ({"count": 1, "days": 0}, "days is 0"),
        ({"count": 1, "beyond": -1}, "beyond is -1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        weather(**arguments)
