"""Transport plans under entropy: their conditions, derivatives, failures."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from diffopt import ConvergenceError, ConvergenceWarning
from diffopt.projections import EntropicTransport

from .sets import DOUBLE, in_transport, masses, vector


def entropic(X: Tensor, u: Tensor, v: Tensor, epsilon: Tensor, **options) -> Tensor:
    return EntropicTransport(**masses(u, v), epsilon=epsilon, **options)(X)


@pytest.fixture
def plans(generator) -> list[Tensor]:
    """X, u, v and epsilon for four samples."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(4, *shape, generator=generator, dtype=DOUBLE)

    return [normal(3, 5), normal(3), normal(5), vector(0.2, 0.5, 1, 4)]


def test_the_entropic_plan_is_the_one_of_its_conditions(plans):
    """Z > 0, the marginals, and log Z - X / epsilon = f_i + g_j."""
    X, u, v, epsilon = plans
    Z = entropic(*plans)
    assert in_transport(Z, u, v).max() <= 1e-12
    rest = Z.log() - X / epsilon.view(-1, 1, 1)
    rest = rest - rest.mean(-1, keepdim=True)
    assert (rest - rest.mean(-2, keepdim=True)).abs().max() <= 1e-10


def test_entropic_derivatives(plans):
    inputs = [v.requires_grad_() for v in plans]
    assert torch.autograd.gradcheck(entropic, inputs, fast_mode=True)
    twice = partial(entropic, order=2)
    some = [v.detach()[:2].requires_grad_() for v in plans]
    assert torch.autograd.gradgradcheck(twice, some, fast_mode=True)


def test_entropic_batches(plans):
    Z = entropic(*plans)
    loop = torch.stack([entropic(*(v[i] for v in plans)) for i in range(4)])
    torch.testing.assert_close(loop, Z, rtol=1e-10, atol=1e-10)
    broken = [plans[0].clone(), *plans[1:]]
    broken[0][1, 0, 0] = torch.nan
    broken[0].requires_grad_()
    answer = entropic(*broken)
    assert answer[1].isnan().all()
    torch.testing.assert_close(answer[[0, 2, 3]], Z[[0, 2, 3]], rtol=1e-10, atol=1e-10)
    answer[[0, 2, 3]].square().sum().backward()
    assert broken[0].grad.isfinite().all()
    assert entropic(*(v.float() for v in plans)).dtype == torch.float32


@pytest.mark.parametrize("epsilon", [1.0, 0.1, 0.01, 1e-3])
def test_small_epsilon(epsilon, generator):
    """The marginals are right, and <X, Z> is that of the best assignment up to epsilon n log n."""
    X = torch.randn(4, 6, 6, generator=generator, dtype=DOUBLE)
    Z = EntropicTransport(epsilon=epsilon)(X)
    assert ((Z.sum(-1) - 1).abs().max(), (Z.sum(-2) - 1).abs().max()) <= (1e-12, 1e-9)
    orders = torch.tensor(list(itertools.permutations(range(6))))
    best = X[:, torch.arange(6), orders].sum(-1).amax(-1)
    gap = best - (X * Z).sum((-1, -2))
    assert (gap >= -1e-9).all() and (gap <= epsilon * 6 * math.log(6)).all()


def test_sinkhorn_that_does_not_converge_says_so(generator):
    X = torch.randn(2, 4, 5, generator=generator, dtype=DOUBLE).requires_grad_()
    epsilon = vector(1e-5, 100)
    with pytest.warns(ConvergenceWarning, match="EntropicTransport: 1 of 2 samples failed"):
        Z = EntropicTransport(1.0, 0.8, epsilon, max_steps=3)(X)
    (grad,) = torch.autograd.grad(Z.square().sum(), X)
    assert (grad[0] == 0).all() and (grad[1] != 0).all()
    with pytest.raises(ConvergenceError):
        EntropicTransport(1.0, 0.8, epsilon, max_steps=3, on_failure="raise")(X)
    Z = EntropicTransport(1.0, 0.8, epsilon, max_steps=3, on_failure="nan")(X)
    assert Z[0].isnan().all() and Z[1].isfinite().all()
