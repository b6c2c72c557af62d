"""A warm start saves steps and changes nothing else."""

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffopt import QPLayer, Status, solve_qp
from problems.random_qp import infeasible_qp

from .. import cases, checks

TABLE = cases.QPS | cases.LARGE_QPS
VALUES = ("z", "lam", "nu", "mu")
FAR = ("condition 1e6", "n = 100, condition 1e6", "n = 100, linear program")


def perturbed(name: str) -> dict[str, Tensor]:
    """p and h changed by about 1 %; the limits only outwards, so that a feasible point stays."""
    a = cases.arguments(TABLE[name])
    generator = torch.Generator().manual_seed(7)
    for key in ("p", "h"):
        if key in a:
            noise = torch.randn(a[key].shape, generator=generator, dtype=torch.float64)
            noise = noise if key == "p" else noise.abs()
            finite = a[key][a[key].isfinite()].abs()
            a[key] = a[key] + 0.01 * noise * finite.mean()
    return a


def answer(a: dict[str, Tensor], **options):
    """(the solution, the gradients of a random linear function of all outputs)."""
    leaves = {k: v.clone().requires_grad_() for k, v in a.items()}
    sol = solve_qp(**{"Q": None} | leaves, on_failure="ignore", **options)
    generator = torch.Generator().manual_seed(0)
    outputs = [getattr(sol, k) for k in VALUES]
    loss = sum(
        (torch.randn(v.shape, generator=generator, dtype=torch.float64) * v).sum() for v in outputs
    )
    grads = torch.autograd.grad(loss, leaves.values())
    return sol, dict(zip(leaves, grads, strict=True))


@functools.cache
def solved(name: str):
    return solve_qp(**TABLE[name].arguments())


@functools.cache
def cold_and_warm(name: str):
    a = perturbed(name)
    return answer(a), answer(a, warm_start=solved(name))


def assert_same(ours, truth, rtol: float) -> None:
    for key in VALUES:
        value, expected = getattr(ours, key), getattr(truth, key)
        size = expected.abs().max().item() if expected.numel() else 0.0
        torch.testing.assert_close(value, expected, rtol=0, atol=rtol * size)


@pytest.mark.parametrize("name", TABLE)
class TestNearbyProblem:
    def test_the_problem_has_a_solution(self, name):
        (cold, _), (warm, _) = cold_and_warm(name)
        assert (cold.status == Status.CONVERGED).all() and (warm.status == Status.CONVERGED).all()

    def test_half_the_steps_at_most(self, name):
        """Less is asked where 1 % of p moves the solution to quite another active set."""
        (cold, _), (warm, _) = cold_and_warm(name)
        share = 0.8 if name in FAR else 0.5
        assert warm.iterations.sum() <= share * cold.iterations.sum()

    def test_no_step_where_the_active_set_stays(self, name):
        (cold, _), (warm, _) = cold_and_warm(name)
        same = torch.ones_like(cold.status, dtype=torch.bool)
        for key in ("lam", "mu"):
            signs = getattr(cold, key).sign() == getattr(solved(name), key).sign()
            same = same & signs.all(-1)
        assert (warm.iterations[same] == 0).all()

    def test_the_same_answer(self, name):
        (cold, _), (warm, _) = cold_and_warm(name)
        assert_same(warm, cold, 1e-9)
        assert checks.kkt_error(perturbed(name), warm).max() <= 1e-11

    def test_the_same_gradient(self, name):
        (_, cold), (_, warm) = cold_and_warm(name)
        for key, truth in cold.items():
            size = truth.abs().max().item()
            torch.testing.assert_close(warm[key], truth, rtol=0, atol=1e-8 * size)

    def test_the_solution_itself_takes_no_step(self, name):
        sol = solve_qp(**TABLE[name].arguments(), warm_start=solved(name))
        assert (sol.iterations == 0).all() and sol.polished.all()
        assert_same(sol, solved(name), 1e-12)


def everything_else(sol, change):
    return replace(sol, **{k: change(getattr(sol, k)) for k in VALUES})


def noise(v: Tensor) -> Tensor:
    return torch.randn(v.shape, generator=torch.Generator().manual_seed(3), dtype=v.dtype)


GARBAGE = {
    "random": noise,
    "random and huge": lambda v: 1e10 * noise(v),
    "zero": torch.zeros_like,
    "NaN": lambda v: torch.full_like(v, torch.nan),
    "infinite": lambda v: torch.full_like(v, -torch.inf),
    "of the other sign": lambda v: -v,
    "of another sample": lambda v: v.flip(0),
}
HARD = ["everything", "semidefinite", "linear program",
        "shared matrices", "unknowns in units of 1e-08", "objective in units of 1e+08",
        "condition 1e6", "fully active"]  # fmt: skip


@pytest.mark.parametrize("kind", GARBAGE)
@pytest.mark.parametrize("name", HARD)
def test_a_bad_start_costs_steps_and_nothing_else(name, kind):
    start = everything_else(solved(name), GARBAGE[kind])
    sol = solve_qp(**TABLE[name].arguments(), warm_start=start)
    assert (sol.status == Status.CONVERGED).all()
    assert checks.kkt_error(TABLE[name].arguments(), sol).max() <= 1e-12
    assert_same(sol, solved(name), 1e-9)


def test_bad_samples_of_a_start_leave_the_others_alone():
    """Samples that failed, or are not finite, start cold."""
    good = TABLE["inequality and equality"].arguments()
    bad = infeasible_qp(10, 15, 3, batch=(8,)).arguments()
    rows = torch.tensor([True, False] * 4)
    mixed = {
        k: None if v is None else torch.where(rows.view(-1, *[1] * (v.ndim - 1)), v, bad[k])
        for k, v in good.items()
    }
    start = solve_qp(**mixed, on_failure="ignore")
    assert start.status.tolist() == [0, Status.PRIMAL_INFEASIBLE] * 4
    start.z[2] = torch.nan
    sol, cold = solve_qp(**good, warm_start=start), solve_qp(**good)
    is_cold = ~rows
    is_cold[2] = True
    assert torch.equal(sol.iterations[is_cold], cold.iterations[is_cold])
    assert (sol.iterations[~is_cold] == 0).all()
    assert_same(sol, cold, 1e-10)


def test_an_infeasible_problem_is_found_so_from_a_warm_start():
    start = solved("inequality and equality")
    bad = infeasible_qp(10, 15, 3, batch=(8,)).arguments()
    sol = solve_qp(**bad, warm_start=start, on_failure="ignore")
    assert (sol.status == Status.PRIMAL_INFEASIBLE).all()


@pytest.mark.parametrize("key", VALUES)
def test_wrong_shapes_are_named(key):
    sol = solved("everything")
    short = replace(sol, **{key: getattr(sol, key)[..., 1:]})
    with pytest.raises(ValueError, match=rf"warm_start\.{key} has shape \(8, \d+\)"):
        solve_qp(**TABLE["everything"].arguments(), warm_start=short)


def test_another_batch_is_named():
    with pytest.raises(ValueError, match=r"warm_start\.z has shape \(8, 10\).*\(7, 10\)"):
        a = cases.random_qp(10, 15, 3, batch=(7,)).arguments()
        solve_qp(**a, warm_start=solved("inequality and equality"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_start_of_low_precision(dtype):
    """The active set survives the rounding, the values are polished again."""
    start = everything_else(solved("everything"), lambda v: v.to(dtype))
    sol = solve_qp(**TABLE["everything"].arguments(), warm_start=start)
    assert (sol.iterations == 0).all()
    assert_same(sol, solved("everything"), 1e-12)


def test_the_graph_of_a_start_is_not_kept():
    p = TABLE["box"].p.clone().requires_grad_()
    a = TABLE["box"].arguments()
    start = solve_qp(**a | {"p": p})
    sol = solve_qp(**a, warm_start=start)
    assert not sol.z.requires_grad
    again = solve_qp(**a | {"p": p}, warm_start=start)
    grads = [torch.autograd.grad(s.z.sum(), p)[0] for s in (start, again)]
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-11)


def test_a_layer_takes_a_warm_start():
    a = cases.arguments(TABLE["box and equality"])
    p = a.pop("p")
    layer = QPLayer(**a)
    first = layer.solve(p)
    second = layer.solve(1.001 * p, warm_start=first)
    cold = layer.solve(1.001 * p)
    assert second.iterations.sum() < cold.iterations.sum()
    assert_same(second, cold, 1e-10)
