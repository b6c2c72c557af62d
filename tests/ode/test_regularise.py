"""Integrals of penalties that are known by hand."""

from itertools import product
from math import exp, factorial, sin

import pytest
import torch

from diffopt import (
    RK4,
    Backsolve,
    Checkpointed,
    Discrete,
    Dopri5,
    Dopri8,
    JacobianNorm,
    Kinetic,
    Taylor,
    odeint,
    regularised,
)

from .. import checks

F64 = torch.float64
T = torch.tensor([0.0, 0.8], dtype=F64)
END = 0.8
TIGHT = Dopri8(rtol=1e-9, atol=1e-11)
RATES = torch.tensor([1.0, -0.5, 2.0], dtype=F64)
TURN = torch.tensor([[0.0, 3.0], [-3.0, 0.0]], dtype=F64)


def column(*values):
    return torch.tensor(values, dtype=F64).unsqueeze(1)


def growth(y0, k):
    """The integral of (d^k y/dt^k)^2 for y' = rate y."""
    return (RATES ** (2 * k) * y0**2 * ((2 * RATES * END).exp() - 1) / (2 * RATES)).sum(1)


def pole(y0, k):
    """y' = y^2: y = y0 / (1 - y0 t), d^k y/dt^k = k! y^(k + 1)."""
    p = 2 * k + 1
    return factorial(k) ** 2 * y0**p * ((1 - y0 * END) ** -p - 1) / p


def mixed(y0, k):
    """y' = t y: y'' = (1 + t^2) y; integrals by Simpson's rule."""
    t = torch.linspace(0, END, 2001, dtype=F64)
    y = y0 * (t**2 / 2).exp()
    g = {1: t * y, 2: (1 + t**2) * y, 3: (3 * t + t**3) * y}[k] ** 2
    return (g[:, :-2:2] + 4 * g[:, 1::2] + g[:, 2::2]).sum(1) * END / 6000


GROWTH_START = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]], dtype=F64)
TURN_START = torch.tensor([[1.0, 2.0], [0.0, -1.0]], dtype=F64)
# name: (f, y0, integral of |d^k y/dt^k|^2 a sample, that of |df/dy|^2)
CASES = {
    "linear": (
        lambda t, y: RATES * y, GROWTH_START, lambda k: growth(GROWTH_START, k),
        torch.tensor([5.25 * END] * 2, dtype=F64),
    ),
    "rotation": (
        lambda t, y: y @ TURN.T, TURN_START, lambda k: 9.0**k * TURN_START.square().sum(1) * END,
        torch.tensor([18 * END] * 2, dtype=F64),
    ),
    "towards a pole": (
        lambda t, y: y * y, column(0.5, 1.0, -2.0),
        lambda k: pole(column(0.5, 1.0, -2.0), k).squeeze(1),
        4 * pole(column(0.5, 1.0, -2.0), 0).squeeze(1),
    ),
    "no y in it": (
        lambda t, y: t.cos() + 0 * y.detach(), column(7.0),
        lambda k: torch.tensor([END / 2 - (-1) ** k * sin(2 * END) / 4], dtype=F64),
        torch.zeros(1, dtype=F64),
    ),
    "t and y": (
        lambda t, y: t * y, column(1.0, -2.0), lambda k: mixed(column(1.0, -2.0), k),
        torch.tensor([END**3 / 3] * 2, dtype=F64),
    ),
}  # fmt: skip
ADJOINTS = {"discrete": Discrete(), "checkpointed": Checkpointed(3), "continuous": Backsolve()}


def integrals(f, y0, *penalties, **options):
    g = regularised(f, *penalties)
    return odeint(g, g.start(y0), T, **{"solver": TIGHT, **options}).y1


@pytest.mark.parametrize("name", CASES)
class TestKnown:
    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_taylor(self, name, k):
        f, y0, answer, _ = CASES[name]
        _, found = integrals(f, y0, Taylor(k))
        torch.testing.assert_close(found.squeeze(1), answer(k), rtol=1e-7, atol=1e-9)

    def test_kinetic_is_the_first_order(self, name):
        f, y0, answer, _ = CASES[name]
        _, found, first = integrals(f, y0, Kinetic(), Taylor(1))
        torch.testing.assert_close(found.squeeze(1), answer(1), rtol=1e-7, atol=1e-9)
        assert torch.equal(found, first)

    @pytest.mark.parametrize("recorded", [True, False])
    def test_jacobian_over_all_signs_is_the_frobenius_norm(self, name, recorded):
        f, y0, _, answer = CASES[name]
        n = y0.shape[1]
        found = []
        with torch.set_grad_enabled(recorded):
            for signs in product([-1.0, 1.0], repeat=n):
                eps = torch.tensor(signs, dtype=F64).expand_as(y0)
                found.append(integrals(f, y0, JacobianNorm(eps))[1].squeeze(1))
        torch.testing.assert_close(torch.stack(found).mean(0), answer, rtol=1e-7, atol=1e-9)

    def test_y_is_what_it_is_without_penalties(self, name):
        f, y0, _, _ = CASES[name]
        y, *_ = integrals(f, y0, Kinetic(), JacobianNorm.like(y0), Taylor(2))
        alone = odeint(f, y0, T, solver=TIGHT).y1
        torch.testing.assert_close(y, alone, rtol=1e-9, atol=1e-9)

    def test_float32(self, name):
        f, y0, answer, _ = CASES[name]

        def single(t, y):
            return f(t.double(), y.double()).float()

        found = integrals(single, y0.float(), Taylor(2), solver=Dopri5())[1]
        assert found.dtype == torch.float32 and found.shape == (len(y0), 1)
        torch.testing.assert_close(found.squeeze(1).double(), answer(2), rtol=1e-4, atol=1e-5)


def penalties_of(given, solver, adjoint):
    """Of a network with the parameters `given`, from y0."""
    eps = JacobianNorm.like(given["y0"], torch.Generator().manual_seed(1))

    def f(t, y):
        return torch.tanh(torch.cat([y, t], 1) @ given["A"].T) @ given["B"].T + given["x"]

    return integrals(f, given["y0"], Kinetic(), eps, Taylor(2), solver=solver, adjoint=adjoint)[1:]


@pytest.fixture
def given(generator):
    shapes = {"A": (4, 3), "B": (2, 4), "y0": (3, 2), "x": (2,)}
    return {k: torch.randn(s, generator=generator, dtype=F64) for k, s in shapes.items()}


@pytest.mark.parametrize("name", ["discrete", "checkpointed"])
def test_gradients_of_a_network_against_finite_differences(name, given, generator):
    errors = checks.directional_errors(
        lambda given: penalties_of(given, RK4(0.2), ADJOINTS[name]), given, generator, eps=1e-4
    )
    assert max(errors.values()) <= 1e-6, errors


def test_the_continuous_adjoint_of_a_network(given):
    given = {k: v.requires_grad_() for k, v in given.items()}
    grads = []
    for adjoint in (Discrete(), Backsolve()):
        out = penalties_of(given, Dopri8(rtol=1e-8, atol=1e-10), adjoint)
        grads.append(torch.autograd.grad(sum(v.sum() for v in out), list(given.values())))
    for exact, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ADJOINTS)
class TestGradients:
    def test_of_the_rate_of_growth(self, name):
        """The kinetic energy of y' = a y from 1 is a (e^(2 a T) - 1) / 2."""
        a = torch.tensor(0.7, dtype=F64, requires_grad=True)
        y0 = torch.ones(1, 1, dtype=F64)
        found = integrals(lambda t, y: a * y, y0, Kinetic(), adjoint=ADJOINTS[name])[1]
        (g,) = torch.autograd.grad(found.sum(), a)
        size = exp(2 * 0.7 * END)
        assert g.item() == pytest.approx((size - 1) / 2 + 0.7 * END * size, rel=1e-8)


def test_parameters_of_a_module_are_those_of_the_regularised_field():
    f = torch.nn.Module()
    f.weight = torch.nn.Parameter(torch.ones(3))
    assert list(regularised(f, Kinetic()).parameters()) == [f.weight]


def test_images():
    y0 = torch.ones(2, 3, 4, 4, dtype=F64)
    _, kinetic, jacobian, taylor = integrals(
        lambda t, y: 0.5 * y, y0, Kinetic(), JacobianNorm.like(y0), Taylor(2)
    )
    size = (exp(END) - 1) * 48
    for found, answer in ((kinetic, 0.25 * size), (jacobian, 12 * END), (taylor, size / 16)):
        torch.testing.assert_close(found, torch.full((2, 1), answer, dtype=F64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Taylor(0), r"Taylor\(order=0\): expected a positive whole number"),
        (lambda: regularised(lambda t, y: y, Kinetic), "is none; expected Kinetic"),
        (lambda: regularised(lambda t, y: y).start((column(1.0),)), "y0 is a tuple"),
        (
            lambda: integrals(lambda t, y: y, column(1.0), JacobianNorm(torch.ones(2, 1))),
            r"eps has shape \(2, 1\), and y has \(1, 1\)",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
