"""`odeint_event`: known times, derivatives, samples of their own."""

import math

import pytest
import torch

from diffopt import (
    RK4,
    Backsolve,
    Checkpointed,
    ConvergenceWarning,
    Discrete,
    Dopri5,
    Dopri8,
    Kvaerno5,
    Status,
    Tsit5,
    odeint_event,
)

F64 = torch.float64
TIGHT = {"rtol": 1e-10, "atol": 1e-12}
SPAN = torch.tensor([0.0, 9.0], dtype=F64)


def fall(t, y, g=10.0):
    return torch.stack([y[:, 1], -g + 0 * y[:, 0]], 1)


def height(t, y):
    return y[:, 0]


def turn(t, y):
    """The circle: x = cos t, v = -sin t from (1, 0)."""
    return torch.stack([y[:, 1], -y[:, 0]], 1)


def start(*rows):
    return torch.tensor(rows, dtype=F64)


@pytest.mark.parametrize("solver", [Dopri5(**TIGHT), Tsit5(**TIGHT), Dopri8(**TIGHT), Kvaerno5()])
def test_a_ball_meets_the_ground(solver):
    y0 = start([20.0, 0.0], [5.0, 0.0], [5.0, 20.0])
    sol = odeint_event(fall, y0, SPAN, height, solver=solver)
    expected = torch.tensor([2.0, 1.0, (20 + math.sqrt(500)) / 10], dtype=F64)
    torch.testing.assert_close(sol.t, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(sol.y[:, 1], y0[:, 1] - 10 * expected, rtol=1e-9, atol=0)
    assert sol.y[:, 0].abs().max() < 1e-11 and sol.happened.all() and (sol.status == 0).all()


@pytest.mark.parametrize("adjoint", [Discrete(order=2), Checkpointed(2, order=2)])
@pytest.mark.parametrize("solver", [Dopri5(**TIGHT), Kvaerno5(**TIGHT)], ids=["dopri", "kvaerno"])
def test_derivatives_of_a_known_time(solver, adjoint):
    """t = sqrt(2 h / g): dt/dh = 1 / (g t), dt/dg = -t / (2 g), d2t/dh2 = -1 / (g^2 t^3)."""
    h, g = (torch.tensor([v], dtype=F64, requires_grad=True) for v in (20.0, 10.0))
    y0 = torch.stack([h, 0 * h], 1)
    field = lambda t, y: fall(t, y, g)  # noqa: E731
    sol = odeint_event(field, y0, SPAN, height, solver=solver, adjoint=adjoint)
    dh, dg = torch.autograd.grad(sol.t.sum(), (h, g), create_graph=True)
    assert abs(dh.item() - 1 / 20) < 1e-8 and abs(dg.item() + 0.1) < 1e-8
    (dh2,) = torch.autograd.grad(dh.sum(), h)
    assert abs(dh2.item() + 1 / 800) < 1e-8


EQUAL = {"first_step": 0.1, "max_step": 0.1, "rtol": 1e9}  # smooth in all arguments


@pytest.mark.parametrize(
    "solver", [Dopri5(**EQUAL), Kvaerno5(**EQUAL, newton_tol=1e-24, newton_steps=50)]
)
def test_gradients_with_respect_to_everything(solver):
    """Of times and states, by central differences; g depends on time, state and a parameter."""
    y0 = start([1.0, 0.0], [0.5, 0.5]).requires_grad_()
    w, level = (torch.tensor(v, dtype=F64, requires_grad=True) for v in (2.0, 0.3))
    t0 = torch.tensor(0.1, dtype=F64, requires_grad=True)

    def solve(y0, w, level, t0):
        f = lambda t, y: torch.stack([y[:, 1], -w * torch.sin(y[:, 0]) * (1 + t[:, 0])], 1)  # noqa: E731
        t = torch.stack([t0, t0 + 5])
        sol = odeint_event(f, y0, t, lambda t, y: y[:, 0] - level * (1 + t), solver=solver)
        assert sol.happened.all()
        return torch.cat([sol.t, sol.y.flatten()])

    x = (y0, w, level, t0)
    v = torch.arange(1.0, 7.0, dtype=F64)
    grads = torch.autograd.grad(solve(*x), x, v)
    eps = 1e-4
    with torch.no_grad():
        for i, g in enumerate(grads):
            way = torch.ones_like(g)
            moved = [[u + s * eps * way if j == i else u for j, u in enumerate(x)] for s in (1, -1)]
            up, down = ((solve(*m) * v).sum() for m in moved)
            assert abs(g.sum() - (up - down) / (2 * eps)) < 1e-6 * (1 + abs(g.sum()))


def test_every_sample_has_its_own_event_or_none():
    """x = r cos t falls to c at arccos(c / r); the last one never gets there."""
    y0 = start([1.0, 0.0], [2.0, 0.0], [1.0, 0.0]).requires_grad_()
    level = torch.tensor([0.5, 0.5, -1.5], dtype=F64, requires_grad=True)
    solver = Dopri5(**TIGHT)
    t = torch.tensor([[0.0, 9.0], [0.0, 9.0], [0.0, 2.0]], dtype=F64, requires_grad=True)
    sol = odeint_event(turn, y0, t, lambda t, y: y[:, 0] - level, solver=solver)
    assert sol.happened.tolist() == [True, True, False] and (sol.status == 0).all()
    expected = torch.tensor([math.acos(0.5), math.acos(0.25), 2.0], dtype=F64)
    torch.testing.assert_close(sol.t.detach(), expected, rtol=1e-9, atol=0)
    end = torch.stack([expected.cos(), -expected.sin()], 1) * y0.detach()[:, :1]
    torch.testing.assert_close(sol.y.detach(), end, rtol=0, atol=1e-8)
    dy0, dlevel, dt = torch.autograd.grad(sol.t.sum(), (y0, level, t))
    slope = -1 / (y0.detach()[:, 0] * expected.sin())
    torch.testing.assert_close(dlevel[:2], slope[:2], rtol=1e-7, atol=0)
    assert dlevel[2] == 0 and (dy0[2] == 0).all()
    torch.testing.assert_close(dt[:, 1], torch.tensor([0.0, 0.0, 1.0], dtype=F64))
    one = odeint_event(turn, y0[:1], t[:1], lambda t, y: y[:, 0] - level[:1], solver=solver)
    assert torch.equal(one.t[0], sol.t[0]) and torch.equal(one.y[0], sol.y[0])


def test_directions():
    """x = sin t crosses zero falling at pi, rising at 2 pi; at the start it is zero."""
    y0 = start([0.0, 1.0])
    for direction, expected in ((0, math.pi), (-1, math.pi), (1, 2 * math.pi)):
        solver = Dopri5(**TIGHT)
        sol = odeint_event(turn, y0, SPAN, height, direction=direction, solver=solver)
        assert abs(sol.t.item() - expected) < 1e-8


def test_backwards_in_time():
    back = torch.tensor([0.0, -9.0], dtype=F64)
    sol = odeint_event(turn, start([1.0, 0.0]), back, height, solver=Dopri5(**TIGHT))
    assert abs(sol.t.item() + math.pi / 2) < 1e-8
    rising = odeint_event(turn, start([1.0, 0.0]), back, height, direction=1)
    assert abs(rising.t.item() + 3 * math.pi / 2) < 1e-4


def test_a_touch_is_no_event():
    """1 - cos t touches zero at 2 pi, from above."""
    sol = odeint_event(turn, start([1.0, 0.1]), SPAN, lambda t, y: 1.1 - y[:, 0])
    assert not sol.happened.any() and sol.t.item() == 9 and sol.status.item() == 0


def test_an_event_at_the_last_time():
    sol = odeint_event(turn, start([1.0, 0.0]), SPAN, lambda t, y: t - 9)
    assert sol.happened.all() and abs(sol.t.item() - 9) < 1e-12


def test_many_bounces():
    """Each event is the start of the next: heights of 5, with half the speed after a bounce."""
    y, t, times = start([5.0, 0.0]).requires_grad_(), torch.zeros(1, dtype=F64), []
    for _ in range(3):
        span = torch.stack([t, t.detach() + 9], 1)
        sol = odeint_event(fall, y, span, height, direction=-1)
        times.append(sol.t)
        t, y = sol.t, torch.stack([0 * sol.y[:, 0], -0.5 * sol.y[:, 1]], 1)
    expected = torch.tensor([1.0, 2.0, 2.5], dtype=F64)
    torch.testing.assert_close(torch.cat(times).detach(), expected, rtol=1e-8, atol=0)


def test_a_tuple_in_float32():
    f = lambda t, y: (y[1], -10 + 0 * y[1])  # noqa: E731
    y0 = torch.tensor([[20.0], [5.0]]), torch.zeros(2, 1)
    sol = odeint_event(f, y0, torch.tensor([0.0, 9.0]), lambda t, y: y[0][:, 0])
    torch.testing.assert_close(sol.t, torch.tensor([2.0, 1.0], dtype=F64), rtol=1e-5, atol=0)
    assert sol.y[1].dtype == torch.float32 and sol.y[1].shape == (2, 1)


@pytest.mark.parametrize("place", ["field", "event"])
def test_a_nan_sample_touches_no_other(place):
    poison = torch.tensor([1.0, math.nan, 1.0], dtype=F64)
    a = torch.tensor([10.0], dtype=F64, requires_grad=True)
    level = torch.tensor(0.0, dtype=F64, requires_grad=True)
    y0 = start([20.0, 0.0], [20.0, 0.0], [5.0, 0.0])

    def late(t):
        return torch.where(t > 0.5, poison, 1.0)

    def solve(y0, bad):
        field = lambda t, y: fall(t, y, a * late(t[:, 0]) if bad == "field" else a)  # noqa: E731
        event = lambda t, y: (y[:, 0] - level) * (late(t) if bad == "event" else 1)  # noqa: E731
        return odeint_event(field, y0, SPAN, event)

    with pytest.warns(ConvergenceWarning, match="sample 1: NUMERICAL_FAILURE"):
        sol = solve(y0, place)
    assert sol.status.tolist() == [0, int(Status.NUMERICAL_FAILURE), 0]
    clean = solve(y0[[0, 2]], None)
    assert torch.equal(sol.t[[0, 2]], clean.t) and sol.y.isfinite().all()
    got, expected = (torch.autograd.grad(s.t.sum(), (a, level)) for s in (sol, clean))
    torch.testing.assert_close(got, expected)


WRONG = {
    "solver": ({"solver": RK4(0.1)}, "adaptive"),
    "adjoint": ({"adjoint": Backsolve()}, "Discrete"),
    "direction": ({"direction": 2}, "direction"),
    "event": ({"event": lambda t, y: y}, "one number a sample"),
    "t": ({"t": torch.tensor([0.0, 1.0, 2.0])}, "time of y0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_says_what_is_wrong(name):
    options, match = WRONG[name]
    with pytest.raises(ValueError, match=match):
        odeint_event(fall, start([1.0, 0.0]), **{"t": SPAN, "event": height, **options})
