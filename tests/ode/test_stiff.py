"""Implicit solvers: order conditions, observed orders, stiff problems, gradients, isolation."""

import math

import pytest
import torch
from scipy.integrate import solve_ivp

from diffopt import (
    ConvergenceWarning,
    Discrete,
    ImplicitEuler,
    Kvaerno3,
    Kvaerno5,
    Status,
    Trapezoid,
    odeint,
)
from diffopt.ode import Checkpointed, esdirk

F64 = torch.float64
ORDERS = {ImplicitEuler: 1, Trapezoid: 2, Kvaerno3: 3, Kvaerno5: 5}
L_STABLE = (ImplicitEuler, Kvaerno3, Kvaerno5)
UNIT = torch.tensor([0.0, 1.0], dtype=F64)
# name: steps of length h
EQUAL = {
    "implicit euler": lambda h: ImplicitEuler(step=h, newton_rtol=1e-15),
    "trapezoid": lambda h: Trapezoid(step=h, newton_rtol=1e-15),
    # with no tolerance that matters, but that of Newton's method
    "kvaerno 3": lambda h: Kvaerno3(
        first_step=h, max_step=h, rtol=1e9, atol=1e9, newton_tol=1e-24, newton_steps=50
    ),
    "kvaerno 5": lambda h: Kvaerno5(
        first_step=h, max_step=h, rtol=1e9, atol=1e9, newton_tol=1e-24, newton_steps=50
    ),
}


def van_der_pol(mu):
    """x'' = mu (1 - x^2) x' - x, with mu `(B, 1)`."""

    def f(t, y):
        x, v = y[:, :1], y[:, 1:]
        return torch.cat([v, mu * (1 - x * x) * v - x], 1)

    return f


def robertson(k):
    """Three reactions with the rates k, `(3,)`."""

    def f(t, y):
        a, b, c = y.unbind(1)
        first, third = -k[0] * a + k[1] * b * c, k[2] * b * b
        return torch.stack([first, -first - third, third], 1)

    return f


RATES = torch.tensor([0.04, 1e4, 3e7], dtype=F64)


@pytest.mark.parametrize("tableau", [esdirk.KVAERNO3, esdirk.KVAERNO5], ids=["3", "5"])
def test_order_conditions(tableau):
    """sum_i b_i Phi_i(tree) = 1 / gamma(tree), for every tree up to the order."""
    s = len(tableau.a)
    A = torch.zeros(s, s, dtype=F64)
    for i, row in enumerate(tableau.a):
        A[i, : len(row)] = torch.tensor(row, dtype=F64)
    c = torch.tensor(tableau.c, dtype=F64)
    assert (A.sum(1) - c).abs().max() < 1e-14
    trees = {  # the elementary weights, and their densities; Hairer, Norsett & Wanner, II.2
        1: [(c**0, 1)],
        2: [(c, 2)],
        3: [(c**2, 3), (A @ c, 6)],
        4: [(c**3, 4), (c * (A @ c), 8), (A @ c**2, 12), (A @ A @ c, 24)],
        5: [
            (c**4, 5),
            (c**2 * (A @ c), 10),
            (c * (A @ c**2), 15),
            (c * (A @ A @ c), 30),
            ((A @ c) ** 2, 20),
            (A @ c**3, 20),
            (A @ (c * (A @ c)), 40),
            (A @ A @ c**2, 60),
            (A @ A @ A @ c, 120),
        ],
    }
    b, embedded = A[-1], A[-2]
    assert (torch.tensor(tableau.error[0], dtype=F64) - (b - embedded)).abs().max() < 1e-15
    for order in range(1, tableau.order + 1):
        for weight, density in trees[order]:
            assert abs(b @ weight - 1 / density) < 1e-13
            assert order == tableau.order or abs(embedded @ weight - 1 / density) < 1e-13


@pytest.mark.parametrize("kind, order", ORDERS.items(), ids=lambda v: getattr(v, "__name__", v))
def test_observed_order(kind, order):
    """y' = cos(3 t) y has y = exp(sin(3 t) / 3); it depends on t, so that a wrong c would show."""
    make = dict(zip(ORDERS, EQUAL.values(), strict=True))[kind]
    errors = []
    for n in (10, 20):
        h = 2.0 / n
        y0, t = torch.ones(1, 1, dtype=F64), torch.tensor([0.0, 2.0], dtype=F64)
        sol = odeint(lambda t, y: torch.cos(3 * t) * y, y0, t, solver=make(h))
        assert sol.steps.item() in (n, n + 1)  # the last one may be a rounding long
        errors.append(abs(sol.y1.item() - math.exp(math.sin(6.0) / 3)))
    assert order - 0.3 < math.log2(errors[0] / errors[1]) < order + 0.9


def test_robertson():
    """At t = 1e5 by Radau at 1e-12; at 1e11 as in the "ROBER" of the test set of Bari."""
    y0 = torch.tensor([[1.0, 0.0, 0.0]], dtype=F64).expand(2, 3)
    t = torch.tensor([[0.0, 1e5], [0.0, 1e11]], dtype=F64)
    sol = odeint(robertson(RATES), y0, t, solver=Kvaerno5(rtol=1e-6, atol=1e-12))
    expected = torch.tensor(
        [
            [1.786592114213e-2, 7.274751468449e-8, 9.821340061103569e-1],
            [0.2083340149701255e-7, 0.8333360770334713e-13, 0.9999999791665050],
        ],
        dtype=F64,
    )
    assert (sol.status == Status.CONVERGED).all()
    assert ((sol.y1 - expected) / expected).abs().max() < 1e-3
    assert ((sol.y1 - expected) / expected)[0].abs().max() < 1e-5
    assert sol.steps.max() < 400 and sol.evaluations.max() < 6000


def test_a_stiff_oscillation():
    """mu = 1000 over more than two jumps, in steps that an explicit method cannot take."""
    y0, t = torch.tensor([[2.0, 0.0]], dtype=F64), torch.tensor([0.0, 2000.0], dtype=F64)
    sol = odeint(van_der_pol(1000.0), y0, t, solver=Kvaerno5(rtol=1e-4, atol=1e-6))
    peer = solve_ivp(
        lambda t, y: [y[1], 1000 * (1 - y[0] ** 2) * y[1] - y[0]], (0, 2000), [2.0, 0.0],
        method="Radau", rtol=1e-6, atol=1e-8,
        jac=lambda t, y: [[0, 1], [-2000 * y[0] * y[1] - 1, 1000 * (1 - y[0] ** 2)]],
    )  # fmt: skip
    torch.testing.assert_close(sol.y1[0], torch.tensor(peer.y[:, -1]), rtol=1e-3, atol=0)
    assert sol.steps.item() < 250 and sol.evaluations.item() < 4500


@pytest.mark.parametrize("kind", ORDERS)
def test_a_component_that_decays_at_once(kind):
    """y' = -1e6 (y - cos t) from 0 is at cos t - 1e-6 sin t by the first step, if L-stable."""
    adaptive = kind in (Kvaerno3, Kvaerno5)
    solver = kind(rtol=1e-4, atol=1e-6) if adaptive else kind(step=0.1)
    y0, t = torch.zeros(1, 1, dtype=F64), torch.tensor([0.0, 3.0], dtype=F64)
    sol = odeint(lambda t, y: -1e6 * (y - torch.cos(t)), y0, t, solver=solver)
    error = abs(sol.y1.item() - (math.cos(3) + 1e-6 * math.sin(3)))
    assert sol.steps.item() < 60
    assert error < 1e-5 if kind in L_STABLE else error > 0.9


@pytest.mark.parametrize(
    "solver", [Kvaerno3(rtol=1e-4), Kvaerno5(rtol=1e-4), ImplicitEuler(0.5), Trapezoid(0.5)]
)
def test_a_stiff_neighbour_changes_nothing(solver):
    mu, t = torch.tensor([[1000.0], [1.0], [2.0]], dtype=F64), torch.tensor([0.0, 2.0], dtype=F64)
    y0 = torch.tensor([[2.0, 0.0]], dtype=F64).expand(3, 2)
    whole = odeint(van_der_pol(mu), y0, t, solver=solver)
    for i in range(3):
        one = odeint(van_der_pol(mu[i : i + 1]), y0[:1], t, solver=solver)
        assert torch.equal(one.y1[0], whole.y1[i])
        assert one.steps == whole.steps[i] and one.evaluations == whole.evaluations[i]


SMOOTH = {name: make(0.15) for name, make in EQUAL.items()}


def loss_of(solver, adjoint):
    """Of the start, a parameter and the last time."""

    def loss(y0, a, end):
        t = torch.stack([torch.zeros((), dtype=F64), end / 2, end])
        f = lambda t, y: -a * y + torch.sin(y.flip(1)) + torch.cos(3 * t) * y  # noqa: E731
        return odeint(f, y0, t, solver=solver, adjoint=adjoint).ys

    return loss


def inputs():
    y0 = torch.tensor([[1.0, 0.5], [-0.3, 2.0]], dtype=F64, requires_grad=True)
    a = torch.tensor([3.0, 50.0], dtype=F64, requires_grad=True)
    return y0, a, torch.tensor(0.5, dtype=F64, requires_grad=True)


@pytest.mark.parametrize("adjoint", [Discrete(), Checkpointed(3)], ids=["kept", "taken again"])
@pytest.mark.parametrize("name", SMOOTH)
def test_gradients(name, adjoint):
    """On equal steps, where the numbers are smooth functions of the arguments."""
    loss, x = loss_of(SMOOTH[name], adjoint), inputs()
    v = torch.arange(1.0, 13.0, dtype=F64).view(2, 3, 2) / 10
    grads = torch.autograd.grad(loss(*x), x, v)
    generator = torch.Generator().manual_seed(0)
    eps = 1e-4
    with torch.no_grad():
        for i, g in enumerate(grads):
            way = torch.randn(g.shape, generator=generator, dtype=F64)
            moved = [[u + s * eps * way if j == i else u for j, u in enumerate(x)] for s in (1, -1)]
            up, down = ((loss(*m) * v).sum() for m in moved)
            truth = (up - down) / (2 * eps)
            assert abs((g * way).sum() - truth) < 1e-6 * (1 + abs(truth))


def test_second_derivatives():
    x = inputs()[:2]
    end = torch.tensor(0.3, dtype=F64)
    for solver in (SMOOTH["trapezoid"], SMOOTH["kvaerno 3"]):
        twice = lambda y0, a, s=solver: loss_of(s, Discrete(order=2))(y0, a, end)  # noqa: E731
        assert torch.autograd.gradcheck(twice, x, atol=1e-6, fast_mode=True)
        assert torch.autograd.gradgradcheck(twice, x, atol=1e-6, fast_mode=True)
    once = loss_of(Trapezoid(0.15), Discrete())(*x, end)
    (first,) = torch.autograd.grad(once.square().sum(), x[1], create_graph=True)
    with pytest.raises(RuntimeError, match="order=2"):
        torch.autograd.grad(first.sum(), x[1])


def test_the_gradient_of_a_stiff_solution():
    """Rates that are all s times as large are a time that passes s times as fast."""
    y0, t = torch.tensor([[1.0, 0.0, 0.0]], dtype=F64), torch.tensor([0.0, 1e4], dtype=F64)
    k = RATES.clone().requires_grad_()
    y = odeint(robertson(k), y0, t, solver=Kvaerno5(rtol=1e-6, atol=1e-10)).y1
    (grad,) = torch.autograd.grad(y[0, 0], k)
    truth = 1e4 * robertson(RATES)(None, y.detach())[0, 0]
    assert abs((grad * RATES).sum() - truth) < 1e-4 * abs(truth)


def test_forward_mode():
    y0, a, end = (v.detach() for v in inputs())
    loss = lambda a: loss_of(Trapezoid(0.25), Discrete())(y0, a, end)  # noqa: E731
    u, v = torch.ones(2, dtype=F64), torch.arange(12.0, dtype=F64).view(2, 3, 2)
    forward = torch.func.jvp(loss, (a,), (u,))[1]
    (reverse,) = torch.func.vjp(loss, a)[1](v)
    torch.testing.assert_close((forward * v).sum(), (reverse * u).sum())


@pytest.mark.parametrize("solver", [Kvaerno3(rtol=1e-3), ImplicitEuler(0.1), Trapezoid(0.1)])
def test_a_nan_sample_touches_no_other(solver):
    a = torch.tensor([2.0], dtype=F64, requires_grad=True)
    y0 = torch.ones(3, 2, dtype=F64)

    def solve(poison):
        f = lambda t, y: -a * y * torch.where(t > 0, poison, 1.0)  # noqa: E731
        return odeint(f, y0, UNIT, solver=solver)

    clean = solve(torch.ones(3, 1, dtype=F64))
    poison = torch.tensor([[1.0], [math.nan], [1.0]], dtype=F64)
    with pytest.warns(ConvergenceWarning, match="sample 1: NUMERICAL_FAILURE"):
        sol = solve(poison)
    assert sol.status.tolist() == [0, int(Status.NUMERICAL_FAILURE), 0]
    assert sol.t[1] < 1e-9 and sol.ys.isfinite().all()
    assert torch.equal(sol.y1[[0, 2]], clean.y1[[0, 2]])
    got, expected = (torch.autograd.grad(s.y1[[0, 2]].sum(), a)[0] for s in (sol, clean))
    torch.testing.assert_close(got, expected)


def test_newtons_method_fails_without_a_solution():
    """y+ = 2 + y+^2 has none; with a shorter step y' = y^2 goes on, up to its pole at t = 1/2."""
    y0, t = torch.full((1, 1), 2.0, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    with pytest.warns(ConvergenceWarning, match="NUMERICAL_FAILURE"):
        sol = odeint(lambda t, y: y * y, y0, t, solver=ImplicitEuler())
    assert sol.t.item() == 0 and sol.y1.item() == 2
    short = torch.tensor([0.0, 0.4], dtype=F64)
    sol = odeint(lambda t, y: y * y, y0, short, solver=Kvaerno5(first_step=0.4))
    torch.testing.assert_close(sol.y1, torch.full((1, 1), 10.0, dtype=F64), rtol=1e-4, atol=0)


def test_a_strong_nonlinearity_gets_new_jacobians():
    """y+ = 1 - 5 y+^3: the derivative at 1 misleads, those at the iterates do not."""
    y0, t = torch.ones(1, 1, dtype=F64), torch.tensor([0.0, 5.0], dtype=F64)
    y = odeint(lambda t, y: -(y**3), y0, t, solver=ImplicitEuler()).y1
    assert abs(y + 5 * y**3 - 1) < 1e-12


def test_a_tuple_in_float32():
    y0 = torch.ones(3, 2), torch.zeros(3, 2, 2)
    f = lambda t, y: (-100 * (y[0] - torch.cos(t)), y[0].unsqueeze(1).expand(3, 2, 2))  # noqa: E731
    sol = odeint(f, y0, torch.tensor([0.0, 0.5, 1.0]), solver=Kvaerno5(rtol=1e-4, atol=1e-5))
    assert sol.ys[0].dtype == torch.float32 and sol.ys[0].shape == (3, 3, 2)
    assert sol.ys[1].shape == (3, 3, 2, 2) and (sol.status == 0).all()
    # y = cos t / (1 + 1e-4) + sin t / (100 + 1e-2), once the start is forgotten
    exact = math.cos(1) / (1 + 1e-4) + math.sin(1) / (100 + 1e-2)
    assert (sol.y1[0] - exact).abs().max() < 1e-3


def test_backwards_in_time():
    y0, t = torch.ones(1, 1, dtype=F64), torch.tensor([1.0, 0.6, 0.0], dtype=F64)
    sol = odeint(lambda t, y: -y, y0, t, solver=Kvaerno5(max_step=0.05))
    expected = torch.tensor([1.0, math.exp(0.4), math.e], dtype=F64).view(1, 3, 1)
    torch.testing.assert_close(sol.ys, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: ImplicitEuler(newton_rtol=0.0), "newton_rtol"),
        (lambda: Trapezoid(newton_steps=0), "newton_steps"),
        (lambda: Kvaerno5(newton_tol=-1.0), "newton_tol"),
        (lambda: Kvaerno3(rtol=0.0), "rtol"),
        (lambda: Discrete(order=0), "order"),
    ],
)
def test_settings_are_checked(make, name):
    with pytest.raises(ValueError, match=name):
        make()


def test_inference_mode_is_turned_down():
    with torch.inference_mode(), pytest.raises(ValueError, match="no_grad"):
        odeint(lambda t, y: -y, torch.ones(1, 1), UNIT, solver=Kvaerno5())


def test_a_field_with_a_gradient_inside():
    """The flow of H = (x^2 + v^2) / 2, a rotation, with its gradient taken by autograd."""
    scale = torch.ones(1, dtype=F64, requires_grad=True)

    def f(t, y):
        with torch.enable_grad():
            z = y if y.requires_grad else y.detach().requires_grad_()
            H = scale * z.square().sum() / 2
            (g,) = torch.autograd.grad(H, z, create_graph=True)
        return torch.stack([g[:, 1], -g[:, 0]], 1)

    y0 = torch.tensor([[1.0, 0.0]], dtype=F64)
    y = odeint(f, y0, UNIT, solver=Kvaerno5(rtol=1e-8)).y1
    torch.testing.assert_close(y[0, 0].item(), math.cos(1), rtol=1e-7, atol=0)
    (grad,) = torch.autograd.grad(y[0, 0], scale)
    torch.testing.assert_close(grad.item(), -math.sin(1), rtol=1e-6, atol=0)
