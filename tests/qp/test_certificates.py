"""A problem without a solution is named so, with a proof that holds by its definition."""

import functools

import pytest
import torch
from torch import Tensor

from diffopt import Status, solve_qp
from problems.random_qp import Instance, infeasible_qp, random_qp, unbounded_qp

from .. import cases, checks

BATCH = 20
SIZES = [(3, 4, 1), (8, 12, 2), (30, 40, 5)]
MARGINS = [1e-3, 1e-1, 10.0]
INFEASIBLE, UNBOUNDED = Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE


def crossed_bounds() -> dict[str, Tensor]:
    """lb > ub by 0.1 in one unknown of each sample."""
    a = cases.arguments(random_qp(6, 5, 1, batch=(BATCH,), seed=2))
    lb = torch.full((BATCH, 6), -5.0, dtype=torch.float64)
    where = torch.arange(BATCH) % 6
    lb[torch.arange(BATCH), where] = 5.1
    return a | {"lb": lb, "ub": torch.full_like(lb, 5.0)}


def crossed_limits() -> dict[str, Tensor]:
    """h_lower > h by 0.1 in one row of each sample."""
    a = cases.arguments(random_qp(6, 5, 1, batch=(BATCH,), seed=3))
    lower = a["h"] - 1
    lower[torch.arange(BATCH), torch.arange(BATCH) % 5] += 1.1
    return a | {"h_lower": lower}


def contradicting_equalities() -> dict[str, Tensor]:
    """One row of A twice, with values that differ by 0.1."""
    a = cases.arguments(random_qp(6, 5, 2, batch=(BATCH,), seed=4))
    A = torch.cat([a["A"], -2 * a["A"][:, :1]], 1)
    return a | {"A": A, "b": torch.cat([a["b"], -2 * a["b"][:, :1] + 0.1], -1)}


def linear(instance: Instance) -> dict[str, Tensor]:
    """The linear program that is left without Q."""
    return {k: v for k, v in cases.arguments(instance).items() if k != "Q"}


def falling_lp() -> dict[str, Tensor]:
    """min -margin z_0 over z_0 >= -1, the others in a box: the ray is the first unit vector."""
    generator = torch.Generator().manual_seed(5)
    p = torch.randn(BATCH, 6, generator=generator, dtype=torch.float64)
    p[:, 0] = -torch.logspace(-3, 1, BATCH, dtype=torch.float64)
    ub = torch.ones(6, dtype=torch.float64)
    ub[0] = torch.inf
    return {"p": p, "lb": -torch.ones(6, dtype=torch.float64), "ub": ub}


PROBLEMS: dict[str, tuple[dict[str, Tensor], Status]] = {
    "bounds that contradict each other": (crossed_bounds(), INFEASIBLE),
    "limits that contradict each other": (crossed_limits(), INFEASIBLE),
    "equalities that contradict each other": (contradicting_equalities(), INFEASIBLE),
    "falling linear program in a box": (falling_lp(), UNBOUNDED),
}
for n, m, e in SIZES:
    for margin in MARGINS:
        key = f"n = {n}, margin {margin:g}"
        no_point = infeasible_qp(n, m, e, margin=margin, batch=(BATCH,), seed=n)
        no_floor = unbounded_qp(n, m // 2, e, margin=margin, batch=(BATCH,), seed=n)
        PROBLEMS[f"infeasible, {key}"] = cases.arguments(no_point), INFEASIBLE
        PROBLEMS[f"unbounded, {key}"] = cases.arguments(no_floor), UNBOUNDED
        PROBLEMS[f"infeasible linear program, {key}"] = linear(no_point), INFEASIBLE


@functools.cache
def solved(name: str):
    return solve_qp(**{"Q": None} | PROBLEMS[name][0], on_failure="ignore")


def ray_error(a: dict[str, Tensor], z: Tensor) -> Tensor:
    """|Qz, Az and steps over finite limits| / |z|, and |p'z + 1|, the worst of a sample."""
    a = checks.complete(a)
    Gz = checks.times(a["G"], z)
    sides = ((Gz, a["h"]), (-Gz, a["h_lower"]), (z, a["ub"]), (-z, a["lb"]))
    over = [torch.where(limit.isfinite(), v, 0.0).clamp(min=0) for v, limit in sides]
    moved = torch.cat([checks.times(a["Q"], z), checks.times(a["A"], z), *over], -1)
    slope = (a["p"] * z).sum(-1)
    return torch.maximum(moved.abs().amax(-1) / z.abs().amax(-1), (slope + 1).abs())


def farkas_error(a: dict[str, Tensor], proof) -> Tensor:
    """|G'lam + A'nu + mu| over the largest multiplier, and |limits'multipliers + 1|."""
    a = checks.complete(a)
    weights = torch.cat(proof[1:], -1)
    total = checks.times(a["G"].mT, proof.lam_upper - proof.lam_lower)
    total = total + checks.times(a["A"].mT, proof.nu) + proof.mu_upper - proof.mu_lower
    paid = (a["b"] * proof.nu).sum(-1)
    for name, y, sign in (
        ("h", proof.lam_upper, 1),
        ("h_lower", proof.lam_lower, -1),
        ("ub", proof.mu_upper, 1),
        ("lb", proof.mu_lower, -1),
    ):
        assert (y >= 0).all()
        stray = (y != 0) & ~a[name].isfinite()
        assert not stray.any(), f"a multiplier of an absent {name}"
        paid = paid + torch.where(y != 0, sign * a[name] * y, 0.0).sum(-1)
    return torch.maximum(total.abs().amax(-1) / weights.abs().amax(-1), (paid + 1).abs())


@pytest.mark.parametrize("name", PROBLEMS)
class TestProofs:
    def test_status(self, name):
        assert (solved(name).status == PROBLEMS[name][1]).all(), solved(name).status

    def test_the_certificate_proves_the_status(self, name):
        a, status = PROBLEMS[name]
        proof = solved(name).certificate
        error = ray_error(a, proof.z) if status == UNBOUNDED else farkas_error(a, proof)
        assert error.max() <= 1e-7, error

    def test_there_is_one_proof_and_not_both(self, name):
        _, status = PROBLEMS[name]
        z, *multipliers = solved(name).certificate
        absent = multipliers if status == UNBOUNDED else [z]
        assert all((v == 0).all() for v in absent)


def test_by_hand():
    """z >= 1 and z <= 0 add up to 0 <= -1; -z on z >= 0 falls by one along z = 1."""
    p = torch.tensor([0.0, -1.0], dtype=torch.float64).view(2, 1)
    lb = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    ub = torch.tensor([[0.0], [torch.inf]], dtype=torch.float64)
    sol = solve_qp(None, p, lb=lb, ub=ub, on_failure="ignore")
    assert sol.status.tolist() == [INFEASIBLE, UNBOUNDED]
    expected = {"mu_lower": [1.0, 0.0], "mu_upper": [1.0, 0.0], "z": [0.0, 1.0]}
    for name, values in expected.items():
        found = getattr(sol.certificate, name).flatten().tolist()
        assert found == pytest.approx(values, abs=1e-7), name


@pytest.mark.parametrize("name", ["everything", "linear program, box", "n = 50"])
def test_a_solved_sample_has_a_certificate_of_zero(name):
    sol = solve_qp(**(cases.QPS | cases.LARGE_QPS)[name].arguments())
    assert all((v == 0).all() for v in sol.certificate)
    assert all(v.shape[:-1] == sol.status.shape for v in sol.certificate)


def test_solved_infeasible_and_unbounded_samples_in_one_batch():
    """Each keeps its status and its proof, the solved ones the answer that they have alone."""
    n, m, e = SIZES[1]
    kinds = {
        Status.CONVERGED: random_qp(n, m, e, batch=(4,)),
        INFEASIBLE: infeasible_qp(n, m, e, margin=0.1, batch=(4,)),
        UNBOUNDED: unbounded_qp(n, m, e, margin=0.1, batch=(4,)),
    }
    parts = [cases.arguments(instance) for instance in kinds.values()]
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    back = order.argsort().view(3, 4)
    mixed = {k: torch.cat([a[k] for a in parts])[order] for k in parts[0]}
    sol = solve_qp(**mixed, on_failure="ignore")
    proofs = [type(sol.certificate)(*(v[rows] for v in sol.certificate)) for rows in back]
    assert sol.status[back].tolist() == [[int(kind)] * 4 for kind in kinds]
    assert all((v == 0).all() for v in proofs[0])
    assert farkas_error(parts[1], proofs[1]).max() <= 1e-7
    assert ray_error(parts[2], proofs[2].z).max() <= 1e-7
    alone = solve_qp(**parts[0])
    for key in ("z", "lam", "nu"):
        ours = getattr(sol, key)[back[0]]
        torch.testing.assert_close(ours, getattr(alone, key), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("limit", [[0.0, 0.0], [0.1, 0.2], [0.1, 0.6], [1e3, 2e3]])
@pytest.mark.parametrize("p", [[0.0, 0.0], [1.0, -2.0], [-1e3, 1.0]])
def test_constraints_that_touch_contradict_nothing(limit, p):
    """z >= limit and the sum of z at most that of limit: one point, up to the rounding of a sum."""
    lb, p = torch.tensor(limit, dtype=torch.float64), torch.tensor(p, dtype=torch.float64)
    G = torch.tensor([[1.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    h = torch.tensor([round(sum(limit), 6), *(-lb).tolist()], dtype=torch.float64)
    for Q in (torch.eye(2, dtype=torch.float64), None):
        sol = solve_qp(Q, p, G, h)
        assert sol.status == Status.CONVERGED
        torch.testing.assert_close(sol.z, lb, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(), (2, 1, 3)])
def test_shapes_follow_the_batch(shape):
    instance = infeasible_qp(4, 5, 1, batch=shape)
    sol = solve_qp(**instance.arguments(), on_failure="ignore")
    sizes = {"z": 4, "nu": 1, "lam_upper": 5, "lam_lower": 5, "mu_upper": 4, "mu_lower": 4}
    for name, size in sizes.items():
        assert getattr(sol.certificate, name).shape == (*shape, size)
