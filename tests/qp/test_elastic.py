"""infeasible="elastic": the l1 penalty problem."""

import functools

import pytest
import torch
from torch import Tensor

from diffopt import Status, solve_qp

from .. import cases, checks
from .test_relaxed import DOUBLE, PROBLEMS, errors_of_gradients


@functools.cache
def elastic(name: str):
    return solve_qp(**PROBLEMS[name], infeasible="elastic", penalty=3.0)


def with_slacks(a: dict[str, Tensor], penalty: float) -> dict[str, Tensor]:
    """The l1 penalty problem in (z, t_upper, t_lower, u, v) with a slack for every limit."""
    full = checks.complete(a)
    *batch, n = torch.broadcast_shapes(full["p"].shape, full["G"].shape[:-2] + full["p"].shape[-1:])
    m, e = full["G"].shape[-2], full["A"].shape[-2]
    extra = 2 * m + 2 * e
    pad = torch.nn.functional.pad
    eye_m, eye_e = (torch.eye(k, dtype=DOUBLE) for k in (m, e))
    G = torch.cat([-eye_m, eye_m, torch.zeros(m, 2 * e, dtype=DOUBLE)], -1).expand(*batch, -1, -1)
    A = torch.cat([torch.zeros(e, 2 * m, dtype=DOUBLE), -eye_e, eye_e], -1).expand(*batch, -1, -1)
    return {
        "Q": pad(full["Q"], (0, extra, 0, extra)),
        "p": pad(full["p"], (0, extra), value=penalty),
        "G": torch.cat([full["G"].expand(*batch, m, n), G], -1),
        "A": torch.cat([full["A"].expand(*batch, e, n), A], -1),
        "h": full["h"],
        "h_lower": full["h_lower"],
        "b": full["b"],
        "lb": pad(full["lb"], (0, extra), value=0.0),
        "ub": pad(full["ub"], (0, extra), value=torch.inf),
    }


@pytest.mark.parametrize("name", PROBLEMS)
class TestElastic:
    def test_equals_the_problem_with_explicit_slacks(self, name):
        a, sol = PROBLEMS[name], elastic(name)
        n, m = a["p"].shape[-1], sol.lam.shape[-1]
        written = solve_qp(**with_slacks(a, 3.0))
        z, over, under, pushed, pulled = written.z.split([n, m, m, *[sol.nu.shape[-1]] * 2], -1)
        for ours, truth in zip(
            (sol.z, *sol.shifts), (z, over - under, pushed - pulled), strict=True
        ):
            torch.testing.assert_close(ours, truth, rtol=0, atol=1e-8)

    def test_multipliers_are_bounded_by_the_penalty(self, name):
        sol = elastic(name)
        assert (sol.status == Status.CONVERGED).all()
        assert torch.cat([sol.lam, sol.nu], -1).abs().max() <= 3.0 + 1e-10
        for y, shift in ((sol.lam, sol.shifts.G), (sol.nu, sol.shifts.A)):
            unpaid = torch.where(shift.abs() > 1e-9, y - 3.0 * shift.sign(), 0.0)
            assert (unpaid.abs() <= 1e-9).all()
        assert (sol.shifts.G.abs().sum(-1) + sol.shifts.A.abs().sum(-1) > 1e-3).all()

    def test_gradients(self, name, generator):
        errors = errors_of_gradients(name, generator, infeasible="elastic", penalty=3.0)
        assert max(errors.values()) <= 1e-6, errors


def test_elastic_by_hand():
    """min z^2/2 + c max(0, z + 1) + c max(0, 1 - z): z = 0 for any c > 0, both rows pay 1."""
    one = torch.ones(1, 1, dtype=DOUBLE)
    G = torch.tensor([[1.0], [-1.0]], dtype=DOUBLE)
    for penalty in (0.5, 7.0):
        p = torch.zeros(1, dtype=DOUBLE, requires_grad=True)
        sol = solve_qp(one, p, G, -1.0, infeasible="elastic", penalty=penalty)
        assert sol.z.item() == pytest.approx(0.0, abs=1e-12)
        assert sol.shifts.G.tolist() == pytest.approx([1.0, 1.0], abs=1e-12)
        assert sol.lam.tolist() == pytest.approx([penalty, penalty], abs=1e-12)
        (grad,) = torch.autograd.grad(sol.z, p)
        assert grad.item() == pytest.approx(-1.0, abs=1e-12)


@pytest.mark.parametrize("penalty, z, shift", [(0.25, 0.25, -0.75), (0.5, 0.5, -0.5), (2, 1, 0)])
def test_a_small_penalty_relaxes_a_feasible_problem(penalty, z, shift):
    """min z^2/2 with z >= 1: z = min(penalty, 1)."""
    one = torch.ones(1, 1, dtype=DOUBLE)
    zero = torch.zeros(1, dtype=DOUBLE)
    sol = solve_qp(one, zero, one, h_lower=1.0, infeasible="elastic", penalty=float(penalty))
    assert sol.z.item() == pytest.approx(z, abs=1e-12)
    assert sol.shifts.G.item() == pytest.approx(shift, abs=1e-12)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), "high"])
def test_bad_penalties_are_named(bad):
    with pytest.raises(ValueError, match="penalty="):
        solve_qp(**cases.QPS["box"].arguments(), infeasible="elastic", penalty=bad)
