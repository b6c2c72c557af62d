"""A heated house: its thermal model, what heating it costs, and what a sensor sees.

The air and the walls are one body of capacity C behind one resistance R ("1R1C"). Under heating u
(kW), the air outside at o, sunshine s and the presence of people k (0 or 1) its temperature obeys

    C x' = (o - x) / R + u + aperture s + gain k.                                            (1)

All inputs are constant over a step of half an hour, so that (1) has an exact solution.

Source: (1) and its inputs are usual in the control of buildings; the linear model, and a cost with
two weights of comfort, follow Chen, Cai & Berges, "Gnu-RL: A Precocial Reinforcement Learning
Solution for Building HVAC Control Using a Differentiable MPC Policy" (BuildSys 2019).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .weather import DAY, STEP, Weather, comfort

WEAR = 0.1  # of the price of u: a heat pump does worse under load
Policy = Callable[[int, Tensor], Tensor]  # (step, what the sensor says) -> heating


class Model(NamedTuple):
    """x[k + 1] = A x[k] + B_u u[k] + B_d'd[k], d = (outdoor, solar, occupied): `(*B)`, `(*B, 3)`.

    Example:
        >>> hot = Model(*map(torch.tensor, (0.9, 0.5, [0.1, 0.0, 0.0])))
        >>> hot.step(torch.tensor(20.0), torch.tensor(2.0), torch.tensor([10.0, 0.0, 0.0]))
        tensor(20.)
    """

    A: Tensor
    B_u: Tensor
    B_d: Tensor

    def step(self, x: Tensor, u: Tensor, d: Tensor) -> Tensor:
        """The temperature half an hour later, from x and u `(*B)`, d `(*B, 3)`."""
        return self.A * x + self.B_u * u + (self.B_d * d).sum(-1)

    @property
    def numbers(self) -> Tensor:
        """(1 - A, B_u, B_d), `(*B, 5)`; of a house all are positive."""
        return torch.cat([1 - self.A.unsqueeze(-1), self.B_u.unsqueeze(-1), self.B_d], -1)

    @classmethod
    def of(cls, numbers: Tensor) -> "Model":
        """The model of these `numbers`, `(*B, 5)`."""
        return cls(1 - numbers[..., 0], numbers[..., 1], numbers[..., 2:])


class House(NamedTuple):
    """(1); all are > 0. By default it cools down with a time constant of 30 hours."""

    resistance: float = 5.0  # R, kelvin per kW
    capacity: float = 6.0  # C, kWh per kelvin
    aperture: float = 3.0  # square metres of glass that face the sun
    gain: float = 0.4  # kW
    power: float = 8.0  # the largest u, kW

    def model(self, hours: float = STEP) -> Model:
        """Return the exact solution of (1) over a step, float64; ValueError unless `hours` > 0.

        With a = exp(-hours / (R C)) it is x <- a x + (1 - a) (o + R (u + aperture s + gain k)).

        Example:
            >>> House(resistance=4.0).model(hours=1000.0).B_u      # at last x - o is R u
            tensor(4., dtype=torch.float64)
        """
        if not hours > 0:
            raise ValueError(f"hours is {hours}: give the length of a step, > 0")
        rest = -math.expm1(-hours / (self.resistance * self.capacity))
        heat = rest * self.resistance
        numbers = 1 - rest, heat, [rest, heat * self.aperture, heat * self.gain]
        return Model(*(torch.tensor(v, dtype=torch.float64) for v in numbers))


class Run(NamedTuple):
    """Temperatures, what the sensor says of them, and heating, each `(*B, count, steps)`."""

    x: Tensor
    y: Tensor
    u: Tensor


def misses(occupied: Tensor, x: Tensor) -> Tensor:
    """Return by how many degrees x `(*B, count, steps)` is outside of the band, >= 0.

    `occupied` is of at least as many steps.
    """
    low, high, _ = comfort(occupied[..., : x.shape[-1]])
    return (low - x).clamp(min=0) + (x - high).clamp(min=0)


def cost(conditions: Weather, x: Tensor, u: Tensor) -> Tensor:
    """Return price u + 0.1 u^2 / 2 + weight misses^2 / 2 of each step, `(*B, count, steps)`.

    Args:
        conditions: of at least as many steps as x and u have.
        x: temperatures before each step, `(*B, count, steps)`.
        u: heating in each step, of the same shape.

    Example:
        >>> from problems.weather import weather
        >>> cost(weather(1), torch.tensor([[15.0]]), torch.tensor([[2.0]]))      # 2 + 0.2 + 0.05
        tensor([[2.2500]], dtype=torch.float64)
    """
    steps = x.shape[-1]
    occupied, price = conditions.occupied[:, :steps], conditions.price[:, :steps]
    weight = comfort(occupied)[2]
    return price * u + WEAR * u.square() / 2 + weight * misses(occupied, x).square() / 2


def daily(conditions: Weather, run: Run) -> Tensor:
    """Return the mean over spells and days of three sums, `(*B, 3)`.

    They are the cost, the energy in kWh, and the kelvin hours outside of the band with people at
    home.
    """
    home = conditions.occupied[:, : run.x.shape[-1]]
    missed = misses(conditions.occupied, run.x) * home
    sums = cost(conditions, run.x, run.u), STEP * run.u, STEP * missed
    return DAY * torch.stack([v.mean((-2, -1)) for v in sums], -1)


def fitted(conditions: Weather, run: Run, *, instruments: bool = False) -> Model:
    """Return the model that least squares fits to the readings y and the actions u of a run.

    y[k + 1] is regressed on y[k], u[k] and d[k]. Noise in y[k] biases it towards a smaller A; not
    so, if there are many readings, with y[k - 1] and u[k - 1] as `instruments` for y[k] and u[k].
    """
    d = conditions.d[:, 1 : run.y.shape[-1] - 1]

    def rows(first: int, last: int) -> Tensor:
        states = torch.stack([run.y[:, first:last], run.u[:, first:last]], -1)
        return torch.cat([states, d], -1).flatten(0, 1)

    X, Z = rows(1, -1), rows(0, -2) if instruments else rows(1, -1)
    found = torch.linalg.solve(Z.mT @ X, Z.mT @ run.y[:, 2:].flatten())
    return Model(found[0], found[1], found[2:])


def thermostat(conditions: Weather, power: float, *, setback: bool) -> Policy:
    """Return a policy that heats with all the power below 20.5 degrees, until 21.5 are reached.

    With `setback` it does so only while people are at home, and else below 16.5, until 17.5.
    """
    burning = torch.zeros(len(conditions.outdoor), dtype=torch.float64)

    def policy(k: int, y: Tensor) -> Tensor:
        home = conditions.occupied[:, k] if setback else torch.ones_like(burning)
        low = comfort(home)[0] + 0.5
        burning.copy_(torch.where(y < low, 1.0, torch.where(y > low + 1, 0.0, burning)))
        return power * burning

    return policy


def simulate(
    model: Model,
    conditions: Weather,
    policy: Policy,
    steps: int,
    *,
    noise: float = 0.0,
    start: float = 18.0,
    seed: int = 0,
) -> Run:
    """Return what happens in `steps` steps from `start` degrees under a policy.

    Args:
        model: of the house.
        conditions: its weather.
        policy: (k, y) -> u, the heating `(*B, count)` of step k, given what the sensor says; more
            dimensions in front are as many houses, with the same noise.
        noise: standard deviation of the sensor, white and normal, >= 0.
        seed: of the noise, which has a generator of its own.

    Raises:
        ValueError: if `steps` is not in 1 .. those of the weather, or `noise` < 0.

    Example:
        >>> from problems.weather import weather
        >>> simulate(House().model(), weather(2), lambda k, y: 0 * y, 3).x.shape
        torch.Size([2, 3])
    """
    count, available = conditions.outdoor.shape
    if not 1 <= steps <= available:
        raise ValueError(f"steps is {steps}: the weather has {available}")
    if not noise >= 0:
        raise ValueError(f"noise is {noise}: give a standard deviation >= 0")
    generator = torch.Generator().manual_seed(seed)
    error = noise * torch.randn(steps, count, generator=generator, dtype=torch.float64)
    x, d, seen = torch.full((count,), start, dtype=torch.float64), conditions.d, []
    for k in range(steps):
        u = policy(k, x + error[k])
        seen.append((x.expand_as(u), (x + error[k]).expand_as(u), u))
        x = model.step(x, u, d[:, k])
    return Run(*(torch.stack(v, -1) for v in zip(*seen, strict=True)))
