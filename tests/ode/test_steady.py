"""Steady states against f(y) = 0, their known answers, and central differences."""

import pytest
import torch

from diffopt import (
    Anderson,
    Bosh3,
    ConvergenceWarning,
    Euler,
    NewtonKrylov,
    Status,
    TimeStepping,
    fixed_point,
    steady_state,
)

from .. import checks

F64 = torch.float64
TIGHT = TimeStepping(finish=NewtonKrylov(rtol=1e-12, atol=1e-13))


def column(*values):
    return torch.tensor(values, dtype=F64).unsqueeze(1)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


W = 0.8 * torch.linalg.qr(normal(6, 6)).Q
TURN = torch.tensor([[-0.8, 3.0], [-3.0, -0.8]], dtype=F64)
# name: (f(y, theta), theta, y0, the steady state of theta or None)
CASES = {
    "linear": (lambda y, a: a - y, normal(5, 3), normal(5, 3, seed=1), lambda a: a),
    "rates from 1 to 300": (
        lambda y, a: column(1, 10, 300) * (a - y), column(1, -2, 3), column(0, 0, 0), lambda a: a,
    ),
    "rates from 1e-3 to 1": (
        lambda y, a: column(1e-3, 1e-2, 1) * (a - y), column(1, -2, 3), column(0, 0, 0),
        lambda a: a,
    ),
    "square root": (lambda y, a: a - y * y, column(0.01, 1, 4), column(1, 0.5, 9), torch.sqrt),
    "two stable states": (
        lambda y, a: y * (a - y * y), column(1, 4, 4), column(0.01, -0.01, 3),
        lambda a: a.sqrt() * column(1, -1, 1),
    ),
    "spiralling in": (
        lambda y, b: y @ TURN.T + b, normal(4, 2), normal(4, 2, seed=1),
        lambda b: -torch.linalg.solve(TURN, b.T).T,
    ),
    "already there": (lambda y, a: a - y, column(2, 3), column(2, 3), lambda a: a),
    "recurrent network": (
        lambda y, x: torch.tanh(y @ W.T + x) - y, normal(5, 6), torch.zeros(5, 6, dtype=F64), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
class TestDefinition:
    def test_f_is_zero_there(self, name):
        f, theta, y0, answer = CASES[name]
        out = steady_state(lambda y: f(y, theta), y0, solver=TIGHT)
        assert (out.status == 0).all() and out.z.dtype == F64 and out.z.shape == y0.shape
        assert f(out.z, theta).abs().max() <= 1e-10
        if answer is not None:
            torch.testing.assert_close(out.z, answer(theta), atol=1e-9, rtol=1e-9)

    def test_the_default_tolerance(self, name):
        f, theta, y0, answer = CASES[name]
        out = steady_state(lambda y: f(y, theta), y0)
        gap = f(out.z, theta).norm(dim=1)
        assert (gap <= 1e-9 + 1e-6 * (out.z + f(out.z, theta)).norm(dim=1)).all()

    def test_the_gradient_is_that_of_finite_differences(self, name, generator):
        f, theta, y0, _ = CASES[name]
        errors = checks.directional_errors(
            lambda given: (steady_state(lambda y: f(y, given["theta"]), y0, solver=TIGHT).z,),
            {"theta": theta},
            generator,
            eps=1e-4,
        )
        assert max(errors.values()) <= 1e-6, errors

    def test_float32(self, name):
        f, theta, y0, answer = CASES[name]
        if name.startswith("rates") or name == "spiralling in":
            pytest.skip("its constants are float64")
        exact = steady_state(lambda y: f(y, theta), y0, solver=TIGHT).z
        f32 = {"recurrent network": lambda y, x: torch.tanh(y @ W.float().T + x) - y}.get(name, f)
        out = steady_state(lambda y: f32(y, theta.float()), y0.float())
        assert out.z.dtype == torch.float32 and (out.status <= 1).all()
        torch.testing.assert_close(out.z.double(), exact, atol=1e-4, rtol=1e-4)

    def test_a_sample_alone_ends_where_it_ends_among_others(self, name):
        f, theta, y0, _ = CASES[name]
        if name.startswith("rates") or name == "two stable states":
            pytest.skip("f has a constant for each sample")
        together = steady_state(lambda y: f(y, theta), y0, solver=TIGHT).z
        alone = steady_state(lambda y: f(y, theta[1:2]), y0[1:2], solver=TIGHT).z
        torch.testing.assert_close(alone, together[1:2], atol=1e-11, rtol=1e-11)


def test_time_leads_to_the_stable_state_that_fixed_point_solvers_may_miss():
    """From 0.001 Newton goes to the unstable 0 next to it, and time to 1."""

    def f(y):
        return y - y**3

    y0 = column(1e-3)
    assert steady_state(f, y0).z.item() == pytest.approx(1.0)
    assert steady_state(f, y0, solver=NewtonKrylov()).z.item() == pytest.approx(0.0, abs=1e-6)


def test_it_is_the_deep_equilibrium_of_the_same_cell():
    f, x, y0, _ = CASES["recurrent network"]
    z = fixed_point(
        lambda z: torch.tanh(z @ W.T + x), y0, solver=Anderson(rtol=1e-12, atol=1e-13)
    ).z
    for solver in (TIGHT, Anderson(rtol=1e-12, atol=1e-13)):
        y = steady_state(lambda y: f(y, x), y0, solver=solver).z
        torch.testing.assert_close(y, z, atol=1e-10, rtol=1e-10)


def van_der_pol(y):
    p, q = y.unbind(1)
    return torch.stack([q, (1 - p * p) * q - p], 1)


NEVER = {
    "goes round": van_der_pol,
    "grows": lambda y: y + 1,
    "ends at a pole": lambda y: 1 + y * y,
    "is NaN": lambda y: y * torch.nan,
}


@pytest.mark.parametrize("name", NEVER)
def test_what_does_not_come_to_rest_says_so_and_hurts_nobody(name):
    bad = torch.tensor([[False], [True], [False]])
    theta = torch.tensor([[1.0, 2.0]] * 3, dtype=F64, requires_grad=True)
    y0 = torch.full((3, 2), 0.5, dtype=F64)

    def f(y):
        return torch.where(bad, NEVER[name](y.where(bad, 0.0)), theta - y)

    with pytest.warns(ConvergenceWarning, match="sample 1: "):
        out = steady_state(f, y0, solver=TimeStepping(stretches=5))
    assert out.status.tolist()[::2] == [0, 0]
    assert out.status[1] in (int(Status.ITERATION_LIMIT), int(Status.NUMERICAL_FAILURE))
    torch.testing.assert_close(out.z[::2], theta[::2], atol=1e-6, rtol=0)
    (g,) = torch.autograd.grad(out.z.sum(), theta)
    assert g[1].eq(0).all()
    torch.testing.assert_close(g[::2], torch.ones(2, 2, dtype=F64), atol=1e-8, rtol=0)


def test_the_unstable_state_inside_a_limit_cycle_is_not_the_answer():
    with pytest.warns(ConvergenceWarning):
        out = steady_state(
            van_der_pol, torch.tensor([[1.0, 0.0]], dtype=F64), solver=TimeStepping(stretches=5)
        )
    assert out.z.norm() > 0.5


def test_tuples_and_shapes():
    a, b = normal(4, 3), normal(4, 2, 2, seed=1)
    out = steady_state(lambda y: (a - y[0], 2 * (b - y[1])), (a * 0, b * 0), solver=TIGHT)
    assert isinstance(out.z, tuple)
    for y, answer in zip(out.z, (a, b), strict=True):
        torch.testing.assert_close(y, answer, atol=1e-10, rtol=0)


def test_second_derivatives_on_request():
    """y = sqrt(a): y'' = -1/4 a^-3/2."""
    a = column(4.0).requires_grad_()
    y = steady_state(lambda y: a - y * y, column(1.0), solver=TIGHT, order=2).z
    (g,) = torch.autograd.grad(y.sum(), a, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), a)
    assert h.item() == pytest.approx(-1 / 32, rel=1e-8)


def test_another_method():
    solver = TimeStepping(method=Bosh3(rtol=1e-4), span=0.1)
    out = steady_state(lambda y: 4 - y * y, column(1.0), solver=solver)
    assert out.z.item() == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TimeStepping(method=Euler(0.1)), "expected a method with adaptive steps"),
        (lambda: TimeStepping(span=0), r"TimeStepping\(span=0\): expected a positive number"),
        (lambda: TimeStepping(stretches=0), r"stretches=0\): expected a positive whole number"),
        (lambda: steady_state(lambda y: -y, 3.0), "y0 is a float"),
        (lambda: steady_state(lambda y: y[:, :1], normal(2, 3)), r"f\(y\) has shape \(2, 1\)"),
        (lambda: steady_state(lambda y: -y, normal(2, 3), solver=Euler()), "solver=Euler"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
