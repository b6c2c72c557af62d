"""Convex programs with parameters, written in CVXPY, and random instances of them in batches.

    minimise    1/2 |A x - b|_1               subject to  x >= 0                `l1_regression`
    maximise    mu'x - 1/2 |S x|^2            subject to  1'x = 1, x >= 0       `portfolio`
    minimise    1/2 |L x|^2 + p'x             subject to  G x <= h, A x = b     `quadratic`
    minimise    sum_t |x_t|^2 + |u_t|^2 / 10  subject to  x_{t+1} = A x_t + B u_t, |u_t| <= 1
                                                                                `control_step`
    minimise    |x - y|^2                     subject to  1'x = 1, x >= 0       `simplex`

These are what layers made of CVXPY problems are tried on. Every instance is feasible and bounded,
and its solution is unique, with probability one. This module needs the package cvxpy.

Source: the first is the example in the tutorial of Agrawal et al., "Differentiable Convex
Optimization Layers" (NeurIPS 2019); its evaluation has dense QPs and control, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cvxpy
import torch
from torch import Generator, Tensor

cp: Any = cvxpy  # its annotations lack most of its functions
Draw = Callable[[int, Generator], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Parametrised:
    """A `cvxpy.Problem`, what it depends on, what is asked of it, and how to draw instances.

    Attributes:
        problem: the `cvxpy.Problem`.
        parameters: its `cvxpy.Parameter` objects.
        variables: those of its `cvxpy.Variable` objects that are asked for.
        draw: values of the parameters, `(batch, *shape)` each, float64.
    """

    problem: Any
    parameters: list[Any]
    variables: list[Any]
    draw: Draw

    def instances(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Values of the parameters for `batch` random instances, `(batch, *shape)` each, float64.

        Raises:
            ValueError: if `batch` is less than 1.

        Example:
            >>> [tuple(v.shape) for v in l1_regression(2, 3).instances(7)]
            [(7, 3, 2), (7, 3)]
        """
        if batch < 1:
            raise ValueError(f"batch is {batch}: ask for 1 instance at least")
        return self.draw(batch, Generator().manual_seed(seed))


def l1_regression(n: int = 20, m: int = 30, scale: float = 1.0) -> Parametrised:
    """Fit by least absolute deviations, no coefficient negative: a linear program.

    The solution is a vertex: as many residuals and coefficients are zero as there are unknowns. It
    moves with A and b while the same ones are zero, so it has a derivative.

    Args:
        n, m: coefficients and observations, n < m.
        scale: x >= 0 is written as ``scale * x >= 0``, if it is not 1. It is the same constraint;
            what comes between a problem and its solver may yet treat one and not the other.

    Raises:
        ValueError: if a number is out of its range.
    """
    _check(n=n, m=m)
    if m <= n:
        raise ValueError(f"m is {m}, n is {n}: more observations than coefficients are needed")
    x, A, b = cp.Variable(n), cp.Parameter((m, n), name="A"), cp.Parameter(m, name="b")
    problem = cp.Problem(cp.Minimize(0.5 * cp.norm1(A @ x - b)), [_nonnegative(x, scale)])
    return Parametrised(
        problem, [A, b], [x], lambda batch, g: (_normal(g, batch, m, n), _normal(g, batch, m))
    )


def portfolio(n: int = 50, factors: int = 10, scale: float = 1.0) -> Parametrised:
    """The Markowitz portfolio: expected return less half the variance, no short sales.

    S is a square root of the covariance, S'S = F'F + D, of a model with a few factors.

    Args:
        n: assets.
        factors: rows of F.
        scale: as in `l1_regression`.

    Raises:
        ValueError: if a number is out of its range.
    """
    _check(n=n, factors=factors)
    x, mu, S = cp.Variable(n), cp.Parameter(n, name="mu"), cp.Parameter((n, n), name="S")
    problem = cp.Problem(
        cp.Maximize(mu @ x - 0.5 * cp.sum_squares(S @ x)),
        [cp.sum(x) == 1, _nonnegative(x, scale)],
    )

    def draw(batch: int, g: Generator) -> tuple[Tensor, ...]:
        F, own = _normal(g, batch, factors, n), 0.5 + _uniform(g, batch, n)
        covariance = F.mT @ F / factors + torch.diag_embed(own)
        return _normal(g, batch, n) / 2, torch.linalg.cholesky(covariance).mT

    return Parametrised(problem, [mu, S], [x], draw)


def quadratic(n: int = 50, m: int = 50, e: int = 10) -> Parametrised:
    """A dense, strictly convex QP, its Hessian given by a factor: L'L.

    Args:
        n, m, e: unknowns, inequalities, and equalities, e < n.

    Raises:
        ValueError: if a number is out of its range.
    """
    _check(n=n, m=m, e=e)
    if e >= n:
        raise ValueError(f"e is {e}, n is {n}: fewer equalities than unknowns are needed")
    x = cp.Variable(n)
    L, p = cp.Parameter((n, n), name="L"), cp.Parameter(n, name="p")
    G, h = cp.Parameter((m, n), name="G"), cp.Parameter(m, name="h")
    A, b = cp.Parameter((e, n), name="A"), cp.Parameter(e, name="b")
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(L @ x) + p @ x), [G @ x <= h, A @ x == b])

    def draw(batch: int, g: Generator) -> tuple[Tensor, ...]:
        L, p = _normal(g, batch, n, n) / n**0.5 + torch.eye(n).double(), _normal(g, batch, n)
        G, A, z = _normal(g, batch, m, n), _normal(g, batch, e, n), _normal(g, batch, n, 1)
        h = (G @ z).squeeze(-1) + _uniform(g, batch, m)
        return L, p, G, h, A, (A @ z).squeeze(-1)

    return Parametrised(problem, [L, p, G, h, A, b], [x], draw)


def control_step(T: int = 5, states: int = 6, controls: int = 2) -> Parametrised:
    """A step of predictive control: the plan of T controls within limits, and the path of states.

    Args:
        T: steps.
        states, controls: numbers of either.

    Raises:
        ValueError: if a number is out of its range.
    """
    _check(T=T, states=states, controls=controls)
    x, u = cp.Variable((T + 1, states)), cp.Variable((T, controls))
    x0, A = cp.Parameter(states, name="x0"), cp.Parameter((states, states), name="A")
    B = cp.Parameter((states, controls), name="B")
    path = [x[t + 1] == A @ x[t] + B @ u[t] for t in range(T)]
    problem = cp.Problem(
        cp.Minimize(cp.sum_squares(x) + 0.1 * cp.sum_squares(u)),
        [x[0] == x0, *path, cp.abs(u) <= 1],
    )

    def draw(batch: int, g: Generator) -> tuple[Tensor, ...]:
        near = torch.eye(states).double() + 0.1 * _normal(g, batch, states, states)
        return 2 * _normal(g, batch, states), near, _normal(g, batch, states, controls) / 2

    return Parametrised(problem, [x0, A, B], [u, x], draw)


def simplex(n: int = 50, scale: float = 1.0) -> Parametrised:
    """The projection on the simplex.

    Args:
        n: unknowns.
        scale: as in `l1_regression`.

    Raises:
        ValueError: if a number is out of its range.
    """
    _check(n=n)
    x, y = cp.Variable(n), cp.Parameter(n, name="y")
    problem = cp.Problem(
        cp.Minimize(cp.sum_squares(x - y)), [cp.sum(x) == 1, _nonnegative(x, scale)]
    )
    return Parametrised(problem, [y], [x], lambda batch, g: (_normal(g, batch, n),))


def _nonnegative(x: Any, scale: float) -> Any:
    if not scale > 0:
        raise ValueError(f"scale is {scale}: give a positive number")
    return x >= 0 if scale == 1 else scale * x >= 0


def _normal(g: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


def _uniform(g: Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=g, dtype=torch.float64)


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}: give 1 at least")
