"""Motions that keep their energy: a mass on a spring, and the double pendulum.

Masses, lengths, the spring and gravity are 1: a mass on a spring turns once in 2 pi, and the unit
of time of a pendulum of length l is sqrt(l / g), a third of a second for one metre.

Sources: Greydanus, Dzamba & Yosinski, "Hamiltonian Neural Networks" (NeurIPS 2019), the noisy
observations of the first; Cranmer et al., "Lagrangian Neural Networks" (2020), the second.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffopt import Dopri8, odeint


class Motions(NamedTuple):
    """Motions seen at times of their own, float64: `t` `(count, T)`, the others `(count, T, 2)`."""

    t: Tensor
    states: Tensor  # (q, p)
    noisy: Tensor


class Swings(NamedTuple):
    """Motions of the double pendulum at common times, float64: angles, speeds, accelerations.

    All are `(count, T, 2)`; the angles are from the vertical, and 0 is hanging.
    """

    q: Tensor
    v: Tensor
    a: Tensor


def mass_spring(
    count: int,
    times: int = 30,
    *,
    span: float = 3.0,
    energies: tuple[float, float] = (0.2, 1.0),
    noise: float = 0.1,
    seed: int = 0,
) -> Motions:
    """Return `count` exact solutions of q' = p, p' = -q, and what is seen of them.

    The energy is uniform, and so is the phase. Each motion is seen at time 0 and at `times` - 1
    random times of its own up to `span`, in order; the noise of q and p is normal.

    Args:
        count: motions, at least 1.
        times: observations of each, at least 1.
        span: the last time, > 0.
        energies: the least and the largest energy, 0 < least <= largest.
        noise: standard deviation, >= 0.
        seed: of a generator of its own.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> one = mass_spring(1, 5, energies=(0.5, 0.5), noise=0.0)
        >>> spring_energy(one.noisy)
        tensor([[0.5000, 0.5000, 0.5000, 0.5000, 0.5000]], dtype=torch.float64)
    """
    if count < 1 or times < 1:
        raise ValueError(f"count is {count}, times is {times}: ask for 1 motion, seen once")
    if not noise >= 0:
        raise ValueError(f"noise is {noise}: give a standard deviation >= 0")
    if not span > 0:
        raise ValueError(f"span is {span}: give a last time > 0")
    if not 0 < energies[0] <= energies[1]:
        raise ValueError(f"energies is {energies}: choose 0 < least <= largest")
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    energy = energies[0] + (energies[1] - energies[0]) * uniform(count, 1)
    phase = 2 * math.pi * uniform(count, 1)
    t = torch.cat([torch.zeros(count, 1).double(), span * uniform(count, times - 1)], 1)
    t = t.sort(1).values
    radius = (2 * energy).sqrt()
    states = torch.stack([radius * (phase + t).sin(), radius * (phase + t).cos()], -1)
    white = torch.randn(states.shape, generator=generator, dtype=torch.float64)
    return Motions(t, states, states + noise * white)


def spring_energy(state: Tensor) -> Tensor:
    """Return (q^2 + p^2) / 2, `(...)`, of states (q, p) `(..., 2)`."""
    return state.square().sum(-1) / 2


def double_pendulum(
    count: int, times: int = 100, *, span: float = 10.0, angle: float = 1.5, seed: int = 0
) -> Swings:
    """Return `count` motions from rest, at `times` equally spaced times from 0 to `span`.

    The first angles are uniform within +-`angle`. Solved with `Dopri8(rtol=1e-10)`: the energy
    keeps nine digits.

    Args:
        count: motions, at least 1.
        times: of each, at least 2.
        span: the last time, > 0.
        angle: the largest first angle, in radians, > 0.
        seed: of a generator of its own.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if count < 1 or times < 2:
        raise ValueError(
            f"count is {count}, times is {times}: ask for 1 motion at 2 times at least"
        )
    if not (span > 0 and angle > 0):
        raise ValueError(f"span is {span}, angle is {angle}: both are > 0")
    generator = torch.Generator().manual_seed(seed)
    q = angle * (2 * torch.rand(count, 2, generator=generator, dtype=torch.float64) - 1)
    y0, t = (
        torch.cat([q, torch.zeros_like(q)], 1),
        torch.linspace(0, span, times, dtype=torch.float64),
    )

    def field(t: Tensor, y: Tensor) -> Tensor:
        q, v = y.split(2, -1)
        return torch.cat([v, pendulum_acceleration(q, v)], -1)

    with torch.no_grad():
        solver = Dopri8(rtol=1e-10, atol=1e-10)
        q, v = odeint(field, y0, t, solver=solver, on_failure="raise").ys.split(2, -1)
    return Swings(q, v, pendulum_acceleration(q, v))


def pendulum_acceleration(q: Tensor, v: Tensor) -> Tensor:
    """Return q'' `(..., 2)` of the double pendulum at angles q, with q' = v.

    With c, s = cos, sin(q_1 - q_2), Newton's equations are

        2 a_1 + c a_2 = -s v_2^2 - 2 sin q_1,        c a_1 + a_2 = s v_1^2 - sin q_2.

    Example:
        Held out level, q = pi / 2, both bobs fall freely at first: only the upper angle turns.

        >>> level = torch.tensor([math.pi / 2, math.pi / 2])
        >>> pendulum_acceleration(level, torch.zeros(2)).round(decimals=5)
        tensor([-1., 0.])
    """
    between = q[..., 0] - q[..., 1]
    c, s = between.cos(), between.sin()
    upper = -s * v[..., 1].square() - 2 * q[..., 0].sin()
    lower = s * v[..., 0].square() - q[..., 1].sin()
    return torch.stack([upper - c * lower, 2 * lower - c * upper], -1) / (2 - c * c).unsqueeze(-1)


def pendulum_lagrangian(q: Tensor, v: Tensor) -> Tensor:
    """Return T - V, `(...)`, of the double pendulum at angles q, with q' = v, both `(..., 2)`.

    T = v_1^2 + v_2^2 / 2 + v_1 v_2 cos(q_1 - q_2), V = -2 cos q_1 - cos q_2.
    """
    return _kinetic(q, v) - _potential(q)


def pendulum_energy(q: Tensor, v: Tensor) -> Tensor:
    """Return T + V, `(...)`; V is -3 hanging, and 3 upright."""
    return _kinetic(q, v) + _potential(q)


def _kinetic(q: Tensor, v: Tensor) -> Tensor:
    both = v[..., 0] * v[..., 1] * (q[..., 0] - q[..., 1]).cos()
    return v[..., 0].square() + v[..., 1].square() / 2 + both


def _potential(q: Tensor) -> Tensor:
    return -2 * q[..., 0].cos() - q[..., 1].cos()
