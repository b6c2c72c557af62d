"""The oracles are conserved energy, Newton's and Lagrange's equations, and the noise asked for."""

import pytest
import torch

from problems.mechanics import (
    double_pendulum,
    mass_spring,
    pendulum_acceleration,
    pendulum_energy,
    pendulum_lagrangian,
    spring_energy,
)

SPRINGS = {  # name: motions
    "defaults": mass_spring(400, seed=1),
    "no noise": mass_spring(5, noise=0.0),
    "long": mass_spring(5, 200, span=100.0, seed=2),
    "one": mass_spring(1, 1),
}
SWINGS = {
    "defaults": double_pendulum(4),
    "wide": double_pendulum(3, 20, angle=3.0, seed=1),
    "one": double_pendulum(1, 2, span=0.5),
}


def states(count, seed=0):
    """Angles and speeds, both `(count, 2)`."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(2, count, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", SPRINGS)
def test_springs_keep_their_energy_and_turn_by_the_time(name):
    t, y, noisy = SPRINGS[name]
    assert t.dtype == y.dtype == torch.float64 and y.shape == noisy.shape == (*t.shape, 2)
    assert (t[:, 0] == 0).all() and (t.diff(dim=1) > 0).all()
    energy = spring_energy(y)
    assert (energy - energy[:, :1]).abs().max() <= 1e-12
    assert energy.min() >= 0.2 and energy.max() <= 1.0
    turned = torch.atan2(y[..., 0], y[..., 1]) - t  # the angle of q + i p from p grows with time
    away = torch.remainder(turned - turned[:, :1] + 1.0, 2 * torch.pi) - 1.0
    assert away.abs().max() <= 1e-10


def test_springs_are_seen_under_noise_of_a_tenth():
    """Of 24 000 numbers: five standard deviations."""
    noise = SPRINGS["defaults"].noisy - SPRINGS["defaults"].states
    assert noise.mean().item() == pytest.approx(0, abs=5 * 0.1 / 24_000**0.5)
    assert noise.std().item() == pytest.approx(0.1, rel=5 / 48_000**0.5)
    assert SPRINGS["no noise"].noisy.equal(SPRINGS["no noise"].states)


def test_energies_and_times_of_springs_are_uniform():
    t, y, _ = SPRINGS["defaults"]
    assert spring_energy(y)[:, 0].mean().item() == pytest.approx(0.6, abs=5 * 0.231 / 20)
    assert t[:, 1:].mean().item() == pytest.approx(1.5, abs=5 * 0.866 / (400 * 29) ** 0.5)


@pytest.mark.parametrize("name", SWINGS)
def test_swings_start_from_rest_and_keep_their_energy(name):
    q, v, a = SWINGS[name]
    assert q.shape == v.shape == a.shape and q.dtype == torch.float64
    assert (v[:, 0] == 0).all()
    energy = pendulum_energy(q, v)
    assert (energy - energy[:, :1]).abs().max() <= 1e-8


def test_swings_follow_their_speeds_and_accelerations():
    """Central differences over 0.001; their error is a sixth of the third derivative times that
    squared.
    """
    q, v, a = double_pendulum(3, 1001, span=1.0, seed=4)
    for x, slope in ((q, v), (v, a)):
        found = (x[:, 2:] - x[:, :-2]) / 0.002
        assert (found - slope[:, 1:-1]).abs().max() <= 2e-5


def test_the_acceleration_is_lagranges():
    """d/dt dL/dv = dL/dq along the acceleration, with derivatives by autograd."""
    q, v = states(50)

    def momentum(q, v):
        v = v.requires_grad_() if not v.requires_grad else v
        return torch.autograd.grad(pendulum_lagrangian(q, v).sum(), v, create_graph=True)[0]

    a = pendulum_acceleration(q, v)
    _, rate = torch.autograd.functional.jvp(momentum, (q, v), (v, a))
    q = q.clone().requires_grad_()
    (force,) = torch.autograd.grad(pendulum_lagrangian(q, v.detach()).sum(), q)
    assert (rate - force).abs().max() <= 1e-10


def test_known_energies_of_the_pendulum():
    still = torch.zeros(2)
    assert pendulum_energy(still, still) == -3
    assert pendulum_energy(still + torch.pi, still) == pytest.approx(3)
    one = torch.tensor([1.0, 1.0])  # hanging, the bobs move at 1 and 2
    assert pendulum_energy(still, one) == 2.5 - 3
    assert pendulum_lagrangian(still, one) == 2.5 + 3


@pytest.mark.parametrize("make", [mass_spring, double_pendulum])
def test_the_seed_decides(make):
    one, two, other = (make(2, 3, span=0.5, seed=seed) for seed in (1, 1, 2))
    assert all(map(torch.equal, one, two))
    assert not one[0].equal(other[0]) and not one[1].equal(other[1])


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (mass_spring, {"count": 0}, "count is 0, times is 30: ask for 1 motion"),
        (mass_spring, {"count": 1, "times": 0}, "times is 0"),
        (mass_spring, {"count": 1, "noise": -1.0}, "noise is -1.0: give a standard deviation"),
        (mass_spring, {"count": 1, "span": 0.0}, "span is 0.0: give a last time > 0"),
        (mass_spring, {"count": 1, "energies": (0.0, 1.0)}, r"energies is \(0.0, 1.0\): choose"),
        (mass_spring, {"count": 1, "energies": (2.0, 1.0)}, r"energies is \(2.0, 1.0\): choose"),
        (double_pendulum, {"count": 0}, "count is 0, times is 100: ask for 1 motion"),
        (double_pendulum, {"count": 1, "times": 1}, "times is 1: ask for 1 motion at 2 times"),
        (double_pendulum, {"count": 1, "span": -1.0}, "span is -1.0, angle is 1.5: both are > 0"),
        (double_pendulum, {"count": 1, "angle": 0.0}, "angle is 0.0: both are > 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)
