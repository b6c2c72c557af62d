"""The oracles are the definitions: feasibility, a subgradient, and known projections."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from problems.convex import control_step, l1_regression, portfolio, quadratic, simplex

PROBLEMS = {  # name: (problem, shapes of the parameters, of the variables)
    "l1, as in the tutorial": (l1_regression(2, 3), [(3, 2), (3,)], [(2,)]),
    "l1": (l1_regression(), [(30, 20), (30,)], [(20,)]),
    "portfolio": (portfolio(6, 3), [(6,), (6, 6)], [(6,)]),
    "quadratic": (quadratic(8, 9, 3), [(8, 8), (8,), (9, 8), (9,), (3, 8), (3,)], [(8,)]),
    "control": (control_step(4, 3, 2), [(3,), (3, 3), (3, 2)], [(4, 2), (5, 3)]),
    "simplex": (simplex(7), [(7,)], [(7,)]),
}
TIGHT = {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11}


def solved(task, values, i):
    """The variables for instance i."""
    for p, v in zip(task.parameters, values, strict=True):
        p.value = v[i].numpy()
    task.problem.solve(solver=cp.CLARABEL, **TIGHT)
    assert task.problem.status == "optimal"
    return [v.value for v in task.variables]


@pytest.mark.parametrize("name", PROBLEMS)
def test_instances_have_the_shapes_of_the_parameters(name):
    task, parameters, variables = PROBLEMS[name]
    values = task.instances(4, seed=1)
    assert [tuple(v.shape) for v in values] == [(4, *s) for s in parameters]
    assert all(v.dtype == torch.float64 for v in values)
    assert [p.shape for p in task.parameters] == parameters
    assert [v.shape for v in task.variables] == variables
    assert set(task.parameters) == set(task.problem.parameters())


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems_are_disciplined_and_instances_feasible_and_bounded(name):
    task, _, _ = PROBLEMS[name]
    assert task.problem.is_dpp()
    values = task.instances(3, seed=2)
    for i in range(3):
        assert all(np.isfinite(v).all() for v in solved(task, values, i))
        assert max(c.violation().max() for c in task.problem.constraints) <= 1e-8


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_seed_decides(name):
    task = PROBLEMS[name][0]
    one, two, other = (task.instances(2, seed=s) for s in (1, 1, 2))
    assert all(a.equal(b) for a, b in zip(one, two, strict=True))
    assert not any(a.equal(b) for a, b in zip(one, other, strict=True))


def test_the_solution_of_the_l1_problem_is_a_vertex():
    """As many of the 30 residuals and 20 coefficients are zero as there are unknowns: 20."""
    task = l1_regression()
    A, b = task.instances(3)
    for i in range(3):
        (x,) = solved(task, (A, b), i)
        r = A[i].numpy() @ x - b[i].numpy()
        assert (abs(r) < 1e-7).sum() + (x < 1e-7).sum() == 20


def test_the_portfolio_earns_the_same_at_the_margin_on_all_that_it_holds():
    task = portfolio(12, 3)
    mu, S = task.instances(3)
    for i in range(3):
        (x,) = solved(task, (mu, S), i)
        margin = mu[i].numpy() - S[i].numpy().T @ S[i].numpy() @ x
        held = x > 1e-6
        assert 1 < held.sum() < 12
        assert np.ptp(margin[held]) <= 1e-6 and margin[~held].max() <= margin[held].min() + 1e-6


def test_the_quadratic_program_has_active_and_inactive_rows():
    task = quadratic()
    values = task.instances(3)
    for i in range(3):
        (x,) = solved(task, values, i)
        active = (values[3][i].numpy() - values[2][i].numpy() @ x) < 1e-7
        assert 0 < active.sum() < 40


def test_controls_meet_their_limits_and_the_path_its_dynamics():
    task = control_step()
    x0, A, B = task.instances(20)
    met = 0
    for i in range(20):
        u, x = solved(task, (x0, A, B), i)
        np.testing.assert_allclose(x[0], x0[i], atol=1e-8)
        np.testing.assert_allclose(x[1:], x[:-1] @ A[i].numpy().T + u @ B[i].numpy().T, atol=1e-8)
        met += (abs(u) > 1 - 1e-6).sum()
    assert 5 < met < 150


def test_the_projection_on_the_simplex_is_a_shift_and_a_cut():
    task = simplex(7)
    (y,) = task.instances(3)
    for i in range(3):
        (x,) = solved(task, (y,), i)
        shift = (y[i].numpy() - x)[x > 1e-6]
        assert np.ptp(shift) <= 1e-7 and x.sum() == pytest.approx(1, abs=1e-8)
        np.testing.assert_allclose(x, np.maximum(y[i].numpy() - shift[0], 0), atol=1e-7)


@pytest.mark.parametrize(
    "make",
    [lambda s: l1_regression(4, 6, s), lambda s: portfolio(5, 2, s), lambda s: simplex(5, s)],
)
def test_scale_writes_the_same_constraint_in_other_words(make):
    plain, scaled = make(1.0), make(2.0)
    values = plain.instances(2)
    assert str(plain.problem) != str(scaled.problem)
    for i in range(2):
        np.testing.assert_allclose(
            solved(plain, values, i), solved(scaled, values, i), atol=1e-8, rtol=0
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: l1_regression(0, 3), "n is 0: give 1 at least"),
        (lambda: l1_regression(3, 3), "m is 3, n is 3: more observations"),
        (lambda: l1_regression(scale=0.0), "scale is 0.0: give a positive number"),
        (lambda: portfolio(5, 0), "factors is 0: give 1"),
        (lambda: quadratic(5, 5, 5), "e is 5, n is 5: fewer equalities"),
        (lambda: control_step(T=0), "T is 0: give 1"),
        (lambda: simplex(-1), "n is -1: give 1"),
        (lambda: simplex(3).instances(0), "batch is 0: ask for 1 instance"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
