"""Derivatives against finite differences, for all outputs and all arguments."""

import pytest
import torch

from diffopt import solve_qp

from .. import cases, checks

DIRECTIONAL = cases.QPS | {k: cases.LARGE_QPS[k] for k in ("n = 50", "n = 100, box")}
SMALL = {
    "inequality and equality": cases.random_qp(3, 4, 1, batch=(2,)),
    "everything": cases.random_qp(3, 3, 1, two_sided=True, bounds=True, seed=1),
    "shared": cases.random_qp(3, 4, 1, shared=("Q", "G", "A"), batch=(3,)),
    "linear program": cases.random_lp(3, 5, 1),
}


def outputs(values: dict, **options):
    sol = solve_qp(values.get("Q"), **{k: v for k, v in values.items() if k != "Q"}, **options)
    return sol.z, sol.lam, sol.nu, sol.mu


@pytest.mark.parametrize("name", DIRECTIONAL)
def test_gradients_match_central_differences(name, generator):
    a = cases.arguments(DIRECTIONAL[name])
    errors = checks.directional_errors(outputs, a, generator, together=True)
    assert max(errors.values()) <= 1e-6, errors


@pytest.mark.parametrize("name", SMALL)
def test_full_jacobian(name):
    a = cases.arguments(SMALL[name])
    finite = {k: v.isfinite() for k, v in a.items()}

    def function(*values):
        # Infinite limits stay; finite differences of them are zero on both sides.
        pairs = zip(a, values, strict=True)
        return outputs({k: torch.where(finite[k], v, a[k]) for k, v in pairs})

    inputs = [torch.where(finite[k], v, 0.0).requires_grad_() for k, v in a.items()]
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-7, rtol=1e-6)


def test_forward_mode_agrees_with_reverse_mode():
    a = cases.arguments(SMALL["everything"])

    def function(p):
        return solve_qp(**a | {"p": p}).z

    reverse = torch.autograd.functional.jacobian(function, a["p"])
    unit = torch.eye(a["p"].numel(), dtype=torch.float64)
    columns = [torch.func.jvp(function, (a["p"],), (d.view_as(a["p"]),))[1] for d in unit]
    torch.testing.assert_close(torch.stack(columns, -1).view_as(reverse), reverse)


def test_second_order():
    a = cases.arguments(cases.random_qp(3, 3, 1))
    leaves = [v.requires_grad_() for v in a.values()]

    def function(*values):
        return outputs(dict(zip(a, values, strict=True)), order=2)

    assert torch.autograd.gradgradcheck(function, leaves, eps=1e-6, atol=1e-6, rtol=1e-5)


def test_second_order_of_a_first_order_solve_raises():
    a = cases.arguments(cases.random_qp(3, 3, 1))
    p = a["p"].requires_grad_()
    (grad,) = torch.autograd.grad(solve_qp(**a).z.pow(2).sum(), p, create_graph=True)
    with pytest.raises(RuntimeError, match="order=2"):
        torch.autograd.grad(grad.sum(), p)


def test_shared_arguments_get_the_sum_of_the_gradients():
    instance = cases.QPS["shared matrices"]
    a = cases.arguments(instance)
    batch = a["p"].shape[0]
    shared = {k: a[k].clone().requires_grad_() for k in ("Q", "G", "A")}
    expanded = {k: v.detach().expand(batch, *v.shape).clone().requires_grad_() for k, v in
                shared.items()}  # fmt: skip
    for leaves in (shared, expanded):
        sol = solve_qp(**a | leaves)
        (sol.z.sum() + sol.lam.pow(2).sum()).backward()
    for name in shared:
        torch.testing.assert_close(shared[name].grad, expanded[name].grad.sum(0))


def test_gradient_of_a_scaled_loss_is_scaled():
    a = cases.arguments(cases.QPS["inequality"])
    grads = []
    for scale in (1.0, 1e-7):
        p = a["p"].clone().requires_grad_()
        (scale * solve_qp(**a | {"p": p}).z.pow(2).sum()).backward()
        grads.append(p.grad / scale)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-12, atol=0)


def test_only_what_requires_grad_gets_a_graph():
    a = cases.arguments(cases.QPS["inequality"])
    assert not solve_qp(**a).z.requires_grad
    with torch.no_grad():
        assert not solve_qp(**a | {"p": a["p"].clone().requires_grad_()}).z.requires_grad
