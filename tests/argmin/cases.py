"""The tables. A new problem or solver is one row here and inherits every test that reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffopt import SQP, ScipyMinimize, argmin

Function = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """minimise f(z, x) subject to c(z, x) <= 0, e(z, x) = 0 and bounds, with a known solution.

    `easy` says whether SLSQP solves it too (of a singular Jacobian it makes nothing).
    """

    f: Function
    x: Tensor
    z0: Tensor
    known: Callable[[Tensor], Tensor]
    c: Function | None = None
    e: Function | None = None
    bounds: dict[str, Any] = field(default_factory=dict)
    easy: bool = True

    def solve(self, x: Tensor | None = None, z0: Tensor | None = None, **options: Any):
        x = self.x if x is None else x
        return argmin(
            lambda z: self.f(z, x),
            self.z0 if z0 is None else z0,
            inequality=None if self.c is None else lambda z: self.c(z, x),
            equality=None if self.e is None else lambda z: self.e(z, x),
            **self.bounds,
            **options,
        )


def rows(*columns: Tensor) -> Tensor:
    return torch.stack(columns, -1)


def d(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def full(value: float, *shape: int) -> Tensor:
    return torch.full(shape, value, dtype=torch.float64)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def distance(z: Tensor, x: Tensor) -> Tensor:
    return (z - x).square().sum(-1) / 2


def off_sphere(z: Tensor, x: Tensor) -> Tensor:
    return z.square().sum(-1, keepdim=True) - 1


POINTS = d([0.1, 0.2, -0.3], [3.0, 4.0, 0.0], [-0.5, 0.1, 0.7])

# HS: Hock & Schittkowski, "Test Examples for Nonlinear Programming Codes" (1981), the number there
CASES = {
    "unconstrained, exponential": Case(
        lambda z, x: (z.exp() - x * z).sum(-1), d([0.5, 2.0], [7.0, 0.1]), full(0.0, 2, 2),
        torch.log,
    ),
    "unconstrained, geometric mean": Case(
        lambda z, x: (z / x).log().square().sum(-1),
        d([1.0, 2.0, 4.0], [3.0, 3.0, 9.0]),
        full(1.0, 2, 1),
        lambda x: x.log().mean(-1, keepdim=True).exp(),
        bounds=dict(lb=1e-3),
    ),
    "unconstrained, Rosenbrock": Case(
        lambda z, x: 100 * (z[..., 1] - z[..., 0] ** 2) ** 2 + (x[..., 0] - z[..., 0]) ** 2,
        d([1.0], [0.7], [-2.0]),
        d([-1.2, 1.0], [10.0, -7.0], [5.0, 5.0]),
        lambda x: rows(x[..., 0], x[..., 0] ** 2),
        easy=False,
    ),
    "equality, HS6": Case(
        lambda z, x: (x[..., 0] - z[..., 0]) ** 2,
        d([1.0], [2.0]),
        d([-1.2, 1.0], [-1.2, 1.0]),
        lambda x: rows(x[..., 0], x[..., 0] ** 2),
        e=lambda z, x: 10 * (z[..., 1:] - z[..., :1] ** 2),
    ),
    "equality, HS7": Case(
        lambda z, x: torch.log(1 + z[..., 0] ** 2) - z[..., 1],
        d([4.0], [5.0]),
        d([2.0, 2.0], [2.0, 2.0]),
        lambda x: rows(0 * x[..., 0], (x[..., 0] - 1).sqrt()),
        e=lambda z, x: (1 + z[..., :1] ** 2) ** 2 + z[..., 1:] ** 2 - x,
    ),
    "equality, HS39": Case(
        lambda z, x: -z[..., 0],
        d([1.0], [0.8]),
        full(2.0, 2, 4),
        lambda x: torch.cat([1 / x, 1 / x**2, 0 * x, 0 * x], -1),
        e=lambda z, x: rows(
            z[..., 1] - x[..., 0] * z[..., 0] ** 3 - z[..., 2] ** 2,
            z[..., 0] ** 2 - z[..., 1] - z[..., 3] ** 2,
        ),
    ),
    "equality, sphere": Case(distance, POINTS, POINTS + 0.1, unit, e=off_sphere),
    "equality, sphere, from its centre": Case(
        distance, POINTS, torch.zeros_like(POINTS), unit, e=off_sphere, easy=False
    ),
    # every full step from a feasible point raises f and leaves the sphere: Maratos
    "equality, Maratos": Case(
        lambda z, x: 2 * (z.square().sum(-1) - 1) - (x * z).sum(-1),
        d([1.0, 0.0], [1.0, 0.5]),
        d([0.8, 0.6], [0.6, 0.8]),
        unit,
        e=off_sphere,
    ),
    "equality, twice the same": Case(
        distance,
        d([1.0, 0.3], [2.0, -1.0]),
        full(1.0, 2, 2),
        lambda x: x + (1 - x.sum(-1, keepdim=True)) / 2,
        e=lambda z, x: rows(z.sum(-1) - 1, 2 * z.sum(-1) - 2),
        easy=False,
    ),
    "inequality, ball": Case(
        distance, POINTS, POINTS * 0, lambda x: x / x.norm(dim=-1, keepdim=True).clamp(min=1),
        c=off_sphere,
    ),
    "inequality, linear objective on the ball": Case(
        lambda z, x: -(x * z).sum(-1), POINTS, POINTS * 0, unit, c=off_sphere
    ),
    "inequality, outside of the ball": Case(
        distance, POINTS, POINTS * 3, lambda x: x / x.norm(dim=-1, keepdim=True).clamp(max=1),
        c=lambda z, x: -off_sphere(z, x),
    ),
    "inequality, HS12": Case(
        lambda z, x: z[..., 0] ** 2 / 2 + z[..., 1] ** 2 - z[..., 0] * z[..., 1] - 7 * z.sum(-1),
        d([25.0]), full(0.0, 1, 2), lambda x: d([2.0, 3.0]),
        c=lambda z, x: (d(4.0, 1.0) * z**2).sum(-1, keepdim=True) - x,
    ),
    "inequality, HS43": Case(
        lambda z, x: (d(1.0, 1.0, 2.0, 1.0) * z**2 - d(5.0, 5.0, 21.0, -7.0) * z).sum(-1),
        d([8.0, 10.0, 5.0]), full(0.0, 1, 4), lambda x: d([0.0, 1.0, 2.0, -1.0]),
        c=lambda z, x: rows(
            (z**2 + d(1.0, -1.0, 1.0, -1.0) * z).sum(-1),
            (d(1.0, 2.0, 1.0, 2.0) * z**2 - d(1.0, 0.0, 0.0, 1.0) * z).sum(-1),
            (d(2.0, 1.0, 1.0, 0.0) * z**2 + d(2.0, -1.0, 0.0, -1.0) * z).sum(-1),
        ) - x,
    ),
    "bounds, cosh": Case(
        lambda z, x: torch.cosh(z - x).sum(-1), 2 * POINTS, POINTS * 0,
        lambda x: x.clamp(-0.5, 1.0), bounds=dict(lb=-0.5, ub=1.0),
    ),
    "bounds, not convex": Case(
        lambda z, x: (x * z - z**4).sum(-1), d([0.5, -0.5], [0.1, 2.0]), full(0.1, 2, 2),
        lambda x: -2 * x.sign(), bounds=dict(lb=-2.0, ub=2.0),
    ),
    "all, softmax": Case(
        lambda z, x: (z * z.log() - x * z).sum(-1), POINTS, full(0.3, 3, 3),
        lambda x: x.softmax(-1), e=lambda z, x: z.sum(-1, keepdim=True) - 1,
        bounds=dict(lb=1e-9),
    ),
    "all, HS35": Case(
        lambda z, x: 9 - (d(8.0, 6.0, 4.0) * z).sum(-1) + 2 * z[..., 0] ** 2 + 2 * z[..., 1] ** 2
        + z[..., 2] ** 2 + 2 * z[..., 0] * (z[..., 1] + z[..., 2]),
        d([3.0]), full(0.5, 1, 3), lambda x: d([4 / 3, 7 / 9, 4 / 9]),
        c=lambda z, x: (z * d(1.0, 1.0, 2.0)).sum(-1, keepdim=True) - x, bounds=dict(lb=0.0),
    ),
    "all, HS71": Case(
        lambda z, x: z[..., 0] * z[..., 3] * z[..., :3].sum(-1) + z[..., 2],
        d([25.0, 40.0]), d([1.0, 5.0, 5.0, 1.0]),
        lambda x: d([1.0, 4.742999637264, 3.821149984185, 1.379408293173]),
        c=lambda z, x: x[..., :1] - z.prod(-1, keepdim=True),
        e=lambda z, x: z.square().sum(-1, keepdim=True) - x[..., 1:], bounds=dict(lb=1.0, ub=5.0),
    ),
}  # fmt: skip


SOLVERS = {
    "SQP": SQP(),
    "SQP, BFGS": SQP(hessian="bfgs"),
    "SLSQP": ScipyMinimize(),
}
