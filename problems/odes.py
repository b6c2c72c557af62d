"""Ordinary differential equations with a known solution, or a known difficulty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ODE:
    """y' = f(t, y) with y(t0) = y0, over (t0, t1).

    Attributes:
        f: (t, y) -> dy/dt; t broadcasts against y `(B, n)`.
        y0: `(B, n)`.
        t0, t1: the interval.
        exact: t `(T,)` -> y `(B, T, n)`, or None where it is not known.
    """

    f: Field
    y0: Tensor
    t0: float
    t1: float
    exact: Callable[[Tensor], Tensor] | None = None


def _column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def growth() -> ODE:
    """y' = cos(3 t) y, which depends on t: y = y0 exp(sin(3 t) / 3)."""
    y0 = _column(1.0, -2.0, 0.5)
    return ODE(
        lambda t, y: torch.cos(3 * t) * y,
        y0,
        0.0,
        2.0,
        lambda t: y0.unsqueeze(1) * torch.exp(torch.sin(3 * t) / 3).unsqueeze(1),
    )


def oscillator() -> ODE:
    """A unit mass on a unit spring, from three phases: (q, p) turns by t."""
    phase = torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64)

    def exact(t: Tensor) -> Tensor:
        angle = phase.unsqueeze(1) + t
        return torch.stack([angle.cos(), -angle.sin()], -1)

    def f(t: Tensor, y: Tensor) -> Tensor:
        q, p = y.unbind(-1)
        return torch.stack([p, -q], -1)

    return ODE(f, exact(torch.zeros(1, dtype=torch.float64))[:, 0], 0.0, 5.0, exact)


def logistic() -> ODE:
    """y' = y (1 - y), from below, above and on the stable point 1."""
    y0 = _column(0.1, 3.0, 1.0)

    def exact(t: Tensor) -> Tensor:
        return (1 / (1 + (1 / y0 - 1) * torch.exp(-t))).unsqueeze(-1)

    return ODE(lambda t, y: y * (1 - y), y0, 0.0, 4.0, exact)


def tangent() -> ODE:
    """y' = 1 + y^2: y = tan(t + arctan y0), with a pole at t = pi / 2 - arctan y0."""
    y0 = _column(0.0, -1.0)
    return ODE(
        lambda t, y: 1 + y * y, y0, 0.0, 1.2, lambda t: torch.tan(t + y0.atan()).unsqueeze(-1)
    )


def van_der_pol(mu: Tensor, t1: float = 3.0) -> ODE:
    """x'' = mu (1 - x^2) x' - x from (2, 0), one sample for each entry of `mu`; stiff for large."""
    mu = mu.unsqueeze(-1)

    def f(t: Tensor, y: Tensor) -> Tensor:
        x, v = y.split(1, -1)
        return torch.cat([v, mu * (1 - x * x) * v - x], -1)

    y0 = torch.tensor([2.0, 0.0], dtype=mu.dtype).repeat(len(mu), 1)
    return ODE(f, y0, 0.0, t1)


def robertson(t1: float = 1e5) -> ODE:
    """Robertson's three chemical reactions, with rates from 0.04 to 3e7; the sum of y is 1."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        a, b, c = y.unbind(-1)
        slow, fast, middle = 0.04 * a, 3e7 * b * b, 1e4 * b * c
        return torch.stack([middle - slow, slow - middle - fast, fast], -1)

    return ODE(f, torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64), 0.0, t1)


KNOWN = {"growth": growth, "oscillator": oscillator, "logistic": logistic, "tangent": tangent}
