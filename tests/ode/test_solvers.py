"""`odeint`: order, accuracy, dense output, every sample by itself, and what goes wrong."""

import math
from dataclasses import replace

import pytest
import torch

from diffopt import (
    RK4,
    ConvergenceError,
    ConvergenceWarning,
    Dopri5,
    Euler,
    Status,
    Tsit5,
    odeint,
)
from problems.odes import KNOWN, growth, oscillator, tangent, van_der_pol

from .cases import ADAPTIVE, F64, FIXED, of_step

pytestmark = pytest.mark.usefixtures("core")
ALL = [*FIXED, *ADAPTIVE]


def times(ode, count=2):
    return torch.linspace(ode.t0, ode.t1, count, dtype=F64)


def error(ode, solver, count=2):
    t = times(ode, count)
    return float((odeint(ode.f, ode.y0, t, solver=solver).ys - ode.exact(t)).abs().max())


@pytest.mark.parametrize("problem", [growth, oscillator])
@pytest.mark.parametrize("name", ALL)
def test_the_order_is_that_of_the_method(name, problem):
    """On a field that depends on t, too: one that does not hides errors in c."""
    solver, order = {**FIXED, **ADAPTIVE}[name]
    ode = problem()
    h = (ode.t1 - ode.t0) / (10 if order == 8 else 80)

    def worst(h):
        """At three ends: the error may pass through zero at one."""
        method = solver(step=h) if name in FIXED else of_step(solver, h)
        return max(error(replace(ode, t1=part * ode.t1), method) for part in (0.6, 0.8, 1.0))

    coarse, fine = worst(h), worst(h / 2)
    # dopri8 gains nearly an order where t alone makes the field difficult
    assert -0.35 < math.log2(coarse / fine) - order < (1 if order == 8 else 0.35), (coarse, fine)


@pytest.mark.parametrize("problem", KNOWN)
@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("tolerance", [1e-5, 1e-8])
def test_the_error_follows_the_tolerance(name, problem, tolerance):
    ode, solver = KNOWN[problem](), ADAPTIVE[name][0](rtol=tolerance, atol=tolerance)
    assert error(ode, solver) < 60 * tolerance


@pytest.mark.parametrize("problem", KNOWN)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_output_between_the_steps_is_as_good(name, problem):
    """50 output times, ten and more of which lie in one step."""
    ode, solver = KNOWN[problem](), ADAPTIVE[name][0](rtol=1e-7, atol=1e-7)
    assert error(ode, solver, 50) < 1e-5


@pytest.mark.parametrize("name", ADAPTIVE)
def test_output_does_not_change_the_steps(name):
    ode, solver = oscillator(), ADAPTIVE[name][0]()
    few, many = (odeint(ode.f, ode.y0, times(ode, T), solver=solver) for T in (2, 37))
    assert torch.equal(few.steps, many.steps)
    assert torch.equal(few.y1, many.y1)
    assert torch.equal(many.ys[:, 0], ode.y0)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_stiff_sample_does_not_slow_its_neighbours(name):
    mu = torch.tensor([30.0, *[1.0] * 7], dtype=F64)
    solver = ADAPTIVE[name][0](rtol=1e-5, atol=1e-5)

    def solved(mu):
        ode = van_der_pol(mu)
        return odeint(ode.f, ode.y0, times(ode, 5), solver=solver)

    mixed, alike, alone = solved(mu), solved(torch.ones(8, dtype=F64)), solved(mu[:1])
    for fact in ("steps", "rejected", "evaluations", "ys"):
        assert torch.equal(getattr(mixed, fact)[1:], getattr(alike, fact)[1:]), fact
    assert torch.equal(mixed.ys[:1], alone.ys)
    assert mixed.steps[0] > 1.5 * mixed.steps[1]


@pytest.mark.parametrize("name", ALL)
def test_backwards_in_time(name):
    solver, order = {**FIXED, **ADAPTIVE}[name]
    solver = solver(step=1e-3) if name in FIXED else solver(rtol=1e-9, atol=1e-9)
    ode = oscillator()
    t = times(ode, 3)
    back = odeint(ode.f, ode.exact(t)[:, -1], t.flip(0), solver=solver)
    assert (back.ys.flip(1) - ode.exact(t)).abs().max() < (1e-6 if order > 2 else 2e-2)


@pytest.mark.parametrize("name", ALL)
def test_times_of_each_sample(name):
    """Row by row the same as alone; directions may differ too."""
    solver = {**FIXED, **ADAPTIVE}[name][0]
    solver = solver(step=0.01) if name in FIXED else solver()
    ode = oscillator()
    t = torch.tensor([[0.0, 0.5, 1.0], [0.0, -0.3, -2.0], [1.0, 1.1, 4.0]], dtype=F64)
    sol = odeint(ode.f, ode.y0, t, solver=solver)
    for i in range(3):
        one = odeint(ode.f, ode.y0[i : i + 1], t[i], solver=solver)
        assert torch.equal(sol.ys[i : i + 1], one.ys)
        assert torch.equal(sol.steps[i : i + 1], one.steps)


def test_states_of_any_shape():
    y0 = torch.rand(2, 3, 4, dtype=F64), torch.rand(2, 5, dtype=F64)

    def field(t, y):
        assert t.shape == (2, 1, 1)
        return -y[0], t[..., 0] * y[1]

    t = torch.tensor([0.0, 0.4, 1.0], dtype=F64)
    sol = odeint(field, y0, t, solver=Dopri5(rtol=1e-10, atol=1e-10))
    assert sol.ys[0].shape == (2, 3, 3, 4)
    assert (sol.ys[0] - y0[0].unsqueeze(1) * torch.exp(-t)[:, None, None]).abs().max() < 1e-9
    assert (sol.ys[1] - y0[1].unsqueeze(1) * torch.exp(t**2 / 2)[:, None]).abs().max() < 1e-9
    assert torch.equal(sol.y1[1], sol.ys[1][:, -1])


@pytest.mark.parametrize("name", ALL)
def test_float32(name):
    ode = oscillator()
    solver = {**FIXED, **ADAPTIVE}[name][0]
    solver = solver(step=0.002) if name in FIXED else solver(rtol=1e-5, atol=1e-5)
    y = odeint(ode.f, ode.y0.float(), times(ode), solver=solver).y1
    assert y.dtype == torch.float32
    assert (y - ode.exact(times(ode))[:, -1]).abs().max() < (2e-2 if name == "euler" else 2e-4)


def test_no_samples_and_no_way():
    ode = oscillator()
    assert odeint(ode.f, ode.y0[:0], times(ode, 4)).ys.shape == (0, 4, 2)
    assert odeint(ode.f, ode.y0[:0], times(ode, 4), solver=RK4()).ys.shape == (0, 4, 2)
    for solver in (Dopri5(), RK4()):
        sol = odeint(ode.f, ode.y0, times(ode)[:1], solver=solver)
        assert torch.equal(sol.ys, ode.y0.unsqueeze(1))
        assert (sol.status == Status.CONVERGED).all()


def test_fixed_steps_divide_every_interval():
    """0.3 into three steps of 0.1 and 0.25 into three of 1/12, whatever the rounding."""
    seen = []

    def f(t, y):
        seen.append(float(t))
        return torch.zeros_like(y)

    t = torch.tensor([0.0, 0.3, 0.55], dtype=F64)
    sol = odeint(f, torch.ones(1, 1, dtype=F64), t, solver=Euler(0.1))
    assert seen == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.3 + 0.25 / 3, 0.3 + 0.5 / 3])
    assert sol.steps.tolist() == [6]
    assert sol.evaluations.tolist() == [6]


def poisoned(t, y):
    """y' = y, NaN for the middle sample of three from t = 0.5 on."""
    bad = (torch.arange(3).unsqueeze(1) == 1) & (t >= 0.5)
    return torch.where(bad, torch.nan, y)


class TestFailures:
    @pytest.mark.parametrize("name", ALL)
    def test_nan_in_one_sample(self, name):
        solver = {**FIXED, **ADAPTIVE}[name][0]
        solver = solver(step=0.01) if name in FIXED else solver()
        y0, t = torch.ones(3, 1, dtype=F64), torch.linspace(0, 1, 5, dtype=F64)
        with pytest.warns(
            ConvergenceWarning, match=r"sample 1: NUMERICAL_FAILURE \(up to t = 0.[45]"
        ):
            sol = odeint(poisoned, y0, t, solver=solver)
        good = odeint(lambda t, y: y, y0, t, solver=solver)
        assert sol.status.tolist() == [0, Status.NUMERICAL_FAILURE, 0]
        assert torch.equal(sol.ys[[0, 2]], good.ys[[0, 2]])
        assert 0.4 < sol.t[1] <= 0.5
        assert sol.ys.isfinite().all()
        assert sol.ys[1, -1] == sol.ys[1, -2]  # the last good state

    @pytest.mark.parametrize("name", ADAPTIVE)
    def test_a_field_that_is_nan_from_the_start(self, name):
        f = lambda t, y: torch.where(y > 1, torch.nan, y)  # noqa: E731
        y0, t = torch.tensor([[1.5], [-1.0]], dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
        sol = odeint(f, y0, t, solver=ADAPTIVE[name][0](), on_failure="ignore")
        assert sol.status.tolist() == [Status.NUMERICAL_FAILURE, Status.CONVERGED]
        assert sol.t[0] == 0
        assert sol.steps[0] == 0
        assert torch.equal(sol.y1[0], y0[0])

    @pytest.mark.parametrize("name", ADAPTIVE)
    def test_a_pole(self, name):
        """y = tan t does not pass pi / 2; it ends there, and not never."""
        ode = tangent()
        t = torch.tensor([0.0, 1.0, 2.0], dtype=F64)
        sol = odeint(ode.f, ode.y0, t, solver=ADAPTIVE[name][0](rtol=1e-4), on_failure="nan")
        failed = (Status.STEP_UNDERFLOW, Status.NUMERICAL_FAILURE)
        assert sol.status[0] in failed
        assert abs(sol.t[0] - math.pi / 2) < 1e-3
        assert sol.status[1] == Status.CONVERGED
        assert sol.ys[0].isnan().all()

    def test_the_limit_of_steps(self):
        ode = van_der_pol(torch.tensor([1.0, 30.0], dtype=F64))
        with pytest.warns(ConvergenceWarning, match="sample 1: ITERATION_LIMIT"):
            sol = odeint(ode.f, ode.y0, times(ode, 3), solver=Tsit5(max_steps=60))
        assert sol.status.tolist() == [Status.CONVERGED, Status.ITERATION_LIMIT]
        assert sol.steps[1] + sol.rejected[1] == 60
        assert 0 < sol.t[1] < 3

    def test_raise(self):
        with pytest.raises(ConvergenceError, match="1 of 3 samples failed"):
            odeint(
                poisoned, torch.ones(3, 1, dtype=F64), torch.tensor([0.0, 1.0]), on_failure="raise"
            )


@pytest.mark.parametrize("name", FIXED)
def test_a_sample_that_waits_for_others_is_left_alone(name):
    """1 / (1 - t) has a pole where the first sample has ended, and waits."""
    t = torch.tensor([[0.0, 0.95], [0.0, 2.0]], dtype=F64)

    def f(t, y):
        first = torch.arange(len(y)).unsqueeze(1) == 0
        return torch.where(first, 1 / (0.95 - t + 1e-9 * (t < 0.95)), torch.ones_like(t))

    solver = FIXED[name][0](step=0.1)
    sol = odeint(f, torch.zeros(2, 1, dtype=F64), t, solver=solver, on_failure="ignore")
    one = odeint(f, torch.zeros(1, 1, dtype=F64), t[:1], solver=solver, on_failure="ignore")
    assert torch.equal(sol.ys[:1].nan_to_num(7.0), one.ys.nan_to_num(7.0))
    assert torch.equal(sol.status[:1], one.status)


def test_a_field_that_returns_its_own_memory():
    memory = torch.empty(2, 1, dtype=F64)
    y0, t = torch.tensor([[1.0], [5.0]], dtype=F64), torch.linspace(0, 3, 4, dtype=F64)
    with torch.no_grad():
        own = odeint(lambda t, y: torch.mul(y * y.cos(), -3.0, out=memory), y0, t)
        new = odeint(lambda t, y: y * y.cos() * -3.0, y0, t)
    assert torch.equal(own.ys, new.ys)
    assert torch.equal(own.rejected, new.rejected)


def test_a_field_that_changes_its_state_later():
    f = lambda t, y: y.mul_(-1) if float(t.max()) > 0 else -y  # noqa: E731
    with torch.no_grad(), pytest.raises(ValueError, match="changes its state in place"):
        odeint(f, torch.ones(1, 1, dtype=F64), torch.tensor([0.0, 1.0]))


def test_a_slope_on_another_device():
    f = lambda t, y: -y if float(t.max()) == 0 else torch.empty_like(y, device="meta")  # noqa: E731
    with torch.no_grad(), pytest.raises(ValueError, match=r"f\(t, y\) is on meta, but y0 on cpu"):
        odeint(f, torch.ones(1, 1, dtype=F64), torch.tensor([0.0, 1.0]))


def test_inference_mode_leaves_nothing_behind():
    y0, t = torch.ones(1, 1, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    solver = FIXED["midpoint"][0](step=0.125)
    with torch.inference_mode():
        odeint(lambda t, y: -y, y0, t, solver=solver)
    odeint(lambda t, y: -y, y0, t.clone().requires_grad_(), solver=solver).ys.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_huge_slope_at_the_start(dtype):
    y0 = torch.zeros(1, 1, dtype=dtype)
    size = 1e12 if dtype == torch.float32 else 1e150
    sol = odeint(lambda t, y: torch.full_like(y, size), y0, torch.tensor([0.0, 1.0]))
    assert (sol.status == Status.CONVERGED).all()
    assert float(sol.y1 / size) == pytest.approx(1.0, rel=1e-5)


Y0 = torch.ones(2, 1, dtype=F64)
T = torch.tensor([0.0, 1.0], dtype=F64)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((lambda t, y: y[:1], Y0, T), {}, r"f\(t, y\) has shape \(1, 1\), but y0 has \(2, 1\)"),
        ((lambda t, y: y.float(), Y0, T), {}, r"f\(t, y\) has dtype torch.float32, but y0 has"),
        ((lambda t, y: 1.0, Y0, T), {}, r"f\(t, y\) is a float: expected \(2, 1\), as y0"),
        ((lambda t, y: y, Y0[0], T), {}, r"y0 has shape \(1,\)"),
        ((lambda t, y: y, Y0, [0.0, 1.0]), {}, r"t is \[0.0, 1.0\]: expected a tensor"),
        ((lambda t, y: y, Y0, T.expand(3, 2)), {}, r"t has shape \(3, 2\), and y0 has 2 samples"),
        ((lambda t, y: y, Y0, torch.tensor([0.0, 1.0, 1.0])), {}, "strictly increasing"),
        ((lambda t, y: y, Y0, torch.tensor([0.0, math.inf])), {}, "finite times"),
        ((lambda t, y: y, Y0[:, :0], T), {}, "expected at least one number"),
        ((lambda t, y: y, Y0, T), {"solver": Euler(1e-19)}, r"Euler\(step=1e-19\)"),
        ((lambda t, y: y, Y0, T), {"solver": "dopri5"}, r"solver='dopri5': expected a solver"),
        ((lambda t, y: y, Y0, T), {"adjoint": True}, r"adjoint=True: expected an adjoint"),
        ((lambda t, y: y, Y0, T), {"on_failure": "no"}, "on_failure='no'"),
    ],
)
def test_bad_input_says_what_to_do(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        odeint(*arguments, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dopri5(rtol=0.0), r"Dopri5\(rtol=0.0\)"),
        (lambda: Dopri5(max_steps=0), r"Dopri5\(max_steps=0\)"),
        (lambda: Dopri5(first_step=-1.0), r"Dopri5\(first_step=-1.0\)"),
        (lambda: RK4(step=0), r"RK4\(step=0\)"),
    ],
)
def test_bad_settings_say_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
