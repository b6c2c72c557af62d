"""`torch.compile(fullgraph=True)` of models with a QP in them, and the operator behind it."""

import pytest
import torch
from torch import nn

from diffopt import LPGD, ConvergenceWarning, InteriorPoint, QPLayer, solve_qp
from diffopt.qp.compiled import SHAPES, _encoded
from diffopt.qp.options import Options
from problems.random_qp import infeasible_qp, random_qp

from .. import cases

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*pytree")

A = cases.arguments(random_qp(4, 5, 1, two_sided=True, bounds=True, batch=(3,), seed=1))
OPTIONS = {
    "plain": {},
    "active": {"degenerate": "active"},
    "closest": {"infeasible": "closest"},
    "elastic": {"infeasible": "elastic", "penalty": 0.5},
    "smoothed": {"smoothing": 1e-2},
    "LPGD": {"smoothing": LPGD(1e-3)},
    "proximal": {"proximal": 0.1},
    "settings": {"solver": InteriorPoint(eps=1e-9, max_steps=50)},
}


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def compiled(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("name", OPTIONS)
def test_answers_and_gradients_are_those_of_the_eager_call(name):
    def function(p, h):
        sol = solve_qp(**A | {"p": p, "h": h}, **OPTIONS[name])
        return sol.z, sol.lam, sol.nu, sol.mu, sol.status, sol.residuals.primal

    results = []
    for call in (function, compiled(function)):
        leaves = [A[k].clone().requires_grad_() for k in ("p", "h")]
        out = call(*leaves)
        loss = sum((v.sin() * (i + 1)).sum() for i, v in enumerate(out[:4]))
        results.append([*out, *torch.autograd.grad(loss, leaves)])
    for ours, truth in zip(*results[::-1], strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_model_with_a_layer_in_it(backend):
    torch.manual_seed(0)
    learned = QPLayer(Q=torch.eye(3), G=nn.Parameter(torch.randn(2, 3)), h=1.0, lb=-1.0)
    model = nn.Sequential(nn.Linear(5, 3), learned, nn.Linear(3, 1))
    x = torch.randn(7, 5)
    grads = []
    for call in (model, torch.compile(model, fullgraph=True, backend=backend)):
        model.zero_grad()
        call(x).square().mean().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for ours, truth in zip(*grads[::-1], strict=True):
        torch.testing.assert_close(ours, truth)


def test_another_batch_size_needs_no_break():
    function = torch.compile(
        lambda p: solve_qp(torch.eye(4).double(), p, lb=0.0).z,
        fullgraph=True, backend="aot_eager", dynamic=True,
    )  # fmt: skip
    for size in (3, 5, 2):
        p = torch.linspace(-1, 1, 4 * size, dtype=torch.float64).view(size, 4)
        torch.testing.assert_close(function(p), -p.clamp(max=0))


def operands(arguments: dict, **options):
    return *(arguments.get(k) for k in SHAPES), *[None] * 5, *_encoded(Options(**options))


@pytest.mark.parametrize("name", ["all", "few", "shared"])
def test_the_operator_passes_the_checks_of_torch(name):
    few = {"Q": torch.eye(3), "p": torch.ones(4, 3), "lb": torch.tensor(0.5)}
    shared = cases.arguments(random_qp(3, 2, 1, shared=("Q", "G", "A"), batch=(2,)))
    arguments = {"all": A, "few": few, "shared": shared}[name]
    leaves = {k: v.clone().requires_grad_() for k, v in arguments.items()}
    results = torch.library.opcheck(torch.ops.diffopt.solve_qp.default, operands(leaves))
    assert set(results.values()) == {"SUCCESS"}


def test_failures_are_reported_and_second_order_is_refused():
    a = cases.arguments(infeasible_qp(4, 5, batch=(2,)))
    with pytest.warns(ConvergenceWarning, match="2 of 2 samples failed"):
        sol = compiled(lambda p: solve_qp(**a | {"p": p}))(a["p"])
    assert sol.status.tolist() == [3, 3]
    with pytest.raises(Exception, match="order=2 under torch.compile"):
        compiled(lambda p: solve_qp(**A | {"p": p}, order=2).z)(A["p"])


def test_warm_start_inside_and_outside():
    cold = solve_qp(**A)
    sol = compiled(lambda p: solve_qp(**A | {"p": p}, warm_start=cold))(A["p"])
    assert sol.iterations.sum() == 0
    torch.testing.assert_close(sol.z, cold.z)
