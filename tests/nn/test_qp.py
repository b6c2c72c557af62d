"""`QPLayer`: what it holds, what it takes, how it is saved, shown and trained."""

import copy

import pytest
import torch
from torch import nn

from diffopt import InteriorPoint, QPLayer, solve_qp

Q, A = torch.eye(3).double(), torch.ones(1, 3).double()
P = torch.tensor([[-0.5, -0.5, 0.0], [1.0, 2.0, -3.0]]).double()


def simplex(**changes):
    return QPLayer(**dict(Q=Q, A=A, b=1.0, lb=0.0) | changes)


def test_output_is_the_minimiser():
    sol = solve_qp(Q, P, A=A, b=1.0, lb=0.0)
    assert torch.equal(simplex()(P), sol.z)
    assert torch.equal(simplex().solve(P).nu, sol.nu)


@pytest.mark.parametrize("held", ["Q", "p", "A", "b", "lb"])
def test_any_argument_may_be_held_or_given(held):
    full = dict(Q=Q, p=P, A=A, b=torch.ones(1).double(), lb=torch.zeros(3).double())
    layer = QPLayer(**{held: full.pop(held)})
    assert torch.equal(layer(**full), simplex()(P))


def test_parameters_are_learned_and_buffers_are_not():
    layer = simplex(A=nn.Parameter(A), Q=nn.Parameter(Q))
    assert {name for name, _ in layer.named_parameters()} == {"Q", "A"}
    assert not list(layer.named_buffers()) and set(simplex().state_dict()) == {"Q", "A"}
    layer(P).pow(2).sum().backward()
    assert layer.A.grad.shape == A.shape and layer.Q.grad.shape == Q.shape


def test_saving_copying_and_moving():
    layer = simplex(A=nn.Parameter(A * 2))
    other = simplex(A=nn.Parameter(A.clone()))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(P), layer(P))
    assert torch.equal(copy.deepcopy(layer)(P), layer(P))
    assert layer.float()(P.float()).dtype == torch.float32


def test_fits_a_sequential_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 3), simplex().float(), nn.Linear(3, 2))
    x = torch.randn(4, 5)
    model(x).pow(2).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0


def test_repr_shows_sizes_what_is_learned_and_the_solver():
    text = repr(simplex(A=nn.Parameter(A), solver=InteriorPoint(max_steps=7)))
    for part in ("Q=(3, 3)", "A learned=(1, 3)", "b=1", "lb=0", "max_steps=7"):
        assert part in text


def test_options_reach_the_solver():
    layer = simplex(on_failure="raise")
    with pytest.raises(RuntimeError, match="PRIMAL_INFEASIBLE"):
        layer(P, ub=torch.full((3,), 0.1).double())


def test_numbers_keep_their_precision():
    z = simplex(b=0.1)(P)
    assert z.sum(-1).tolist() == pytest.approx([0.1, 0.1], abs=1e-15)
    assert simplex().half()(P.half()).dtype == torch.float16


def test_wrong_use_says_what_is_wrong():
    with pytest.raises(ValueError, match="A is held by this layer already"):
        simplex()(P, A=A)
    with pytest.raises(ValueError, match="'q' is no argument of a QP"):
        simplex()(P, q=Q)
    with pytest.raises(ValueError, match="'maxiter' is no option of a QP layer"):
        simplex(maxiter=5)
    with pytest.raises(ValueError, match="p is missing: give it to the layer or to the call"):
        simplex()()
