"""Every feasible problem of the table is solved, by the definition."""

import functools

import pytest
import torch

from diffopt import Status, solve_qp

from .. import cases, checks


@functools.cache
def solved(name):
    instance = (cases.QPS | cases.LARGE_QPS)[name]
    return instance, solve_qp(**instance.arguments())


@pytest.mark.parametrize("name", cases.QPS | cases.LARGE_QPS)
class TestSolution:
    def test_kkt_conditions_hold(self, name):
        instance, sol = solved(name)
        assert (sol.status == Status.CONVERGED).all()
        assert checks.kkt_error(instance.arguments(), sol).max() <= 1e-12
        assert sol.iterations.max() <= 15 and sol.polished.all()

    def test_known_answer(self, name):
        instance, sol = solved(name)
        for key in ("z", "lam", "nu", "mu"):
            truth = getattr(instance, key)
            size = truth.abs().amax().item() if truth.numel() else 1.0
            torch.testing.assert_close(getattr(sol, key), truth, rtol=1e-9, atol=1e-9 * size)

    def test_limits_hold_exactly_where_they_are_bounds(self, name):
        instance, sol = solved(name)
        a = checks.complete(instance.arguments())
        assert (sol.z >= a["lb"]).all() and (sol.z <= a["ub"]).all()

    def test_residuals_are_those_of_the_definition(self, name):
        instance, sol = solved(name)
        truth = checks.kkt_error(instance.arguments(), sol)
        torch.testing.assert_close(sol.residuals.worst(), truth, rtol=0, atol=1e-14)

    def test_strictly_complementary_problems_have_no_weak_limit(self, name):
        _, sol = solved(name)
        assert not sol.weakly_active.any()


@pytest.mark.parametrize("name", cases.DEGENERATE)
def test_degenerate_problems_have_the_primal_solution_and_valid_multipliers(name):
    instance = cases.DEGENERATE[name]
    sol = solve_qp(**instance.arguments())
    assert (sol.status == Status.CONVERGED).all()
    assert checks.kkt_error(instance.arguments(), sol).max() <= 1e-12
    torch.testing.assert_close(sol.z, instance.z, rtol=0, atol=1e-9)
    assert sol.weakly_active.any(-1).all()


def test_gradients_of_degenerate_problems_are_finite_and_do_not_warn():
    a = cases.arguments(cases.DEGENERATE["weak and duplicated rows"])
    leaves = {k: v.clone().requires_grad_() for k, v in a.items()}
    solve_qp(**leaves).z.pow(2).sum().backward()
    assert all(v.grad.isfinite().all() for v in leaves.values())


@pytest.mark.parametrize("condition", [1e8, 1e10])
def test_ill_conditioned_free_minimiser(condition):
    """z = -Q^-1 p and dz/dp = -Q^-1, to the condition number times rounding."""
    a = cases.arguments(cases.random_qp(15, condition=condition, batch=(6,)))
    p = a["p"].clone().requires_grad_()
    (grad,) = torch.autograd.grad(solve_qp(a["Q"], p).z.sum(), p)
    truth = -torch.linalg.solve(a["Q"], torch.ones_like(p))
    assert ((grad - truth).norm(dim=-1) / truth.norm(dim=-1)).max() <= 1e-15 * condition * 10


@pytest.mark.parametrize("slack", [5e-8, -5e-8])
def test_a_small_margin_is_a_margin(slack):
    """min |z|^2 / 2 + slack z_0, z >= 0: dz_0/dp_0 is 0 or -1, not something between."""
    p = torch.tensor([slack, -1.0], dtype=torch.float64, requires_grad=True)
    sol = solve_qp(torch.eye(2).double(), p, lb=0.0)
    (grad,) = torch.autograd.grad(sol.z[0], p)
    assert grad.tolist() == pytest.approx([0.0 if slack > 0 else -1.0, 0.0], abs=1e-12)
    assert not sol.weakly_active.any()


def test_projection_by_hand():
    """(2, 0) projected on z_0 + z_1 = 1, z >= 0: z = (1, 0), and the multipliers follow."""
    sol = solve_qp(torch.eye(2), torch.tensor([-2.0, 0.0]), A=torch.ones(1, 2), b=1.0, lb=0.0)
    torch.testing.assert_close(sol.z, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(sol.nu, torch.tensor([1.0]))
    torch.testing.assert_close(sol.mu, torch.tensor([0.0, -1.0]))


def test_signs_of_multipliers_on_two_sided_rows_and_bounds():
    """min (z - t)^2 / 2: pushed to its upper limit at t = 2, to its lower one at t = -2."""
    p = -torch.tensor([[2.0], [-2.0]], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    rows = solve_qp(one, p, G=one, h=1.0, h_lower=-1.0)
    box = solve_qp(one, p, lb=-1.0, ub=1.0)
    expected = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    for sol, y in ((rows, rows.lam), (box, box.mu)):
        torch.testing.assert_close(sol.z, expected)
        torch.testing.assert_close(y, expected)


def test_infinite_limits_are_no_limits():
    base = cases.QPS["inequality"]
    a = cases.arguments(base)
    extra = torch.cat([a["G"], torch.ones_like(a["G"][:, :2])], 1)
    limits = torch.cat([a["h"], torch.full_like(a["h"][:, :2], torch.inf)], -1)
    sol = solve_qp(a["Q"], a["p"], extra, limits, lb=-torch.inf, ub=torch.inf)
    torch.testing.assert_close(sol.z, base.z, rtol=1e-10, atol=1e-10)
    assert (sol.lam[:, -2:] == 0).all() and (sol.mu == 0).all()


def test_equal_limits_are_equalities():
    """h_lower == h and lb == ub; the multiplier may have either sign."""
    base = cases.QPS["inequality and equality"]
    a = cases.arguments(base)
    G, h = torch.cat([a["G"], a["A"]], 1), torch.cat([a["h"], a["b"]], -1)
    lower = torch.cat([torch.full_like(a["h"], -torch.inf), a["b"]], -1)
    sol = solve_qp(a["Q"], a["p"], G, h, h_lower=lower)
    torch.testing.assert_close(sol.z, base.z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sol.lam[:, -3:], base.nu, rtol=1e-9, atol=1e-9)
    fixed = solve_qp(a["Q"], a["p"], lb=base.z, ub=base.z)
    assert torch.equal(fixed.z, base.z)


def test_only_the_symmetric_part_of_Q_counts():
    a = cases.arguments(cases.QPS["inequality"])
    skew = torch.randn(a["Q"].shape, dtype=torch.float64)
    twisted = a["Q"] + skew - skew.mT
    sol = solve_qp(**a | {"Q": twisted.requires_grad_()})
    torch.testing.assert_close(sol.z, cases.QPS["inequality"].z, rtol=1e-9, atol=1e-9)
    (grad,) = torch.autograd.grad(sol.z.sum(), twisted)
    torch.testing.assert_close(grad, grad.mT)


def test_scaling_of_the_objective_and_the_rows_changes_nothing():
    """z is invariant, lam scales: (1e6 Q, 1e6 p), rows of G from 1e-3 to 1e3."""
    base = cases.QPS["inequality"]
    a = cases.arguments(base)
    rows = torch.logspace(-3, 3, a["h"].shape[-1], dtype=torch.float64)
    sol = solve_qp(1e6 * a["Q"], 1e6 * a["p"], rows[:, None] * a["G"], rows * a["h"])
    torch.testing.assert_close(sol.z, base.z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sol.lam * rows / 1e6, base.lam, rtol=1e-9, atol=1e-9)
