"""How `odeint` is differentiated: exactly, or to O(tolerance); and what it keeps for that."""

import math

import pytest
import torch

from diffopt import (
    RK4,
    ConvergenceError,
    ConvergenceWarning,
    Dopri5,
    Dopri8,
    implicit_root,
    odeint,
)
from diffopt.ode import Backsolve, Checkpointed, Discrete
from problems.odes import van_der_pol

from .cases import ADAPTIVE, BACKSOLVE, EXACT, F64, FIXED, TIGHT

pytestmark = pytest.mark.usefixtures("core")
ALL = {**FIXED, **ADAPTIVE}
WEIGHTS = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=F64)


class Case:
    """A network field with a parameter outside it; four samples, four times."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.W = (0.7 * torch.randn(3, 3, generator=generator, dtype=F64)).requires_grad_()
        self.scale = torch.tensor(0.3, dtype=F64, requires_grad=True)
        self.y0 = torch.randn(4, 3, generator=generator, dtype=F64).requires_grad_()
        self.t = torch.tensor([0.0, 0.4, 0.7, 1.5], dtype=F64).requires_grad_()
        self.inputs = [self.W, self.scale, self.y0, self.t]

    def f(self, t, y):
        return torch.cos(t) * torch.tanh(y @ self.W) - self.scale.exp() * y

    def loss(self, **options):
        ys = odeint(self.f, self.y0, self.t, **options).ys
        return (ys * WEIGHTS[:, None]).square().sum()

    def gradients(self, **options):
        return torch.autograd.grad(self.loss(**options), self.inputs)


def of(name):
    solver = ALL[name][0]
    return solver(step=0.25) if name in FIXED else solver(rtol=1e-5, atol=1e-5)


def apart(a, b):
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("adjoint", EXACT)
def test_fixed_steps_against_finite_differences(name, adjoint):
    case = Case()

    def loss(W, scale, y0):
        case.W, case.scale, case.y0 = W, scale, y0
        return case.loss(solver=of(name), adjoint=EXACT[adjoint])

    assert torch.autograd.gradcheck(loss, case.inputs[:3], eps=1e-6, atol=1e-8)


@pytest.mark.parametrize("adjoint", ["discrete", "checkpointed"])
@pytest.mark.parametrize("name", ALL)
def test_the_exact_adjoints_are_backpropagation_on_the_grid(name, adjoint):
    """Against the same steps taken by hand, whatever chose them: equal to rounding."""
    case = Case()
    solver, (_, slopes) = of(name), (None, len(of(name).tableau.a) - 1)
    seen = []

    def watched(t, y):
        seen.append((t.detach().clone(), y.detach().clone()))
        return case.f(t, y)

    T = case.t.detach()[[0, -1]]
    with torch.no_grad():
        sol = odeint(watched, case.y0, T, solver=solver)
    assert (sol.rejected == 0).all(), "the grid is read from the accepted steps"
    grid = [t.flatten() for t, _ in seen]
    if name in ADAPTIVE:
        # two evaluations at the start, then the slopes of each step, the last one at its end
        starts = [grid[0], *grid[1 + slopes :: slopes]]
    else:
        starts = [*grid[::slopes], T[-1].expand(4)]

    def by_hand():
        y, tableau = case.y0, solver.tableau
        for t, end in zip(starts, starts[1:], strict=False):
            h, slope = (end - t).unsqueeze(1), []
            for c, row in zip(tableau.c, tableau.a, strict=True):
                z = y + h * sum((w * k for w, k in zip(row, slope, strict=False)), start=0 * y)
                slope.append(case.f(t.unsqueeze(1) + c * h, z))
            y = z  # the last row of every tableau is b
        return y

    exact = torch.autograd.grad(by_hand().square().sum(), case.inputs[:3])
    ours = odeint(case.f, case.y0, T, solver=solver, adjoint=EXACT[adjoint]).y1
    assert apart(torch.autograd.grad(ours.square().sum(), case.inputs[:3]), exact) < 1e-13


def test_the_trajectory_is_a_root():
    """F stacks the equations of the steps; `implicit_root` with its dense Jacobian agrees."""
    case, N = Case(), 5
    t = torch.linspace(0, 1, N + 1, dtype=F64)
    ys = odeint(case.f, case.y0, t, solver=RK4()).ys

    def step(t, h, y):
        a = case.f(t, y)
        b = case.f(t + h / 2, y + h / 2 * a)
        c = case.f(t + h / 2, y + h / 2 * b)
        return y + h / 6 * (a + 2 * b + 2 * c + case.f(t + h, y + h * c))

    def residual(z):
        z = z.unflatten(-1, (N, 3))
        before = [case.y0, *z.unbind(-2)]
        steps = [z[..., n, :] - step(t[n], t[n + 1] - t[n], before[n]) for n in range(N)]
        return torch.cat(steps, -1)

    root = implicit_root(residual, ys[:, 1:].flatten(1)).unflatten(1, (N, 3))
    wanted = case.inputs[:3]
    exact = torch.autograd.grad(root.square().sum(), wanted)
    ours = torch.autograd.grad(ys[:, 1:].square().sum(), wanted)
    assert apart(ours, exact) < 1e-12


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("adjoint", [*EXACT, "backsolve"])
def test_tight_tolerances_agree_with_finite_differences(name, adjoint):
    """In parameters, y0 and t: what is computed is then what is meant, and its derivative."""
    case, solver = Case(), Dopri8(rtol=1e-13, atol=1e-13)
    adjoint = {**EXACT, "backsolve": BACKSOLVE}[adjoint]
    tolerance = 1e-7 if name == "bosh3" else 1e-10
    ours = case.gradients(solver=ADAPTIVE[name][0](rtol=tolerance, atol=tolerance), adjoint=adjoint)
    for x, g in zip(case.inputs, ours, strict=True):
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
        values = []
        for s in (1e-4, -1e-4):
            with torch.no_grad():
                x += s * direction
                values.append(float(case.loss(solver=solver)))
                x -= s * direction
        slope = (values[0] - values[1]) / 2e-4
        # in t the polynomials between the steps are differentiated, which costs them an order
        rtol = 1e-4 if x is case.t else 1e-5 if name == "bosh3" else 1e-6
        assert abs(float((g * direction).sum()) - slope) < rtol * max(1, abs(slope))


@pytest.mark.parametrize("adjoint", ["discrete", "checkpointed"])
def test_second_derivatives(adjoint):
    case = Case()

    def loss(W, y0):
        case.W, case.y0 = W, y0
        return case.loss(solver=RK4(step=0.3), adjoint=EXACT[adjoint])

    inputs = case.W, case.y0
    assert torch.autograd.gradgradcheck(loss, inputs, eps=1e-6, atol=1e-6)


def test_backsolve_is_off_by_the_tolerance():
    exact = Case().gradients(solver=Dopri8(rtol=1e-13, atol=1e-13))
    errors = []
    for tolerance in (1e-4, 1e-6, 1e-8):
        solver = Dopri5(rtol=tolerance, atol=tolerance)
        errors.append(apart(Case().gradients(solver=solver, adjoint=Backsolve()), exact))
    assert errors[0] < 1e-2
    assert errors[1] < errors[0] / 20
    assert errors[2] < errors[1] / 20


def test_backsolve_says_how_far_off_the_way_back_was():
    case = Case()
    sol = odeint(case.f, case.y0, case.t, adjoint=Backsolve(Dopri8(**TIGHT)))
    assert sol.backward.mismatch is None
    sol.ys.sum().backward()
    assert sol.backward.mismatch.shape == (4,)
    assert (sol.backward.evaluations > 0).all()
    contracting = torch.ones(2, 1, dtype=F64, requires_grad=True)
    rate = torch.tensor([[1.0], [30.0]], dtype=F64)
    t = torch.tensor([0.0, 2.0], dtype=F64)
    sol = odeint(lambda t, y: -rate * y, contracting, t, adjoint=Backsolve())
    with pytest.warns(ConvergenceWarning, match=r"misses the states .* \(sample 1\)"):
        sol.ys.sum().backward()
    assert sol.backward.mismatch[1] > 1000 > sol.backward.mismatch[0]
    sol = odeint(lambda t, y: -rate * y, contracting, t, adjoint=Backsolve(), on_failure="raise")
    with pytest.raises(ConvergenceError, match="use adjoint=Discrete"):
        sol.ys.sum().backward()


def test_backsolve_has_one_derivative():
    case = Case()
    (g,) = torch.autograd.grad(case.loss(adjoint=Backsolve()), case.y0, create_graph=True)
    with pytest.raises(RuntimeError, match="built for fewer derivatives"):
        torch.autograd.grad(g.sum(), case.W)


def test_backsolve_of_a_field_that_is_constant_or_without_parameters():
    y0, t = torch.ones(2, 1, dtype=F64, requires_grad=True), torch.tensor([0.0, 1.0], dtype=F64)
    for f, slope in ((lambda t, y: torch.ones_like(y), 1.0), (lambda t, y: y, torch.e)):
        (g,) = torch.autograd.grad(odeint(f, y0, t, adjoint=Backsolve(Dopri8())).y1.sum(), y0)
        assert (g - slope).abs().max() < 1e-5


def kept(adjoint, steps):
    """Bytes that the graph holds on to."""
    case, seen = Case(), {}

    def pack(v):
        seen[v.data_ptr()] = v.numel() * v.element_size()
        return v

    t = torch.tensor([0.0, 1.0], dtype=F64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
        sol = odeint(case.f, case.y0, t, solver=RK4(step=1 / steps), adjoint=adjoint)
    assert sol.steps[0] == steps
    return sum(seen.values())


def test_memory_against_the_number_of_steps():
    few, many = (kept(Discrete(), n) for n in (10, 100))
    assert 8 < many / few < 12
    assert kept(Checkpointed(10), 100) < many / 8
    assert kept(Backsolve(), 100) == kept(Backsolve(), 10)


@pytest.mark.parametrize("adjoint", [Discrete(), Checkpointed(2)])
@pytest.mark.parametrize("name", ALL)
def test_a_bad_sample_does_not_reach_the_shared_gradient(name, adjoint):
    """The middle sample meets NaN half way; the others' share of dL/da is as without it."""
    solver = ALL[name][0]
    solver = solver(step=0.125) if name in FIXED else solver()
    t = torch.linspace(0, 1, 4, dtype=F64)

    def gradient(poison, rows):
        a = torch.ones(1, dtype=F64, requires_grad=True)

        def f(t, y):
            bad = poison & (torch.arange(3).unsqueeze(1) == 1) & (t >= 0.4)
            return torch.where(bad, torch.nan, a) * y

        y0 = torch.ones(3, 1, dtype=F64, requires_grad=True)
        ys = odeint(f, y0, t, solver=solver, adjoint=adjoint, on_failure="ignore").ys
        return torch.autograd.grad(ys[rows].square().sum(), [a, y0])

    good = gradient(False, [0, 2])
    assert apart(gradient(True, [0, 2]), good) < 1e-14
    bad = gradient(True, [0, 1, 2])  # the failed sample has none of its own
    assert apart(bad, good) < 1e-14


@pytest.mark.parametrize("name", ALL)
def test_a_sample_that_begins_with_nan(name):
    solver = ALL[name][0]
    solver = solver(step=0.125) if name in FIXED else solver()
    w = torch.ones(2, 2, dtype=F64, requires_grad=True)
    y0, t = torch.ones(3, 2, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)

    def gradient(y0):
        sol = odeint(lambda t, y: torch.tanh(y @ w), y0, t, solver=solver, on_failure="ignore")
        return torch.autograd.grad(sol.y1[[0, 2]].sum(), w)

    good, y0[1] = gradient(y0), torch.nan
    assert apart(gradient(y0), good) < 1e-14


@pytest.mark.parametrize("adjoint", [Discrete(), Checkpointed(2), Backsolve()])
@pytest.mark.parametrize("name", ["euler", "rk4", "dopri5", "dopri8"])
@pytest.mark.parametrize("late", [False, True])
def test_a_field_that_is_not_finite_in_zero(name, adjoint, late):
    """log y, of a sample that is negative from the start, or becomes so on the way."""
    solver = ALL[name][0]
    solver = solver(step=0.1) if name in FIXED else solver(max_steps=300)
    a = torch.ones(1, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 2.0], dtype=F64)
    drift = torch.tensor([[0.0], [-1.0 if late else 0.0]], dtype=F64)

    def gradient(y0):
        def f(t, y):
            return a * torch.log(y) + drift[: len(y)]

        sol = odeint(f, y0, t, solver=solver, adjoint=adjoint, on_failure="ignore")
        return torch.autograd.grad(sol.y1[0].sum(), a)

    y0 = torch.tensor([[3.0], [0.5 if late else -1.0]], dtype=F64)
    assert apart(gradient(y0), gradient(y0[:1])) < 1e-14


def test_backsolve_finds_what_f_needs_only_later():
    nets = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(3)]).double()
    y0 = torch.ones(1, 2, dtype=F64)

    def solved(count):
        f = lambda t, y: nets[min(int(count * float(t.max())), count - 1)](y)  # noqa: E731
        t = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
        return odeint(f, y0, t, adjoint=Backsolve()).y1.sum()

    solved(2).backward()
    assert all(p.grad.abs().sum() > 0 for p in nets[:2].parameters())
    with pytest.raises(RuntimeError, match="use adjoint=Discrete"):
        solved(3).backward()


def test_backsolve_notices_that_a_parameter_was_changed():
    case = Case()
    loss = case.loss(adjoint=Backsolve())
    with torch.no_grad():
        case.W.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("on_failure", ["ignore", "nan"])
def test_a_way_back_that_fails(on_failure):
    y0 = torch.tensor([[1.0], [2.0]], dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=F64)
    adjoint = Backsolve(Dopri5(rtol=1e-9, atol=1e-9, max_steps=12))
    sol = odeint(lambda t, y: -(y**3), y0, t, adjoint=adjoint, on_failure=on_failure)
    (g,) = torch.autograd.grad(sol.y1.sum(), y0)
    assert g.isnan().all() if on_failure == "nan" else (g == 0).all()


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("name", ["rk4", "dopri5", "dopri8"])
def test_forward_mode(name, recorded):
    """d y(1) / d y0 along 1 is exp(-1) for y' = -y, under no_grad too."""
    solver = ALL[name][0]
    solver = solver(step=0.01) if name in FIXED else solver(**TIGHT)
    with torch.autograd.forward_ad.dual_level(), torch.set_grad_enabled(recorded):
        one = torch.ones(1, 1, dtype=F64)
        y0 = torch.autograd.forward_ad.make_dual(one, one.clone())
        y = odeint(lambda t, y: -y, y0, torch.tensor([0.0, 1.0]), solver=solver).y1
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
    assert abs(float(tangent) - math.exp(-1)) < 1e-8


def test_rejected_steps_leave_no_trace():
    """A first step that is much too long: rejected by all, and not in the graph."""
    ode = van_der_pol(torch.tensor([1.0, 5.0], dtype=F64))
    y0 = ode.y0.clone().requires_grad_()
    t = torch.tensor([0.0, 1.0], dtype=F64)
    grads = []
    for first in (None, 0.9):
        solver = Dopri5(rtol=1e-11, atol=1e-11, first_step=first)
        sol = odeint(ode.f, y0, t, solver=solver)
        grads.append(torch.autograd.grad(sol.y1.sum(), y0))
    assert (sol.rejected > 0).all()
    assert apart(*grads) < 1e-8


def test_float32_gradients():
    case = Case()
    exact = case.gradients(solver=Dopri8(rtol=1e-12, atol=1e-12))[:3]
    W, scale, y0 = (v.detach().float().requires_grad_() for v in case.inputs[:3])
    case.W, case.scale = W, scale
    ys = odeint(case.f, y0, case.t.detach(), solver=Dopri5(rtol=1e-6, atol=1e-6)).ys
    loss = (ys * WEIGHTS[:, None].float()).square().sum()
    ours = torch.autograd.grad(loss, [W, scale, y0])
    assert apart(ours, exact) < 1e-4


@pytest.mark.parametrize("make", [lambda: Checkpointed(0), lambda: Backsolve(RK4())])
def test_bad_settings_say_what_to_do(make):
    with pytest.raises(ValueError, match=r"(Checkpointed|Backsolve)\("):
        make()
