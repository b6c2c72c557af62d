"""torch.func: vmap is one solve, and every transform gives the same derivative."""

import functools

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._pytree import tree_leaves

import diffopt.qp.engine
from diffopt import ConvergenceWarning, solve_qp
from problems.random_qp import random_lp, random_qp

from .. import cases

DOUBLE = torch.float64
VALUES = ("z", "lam", "nu", "mu")
FULL = random_qp(5, 6, 1, two_sided=True, bounds=True, active=3, batch=(4,), seed=0)
NAMES = tuple(cases.arguments(FULL))


def outputs(*values: Tensor, names: tuple[str, ...] = NAMES, **options) -> tuple[Tensor, ...]:
    """(z, lam, nu, mu) as a function of the arguments, one after another."""
    sol = solve_qp(**{"Q": None} | dict(zip(names, values, strict=True)), **options)
    return tuple(getattr(sol, k) for k in VALUES)


def assert_same(ours, truth, tolerance: float) -> None:
    for a, b in zip(tree_leaves(ours), tree_leaves(truth), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.fixture
def engine_calls(monkeypatch) -> list[int]:
    """The number of samples of every call of the engine."""
    calls, find = [], diffopt.qp.engine.find

    def counted(qp, *args):
        calls.append(qp.batch)
        return find(qp, *args)

    monkeypatch.setattr(diffopt.qp.engine, "find", counted)
    return calls


MAPPED = {
    "p": ("p",),
    "Q": ("Q",),
    "G and limits": ("G", "h", "h_lower"),
    "A and b": ("A", "b"),
    "bounds": ("lb", "ub"),
    "all": NAMES,
}


@pytest.mark.parametrize("names", MAPPED.values(), ids=MAPPED)
def test_vmap_equals_the_batch_and_is_one_solve(names, engine_calls):
    """The arguments that are not mapped are those of the first sample."""
    a = cases.arguments(FULL)
    if names != NAMES:  # limits of other samples need not fit: make room for all
        a = wide(a)
    mixed = {k: v if k in names else v[0] for k, v in a.items()}
    in_dims = tuple(0 if k in names else None for k in a)
    mapped = vmap(outputs, in_dims)(*mixed.values())
    assert engine_calls == [4]
    assert_same(mapped, outputs(*mixed.values()), 1e-12)


def wide(a: dict[str, Tensor]) -> dict[str, Tensor]:
    """Feasible whatever samples are mixed: limits farther out, equalities through zero."""
    far = {"h": 3.0, "ub": 3.0, "h_lower": -3.0, "lb": -3.0}
    moved = {k: torch.where(a[k].isfinite(), a[k].sign() * 0.1 + far[k], a[k]) for k in far}
    return a | moved | {"b": 0.1 * a["b"]}


@pytest.mark.parametrize("dim", [1, -1])
def test_vmap_over_another_dimension(dim):
    a = cases.arguments(FULL)
    moved = [v.movedim(0, dim) for v in a.values()]
    assert_same(vmap(outputs, dim)(*moved), outputs(*a.values()), 1e-12)


def test_vmap_over_arguments_with_a_batch_of_their_own(engine_calls):
    """p (3, 4, n) mapped over 3, the others with the batch of 4 or without any."""
    a = wide(cases.arguments(FULL)) | {"Q": torch.eye(5, dtype=DOUBLE)}
    p = a["p"] * torch.tensor([0.5, 1.0, 2.0], dtype=DOUBLE).view(3, 1, 1)
    in_dims = tuple(0 if k == "p" else None for k in a)
    mapped = vmap(outputs, in_dims)(*(a | {"p": p}).values())
    assert engine_calls == [12]
    assert_same(mapped, outputs(*(a | {"p": p}).values()), 1e-12)


def test_nested_vmap_is_one_solve(engine_calls):
    """p over the outer dimension, h over the inner one: all pairs."""
    a = wide(cases.arguments(FULL))
    one = {k: v[0] for k, v in a.items()}

    def solve(p, h):
        return outputs(*(one | {"p": p, "h": h}).values())

    mapped = vmap(vmap(solve, (None, 0)), (0, None))(a["p"], a["h"])
    assert engine_calls == [16]
    assert_same(mapped, solve(a["p"].unsqueeze(1), a["h"].unsqueeze(0)), 1e-12)


def test_a_failure_inside_vmap_warns_once_and_leaves_the_others_alone():
    a = cases.arguments(FULL)
    broken = {k: v.clone() for k, v in a.items()}
    broken["h"][2, 0] = broken["h_lower"][2, 0] - 1.0
    with pytest.warns(ConvergenceWarning, match="1 of 4 samples failed\n  sample 2") as caught:
        mapped = vmap(outputs)(*broken.values())
    assert len(caught) == 1
    keep = [0, 1, 3]
    assert_same([v[keep] for v in mapped], [v[keep] for v in outputs(*a.values())], 1e-12)


def test_status_and_residuals_inside_vmap():
    a = cases.arguments(FULL)

    def facts(*values):
        sol = solve_qp(**dict(zip(NAMES, values, strict=True)))
        return sol.status, sol.iterations, sol.residuals.worst(), sol.weakly_active

    status, iterations, worst, weak = vmap(facts)(*a.values())
    plain = solve_qp(**a)
    assert torch.equal(status, plain.status) and torch.equal(iterations, plain.iterations)
    assert worst.max() <= 1e-12 and torch.equal(weak, plain.weakly_active)


JACOBIANS = {
    "everything": random_qp(6, 4, 1, two_sided=True, bounds=True, active=4, seed=0),
    "semidefinite": random_qp(4, 5, 1, rank=2, seed=2),
    "linear program": random_lp(3, 5, 1),
}


def loop_jacobian(function, value: Tensor) -> Tensor:
    """Row by row with `torch.autograd`, for a function with one output."""
    leaf = value.clone().requires_grad_()
    out = function(leaf)
    rows = [torch.autograd.grad(x, leaf, retain_graph=True)[0] for x in out.flatten()]
    return torch.stack(rows).view(*out.shape, *value.shape)


PAIRS = [(name, key) for name, case in JACOBIANS.items() for key in cases.arguments(case)]


@pytest.mark.parametrize("name, argument", PAIRS)
def test_jacobians_agree(name, argument):
    """jacrev, jacfwd and a loop, of all outputs side by side."""
    a = cases.arguments(JACOBIANS[name])

    def function(value):
        values = a | {argument: value}
        return torch.cat(outputs(*values.values(), names=tuple(values)), -1)

    truth = loop_jacobian(function, a[argument])
    assert truth.abs().max() > 1e-3
    assert_same(jacrev(function)(a[argument]), truth, 1e-11)
    assert_same(jacfwd(function)(a[argument]), truth, 1e-10)


def test_hessian_with_order_two():
    """Of |z|^2 in p: reverse over reverse, forward over reverse, and central differences."""
    a = cases.arguments(JACOBIANS["everything"])

    def loss(p, order=2):
        return outputs(*(a | {"p": p}).values(), order=order)[0].pow(2).sum()

    truth = jacrev(jacrev(loss))(a["p"])
    assert_same(hessian(loss)(a["p"]), truth, 1e-10)
    eps, unit = 1e-6, torch.eye(6, dtype=DOUBLE)
    first = grad(functools.partial(loss, order=1))
    rows = [(first(a["p"] + eps * d) - first(a["p"] - eps * d)) / (2 * eps) for d in unit]
    assert truth.abs().max() > 1e-3
    torch.testing.assert_close(torch.stack(rows), truth, rtol=1e-6, atol=1e-6)


def per_sample(function):
    """`function` of one sample over all arguments of FULL, sample by sample, without vmap."""
    values = cases.arguments(FULL)
    each = [function(*(v[i] for v in values.values())) for i in range(4)]
    return [torch.stack(parts) for parts in zip(*map(tree_leaves, each), strict=True)]


def loss_of_all(*values: Tensor) -> Tensor:
    return sum(v.pow(2).sum() for v in outputs(*values))


EACH = tuple(range(len(NAMES)))
TRANSFORMS = {
    "grad": grad(loss_of_all, EACH),
    "jacrev": jacrev(lambda *v: outputs(*v)[0], EACH[1:4]),
    "jacfwd": jacfwd(lambda *v: outputs(*v)[0], EACH[1:4]),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_vmap_of_a_derivative(name):
    mapped = vmap(TRANSFORMS[name])(*cases.arguments(FULL).values())
    assert_same(tree_leaves(mapped), per_sample(TRANSFORMS[name]), 1e-10)


def test_derivatives_of_a_vmap():
    """In all arguments, in a shared one that the mapped function closes over, in both modes."""
    a = cases.arguments(FULL)
    _, pullback = vjp(vmap(outputs), *a.values())
    values, expected = vjp(outputs, *a.values())
    assert_same(pullback(values), expected(values), 1e-11)
    tangents = tuple(torch.where(v.isfinite(), torch.ones_like(v), 0.0) for v in a.values())
    pushed = [jvp(f, tuple(a.values()), tangents)[1] for f in (vmap(outputs), outputs)]
    assert_same(*pushed, 1e-10)


def test_backward_through_a_vmap():
    """`torch.autograd` sees the leaves that a vmap maps over."""
    grads = []
    for function in (vmap(outputs), outputs):
        leaves = [v.clone().requires_grad_() for v in cases.arguments(FULL).values()]
        loss = sum(v.pow(2).sum() for v in function(*leaves))
        grads.append(torch.autograd.grad(loss, leaves))
    assert_same(*grads, 1e-11)


def test_derivatives_of_a_vmap_in_what_it_closes_over():
    """By torch.func, and by `backward`."""
    others = wide(cases.arguments(FULL))
    Q, p = others.pop("Q")[0], others.pop("p")
    rest = {k: v[0] for k, v in others.items()}

    def loss(Q, by_vmap=True):
        def solve(p):
            return solve_qp(Q, p, **rest).z

        return (vmap(solve) if by_vmap else solve)(p).pow(2).sum()

    truth = grad(loss)(Q, by_vmap=False)
    leaf = Q.clone().requires_grad_()
    loss(leaf).backward()
    assert truth.abs().max() > 1e-3
    assert_same([grad(loss)(Q), leaf.grad], [truth, truth], 1e-11)


@pytest.mark.parametrize("name", cases.QPS)
def test_forward_and_reverse_mode_are_adjoint(name, generator):
    """<u, J v> = <J'u, v> for all arguments and outputs at once."""
    a = cases.arguments(cases.QPS[name])

    def function(*values):
        return outputs(*values, names=tuple(a))

    def noise(v: Tensor) -> Tensor:
        return torch.randn(v.shape, generator=generator, dtype=DOUBLE)

    tangents = tuple(
        torch.where(v.isfinite(), noise(v) * v[v.isfinite()].abs().max(), 0.0) for v in a.values()
    )
    pushed = jvp(function, tuple(a.values()), tangents)[1]
    values, pullback = vjp(function, *a.values())
    sizes = [v.abs().max() if v.numel() and v.any() else torch.ones(()) for v in values]
    cotangents = tuple(noise(v) / s for v, s in zip(values, sizes, strict=True))
    pulled = pullback(cotangents)
    terms = [(u * v).sum() for u, v in zip(cotangents, pushed, strict=True)]
    others = [(u * v).sum() for u, v in zip(pulled, tangents, strict=True)]
    size = max(abs(x) for x in terms + others)
    assert abs(sum(terms) - sum(others)) <= 1e-10 * size
