"""Random DPP programs with one solution, put together from pieces: `random_program`.

A piece adds to the objective or constraints of a variable x, with parameters, of which each knows
how to draw a value for which a point x0, drawn before, is feasible. A convex quadratic in all
unknowns makes the solution unique.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cvxpy as cp
import numpy as np
import torch


@dataclass
class Builder:
    """What the pieces add to."""

    rng: Any
    n: int
    x: Any = None
    cost: Any = 0
    constraints: list = field(default_factory=list)
    variables: list = field(default_factory=list)
    parameters: list = field(default_factory=list)
    draws: list = field(default_factory=list)

    def __post_init__(self):
        self.x = cp.Variable(self.n)
        self.variables.append(self.x)

    def param(self, shape, draw, **attributes):
        """A parameter; draw(rng, x0, drawn) -> value, where `drawn` has the values so far."""
        p = cp.Parameter(shape, **attributes)
        self.parameters.append(p)
        self.draws.append(draw)
        return p

    def normal(self, *shape):
        """A constant, with a few entries zero."""
        v = self.rng.normal(size=shape)
        return v * (self.rng.random(shape) > 0.2)

    def factor(self, rows, constant=None):
        """`(rows, n)`, constant or a parameter, and how to get its value."""
        if self.rng.random() < 0.5 if constant is None else constant:
            M = self.normal(rows, self.n)
            return M, lambda drawn: M
        p = self.param((rows, self.n), lambda rng, x0, drawn: rng.normal(size=(rows, self.n)))
        return p, lambda drawn: drawn[p.id]

    def point(self, size=None):
        """A parameter of normal numbers."""
        shape = self.n if size is None else size
        return self.param(shape, lambda rng, x0, drawn: rng.normal(size=shape))

    def data(self, batch, seed):
        """Values of all parameters, `(batch, *shape)` each."""
        rng = np.random.default_rng(seed)
        rows = []
        for _ in range(batch):
            x0, drawn = rng.normal(size=self.n), {}
            for p, draw in zip(self.parameters, self.draws, strict=True):
                drawn[p.id] = np.asarray(draw(rng, x0, drawn), float).reshape(p.shape)
            rows.append([drawn[p.id] for p in self.parameters])
        return [torch.from_numpy(np.stack(v)) for v in zip(*rows, strict=True)]


# What may stand in the objective.


def squares(b):
    M, _ = b.factor(int(b.rng.integers(1, b.n + 2)))
    b.cost += b.rng.uniform(0.5, 2) * cp.sum_squares(M @ b.x - b.point(M.shape[0]))


def linear(b):
    b.cost += b.point() @ b.x


def absolute(b):
    weight = b.param((), lambda rng, *_: rng.uniform(0.1, 1), nonneg=True)
    b.cost += weight * cp.norm1(b.x - b.normal(b.n)) + 0.3 * cp.norm1(b.x - b.point())


def chebyshev(b):
    M, _ = b.factor(3)
    b.cost += cp.norm_inf(M @ b.x + b.point(3))


def huber(b):
    b.cost += cp.sum(cp.huber(b.x - b.point(), 0.7))


def hinge(b):
    M, _ = b.factor(3)
    b.cost += cp.sum(cp.pos(M @ b.x - b.point(3)))


def largest(b):
    b.cost += cp.max(b.x + b.point()) + cp.sum_largest(b.x, 1)


def quadratic_form(b):
    L = b.normal(b.n, b.n)
    b.cost += cp.quad_form(b.x, L @ L.T + 0.1 * np.eye(b.n))


def parametric_form(b):
    def draw(rng, x0, drawn):
        L = rng.normal(size=(b.n, b.n))
        return L @ L.T + 0.1 * np.eye(b.n)

    b.cost += cp.quad_form(b.x, b.param((b.n, b.n), draw, PSD=True))


# What may stand among the constraints. The margin keeps x0 off the limits.


def above(value):
    return lambda rng, x0, drawn: value(x0, drawn) + rng.uniform(0.1, 1)


def box(b):
    lower, upper = (
        b.param(b.n, lambda rng, x0, drawn: x0 - rng.uniform(0.1, 1, b.n)),
        b.param(b.n, lambda rng, x0, drawn: x0 + rng.uniform(0.1, 1, b.n)),
    )
    ways = [
        [lower <= b.x, b.x <= upper],
        [2 * b.x <= 2 * upper, -b.x + lower <= 0],
        [b.x - upper <= 0, lower - b.x <= 0],
        [cp.reshape(b.x, (b.n, 1), order="F") <= cp.reshape(upper, (b.n, 1), order="F")],
        [b.x[1:] >= lower[1:], b.x[::2] <= upper[::2]],
    ]
    b.constraints += ways[int(b.rng.integers(len(ways)))]
    b.cost += 0.01 * cp.sum(lower + upper)  # all are in the problem


def cube(b):
    limit = b.param((), above(lambda x0, _: abs(x0).max()), nonneg=True)
    ways = [cp.abs(b.x) <= limit, cp.norm_inf(b.x) <= limit, cp.maximum(b.x, -b.x) <= limit]
    b.constraints.append(ways[int(b.rng.integers(len(ways)))])


def ball(b):
    limit = b.param((), above(lambda x0, _: abs(x0).sum()), nonneg=True)
    b.constraints.append(cp.norm1(b.x) <= limit)


def top(b):
    limit = b.param((), above(lambda x0, _: np.sort(x0)[-2:].sum()))
    b.constraints.append(cp.sum_largest(b.x, 2) <= limit)


def inequalities(b):
    m = int(b.rng.integers(1, 5))
    G, value = b.factor(m)
    h = b.param(m, lambda rng, x0, drawn: value(drawn) @ x0 + rng.uniform(0.1, 1, m))
    b.constraints.append(G @ b.x <= h)


def two_sided(b):
    m = int(b.rng.integers(1, 4))
    G, value = b.factor(m)
    h = b.param(m, lambda rng, x0, drawn: value(drawn) @ x0 + rng.uniform(0.1, 1, m))
    low = b.param(m, lambda rng, x0, drawn: value(drawn) @ x0 - rng.uniform(0.1, 1, m))
    b.constraints += [G @ b.x <= h, low <= G @ b.x]


def equalities(b):
    A, value = b.factor(1)
    b.constraints.append(A @ b.x == b.param(1, lambda rng, x0, drawn: value(drawn) @ x0))


def definition(b):
    """Another variable, y = Mx + c, with bounds and a cost of its own."""
    M, value = b.factor(3)
    y, c = cp.Variable(3), b.point(3)
    limit = b.param((), above(lambda x0, drawn: abs(value(drawn) @ x0 + drawn[c.id]).max()))
    b.constraints += [y == M @ b.x + c, y <= limit]
    b.cost += cp.sum_squares(y)
    b.variables.append(y)


def dynamics(b):
    """s[t + 1] = A s[t] + B x with limits, the rows in any order."""
    T, k = int(b.rng.integers(2, 14)), 2
    A = b.param((k, k), lambda rng, *_: np.eye(k) + 0.2 * rng.normal(size=(k, k)))
    B = b.normal(k, b.n)
    s, s0 = cp.Variable((T + 1, k)), b.point(k)
    rows = [s[0] == s0] + [s[t + 1] == A @ s[t] + B @ b.x for t in range(T)]
    b.rng.shuffle(rows)

    def bound(x0, drawn):
        path = [drawn[s0.id]]
        for _ in range(T):
            path.append(drawn[A.id] @ path[-1] + B @ x0)
        return abs(np.array(path)).max()

    limit = b.param((), above(bound), nonneg=True)
    b.constraints += [*rows, s <= limit] if b.rng.random() < 0.5 else [*rows, cp.abs(s) <= limit]
    b.cost += 0.1 * cp.sum_squares(s)
    b.variables.append(s)


# Rows that say the same again: the multipliers are not unique then.


def repeated(b):
    a = b.normal(b.n) / 3
    r = b.param((), lambda rng, x0, drawn: a @ x0)
    b.constraints += [a @ b.x == r, 3 * (a @ b.x) == 3 * r]


def dependent(b):
    M = b.normal(2, b.n)
    M = np.vstack([M, M[0] / 3 + M[1] / 7])
    r = b.param(3, lambda rng, x0, drawn: M @ x0)
    b.constraints.append(M @ b.x == r)


def doubled(b):
    a = b.normal(b.n)
    h = b.param((), above(lambda x0, drawn: a @ x0))
    own = b.param((), above(lambda x0, drawn: x0[0]))
    b.constraints += [a @ b.x <= h, 2 * (a @ b.x) <= 2 * h, b.x[0] <= own, b.x[0] <= own]


COSTS = [
    squares, linear, absolute, chebyshev, huber, hinge, largest, quadratic_form, parametric_form
]  # fmt: skip
LIMITS = [
    box, cube, ball, top, inequalities, two_sided, equalities, definition, dynamics
]  # fmt: skip
AGAIN = [repeated, dependent, doubled]


def random_program(seed, again=False):
    """A builder with one to three costs and as many limits."""
    rng = np.random.default_rng(seed)
    b = Builder(rng, int(rng.integers(3, 7)))
    costs = [COSTS[k] for k in rng.choice(len(COSTS), rng.integers(1, 4), replace=False)]
    limits = [LIMITS[k] for k in rng.choice(len(LIMITS), rng.integers(1, 4), replace=False)]
    pieces = costs + limits + ([AGAIN[int(rng.integers(len(AGAIN)))]] if again else [])
    for piece in pieces:
        piece(b)
    b.cost += 0.5 * cp.sum_squares(b.x - b.point())
    b.pieces = [p.__name__ for p in pieces]
    b.problem = cp.Problem(cp.Minimize(b.cost), b.constraints)
    return b
