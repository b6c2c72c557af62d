"""The table of programs. A new one is a row in `CASES`, and inherits every test that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import torch

from problems.convex import control_step, l1_regression, portfolio, quadratic, simplex


@dataclass(frozen=True)
class Case:
    """A program with one solution, and values of its parameters, `(4, *shape)` each."""

    problem: Any
    parameters: list
    variables: list
    values: tuple

    def multipliers(self) -> list:
        """Of all constraints, as further variables of a layer."""
        return [v for c in self.problem.constraints for v in c.dual_variables]


def case(objective, constraints, variables, draws, seed=0):
    """`draws`: parameter -> function of a generator that gives its value."""
    rng = np.random.default_rng(seed)
    values = tuple(
        torch.from_numpy(np.stack([np.asarray(draw(rng), float) for _ in range(4)]))
        for draw in draws.values()
    )
    return Case(cp.Problem(objective, constraints), list(draws), variables, values)


def of(task):
    """A row from `problems.convex`."""
    return Case(task.problem, task.parameters, task.variables, task.instances(4, seed=1))


def normal(*shape):
    return lambda rng: rng.normal(size=shape)


def positive(*shape):
    return lambda rng: rng.uniform(0.5, 1.5, size=shape)


def definite(n):
    def draw(rng):
        M = rng.normal(size=(n, n))
        return M @ M.T + np.eye(n)

    return draw


def least_squares(n=4):
    x, A, b = cp.Variable(n), cp.Parameter((6, n)), cp.Parameter(6)
    return case(
        cp.Minimize(cp.sum_squares(A @ x - b)), [x >= 0], [x], {A: normal(6, n), b: normal(6)}
    )


def unconstrained():
    x, p = cp.Variable(3), cp.Parameter(3)
    M = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]])
    return case(cp.Minimize(cp.quad_form(x, M) + p @ x), [], [x], {p: normal(3)})


def two_sided():
    x, y = cp.Variable(4), cp.Parameter(4)
    M = np.array([[1.0, 1, 0, 0], [0, 1, -1, 0], [0, 0, 1, 2]])
    low, high = cp.Parameter(3), cp.Parameter(3)
    return case(
        cp.Minimize(cp.sum_squares(x - y)),
        [low <= M @ x, M @ x <= high],
        [x],
        {
            y: lambda rng: 3 * rng.normal(size=4),
            low: lambda rng: -positive(3)(rng),
            high: positive(3),
        },
    )


def bounds():
    """Stated as attributes, as constraints, and by a scaled row."""
    x, y = cp.Variable(3, nonneg=True), cp.Variable(3, bounds=[-0.5, 0.4])
    p, top = cp.Parameter(3), cp.Parameter()
    return case(
        cp.Minimize(cp.sum_squares(x - p) + cp.sum_squares(y + 2 * p + x)),
        [2 * x <= top, y[0] >= -0.1],
        [x, y],
        {p: normal(3), top: positive()},
    )


def parametric_form():
    """P is symmetric, and of a symmetric parameter the two triangles count alike."""
    x, P, q = cp.Variable(4), cp.Parameter((4, 4), PSD=True), cp.Parameter(4)
    return case(
        cp.Minimize(0.5 * cp.quad_form(x, P) + q @ x),
        [cp.sum(x) == 1, x >= -0.3],
        [x],
        {P: definite(4), q: normal(4)},
    )


def symmetric_parameter():
    X, S = cp.Variable((3, 3)), cp.Parameter((3, 3), symmetric=True)

    def draw(rng):
        M = rng.normal(size=(3, 3))
        return M + M.T

    return case(cp.Minimize(cp.sum_squares(X - S)), [cp.sum(X, axis=0) <= 1], [X], {S: draw})


def matrices():
    """A transport plan: CVXPY counts entries by columns."""
    X, C = cp.Variable((2, 3)), cp.Parameter((2, 3))
    rows, columns = cp.Parameter(2), cp.Parameter((1, 3))
    return case(
        cp.Minimize(cp.sum_squares(X) + cp.sum(cp.multiply(C, X))),
        [cp.sum(X, axis=1) == rows, cp.reshape(columns, (3,), order="C") >= cp.sum(X, axis=0)],
        [X],
        {C: normal(2, 3), rows: positive(2), columns: lambda rng: 1 + positive(1, 3)(rng)},
    )


def symmetric_variable():
    X, C, t = cp.Variable((3, 3), symmetric=True), cp.Parameter((3, 3)), cp.Parameter()
    return case(
        cp.Minimize(cp.sum_squares(X - C)),
        [cp.trace(X) == t, X <= 0.7],
        [X],
        {C: normal(3, 3), t: positive()},
    )


def scalars():
    """All of it: 0-dimensional variables and parameters, one of them used three times."""
    x, y, a = cp.Variable(), cp.Variable(), cp.Parameter(nonneg=True)
    return case(
        cp.Minimize((x - 3 * a) ** 2 + (y + a) ** 2),
        [x + y <= a, x - y <= 2],
        [x, y],
        {a: positive()},
    )


def used_twice():
    """A in the objective, in the constraints, transposed, and by entry."""
    x, A, b = cp.Variable(3), cp.Parameter((3, 3)), cp.Parameter(3)
    return case(
        cp.Minimize(cp.sum_squares(A @ x - b) + cp.sum_squares(x)),
        [A.T @ x <= 0.3, A[0, 1] * x[2] + cp.sum(A[:, 2]) <= 5, x >= A[1] - 2],
        [x],
        {A: normal(3, 3), b: normal(3)},
    )


def penalties():
    x, y, w = cp.Variable(4), cp.Parameter(4), cp.Parameter(nonneg=True)
    return case(
        cp.Minimize(cp.sum_squares(x - y) + w * cp.norm1(x) + cp.tv(x) + cp.max(x)),
        [],
        [x],
        {y: normal(4), w: positive()},
    )


def robust():
    x, A, b = cp.Variable(3), cp.Parameter((7, 3)), cp.Parameter(7)
    return case(
        cp.Minimize(cp.sum(cp.huber(A @ x - b, 0.5)) + 0.1 * cp.sum_squares(x)),
        [cp.norm1(x) <= 1, cp.norm_inf(x) <= 0.8],
        [x],
        {A: normal(7, 3), b: lambda rng: 2 * rng.normal(size=7)},
    )


def maximise():
    x, c, h = cp.Variable(3), cp.Parameter(3), cp.Parameter()
    return case(
        cp.Maximize(c @ x - cp.sum_squares(x)),
        [cp.sum(x) <= h, cp.abs(x) <= 0.6],
        [x],
        {c: normal(3), h: positive()},
    )


def long_chain(T=40):
    """More links than one chain of definitions may have."""
    x, u, x0 = cp.Variable(T + 1), cp.Variable(T), cp.Parameter()
    a = cp.Parameter()
    rows = [x[t + 1] == a * x[t] + u[t] for t in reversed(range(T))]
    return case(
        cp.Minimize(cp.sum_squares(x) + cp.sum_squares(u)),
        [*rows, x[0] == x0, u >= -0.2, x[T] == 0],
        [u, x],
        {x0: positive(), a: lambda rng: rng.uniform(0.8, 1.1)},
    )


def defined():
    """Unknowns that rows define, with limits, multipliers, and costs of their own."""
    x, y, z, p = cp.Variable(3), cp.Variable(2), cp.Variable(), cp.Parameter(3)
    M = np.array([[1.0, 2, 0], [0, 1, -1]])
    return case(
        cp.Minimize(cp.sum_squares(x - p) + 0.5 * cp.sum_squares(y) + 0.1 * z),
        [y == M @ x + p[:2], 3 * z == cp.sum(y) - 1, y <= 0.5, z >= -0.4],
        [z, x, y],
        {p: normal(3)},
    )


def vertex():
    """A linear program with an equality, a row, and bounds."""
    x, c, A, b = cp.Variable(5), cp.Parameter(5), cp.Parameter((2, 5)), cp.Parameter(2)
    return case(
        cp.Minimize(c @ x),
        [A[0] @ x == b[0], A[1] @ x <= b[1] + 1, x >= 0, x <= 3],
        [x],
        {c: normal(5), A: positive(2, 5), b: positive(2)},
    )


CASES = {
    "least squares": least_squares(),
    "unconstrained": unconstrained(),
    "two-sided": two_sided(),
    "bounds": bounds(),
    "parametric form": parametric_form(),
    "symmetric parameter": symmetric_parameter(),
    "matrices": matrices(),
    "symmetric variable": symmetric_variable(),
    "scalars": scalars(),
    "used twice": used_twice(),
    "penalties": penalties(),
    "robust": robust(),
    "maximise": maximise(),
    "long chain": long_chain(),
    "defined": defined(),
    "vertex": vertex(),
    "l1, as in the tutorial": of(l1_regression(2, 3)),
    "l1": of(l1_regression(5, 8)),
    "portfolio": of(portfolio(8, 3)),
    "quadratic": of(quadratic(8, 9, 3)),
    "control": of(control_step()),
    "simplex": of(simplex(9)),
}
