"""The calling pattern of torchdiffeq as an adapter, and the problems of its tests through it.

`odeint(func, y0, t, rtol, atol, method)` with a state of any shape and no batch dimension, and the
times first in what is returned: what a user who changes over has to know is these twenty lines.
"""

import math

import pytest
import torch

import diffopt
from diffopt import RK4, Bosh3, Dopri5, Dopri8, Euler, Heun, Midpoint, Tsit5
from diffopt.ode import Backsolve

from .cases import F64

METHODS = {
    "euler": Euler, "midpoint": Midpoint, "heun2": Heun, "rk4": RK4,
    "bosh3": Bosh3, "dopri5": Dopri5, "tsit5": Tsit5, "dopri8": Dopri8,
}  # fmt: skip
FIXED = ("euler", "midpoint", "heun2", "rk4")


def odeint(func, y0, t, rtol=1e-7, atol=1e-9, method="dopri5", options=None, adjoint=None):
    """What torchdiffeq's function of this name returns: `(T, ...)`, or a tuple of them."""
    options = options or {}
    if method in FIXED:
        solver = METHODS[method](step=options.get("step_size"))
    else:
        solver = METHODS[method](rtol=rtol, atol=atol)
    single = isinstance(y0, torch.Tensor)
    parts = (y0,) if single else y0
    shapes = [y.shape for y in parts]

    def shaped(flat):
        out = tuple(v.reshape((*v.shape[:-1], *s)) for v, s in zip(flat, shapes, strict=True))
        return out[0] if single else out

    def field(t, ys):
        out = func(t.flatten()[0], shaped([y[0] for y in ys]))
        return tuple(v.reshape(1, -1) for v in ((out,) if single else out))

    states = tuple(y.reshape(1, -1) for y in parts)
    sol = diffopt.odeint(field, states, t, solver=solver, adjoint=adjoint)
    return shaped([y[0] for y in sol.ys])


class Constant(torch.nn.Module):
    """y' = a + (y - (a t + b))^5: y = a t + b."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.2, dtype=F64))
        self.b = torch.nn.Parameter(torch.tensor(3.0, dtype=F64))

    def forward(self, t, y):
        return self.a + (y - (self.a * t + self.b)) ** 5

    def exact(self, t):
        return self.a * t + self.b


class Sine(torch.nn.Module):
    """y' = 2 y / t + t^4 sin(2 t) - t^2 + 4 t^3."""

    def forward(self, t, y):
        return 2 * y / t + t**4 * torch.sin(2 * t) - t**2 + 4 * t**3

    def exact(self, t):
        wave = -0.5 * t**4 * torch.cos(2 * t) + 0.5 * t**3 * torch.sin(2 * t)
        return wave + 0.25 * t**2 * torch.cos(2 * t) - t**3 + 2 * t**4 + (math.pi - 0.25) * t**2


class Linear(torch.nn.Module):
    """y' = A y, A skew-symmetric, from a vector of ten ones."""

    def __init__(self):
        super().__init__()
        U = torch.randn(10, 10, generator=torch.Generator().manual_seed(0), dtype=F64) * 0.1
        self.A = torch.nn.Parameter(U - U.T)

    def forward(self, t, y):
        return self.A @ y

    def exact(self, t):
        return (torch.linalg.matrix_exp(self.A * (t - 1)[:, None, None])).sum(-1)


PROBLEMS = {"constant": Constant, "sine": Sine, "linear": Linear}
TIMES = torch.linspace(1, 8, 10, dtype=F64)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_published_problems(problem, method, backwards):
    ode = PROBLEMS[problem]()
    exact = ode.exact(TIMES).detach()
    t = TIMES.flip(0) if backwards else TIMES
    exact = exact.flip(0) if backwards else exact
    ys = odeint(ode, exact[0], t, method=method, options={"step_size": 0.01}).detach()
    worst = ((ys - exact).abs() / exact.abs().clamp_min(1)).max()
    tolerance = {"euler": 0.3, "midpoint": 1e-3, "heun2": 1e-3, "bosh3": 1e-5}.get(method, 1e-6)
    assert worst < tolerance


def test_a_tuple_of_states():
    y0 = torch.ones(3, dtype=F64), torch.tensor([2.0], dtype=F64)
    a, b = odeint(lambda t, y: (-y[0], y[1] * 0 + 1), y0, TIMES - 1)
    assert a.shape == (10, 3)
    assert (a[-1] - math.exp(-7)).abs().max() < 1e-8
    assert (b[-1] - 9).abs().max() < 1e-8


@pytest.mark.parametrize("adjoint", [None, Backsolve()])
def test_gradients_of_parameters_with_no_list_of_them(adjoint):
    """d y(8) / d(a, b) = (8, 1) along y = a t + b, with y0 on it."""
    ode = Constant()
    t = TIMES[[0, -1]] * 0.25
    y = odeint(ode, ode.exact(t)[0], t, adjoint=adjoint)[-1]
    y.backward()
    assert ode.a.grad == pytest.approx(2.0, abs=1e-6)
    assert ode.b.grad == pytest.approx(1.0, abs=1e-6)
