"""`NeuralODE`: the solution of `odeint`, as a module; augmented, at rest, with learned times."""

import copy
import pickle
from math import exp, pi

import pytest
import torch
from torch import nn

from diffopt import (
    RK4,
    Anderson,
    Backsolve,
    Checkpointed,
    ConvergenceWarning,
    Discrete,
    Dopri5,
    NeuralODE,
    odeint,
)

F64 = torch.float64
TIGHT = Dopri5(rtol=1e-10, atol=1e-12)


class Field(nn.Module):
    """tanh(W (y, t) + U x), with t or inputs if asked for."""

    def __init__(self, n=3, inputs=0):
        super().__init__()
        self.y = nn.Linear(n + 1, n, dtype=F64)
        self.x = nn.Linear(inputs, n, dtype=F64) if inputs else None

    def forward(self, t, y, x=None):
        out = self.y(torch.cat([y, t], 1))
        return torch.tanh(out if self.x is None else out + self.x(x))


class Conv(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, dtype=F64)

    def forward(self, t, y):
        return torch.tanh(self.conv(y)) * (1 + t)


def rotation(t, y):
    """Half a turn of the plane in a unit of time."""
    return pi * torch.stack([-y[:, 1], y[:, 0]], 1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def y0():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=F64)


ADJOINTS = {
    "default": None,
    "discrete": Discrete(),
    "checkpointed": Checkpointed(4),
    "continuous": Backsolve(),
}


@pytest.mark.parametrize("name", ADJOINTS)
def test_it_is_odeint_with_the_same_gradients(name, y0):
    layer = NeuralODE(Field(), (0.0, 0.5, 2.0), solver=TIGHT, adjoint=ADJOINTS[name])
    out = layer.solve(y0)
    expected = odeint(layer.f, y0, torch.tensor([0.0, 0.5, 2.0]), solver=TIGHT)
    torch.testing.assert_close(out.ys, expected.ys, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(y0), expected.y1, rtol=1e-12, atol=1e-12)
    weights = list(layer.parameters())
    ours = torch.autograd.grad(out.ys.square().sum(), weights)
    theirs = torch.autograd.grad(expected.ys.square().sum(), weights)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_gradients_of_start_inputs_and_parameters(y0):
    layer = NeuralODE(Field(inputs=2), solver=RK4(0.1))
    x = torch.randn(5, 2, dtype=F64, requires_grad=True)
    y0 = y0.requires_grad_()

    def run(y0, x, *weights):
        names = (name for name, _ in layer.named_parameters())
        given = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(layer, given, (y0, x))

    assert torch.autograd.gradcheck(run, (y0, x, *layer.parameters()))


def test_augmented_by_a_second_dimension_minus_one_and_one_change_places():
    """Half a turn in the plane of (y, 0); in one dimension no ODE can."""
    layer = NeuralODE(rotation, augment=1, solver=TIGHT)
    y = torch.tensor([[-1.0], [1.0]], dtype=F64)
    torch.testing.assert_close(layer(y), -y, atol=1e-8, rtol=0)
    half = layer.solve(y, t=torch.tensor([0.0, 0.5, 1.0])).ys
    assert half.shape == (2, 3, 1)
    torch.testing.assert_close(half[:, 1], 0 * y, atol=1e-8, rtol=0)
    layer.keep = True
    middle = layer.solve(y, t=torch.tensor([0.0, 0.5])).y1
    torch.testing.assert_close(middle, torch.cat([0 * y, y], 1), atol=1e-8, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_in_one_dimension_the_order_stays(seed):
    torch.manual_seed(seed)
    layer = NeuralODE(Field(1), (0.0, 1.0, 3.0))
    with torch.no_grad():
        layer.f.y.weight.mul_(5)
        ys = layer.solve(torch.linspace(-2, 2, 50, dtype=F64).unsqueeze(1)).ys
    assert (ys.diff(dim=0) > 0).all()


@pytest.mark.parametrize(
    ("augment", "keep", "channels"), [(0, False, 2), (3, False, 2), (3, True, 5)]
)
def test_images_are_augmented_by_channels(augment, keep, channels):
    layer = NeuralODE(Conv(2 + augment), augment=augment, keep=keep)
    y0 = torch.randn(4, 2, 5, 6, dtype=F64)
    out = layer.solve(y0, t=torch.tensor([0.0, 0.1, 0.2]))
    assert out.ys.shape == (4, 3, channels, 5, 6) and layer(y0).shape == (4, channels, 5, 6)
    assert torch.equal(out.ys[:, 0, :2], y0) and out.ys[:, 0, 2:].eq(0).all()


def test_a_tuple_is_a_state_too(y0):
    layer = NeuralODE(lambda t, y: (y[1], -y[0]), (0.0, pi / 2), solver=TIGHT)
    q, p = layer((y0, 2 * y0))
    torch.testing.assert_close(q, 2 * y0, atol=1e-8, rtol=0)
    torch.testing.assert_close(p, -y0, atol=1e-8, rtol=0)
    assert layer.last.ys[0].shape == (5, 2, 3)


def test_a_learned_time():
    """y' = y: y(T) = e^T, and so is its derivative."""
    layer = NeuralODE(lambda t, y: y, nn.Parameter(torch.tensor([0.0, 1.5])), solver=TIGHT)
    layer(torch.ones(1, 1, dtype=F64)).sum().backward()
    torch.testing.assert_close(layer.t.grad, torch.tensor([-exp(1.5), exp(1.5)]))


def test_a_time_for_every_sample():
    ends = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    layer = NeuralODE(lambda t, y: y, torch.stack([0 * ends, ends], 1), solver=TIGHT)
    y = layer(torch.ones(3, 1, dtype=F64))
    torch.testing.assert_close(y.squeeze(1), ends.exp())


@pytest.mark.parametrize("solver", [None, Anderson(rtol=1e-10)])
def test_steady_is_where_a_long_time_leads(solver, y0):
    class Relaxing(Field):
        def forward(self, t, y, x):
            return torch.tanh(0.2 * self.y(torch.cat([y, 0 * t], 1)) + x) - y

    layer, x = NeuralODE(Relaxing(), (0.0, 60.0), solver=TIGHT), y0.flip(1)
    out = layer.steady(y0, x, solver=solver)
    far = layer(y0, x)
    torch.testing.assert_close(out.z, far, atol=1e-6, rtol=0)
    weights = list(layer.parameters())
    ours = torch.autograd.grad(out.z.square().sum(), weights)
    theirs = torch.autograd.grad(far.square().sum(), weights)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_steady_augmented():
    """y' = a - y, a' = 1 - a."""
    layer = NeuralODE(lambda t, s: torch.stack([s[:, 1] - s[:, 0], 1 - s[:, 1]], 1), augment=1)
    out = layer.steady(torch.zeros(3, 1, dtype=F64))
    torch.testing.assert_close(out.z, torch.ones(3, 1, dtype=F64), atol=1e-6, rtol=0)


def test_last_says_how_it_went(y0):
    layer = NeuralODE(Field())
    assert layer.last is None
    layer(y0)
    assert layer.last.status.eq(0).all() and layer.last.evaluations.min() >= 8
    assert not layer.last.ys.requires_grad
    layer = NeuralODE(lambda t, y: y * y, (0.0, 2.0), on_failure="nan")
    y = layer(torch.tensor([[0.1], [1.0]], dtype=F64))
    assert y.isnan().flatten().tolist() == [False, True]
    with pytest.warns(ConvergenceWarning, match="sample 1"):
        NeuralODE(lambda t, y: y * y, (0.0, 2.0))(torch.tensor([[0.1], [1.0]], dtype=F64))


def test_a_good_module(y0):
    layer = NeuralODE(Field(), augment=0)
    y = layer(y0)
    assert sorted(layer.state_dict()) == ["f.y.bias", "f.y.weight"]
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.last is None and torch.equal(twin(y0), y)
    single = copy.deepcopy(layer).float()
    assert single(y0.float()).dtype == torch.float32
    torch.testing.assert_close(single(y0.float()).double(), y, atol=1e-5, rtol=1e-5)
    assert "augment=0, solver=None" in repr(layer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NeuralODE(rotation, augment=-1), "augment=-1: expected a number of zeros"),
        (lambda: NeuralODE(rotation, augment=True), "augment=True"),
        (lambda: NeuralODE(rotation, augment=1)(torch.zeros(3)), r"y0 is a tensor \(3,\)"),
        (lambda: NeuralODE(rotation, augment=1)((torch.zeros(3, 1),)), "y0 is a tuple"),
        (lambda: NeuralODE(rotation, (1.0, 1.0))(torch.zeros(3, 2)), "strictly increasing"),
        (lambda: NeuralODE(rotation, solver="rk4")(torch.zeros(3, 2)), "solver='rk4'"),
        (lambda: NeuralODE(rotation, adjoint="none")(torch.zeros(3, 2)), "adjoint='none'"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
