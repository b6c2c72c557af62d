"""What the presolve makes of programs: who leaves, and what the rows become."""

import cvxpy as cp
import numpy as np
import pytest
import torch

from diffopt import ConvexLayer

n = 4
x, p = cp.Variable(n), cp.Parameter(n)
limit, A = cp.Parameter(nonneg=True), cp.Parameter((3, n))
M = np.arange(12.0).reshape(3, 4) - 5


def sizes(objective, constraints, variables=None):
    """Unknowns kept, equalities, inequalities, lower and upper bounds."""
    problem = cp.Problem(cp.Minimize(objective), constraints)
    layer = ConvexLayer(problem, problem.parameters(), variables or problem.variables())
    reduced = layer.program._recovery.reduced
    e, m, _, upper, lower = reduced.counts
    return reduced.K, e, m, lower, upper


def path(T, shuffled=False):
    """x[t + 1] = x[t] + u[t] with |u| <= 1."""
    s, u = cp.Variable((T + 1, 2)), cp.Variable((T, 2))
    rows = [s[t + 1] == s[t] + u[t] for t in range(T)]
    rows = rows[::-1] if shuffled else rows
    return cp.sum_squares(s) + cp.sum_squares(u), [*rows, s[0] == p[:2], cp.abs(u) <= 1]


SQUARES = cp.sum_squares(x - p)
PLANS = {  # name: (objective, constraints, sizes)
    "a sum of squares has the unknowns of x": (cp.sum_squares(A @ x - p[:3]), [], (4, 0, 0, 0, 0)),
    "bounds": (SQUARES, [x >= 0, x <= 2 * limit], (4, 0, 0, 4, 4)),
    "bounds, turned around": (SQUARES, [0 <= x, 2 * limit >= x], (4, 0, 0, 4, 4)),
    "bounds, scaled": (SQUARES, [-3 * x <= 0, 0.5 * x - limit <= 0], (4, 0, 0, 4, 4)),
    "bounds, some": (SQUARES, [x[1:3] >= p[1:3]], (4, 0, 0, 2, 0)),
    "bounds, by absolute value": (SQUARES, [cp.abs(x) <= limit], (4, 0, 0, 4, 4)),
    "bounds, by infinity norm": (SQUARES, [cp.norm_inf(x) <= limit], (4, 0, 0, 4, 4)),
    "bounds, the second one is a row": (SQUARES, [x >= 0, x >= -1], (4, 0, 4, 4, 0)),
    "a parametric coefficient is no bound": (SQUARES, [p[0] * x[1] <= 1], (4, 0, 1, 0, 0)),
    "two sides": (SQUARES, [M @ x <= 1, M @ x >= -1], (4, 0, 3, 0, 0)),
    "two sides, with a parameter": (SQUARES, [A @ x <= limit, -1 <= A @ x], (4, 0, 3, 0, 0)),
    "no two sides": (SQUARES, [M @ x <= 1, 2 * M @ x >= -1], (4, 0, 6, 0, 0)),
    "an equality gives an unknown": (SQUARES, [cp.sum(x) == 1], (3, 0, 0, 0, 0)),
    "but not one with bounds": (SQUARES, [cp.sum(x) == 1, x >= 0], (4, 1, 0, 4, 0)),
    "nor by a parameter": (SQUARES, [A @ x == 0], (4, 3, 0, 0, 0)),
    "a path": (*path(5), (10, 0, 0, 10, 10)),
    "a path, in any order": (*path(5, shuffled=True), (10, 0, 0, 10, 10)),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_who_stays(name):
    *what, expected = PLANS[name]
    assert sizes(*what) == expected


def test_an_unknown_at_its_limit_that_is_asked_for_stays():
    t = cp.Variable(n)
    rows = [x <= t, -x <= t, t <= limit]
    assert sizes(SQUARES, rows, [x])[0] == 4
    assert sizes(SQUARES, rows, [x, t])[0] == 8


TOPS = {  # name: constraints that are limits of x by CVXPY's own unknowns
    "absolute value": lambda: [cp.abs(x) <= p],
    "absolute value, turned": lambda: [-cp.abs(x) / 2 >= -p / 2],
    "maximum": lambda: [cp.maximum(x, -x) <= p],
    "infinity norm": lambda: [cp.norm_inf(x[k]) <= p[k] for k in range(n)],
    "beside rows that need it not": lambda: [cp.abs(x) <= p, cp.sum(x) <= 10, x[0] >= -5],
}


@pytest.mark.parametrize("name", TOPS)
def test_an_infinite_limit_is_none(name):
    """It was NaN once, 0 times infinity in the rows of others. Here x is q, cut off at p."""
    q = cp.Parameter(n)
    layer = ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(x - q)), TOPS[name]()), [q, p], [x])
    given = torch.tensor([1.0, -2.0, 3.0, 0.5]).double().requires_grad_()
    tops = torch.tensor([[0.5, torch.inf, 2.0, 1.0], [torch.inf] * 4, [1.0] * 4]).double()
    tops.requires_grad_()
    sol = layer.solve(given, tops)
    truth = given.clamp(-tops, tops)
    assert not sol.status.any()
    torch.testing.assert_close(sol.values[0], truth, rtol=0, atol=1e-9)
    weight = torch.linspace(1, 2, 12).double().view(3, n)
    ours = torch.autograd.grad((weight * sol.values[0]).sin()[:2].sum(), [given, tops])
    right = torch.autograd.grad((weight * truth).sin()[:2].sum(), [given, tops])
    for a, b in zip(ours, right, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8)


def test_a_constant_limit_may_be_infinite_and_one_without_any_point_is_found_out():
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.abs(x) <= [1, np.inf, 2, 3]])
    (found,) = ConvexLayer(problem, [p], [x])(torch.full((4,), 5.0))
    torch.testing.assert_close(found, torch.tensor([1.0, 5, 2, 3]))
    q = cp.Parameter(n)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p)), [cp.abs(x) <= q])
    layer = ConvexLayer(problem, [p, q], [x], on_failure="ignore")
    status = layer.solve(torch.zeros(n), torch.tensor([[1.0] * n, [-torch.inf] * n])).status
    assert status[0] == 0 and status[1] > 1


REPEATS = {  # name: rows that say the same twice, in numbers that do not cancel exactly
    "a multiple": lambda z, r: [z[0] / 3 + z[1] / 7 == r, z[0] + 3 * z[1] / 7 == 3 * r],
    "a sum": lambda z, r: [
        z[0] / 3 + z[1] / 7 == r, z[1] / 7 + z[2] / 11 == r, z[0] / 3 - z[2] / 11 == 0,
    ],
    "as an inequality": lambda z, r: [z[0] / 3 + z[1] / 7 == r, z[0] + 3 * z[1] / 7 <= 3 * r],
    "as two": lambda z, r: [
        z[0] / 3 + z[1] / 7 == r, z[0] + 3 * z[1] / 7 <= 3 * r, -z[0] - 3 * z[1] / 7 <= -3 * r,
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", REPEATS)
def test_what_is_left_of_a_repeated_row_is_no_row(name):
    """It was once: 1e-17 z = 1e-17 counted as z = 1. Here z is p, moved on to the first row."""
    z, q, r = cp.Variable(3), cp.Parameter(3), cp.Parameter()
    rows = REPEATS[name](z, r)
    layer = ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(z - q)), rows), [q, r], [z])
    given = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
    side = torch.linspace(-1, 1, 20).double().requires_grad_()
    (found,) = layer(given, side)
    C = np.zeros((2, 3))
    C[0, :2] = 1 / 3, 1 / 7
    if name == "a sum":
        C[1, 1:] = 1 / 7, 1 / 11
    C = torch.from_numpy(C[: 2 if name == "a sum" else 1])
    lift = torch.linalg.pinv(C)
    truth = given + (side[:, None].expand(-1, len(C)) - given @ C.mT) @ lift.mT
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-9)
    (ours,) = torch.autograd.grad(found.sin().sum(), side)
    (right,) = torch.autograd.grad(truth.sin().sum(), side)
    torch.testing.assert_close(ours, right, rtol=1e-8, atol=1e-8)


def test_a_repeated_row_may_have_an_infinite_limit():
    z, q, h = cp.Variable(2), cp.Parameter(2), cp.Parameter()
    rows = [z[0] / 3 + z[1] / 7 == 1, z[0] + 3 * z[1] / 7 <= h]
    layer = ConvexLayer(cp.Problem(cp.Minimize(cp.sum_squares(z - q)), rows), [q, h], [z])
    both = layer(torch.tensor([3.0, 0.0]).double(), torch.tensor([3.5, torch.inf]).double())[0]
    truth = torch.tensor([3.0, 0.0]).double().expand(2, 2)
    torch.testing.assert_close(both, truth, rtol=0, atol=1e-9)


def test_a_row_that_contradicts_another_is_no_rounding():
    z, q, r = cp.Variable(2), cp.Parameter(2), cp.Parameter()
    rows = [z[0] / 3 + z[1] / 7 == r, z[0] + 3 * z[1] / 7 == 3]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - q)), rows)
    layer = ConvexLayer(problem, [q, r], [z], on_failure="ignore")
    status = layer.solve(torch.zeros(2), torch.tensor([1.0, 1.001])).status
    assert status.tolist() == [0, 3]
