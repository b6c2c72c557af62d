"""Contradicting constraints, relaxed: the closest feasible QP, and what both ways share."""

import functools

import pytest
import torch
from torch import Tensor

from diffopt import Status, solve_qp
from problems.random_qp import infeasible_qp, random_lp, random_qp

from .. import cases, checks

DOUBLE = torch.float64
VALUES = ("z", "lam", "nu", "mu")


def contradicting(two_sided: bool = False, bounds: float | None = None) -> dict[str, Tensor]:
    """Eight samples: rows of G that exclude each other, one row of A twice with other values."""
    a = cases.arguments(infeasible_qp(5, 7, 2, margin=1.0, batch=(8,), seed=1))
    a["A"] = torch.cat([a["A"], a["A"][:, :1]], 1)
    a["b"] = torch.cat([a["b"], a["b"][:, :1] + 0.5], -1)
    if two_sided:
        a["h_lower"] = a["h"] - torch.linspace(0.5, 1.5, 7, dtype=DOUBLE)
    if bounds is not None:
        a["lb"] = torch.full((5,), -bounds, dtype=DOUBLE)
        a["ub"] = torch.full((5,), bounds, dtype=DOUBLE)
    return a


def tight() -> dict[str, Tensor]:
    """Feasible but for the bounds: the rows have to give way to a small box."""
    a = cases.arguments(random_qp(5, 6, 1, active=4, batch=(6,), seed=2))
    return a | {"lb": torch.zeros(5, dtype=DOUBLE), "ub": torch.full((5,), 0.2, dtype=DOUBLE)}


PROBLEMS = {
    "rows of G": cases.arguments(infeasible_qp(6, 8, margin=0.5, batch=(8,))),
    "rows of G and A": contradicting(),
    "two-sided": contradicting(two_sided=True),
    "wide bounds": contradicting(bounds=20.0),
    "active bounds": tight(),
}


@functools.cache
def closest(name: str):
    return solve_qp(**PROBLEMS[name], infeasible="closest")


def shifted(a: dict[str, Tensor], sol) -> dict[str, Tensor]:
    """The limits moved by the shifts."""
    moved = {k: a[k] + sol.shifts.G.detach() for k in ("h", "h_lower") if k in a}
    return a | moved | ({"b": a["b"] + sol.shifts.A.detach()} if "b" in a else {})


def errors_of_gradients(name: str, generator, **options) -> dict[str, float]:
    """For z and the shifts, along a direction of all matrices, and one of all vectors, at once."""
    a = {k: v[:2] if len(v) == len(PROBLEMS[name]["p"]) else v for k, v in PROBLEMS[name].items()}
    ways = {
        k: torch.randn(v.shape, generator=generator, dtype=DOUBLE) * v[v.isfinite()].abs().max()
        for k, v in a.items()
    }

    def outputs(steps: dict):
        moved = {
            k: v + steps["matrices" if k in ("Q", "G", "A") else "vectors"] * ways[k]
            for k, v in a.items()
        }
        sol = solve_qp(**moved, **options)
        return sol.z, *sol.shifts

    zero = torch.zeros(1, dtype=DOUBLE)
    return checks.directional_errors(outputs, {"matrices": zero, "vectors": zero}, generator)


def mixed() -> dict[str, Tensor]:
    """Samples 1 and 4 of six contradict themselves."""
    a = cases.arguments(random_qp(6, 8, 2, two_sided=True, batch=(6,), seed=6))
    a["G"][:, 1], a["h_lower"][:, 1] = -a["G"][:, 0], -torch.inf
    a["h"][:, 1] = -a["h_lower"][:, 0]  # the same limit twice, but for the samples that differ
    a["h"][[1, 4], 1] = -a["h"][[1, 4], 0] - 2.0
    return a


@pytest.mark.parametrize("name", PROBLEMS)
class TestClosest:
    def test_shifts_are_needed_and_enough(self, name):
        sol, a = closest(name), PROBLEMS[name]
        assert (sol.status == Status.CONVERGED).all()
        assert (solve_qp(**a, on_failure="ignore").status == Status.PRIMAL_INFEASIBLE).all()
        full, z = checks.complete(shifted(a, sol)), sol.z
        Gz, Az = checks.times(full["G"], z), checks.times(full["A"], z)
        sides = (Gz - full["h"], full["h_lower"] - Gz, z - full["ub"], full["lb"] - z)
        violation = torch.cat([*sides, (Az - full["b"]).abs()], -1)
        assert violation.max() <= 1e-10

    def test_shifts_are_of_least_norm(self, name):
        """The gradient in z of 1/2 |s|^2 vanishes, but where a bound holds z; slack rows stay."""
        sol, a = closest(name), checks.complete(PROBLEMS[name])
        s, z = sol.shifts, sol.z
        gradient = checks.times(a["G"].mT, s.G) + checks.times(a["A"].mT, s.A)
        reach = torch.minimum(torch.maximum(z - gradient, a["lb"]), a["ub"])
        assert (reach - z).abs().max() <= 1e-9
        Gz = checks.times(a["G"], z)
        excess = (Gz - a["h"]).clamp(min=0) - (a["h_lower"] - Gz).clamp(min=0)
        torch.testing.assert_close(s.G, excess, rtol=0, atol=1e-9)
        torch.testing.assert_close(s.A, checks.times(a["A"], z) - a["b"], rtol=0, atol=1e-9)

    def test_bounds_are_active_where_the_name_says_so(self, name):
        sol, a = closest(name), checks.complete(PROBLEMS[name])
        at_bound = ((sol.z == a["lb"]) | (sol.z == a["ub"])).any(-1)
        assert at_bound.all() if name == "active bounds" else not at_bound.any()

    def test_z_is_the_minimiser_of_the_shifted_problem(self, name):
        """Rows that moved are equalities there: every feasible point has them at their limit."""
        sol, a = closest(name), shifted(PROBLEMS[name], closest(name))
        G = sol.shifts.G
        a["h_lower"] = torch.where(G > 0, a["h"], a.get("h_lower", torch.tensor(-torch.inf)))
        a["h"] = torch.where(G < 0, a["h_lower"], a["h"])
        torch.testing.assert_close(solve_qp(**a).z, sol.z, rtol=0, atol=1e-8)

    def test_kkt_conditions_of_the_shifted_problem(self, name):
        """With multipliers of either sign on the rows that moved."""
        sol, a = closest(name), checks.complete(shifted(PROBLEMS[name], closest(name)))
        moved = sol.shifts.G != 0
        dual = checks.times(a["Q"], sol.z) + a["p"] + checks.times(a["G"].mT, sol.lam)
        dual = dual + checks.times(a["A"].mT, sol.nu) + sol.mu
        assert dual.abs().max() <= 1e-10 * (1 + sol.lam.abs().max())
        Gz, lam = checks.times(a["G"], sol.z), torch.where(moved, 0.0, sol.lam)
        for y, value, upper, lower in (
            (lam, Gz, a["h"], a["h_lower"]),
            (sol.mu, sol.z, a["ub"], a["lb"]),
        ):
            gap = torch.where(y > 0, upper, lower) - value
            assert torch.where(y != 0, gap, 0.0).abs().max() <= 1e-10


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_of_the_closest_problem(name, generator):
    errors = errors_of_gradients(name, generator, infeasible="closest")
    assert max(errors.values()) <= 1e-6, errors


@pytest.mark.parametrize("mode", ["closest", "elastic"])
def test_feasible_samples_are_left_alone(mode):
    """In value and gradient, with shifts of zero."""
    a = mixed()
    grads, sols = [], []
    for option in ("report", mode):
        leaves = {k: v.clone().requires_grad_() for k, v in a.items()}
        sol = solve_qp(**leaves, infeasible=option, on_failure="ignore")
        feasible = [0, 2, 3, 5]
        loss = sum(getattr(sol, k)[feasible].pow(2).sum() for k in VALUES)
        grads.append(torch.autograd.grad(loss, leaves.values()))
        sols.append(sol)
    plain, relaxed = sols
    assert plain.status.tolist() == [0, 3, 0, 0, 3, 0] and (relaxed.status == 0).all()
    pairs = [(getattr(plain, k), getattr(relaxed, k)) for k in VALUES]
    for v, w in (*pairs, *zip(*grads, strict=True)):
        torch.testing.assert_close(v[feasible], w[feasible], rtol=1e-10, atol=1e-12)
    assert (relaxed.shifts.G[feasible] == 0).all() and (relaxed.shifts.A[feasible] == 0).all()
    assert (relaxed.shifts.G[[1, 4]] != 0).any(-1).all()


def test_contradicting_equalities_by_hand():
    """z = 0 and z = 1: halfway, and half of the change of either."""
    b = torch.tensor([0.0, 1.0], dtype=DOUBLE, requires_grad=True)
    one = torch.ones(1, 1, dtype=DOUBLE)
    sol = solve_qp(one, one[0], A=one.expand(2, 1), b=b, infeasible="closest")
    jacobian = torch.autograd.functional.jacobian(
        lambda b: torch.cat(
            [(s := solve_qp(one, one[0], A=one.expand(2, 1), b=b, infeasible="closest")).z,
             s.shifts.A]
        ),
        b,
    )  # fmt: skip
    assert sol.z.tolist() == pytest.approx([0.5], abs=1e-12)
    assert sol.shifts.A.tolist() == pytest.approx([0.5, -0.5], abs=1e-12)
    expected = torch.tensor([[0.5, 0.5], [-0.5, 0.5], [0.5, -0.5]], dtype=DOUBLE)
    torch.testing.assert_close(jacobian, expected, rtol=0, atol=1e-12)


def test_rows_against_bounds_by_hand():
    """z_0 >= 2 against z_0 <= 1: the row gives way; the other unknown is free of both."""
    p = torch.tensor([0.0, -0.25], dtype=DOUBLE)
    G = torch.tensor([[-1.0, 0.0]], dtype=DOUBLE)
    sol = solve_qp(torch.eye(2, dtype=DOUBLE), p, G, -2.0, ub=1.0, infeasible="closest")
    assert sol.z.tolist() == pytest.approx([1.0, 0.25], abs=1e-12)
    assert sol.shifts.G.tolist() == pytest.approx([1.0], abs=1e-12)


@pytest.mark.parametrize("mode", ["closest", "elastic"])
def test_bounds_are_never_relaxed(mode):
    one = torch.ones(1, 1, dtype=DOUBLE)
    sol = solve_qp(one, one[0], one, 0.0, lb=1.0, ub=0.0, infeasible=mode, on_failure="ignore")
    assert sol.status == Status.PRIMAL_INFEASIBLE


def test_report_has_no_shifts():
    a = cases.QPS["everything"].arguments()
    assert solve_qp(**a).shifts is None
    sol = solve_qp(**a, infeasible="closest")
    assert (sol.shifts.G == 0).all() and (sol.shifts.A == 0).all()
    assert sol.shifts.G.shape == sol.lam.shape and sol.shifts.A.shape == sol.nu.shape


@pytest.mark.parametrize("name", ["everything", "semidefinite", "linear program, box"])
@pytest.mark.parametrize("mode", ["closest", "elastic"])
def test_a_feasible_problem_is_its_own_relaxation(name, mode):
    a = cases.QPS[name].arguments()
    plain, sol = solve_qp(**a), solve_qp(**a, infeasible=mode)
    for k in VALUES:
        torch.testing.assert_close(getattr(plain, k), getattr(sol, k), rtol=1e-12, atol=1e-14)


def test_an_unbounded_problem_stays_unbounded():
    a = cases.unbounded_qp(5, 4, 1, batch=(3,)).arguments()
    for mode in ("closest", "elastic"):
        sol = solve_qp(**a, infeasible=mode, on_failure="ignore")
        assert (sol.status == Status.DUAL_INFEASIBLE).all()


def test_an_infeasible_linear_program():
    """Two parallel rows a unit apart, at the corner of a box that the objective points to."""
    lp = random_lp(3, 5, batch=(1,))
    G = torch.cat([lp.block("G")[:, :1], -lp.block("G")[:, :1]], 1)
    h = torch.tensor([[0.0, -1.0]], dtype=DOUBLE)
    sol = solve_qp(None, lp.p, G, h, lb=-1.0, ub=1.0, infeasible="closest")
    assert (sol.status == Status.CONVERGED).all()
    torch.testing.assert_close(sol.shifts.G, torch.full((1, 2), 0.5, dtype=DOUBLE))
