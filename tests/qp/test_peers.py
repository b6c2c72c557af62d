"""Problems on which other solvers and layers were reported to fail, with the answers by hand.

Each row or docstring names the report. The numbers are those of the problem, never of its solver.
"""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from diffopt import ConvergenceWarning, Status, solve_qp
from problems.random_qp import random_qp

from .. import cases, checks

INF = torch.inf
I2, I3, I4 = (torch.eye(n, dtype=torch.float64) for n in (2, 3, 4))
QPSUT03 = [[122.0, 59.0, 39.0, 9.0], [59.0, 95.0, 48.0, 24.0], [39.0, 48.0, 26.0, 19.0],
           [9.0, 24.0, 19.0, 90.0]]  # fmt: skip


class Case(NamedTuple):
    """Arguments, the answer, and the gradients of g'z."""

    arguments: dict
    answer: dict
    g: list | None = None
    grads: dict = {}  # never changed
    atol: float = 1e-12
    grads_atol: float = 1e-12


CASES = {
    "locuslab/qpth#47: Gz = 0 <= 0 and Az = 0 = 0 leave z = -p": Case(
        {"Q": [[[1.0]]], "p": [[1.0]], "G": [[[0.0]]], "h": [[0.0]], "A": [[[0.0]]], "b": [[0.0]]},
        {"z": [[-1.0]]},
        [1.0],
        {"p": [[-1.0]]},
    ),
    "locuslab/qpth PR 62: at the origin, where the first step has zero entries": Case(
        {"Q": I2, "p": [0.0, 0.0], "G": [[1.0, 0.0]], "h": [1.0]},
        {"z": [0.0, 0.0], "lam": [0.0]},
        [1.0, 1.0],
        {"Q": [[0.0] * 2] * 2, "p": [-1.0, -1.0], "G": [[0.0, 0.0]], "h": [0.0]},
    ),
    "cvxpy/cvxpylayers#143: a projection on a polygon": Case(
        {"Q": I2, "p": [-1.0, -2.5], "G": [[-1.0, 2.0], [1.0, 2.0], [1.0, -2.0]], "h": [2.0, 6, 2]},
        {"z": [1.4, 1.7], "lam": [0.4, 0.0, 0.0]},
    ),
    "kevin-tracy/qpax#21: the gradient of an active row": Case(
        {"Q": [[2.0, 0.0], [0.0, 3.0]], "p": [-4.0, -3.0], "G": [[1.0, 2.0]], "h": [1.5]},
        {"z": [29 / 22, 1 / 11], "lam": [15 / 11]},
        [1.0, 0.5],
        {"G": [[-235 / 242, 35 / 242]]},
    ),
    "google/jaxopt#95: p = 0, where dz/db = (1/4, 3/4)": Case(
        {"Q": [[4.0, 1.0], [1.0, 2.0]], "p": [0.0, 0.0], "A": [[1.0, 1.0]], "b": [1.0]},
        {"z": [0.25, 0.75]},
        [1.0, 10.0],
        {"b": [7.75]},
    ),
    "cvxpy/cvxpylayers#127: the vertex (-h_0, b + h_0 + h_2, -h_2) of a linear program": Case(
        {"p": [-0.1, -0.2, 0.1], "G": -I3, "h": [0.0] * 3, "A": [[1.0] * 3], "b": [1.0]},
        {"z": [0.0, 1.0, 0.0], "lam": [0.1, 0.0, 0.3], "nu": [0.2]},
        [1.0, 2.0, 3.0],
        {"p": [0.0, 0.0, 0.0], "b": [2.0], "h": [1.0, 0.0, -1.0]},
    ),
    "jkitchin/pounce#326: an equality twice": Case(
        {"Q": 2 * I2, "p": [-2.0, -4.0], "A": [[1.0, 1.0]] * 2, "b": [2.0, 2.0]},
        {"z": [0.5, 1.5]},
        [1.0, 0.0],
        {"p": [-0.25, 0.25]},
    ),
    "jkitchin/pounce#326: an equality and multiples of it": Case(
        {"Q": 2 * I2, "p": [-2.0, -4.0], "A": [[1.0, 1], [3, 3], [4, 4]], "b": [2.0, 6.0, 8.0]},
        {"z": [0.5, 1.5]},
        [1.0, 0.0],
        {"p": [-0.25, 0.25]},
    ),
    # nu_0 + 2 nu_1 = 1/2 and db_0 + 2 db_1 = 1, the shortest of which are along (1, 2)
    "jkitchin/pounce#313: multipliers of least norm": Case(
        {"Q": I3, "p": [-1.0, -2, -3], "A": [[1.0, 1, 0], [2, 2, 0]], "b": [2.0, 4.0]},
        {"z": [0.5, 1.5, 3.0], "nu": [0.1, 0.2]},
        [1.0, 1.0, 1.0],
        {"b": [0.2, 0.4]},
    ),
    "kevin-tracy/qpax#4 and #5: QPSUT03, infinite limits and none active": Case(
        {
            "Q": QPSUT03,
            "p": [66.0, 93.0, 47.0, 11.0],
            "G": torch.cat([-I4, I4]),
            "h": [INF, 0.4, INF, 1.0, INF, INF, 0.5, 1.0],
        },
        {"z": [0.18143460, 0.00843882, -2.35443038, 0.35443038], "lam": [0.0] * 8},
        [1.0] * 4,
        {"p": [0.52277947, 1.90391497, -4.63531485, 0.40746675], "h": [0.0] * 8},
        atol=1e-8,
        grads_atol=1e-8,
    ),
    # dz/dp is -1 or 0 and dz/du 0 or 1: the mean
    "weakly active: min z^2 / 2 - z, z <= u = 1": Case(
        {"Q": [[1.0]], "p": [-1.0], "G": [[1.0], [-1.0]], "h": [1.0, 1.0]},
        {"z": [1.0], "lam": [0.0, 0.0], "weakly_active": [True, False, False]},
        [1.0],
        {"p": [-0.5], "h": [0.5, 0.0]},
    ),
}
for limit in (1e3, 1e6, 1e12, INF):
    CASES[f"a limit of {limit:g} that is not binding"] = Case(
        {"Q": I2, "p": [1.0, 2.0], "G": -I2, "h": [limit, 0.0]},
        {"z": [-1.0, 0.0], "lam": [0.0, 2.0]},
        [1.0, 1.0],
        {"p": [-1.0, 0.0], "h": [0.0, -1.0]},
    )
for eps in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
    CASES[f"jkitchin/pounce#284 and #328: rows at an angle of {eps:g}"] = Case(
        {"Q": I2, "p": [0.0, 0.0], "A": [[1.0, 0.0], [1.0, eps]], "b": [1.0, 1.0]},
        {"z": [1.0, 0.0]},
        [0.0, 1.0],
        {"b": [-1 / eps, 1 / eps]},
        atol=1e-14 / eps,
        grads_atol=1e-8 / eps,
    )


def f64(value) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def solve(arguments: dict, **options):
    a = {"Q": None} | arguments
    return solve_qp(**{k: f64(v) if isinstance(v, list) else v for k, v in a.items()}, **options)


def solve_and_pull(g: list, arguments: dict, **options):
    """The solution, and the gradient of g'z with respect to every argument."""
    leaves = {
        k: torch.as_tensor(v, dtype=torch.float64).clone().requires_grad_()
        for k, v in arguments.items()
    }
    sol = solve(leaves, **options)
    grads = torch.autograd.grad((f64(g) * sol.z).sum(), leaves.values(), allow_unused=True)
    return sol, dict(zip(leaves, grads, strict=True))


def close(actual: Tensor, expected, atol: float = 1e-12) -> None:
    torch.testing.assert_close(actual.detach().double(), f64(expected), rtol=0, atol=atol)


@pytest.mark.parametrize("name", CASES)
def test_reported_case(name):
    case = CASES[name]
    sol, grads = solve_and_pull(case.g or [0.0] * len(case.answer["z"]), case.arguments)
    assert sol.status == Status.CONVERGED
    for key, expected in case.answer.items():
        close(getattr(sol, key), expected, case.atol)
    for key, expected in case.grads.items():
        close(grads[key], expected, case.grads_atol)
    assert all(g is None or g.isfinite().all() for g in grads.values())


def test_a_shared_matrix_gets_the_sum():
    """qpth averages over the batch: of 8 equal samples, a shared G gets 8 times the gradient."""
    a = {"Q": I2, "p": [-2.0, -1.0], "G": [[1.0, 1.0]], "h": [1.0]}
    _, one = solve_and_pull([1.0, 0.0], a)
    _, eight = solve_and_pull([1.0, 0.0], a | {"p": [a["p"]] * 8})
    close(one["G"], [[-1.0, 0.5]])  # z_0 falls by (dG_0 - dG_1) / 2 across G, and dG_0 / 2 along
    torch.testing.assert_close(eight["G"], 8 * one["G"])


WEAK = {  # min |x|^2 / 2, x_0 + x_1 = b, x_0 - 2 x_1 <= -1/2: active below b = 1, where dx/db =
    "active": (2 / 3, 1 / 3),
    "inactive": (1 / 2, 1 / 2),
    "central": (7 / 12, 5 / 12),  # the mean of the two
}


@pytest.mark.parametrize("degenerate", WEAK)
def test_one_sided_derivatives_at_a_kink(degenerate):
    """jkitchin/pounce#219: the row is active with multiplier zero."""
    a = {"Q": I2, "p": [0.0, 0.0], "G": [[1.0, -2.0]], "h": [-0.5], "A": [[1.0, 1.0]], "b": [1.0]}
    for unit, expected in zip(I2.tolist(), WEAK[degenerate], strict=True):
        sol, grads = solve_and_pull(unit, a, degenerate=degenerate)
        assert sol.weakly_active[0]
        close(sol.z, [0.5, 0.5])
        close(grads["b"], [expected])


def test_a_cone_that_is_a_point():
    """jkitchin/pounce#282 and #303: the last of 40 unit vectors is minus the sum of the others.

    So all 40 products with an x of the cone are zero, and x with them: there is no interior.
    """
    rows = torch.randn(39, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = torch.nn.functional.normalize(rows, dim=-1)
    G = torch.cat([rows, -torch.nn.functional.normalize(rows.sum(0, keepdim=True), dim=-1)])
    sol = solve({"Q": torch.eye(5), "p": [-1.0] * 5, "G": G, "h": 0.0})
    assert sol.status == Status.CONVERGED
    close(sol.z, [0.0] * 5)
    assert float((sol.z - 1).square().sum() / 2) == pytest.approx(2.5, abs=1e-11)


def test_a_matrix_that_is_no_convex_objective():
    """jkitchin/pounce#112, an indefinite Q, and #874, one of the wrong shape."""
    with pytest.warns(ConvergenceWarning, match="INVALID_INPUT"):
        sol = solve({"Q": [[1.0, 0.0], [0.0, -1.0]], "p": [0.0, 0.0]})
    assert sol.status == Status.INVALID_INPUT
    with pytest.raises(ValueError, match=r"Q has shape \(2, 3\)"):
        solve({"Q": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], "p": [0.0, 0.0]})


def test_an_infeasible_sample():
    """locuslab/qpth#31: z <= -1 and z >= 1 in sample 1 of 3."""
    a = {"Q": [[1.0]], "p": [[-2.0]] * 3, "G": [[1.0], [-1.0]], "h": [[1.0, 1], [-1, -1], [3, 1]]}
    with pytest.warns(ConvergenceWarning, match="1 of 3 samples failed\n  sample 1: PRIMAL_INF"):
        sol, grads = solve_and_pull([1.0], a)
    assert sol.status.tolist() == [0, Status.PRIMAL_INFEASIBLE, 0]
    close(sol.z[[0, 2]], [[1.0], [2.0]])
    close(grads["h"], [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    close(grads["p"], [[0.0], [0.0], [-1.0]])


RANDOM = torch.rand(2, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ONES = [1.0, 1.0]
TALL = f64([[8911.4, -12808.1], [-692.1, 5085.1], [6782.7, 3279.6], [7510.0, 1454.5]])
SOLVABLE = {  # name: (arguments, KKT error)
    "Simple-Robotics/proxsuite#445: 19 unknowns, 3 equalities, 50 rows": (
        cases.arguments(random_qp(19, 50, 3, batch=(20,))),
        1e-12,
    ),
    "Simple-Robotics/proxsuite#307: a linear program with 64 unknowns and 2 equalities": (
        {"p": [1.0] * 64, "G": -torch.eye(64).double(), "h": [0.0] * 64, "A": RANDOM, "b": ONES},
        1e-10,
    ),
    "jkitchin/pounce#958: Q of rank 2 and size 2.4e8 in a unit box": (
        {"Q": TALL @ TALL.mT, "p": [1.0] * 4, "lb": [-1.0] * 4, "ub": [1.0] * 4},
        1e-8,
    ),
}


@pytest.mark.parametrize("name", SOLVABLE)
def test_feasible_problems_are_solved(name):
    arguments, tolerance = SOLVABLE[name]
    a = {k: f64(v) if isinstance(v, list) else v for k, v in arguments.items()}
    sol = solve(a)
    assert (sol.status == Status.CONVERGED).all()
    assert checks.kkt_error(a, sol).max() <= tolerance


def test_large_values_stay_nonnegative():
    """google/jaxopt#633: points of size 1e4 projected on the simplex of that size.

    z = max(c - theta, 0) with the theta for which it sums to 1e4, by bisection.
    """
    c = 1e4 * torch.randn(20, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sol = solve({"Q": torch.eye(10).double(), "p": -c, "A": [[1.0] * 10], "b": 1e4, "lb": 0.0})
    low, high = c.amin(-1, keepdim=True) - 1e4, c.amax(-1, keepdim=True)
    for _ in range(100):
        theta = (low + high) / 2
        above = (c - theta).clamp(min=0).sum(-1, keepdim=True) > 1e4
        low, high = torch.where(above, theta, low), torch.where(above, high, theta)
    assert (sol.z >= 0).all()
    torch.testing.assert_close(sol.z, (c - theta).clamp(min=0), rtol=1e-12, atol=1e-8)


def test_soft_constraints_are_not_infeasible():
    """cvxpy/cvxpylayers#36: x_{t+1} = x_t + u_t from x_0 = 10, |u| <= 1, and x <= 1 if it can.

    The excess s_t >= x_t - 1 costs 1e3 each, so u = -1 throughout and s = 8, 7, ..., 4.
    """
    T, x0 = 5, 10.0
    total = torch.ones(T, T, dtype=torch.float64).tril()  # x_{t+1} - x_0 = sum of u up to t
    eye = torch.eye(T, dtype=torch.float64)
    weights = torch.cat([torch.ones(T), torch.zeros(T)]).double()
    zero, one = torch.zeros(T).double(), torch.ones(T).double()
    a = {"Q": torch.diag(weights), "p": 1e3 * (1 - weights), "G": torch.cat([total, -eye], -1)}
    a |= {"h": f64([1 - x0] * T), "lb": torch.cat([-one, zero])}
    sol = solve(a | {"ub": torch.cat([one, torch.full_like(one, torch.inf)])})
    assert sol.status == Status.CONVERGED
    close(sol.z, [-1.0] * T + [8.0, 7.0, 6.0, 5.0, 4.0], atol=1e-11)
