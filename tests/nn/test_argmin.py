"""`ArgminLayer`: what it holds, what it takes, how it is saved, shown and trained."""

import copy

import pytest
import torch
from torch import nn

from diffopt import SQP, ArgminLayer, argmin, solve_qp

X = torch.tensor([[3.0, 4.0], [0.25, 0.5], [-2.0, 0.0]]).double()


def distance(z, x):
    return (z - x).square().sum(-1) / 2


def outside(z, x):
    return z.square().sum(-1, keepdim=True) - 1


class Energy(nn.Module):
    """A positive definite quadratic function of z with a matrix to learn, and a term of x."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.eye(2).double())

    def forward(self, z, x):
        return (z @ self.factor).square().sum(-1) / 2 + (z**4).sum(-1) / 10 - (x * z).sum(-1)


def test_output_is_the_minimiser():
    layer = ArgminLayer(distance, outside, n=2)
    want = argmin(lambda z: distance(z, X), 0 * X, inequality=lambda z: outside(z, X))
    assert torch.equal(layer(X), want.z) and torch.equal(layer.solve(X).lam, want.lam)
    again = layer.solve(X, warm_start=want)
    assert (again.iterations == 0).all()


def test_modules_and_bounds_are_learned():
    layer = ArgminLayer(Energy(), n=2, ub=nn.Parameter(torch.tensor(1.0).double()), lb=X[0] - 9)
    assert {name for name, _ in layer.named_parameters()} == {"objective.factor", "ub"}
    assert {name for name, _ in layer.named_buffers()} == {"lb"}
    layer(X).sum().backward()
    assert layer.ub.grad.item() == pytest.approx(2.0)  # both entries of the first sample
    assert layer.objective.factor.grad.abs().sum() > 0


def test_training_brings_the_matrix_back():
    torch.manual_seed(0)
    target, layer = Energy(), ArgminLayer(Energy(), n=2)
    target.factor.data = torch.tensor([[1.5, 0.3], [0.0, 0.8]]).double()
    x = torch.randn(30, 2, dtype=torch.float64)
    y = ArgminLayer(target, n=2)(x).detach()
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=30, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = (layer(x) - y).square().mean()
        value.backward()
        return value

    optimiser.step(loss)
    M, want = (m.factor @ m.factor.mT for m in (layer.objective, target))
    torch.testing.assert_close(M, want, atol=1e-3, rtol=0)


def test_the_generic_layer_of_the_tutorial_is_one_line():
    """OptLayer(variables, parameters, objective, inequalities, equalities) of functions of one
    sample, here of a QP with parameters P, q, G, h."""
    torch.manual_seed(0)
    P, q, G = (torch.randn(5, *s, dtype=torch.float64) for s in ((3, 3), (3,), (2, 3)))
    h = torch.rand(5, 2, dtype=torch.float64)

    def objective(z, P, q, G, h):
        return 0.5 * (P @ z).square().sum() + q @ z + 0.5 * z @ z

    def inequality(z, P, q, G, h):
        return G @ z - h

    layer = ArgminLayer(torch.vmap(objective), torch.vmap(inequality), n=3)
    Q = P.mT @ P + torch.eye(3)
    torch.testing.assert_close(layer(P, q, G, h), solve_qp(Q, q, G, h).z, atol=1e-9, rtol=0)


def test_where_a_call_begins():
    layer = ArgminLayer(lambda z, x: ((z**2 - 1) ** 2).sum(-1), start=lambda x: x, order=1)
    start = torch.tensor([[0.5], [-0.5]]).double()
    torch.testing.assert_close(layer(start), start.sign(), atol=1e-9, rtol=0)
    torch.testing.assert_close(layer(start, z0=-start), -start.sign(), atol=1e-9, rtol=0)
    assert layer(start.float()).dtype == torch.float32


def test_saving_copying_and_showing():
    layer = ArgminLayer(Energy(), n=2, lb=0.0, solver=SQP(max_steps=7))
    layer.objective.factor.data *= 2
    other = ArgminLayer(Energy(), n=2, lb=0.0)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(X), layer(X)) and torch.equal(copy.deepcopy(layer)(X), layer(X))
    for part in ("n=2", "lb=0", "max_steps=7", "Energy"):
        assert part in repr(layer)


def test_wrong_use_says_what_is_wrong():
    with pytest.raises(ValueError, match="'maxiter' is no option of argmin"):
        ArgminLayer(distance, n=2, maxiter=5)
    for given in ({}, {"n": 2, "start": torch.zeros_like}):
        with pytest.raises(ValueError, match="one of them"):
            ArgminLayer(distance, **given)
    with pytest.raises(ValueError, match="n=0: expected a positive"):
        ArgminLayer(distance, n=0)
    with pytest.raises(ValueError, match="pass z0 or start"):
        ArgminLayer(lambda z: z.square().sum(-1), n=2)()
