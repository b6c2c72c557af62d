"""A sample's answer does not depend on its batch mates, its dtype, or how its shape is written."""

import pytest
import torch

from diffopt import ConvergenceWarning, Status, solve_qp

from .. import cases, checks

OUTPUTS = ("z", "lam", "nu", "mu")


def stacked(n: int = 64):
    """A batch of 64 with the usual spread of iteration counts."""
    return cases.random_qp(10, 15, 3, two_sided=True, bounds=True, batch=(n,), seed=5)


def test_batch_equals_single_solves():
    a = cases.arguments(stacked())
    together = solve_qp(**a)
    alone = [solve_qp(**{k: v[i] for k, v in a.items()}) for i in range(64)]
    for key in OUTPUTS:
        each = torch.stack([getattr(sol, key) for sol in alone])
        torch.testing.assert_close(getattr(together, key), each, rtol=1e-10, atol=1e-10)
    assert torch.equal(together.iterations, torch.stack([sol.iterations for sol in alone]))


def test_gradients_of_a_batch_equal_those_of_single_solves():
    a = cases.arguments(stacked(8))

    def grads(values):
        leaves = {k: v.clone().requires_grad_() for k, v in values.items()}
        solve_qp(**leaves).z.pow(2).sum().backward()
        return {k: v.grad for k, v in leaves.items()}

    together = grads(a)
    for i in range(8):
        alone = grads({k: v[i] for k, v in a.items()})
        for key in a:
            torch.testing.assert_close(together[key][i], alone[key], rtol=1e-10, atol=1e-10)


BAD = {
    "NaN in p": ("p", float("nan"), Status.INVALID_INPUT),
    "NaN in Q": ("Q", float("nan"), Status.INVALID_INPUT),
    "NaN in G": ("G", float("nan"), Status.INVALID_INPUT),
    "NaN in h": ("h", float("nan"), Status.INVALID_INPUT),
    "inf in A": ("A", float("inf"), Status.INVALID_INPUT),
    "lb = +inf": ("lb", float("inf"), Status.INVALID_INPUT),
    "infeasible row": ("h", -1e3, Status.PRIMAL_INFEASIBLE),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_sample_leaves_its_neighbours_alone(name):
    key, value, status = BAD[name]
    a = cases.arguments(stacked(6))
    weight = torch.randn(3, a["p"].shape[-1], a["p"].shape[-1], dtype=torch.float64)[0]
    weight.requires_grad_()

    def run(values):
        leaves = {k: v.clone().requires_grad_() for k, v in values.items()}
        sol = solve_qp(**leaves | {"p": leaves["p"] @ weight}, on_failure="ignore")
        loss = torch.where((sol.status == 0).unsqueeze(-1), sol.z, 0.0).pow(2).sum()
        shared = torch.autograd.grad(loss, weight, retain_graph=True)[0]
        return (
            sol,
            dict(zip(leaves, torch.autograd.grad(loss, leaves.values()), strict=True)),
            shared,
        )

    broken = {k: v.clone() for k, v in a.items()}
    broken[key][2, 0] = value
    sol, grads, shared = run(broken)
    keep = [0, 1, 3, 4, 5]
    clean, clean_grads, clean_shared = run({k: v[keep] for k, v in a.items()})
    assert sol.status.tolist() == [0, 0, status, 0, 0, 0]
    for output in OUTPUTS:
        torch.testing.assert_close(
            getattr(sol, output)[keep], getattr(clean, output), rtol=1e-12, atol=1e-12
        )
    for k in a:
        torch.testing.assert_close(grads[k][keep], clean_grads[k], rtol=1e-10, atol=1e-10)
    if key != "p":  # 0 * NaN in the user's own product p @ weight is the user's
        torch.testing.assert_close(shared, clean_shared, rtol=1e-10, atol=1e-10)


def test_the_four_answers_to_a_failure():
    a = cases.arguments(stacked(3))
    a["h"] = a["h"].clone()
    a["h"][1, 0] = -1e3
    p = a["p"].clone().requires_grad_()

    def run(on_failure):
        sol = solve_qp(**a | {"p": p}, on_failure=on_failure)
        return sol, torch.autograd.grad(sol.z.sum(), p)[0]

    with pytest.warns(ConvergenceWarning, match="1 of 3 samples failed\n  sample 1: PRIMAL"):
        sol, grad = run("warn")
    quiet, quiet_grad = run("ignore")
    assert sol.z.isfinite().all() and torch.equal(sol.z, quiet.z)
    assert (grad[1] == 0).all() and torch.equal(grad, quiet_grad)
    sol, grad = run("nan")
    assert sol.z[1].isnan().all() and grad[1].isnan().all()
    assert sol.z[[0, 2]].isfinite().all() and grad[[0, 2]].isfinite().all()
    plain = solve_qp(**a, on_failure="nan")  # no gradient asked for: the same values
    for key in OUTPUTS:
        torch.testing.assert_close(getattr(plain, key), getattr(sol, key), equal_nan=True)
    with pytest.raises(RuntimeError, match="sample 1: PRIMAL_INFEASIBLE"):
        run("raise")


def test_nan_reaches_a_shared_argument_only_through_a_value_that_is_used():
    Q = torch.eye(2, dtype=torch.float64, requires_grad=True)
    ub = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    sol = solve_qp(Q, torch.ones(2, 2).double(), lb=0.0, ub=ub, on_failure="nan")
    healthy, failed = (torch.autograd.grad(sol.z[i].sum(), Q, retain_graph=True)[0] for i in (0, 1))
    assert healthy.isfinite().all() and failed.isnan().all()


@pytest.mark.parametrize("diagonal", [(1e6, -1.0), (1e8, -900.0), (-1.0, 1.0)])
def test_an_indefinite_Q_is_found_in_any_units(diagonal):
    Q = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    p = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    with pytest.warns(ConvergenceWarning) as caught:
        sol = solve_qp(Q, p, lb=-1.0, ub=1.0)
        sol.z.sum().backward()
    assert sol.status == Status.INVALID_INPUT and not sol.polished
    assert len(caught) == 1 and (p.grad == 0).all()


@pytest.mark.parametrize("name", cases.HOPELESS)
def test_problems_without_a_solution_are_proven_so(name):
    instance, kind = cases.HOPELESS[name]
    with pytest.warns(ConvergenceWarning, match=f"{kind}_INFEASIBLE"):
        sol = solve_qp(**instance.arguments())
    assert (sol.status == Status[f"{kind}_INFEASIBLE"]).all()


@pytest.mark.parametrize("bounded", [False, True])
def test_an_indefinite_Q_is_refused_and_a_rounded_semidefinite_one_is_not(bounded):
    lb = -1.0 if bounded else None
    p = torch.tensor([0.5, 0.25, 0.0], dtype=torch.float64)
    values = torch.tensor([[1.0, 1.0, x] for x in (-1.0, 1.0, -1e-7)], dtype=torch.float64)
    V = torch.linalg.qr(torch.tensor([[1.0, 2, 3], [2, 1, 1], [1, 1, 5]]).double())[0]
    Q = (V * values.unsqueeze(-2)) @ V.mT
    sol = solve_qp(Q, p, lb=lb, on_failure="ignore")
    assert sol.status[0] == Status.INVALID_INPUT and sol.z.isfinite().all()
    assert sol.status[1] == Status.CONVERGED
    assert sol.status[2] != Status.INVALID_INPUT


def test_mixed_batch_dimensions():
    """Q shared, p (3, 1, n), h (4, m), lb a number: the batch is (3, 4)."""
    a = cases.arguments(cases.random_qp(5, 6, 1))
    torch.manual_seed(0)
    p = torch.randn(3, 1, 5, dtype=torch.float64)
    h = a["h"] + torch.rand(4, 6, dtype=torch.float64)
    sol = solve_qp(a["Q"], p, a["G"], h, a["A"], a["b"], lb=-10.0)
    assert sol.z.shape == (3, 4, 5) and sol.lam.shape == (3, 4, 6) and sol.nu.shape == (3, 4, 1)
    assert sol.status.shape == sol.residuals.primal.shape == (3, 4)
    one = solve_qp(a["Q"], p[2, 0], a["G"], h[3], a["A"], a["b"], lb=-10.0)
    torch.testing.assert_close(sol.z[2, 3], one.z, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
def test_empty_batches(shape):
    p = torch.zeros(*shape, 4, dtype=torch.float64, requires_grad=True)
    Q = torch.eye(4, dtype=torch.float64, requires_grad=True)
    sol = solve_qp(Q, p, torch.ones(2, 4).double(), 1.0, torch.ones(1, 4).double(), 1.0, lb=0.0)
    assert sol.z.shape == (*shape, 4) and sol.lam.shape == (*shape, 2)
    assert sol.nu.shape == (*shape, 1) and sol.status.shape == shape
    grad_Q, grad_p = torch.autograd.grad(sol.z.sum(), (Q, p))
    assert (grad_Q == 0).all() and grad_p.shape == p.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_in_and_out_with_float64_inside(dtype):
    a = {k: v.to(dtype) for k, v in cases.arguments(cases.QPS["everything"]).items()}
    leaves = {k: v.clone().requires_grad_() for k, v in a.items()}
    sol = solve_qp(**leaves)
    exact = solve_qp(**{k: v.double() for k, v in a.items()})
    assert sol.z.dtype == sol.lam.dtype == sol.nu.dtype == sol.mu.dtype == dtype
    assert torch.equal(sol.z, exact.z.to(dtype))
    assert checks.kkt_error({k: v.double() for k, v in a.items()}, exact).max() <= 1e-12
    sol.z.sum().backward()
    assert all(v.grad.dtype == dtype and v.grad.isfinite().all() for v in leaves.values())


def test_autocast_changes_nothing():
    a = {k: v.float() for k, v in cases.arguments(cases.QPS["inequality"]).items()}
    plain = solve_qp(**a)
    with torch.autocast("cpu", torch.bfloat16):
        cast = solve_qp(**a)
    assert torch.equal(plain.z, cast.z) and cast.z.dtype == torch.float32
