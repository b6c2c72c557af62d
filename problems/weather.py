"""Winter around a house: the air outside, the sun, the people at home, and the price of heat.

Steps are of half an hour. All of it is invented: a daily wave, noise, and a timetable.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

STEP = 0.5  # hours
DAY = 48  # steps
OCCUPIED, EMPTY = 5.0, 0.1  # weights of comfort, as of Gnu-RL (see `buildings`)


class Forecast(NamedTuple):
    """What a plan of T steps needs to know: d `(*B, T, 3)`, the others `(*B, T)`.

    The limits of `comfort`, and its weight, are those at the end of each step.
    """

    d: Tensor
    price: Tensor
    low: Tensor
    high: Tensor
    weight: Tensor

    def at(self, *index: Tensor | slice | int) -> "Forecast":
        """Those of some spells and steps only."""
        return Forecast(*(v[index] for v in self))


class Weather(NamedTuple):
    """What the house is exposed to, float64, `(count, steps)` each; step 0 begins at midnight."""

    outdoor: Tensor  # degrees Celsius
    solar: Tensor  # kW per square metre of glass
    occupied: Tensor  # 1 or 0
    price: Tensor  # of 1 kW over a step

    @property
    def d(self) -> Tensor:
        """The disturbances, `(count, steps, 3)`."""
        return torch.stack([self.outdoor, self.solar, self.occupied], -1)

    def forecasts(self, ahead: int) -> Forecast:
        """What is known at every step of the `ahead` next ones, `(count, steps - ahead, ahead)`."""
        d, price = (v[:, :-1].unfold(1, ahead, 1) for v in (self.d, self.price))
        after = (v[:, 1:].unfold(1, ahead, 1) for v in comfort(self.occupied))
        return Forecast(d.mT, price, *after)


def weather(count: int, days: int = 7, *, beyond: int = 0, seed: int = 0) -> Weather:
    """Return `count` spells of winter weather of `days` days, and `beyond` further steps.

    The air outside is a mean for each spell, normal around 4 with a standard deviation of 4, plus a
    wave of 4 degrees that is lowest at 3 o'clock, plus normal noise of standard deviation 2.5 and
    correlation 0.97 from one step to the next. The sun is up from 8 to 17 o'clock, at noon as
    bright as 0.5 kW/m2 times a number that is uniform in 0..1 for each day. People are at home from
    6:30 to 22:00; heat costs 3 from 17 to 21 o'clock, and 1 else.

    Args:
        count: spells, at least 1.
        days: of each, at least 1.
        beyond: steps after the last day, for forecasts, >= 0.
        seed: of a generator of its own.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> winter = weather(3, days=2)
        >>> winter.d.shape, winter.occupied[0, 12:15], winter.price[0, 33:35]
        (torch.Size([3, 96, 3]), tensor([0., 1., 1.], dtype=torch.float64),
         tensor([1., 3.], dtype=torch.float64))
    """
    if count < 1 or days < 1 or beyond < 0:
        raise ValueError(
            f"count is {count}, days is {days}, beyond is {beyond}: ask for 1 spell of 1 day, and "
            "0 steps beyond at least"
        )
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    steps = days * DAY + beyond
    hour = STEP * torch.arange(steps, dtype=torch.float64) % 24
    mean, white = 4 + 4 * normal(count, 1), 2.5 * normal(count, steps)
    noise: list[Tensor] = []
    for fresh in white.unbind(1):
        noise.append(0.97 * noise[-1] + math.sqrt(1 - 0.97**2) * fresh if noise else fresh)
    wave = -4 * (2 * math.pi / 24 * (hour - 3)).cos()
    bright = torch.rand(count, steps // DAY + 1, generator=generator, dtype=torch.float64)
    height = (math.pi / 9 * (hour - 8)).sin().clamp(min=0).where((hour > 8) & (hour < 17), 0)
    home, dear = (hour >= 6.5) & (hour < 22), (hour >= 17) & (hour < 21)
    return Weather(
        outdoor=mean + wave + torch.stack(noise, 1),
        solar=0.5 * height * bright.repeat_interleave(DAY, 1)[:, :steps],
        occupied=home.double().expand(count, -1),
        price=(1 + 2 * dear.double()).expand(count, -1),
    )


def comfort(occupied: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the least and the largest temperature that is comfortable, and its weight.

    20 to 23 degrees at a weight of 5 where people are at home, 16 to 26 at 0.1 else.
    """
    home = occupied > 0
    limits = ((20.0, 16.0), (23.0, 26.0), (OCCUPIED, EMPTY))
    low, high, weight = (torch.where(home, *v).to(occupied) for v in limits)
    return low, high, weight
