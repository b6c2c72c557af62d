"""The oracles are the heat balance as a differential equation, its steady state, and hand sums."""

import math

import pytest
import torch

from diffopt import Dopri8, odeint
from problems.buildings import (
    House,
    Model,
    cost,
    daily,
    fitted,
    misses,
    simulate,
    thermostat,
)
from problems.weather import DAY, Weather, weather

HOUSES = {
    "default": House(),
    "leaky": House(resistance=1.0, capacity=2.0),
    "heavy": House(capacity=60.0, gain=1.0),
}
WINTER = weather(3, days=2, seed=4)


def constant(steps, outdoor=5.0, solar=0.0, occupied=1.0, price=1.0):
    """One spell in which nothing changes."""
    return Weather(*(torch.full((1, steps), v).double() for v in (outdoor, solar, occupied, price)))


def numbers(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 20 * torch.rand(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", HOUSES)
@pytest.mark.parametrize("hours", [0.5, 3.0])
def test_a_step_solves_the_heat_balance_and_keeps_the_energy(name, hours):
    """x' by (1), and beside it the heat that has come in: C times the rise of x."""
    house = HOUSES[name]
    x, u, d = numbers(8), numbers(8, seed=1), numbers(8, 3, seed=2)

    def flows(t, state):
        outside = (d[:, 0] - state[:, 0]) / house.resistance
        heat = outside + u + house.aperture * d[:, 1] + house.gain * d[:, 2]
        return torch.stack([heat / house.capacity, heat], 1)

    start = torch.stack([x, torch.zeros_like(x)], 1)
    times = torch.tensor([0.0, hours]).double()
    end = odeint(flows, start, times, solver=Dopri8(rtol=1e-12, atol=1e-12)).y1
    after = house.model(hours).step(x, u, d)
    assert (after - end[:, 0]).abs().max() <= 1e-9
    assert (house.capacity * (after - x) - end[:, 1]).abs().max() <= 1e-8


@pytest.mark.parametrize("name", HOUSES)
def test_the_steady_state_is_the_air_outside_plus_heat_times_resistance(name):
    house, u, d = HOUSES[name], numbers(5), numbers(5, 3, seed=1)
    heat = u + house.aperture * d[:, 1] + house.gain * d[:, 2]
    x = d[:, 0] + house.resistance * heat
    assert (house.model().step(x, u, d) - x).abs().max() <= 1e-10
    assert (house.model(1e6).step(0 * x, u, d) - x).abs().max() <= 1e-10


def test_two_half_hours_are_an_hour():
    x, u, d = numbers(5), numbers(5, seed=1), numbers(5, 3, seed=2)
    half, whole = House().model(0.5), House().model(1.0)
    assert (half.step(half.step(x, u, d), u, d) - whole.step(x, u, d)).abs().max() <= 1e-12


def test_numbers_make_the_model():
    model = House().model()
    assert model.A.item() == pytest.approx(math.exp(-0.5 / 30), abs=1e-15)
    again = Model.of(model.numbers)
    for one, two in zip(model, again, strict=True):
        assert torch.allclose(one, two, rtol=0, atol=1e-15)
    assert Model.of(torch.rand(4, 1, 5)).numbers.shape == (4, 1, 5)


def test_costs_by_hand():
    """At 20..23 with people: 19 misses one degree, 24.5 one and a half; at night 16..26."""
    x, u = torch.tensor([[19.0, 21.0, 24.5]]), torch.tensor([[2.0, 0.0, 1.0]])
    people = constant(5, price=3.0)
    assert misses(people.occupied, x).tolist() == [[1, 0, 1.5]]
    expected = [3 * 2 + 0.05 * 4 + 2.5, 0, 3 + 0.05 + 2.5 * 1.5**2]
    assert cost(people, x, u)[0].tolist() == pytest.approx(expected)
    nobody = constant(3, occupied=0.0)
    assert cost(nobody, x - 4, u)[0].tolist() == pytest.approx([2.2 + 0.05, 0, 1.05])


def test_a_day_sums_up():
    """A day at 19 degrees under 2 kW: 48 kWh, and a degree too cold for 24 hours."""
    model = Model(*(torch.tensor(v).double() for v in (1.0, 0.0, [0.0, 0.0, 0.0])))
    steady = constant(2 * DAY)
    run = simulate(model, steady, lambda k, y: 0 * y + 2, 2 * DAY, start=19.0)
    assert daily(steady, run).tolist() == pytest.approx([DAY * (2 + 0.2 + 2.5), 48, 24])


def test_a_run_follows_the_model_and_its_policy():
    """Three houses at once, each under a gain of its own, through a sensor with noise."""
    model, gains = House().model(), torch.tensor([0.1, 0.5, 2.0]).double()[:, None]
    run = simulate(model, WINTER, lambda k, y: gains * (22 - y), 50, noise=0.5, seed=3)
    assert run.x.shape == run.y.shape == run.u.shape == (3, 3, 50)
    assert (run.u - gains[:, None] * (22 - run.y)).abs().max() <= 1e-12
    after = model.step(run.x, run.u, WINTER.d[:, :50])
    assert (after[..., :-1] - run.x[..., 1:]).abs().max() <= 1e-12
    noise = (run.y - run.x)[0]
    assert (noise - (run.y - run.x)[2]).abs().max() <= 1e-12  # the same for every house
    assert noise.std().item() == pytest.approx(0.5, rel=5 / math.sqrt(2 * 150))
    again = simulate(model, WINTER, lambda k, y: gains * (22 - y), 50, noise=0.5, seed=3)
    assert run.y.equal(again.y)


@pytest.mark.parametrize("instruments", [False, True])
def test_without_noise_the_house_is_found(instruments):
    def policy(k, y):
        return 4 + 3 * torch.sin(torch.tensor(1.7 * k * k)) + 0 * y

    run = simulate(House().model(), WINTER, policy, 2 * DAY)
    found = fitted(WINTER, run, instruments=instruments).numbers
    assert (found / House().model().numbers - 1).abs().max() <= 1e-8


def test_noise_makes_the_house_leak_but_for_instruments():
    """Closed loop, sensor off by half a degree; over 300 spells the bias is far from chance."""
    cold = weather(300, days=2, seed=5)

    def policy(k, y):
        return 4 + 3 * math.sin(k / 4) + 0.2 * (18 - y)  # slow: its past says what it will be

    run = simulate(House().model(), cold, policy, 2 * DAY, noise=0.5)
    true = House().model().numbers[0]
    assert fitted(cold, run).numbers[0] > 1.25 * true
    assert fitted(cold, run, instruments=True).numbers[0] == pytest.approx(true.item(), rel=0.1)


@pytest.mark.parametrize("setback", [False, True])
def test_a_thermostat_heats_between_its_limits(setback):
    """All or nothing; with a strong heater and a good sensor a half-hour step is all it misses."""
    policy = thermostat(WINTER, 8.0, setback=setback)
    run = simulate(House().model(), WINTER, policy, 2 * DAY, start=20.0)
    assert set(run.u.flatten().tolist()) == {0.0, 8.0}
    assert (run.u[..., 0] == (0.0 if setback else 8.0)).all()
    home = torch.ones_like(run.x) if not setback else WINTER.occupied
    assert (run.u[(run.x < 20.5) & (home > 0)] == 8).all()
    assert (run.u[(run.x > 21.5)] == 0).all()
    if not setback:
        assert run.x.min() >= 20.0 - 0.5 and run.x.max() <= 22.5


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: House().model(0.0), "hours is 0.0: give the length of a step"),
        (lambda: simulate(House().model(), WINTER, None, 0), "steps is 0: the weather has 96"),
        (lambda: simulate(House().model(), WINTER, None, 97), "steps is 97"),
        (
            lambda: simulate(House().model(), WINTER, None, 1, noise=-1.0),
            "noise is -1.0: give a standard deviation",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()
