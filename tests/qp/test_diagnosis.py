"""What is said of an answer: `check_kkt` against the definition, `table` against counting."""

import logging
from dataclasses import dataclass, replace

import pytest
import torch

from diffopt import InteriorPoint, Status, solve_qp
from diffopt.qp import Residuals
from diffopt.qp.diagnosis import check_kkt, table

from .. import cases, checks

NAN = float("nan")


@dataclass(frozen=True)
class Answer:
    z: torch.Tensor
    lam: torch.Tensor
    nu: torch.Tensor
    mu: torch.Tensor


@pytest.mark.parametrize("name", cases.QPS)
def test_the_known_answer_satisfies_the_conditions(name):
    instance = cases.QPS[name]
    residuals = check_kkt(instance.arguments(), instance.z, instance.lam, instance.nu, instance.mu)
    assert residuals.worst().max() <= 1e-12
    assert residuals.primal.shape == instance.z.shape[:-1]


@pytest.mark.parametrize("name", cases.QPS)
def test_a_wrong_answer_has_the_error_that_the_definition_gives(name, generator):
    instance = cases.QPS[name]
    values = (getattr(instance, k) for k in ("z", "lam", "nu", "mu"))
    noisy = Answer(*(v + torch.randn(v.shape, generator=generator, dtype=v.dtype) for v in values))
    residuals = check_kkt(instance.arguments(), noisy.z, noisy.lam, noisy.nu, noisy.mu)
    truth = checks.kkt_error(instance.arguments(), noisy)
    assert (truth > 1e-3).all()
    torch.testing.assert_close(residuals.worst(), truth, rtol=1e-12, atol=0)


def test_the_residuals_of_solve_qp_are_found_again():
    a = cases.arguments(cases.QPS["everything"])
    sol = solve_qp(**a)
    ours = check_kkt(a, sol.z, sol.lam, sol.nu, sol.mu)
    for one, other in zip(ours, sol.residuals, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_three_residuals_by_hand():
    """minimise 1/2 z^2 - 2 z, z <= 1, at z = 1.5 with mu = 0.25."""
    problem = {"Q": torch.eye(1), "p": torch.tensor([-2.0]), "ub": 1.0}
    primal, dual, gap = check_kkt(problem, torch.tensor([1.5]), mu=torch.tensor([0.25]))
    assert primal.dtype == torch.float64 and primal.shape == ()
    assert primal.item() == 0.5  # over 1, as there are no rows
    assert dual.item() == 0.25 / 3  # |1.5 - 2 + 0.25| over 1 + |p|
    assert gap.item() == 0.5 / 2.875  # |2.25 - 3 + 0.25| over 1 + |1.125 - 3|


def test_a_multiplier_without_a_limit_is_an_error_of_the_dual():
    problem = {"Q": torch.eye(1), "p": torch.tensor([-1.0])}
    z = torch.tensor([1.0])
    assert check_kkt(problem, z).worst() == 0
    # Stationarity holds at z = 2 with mu = -1, but there is no lower bound that pushes.
    assert check_kkt(problem, 2 * z, mu=-z).dual.item() == 1 / 3


def test_candidates_and_problems_broadcast():
    instance = cases.random_qp(4, 5, 1, bounds=True, batch=(3,))
    a = instance.arguments()
    z = instance.z + torch.arange(2.0).double().view(2, 1, 1)
    residuals = check_kkt(a, z, instance.lam, instance.nu, instance.mu)
    assert residuals.dual.shape == (2, 3)
    assert residuals.worst()[0].max() <= 1e-12 and residuals.worst()[1].min() > 1e-3
    one = {k: v[1] for k, v in cases.arguments(instance).items()}
    many = check_kkt(one, z, instance.lam, instance.nu, instance.mu)
    for several, single in zip(many, residuals, strict=True):
        torch.testing.assert_close(several[:, 1], single[:, 1], rtol=1e-12, atol=1e-15)


def test_empty_batches_and_gradients_are_no_trouble():
    p = torch.zeros(0, 3, requires_grad=True)
    assert check_kkt({"p": p}, torch.zeros(0, 3)).gap.shape == (0,)
    assert check_kkt({"p": p[:, :1]}, torch.zeros(2, 1, 1)).gap.shape == (2, 0)
    z = torch.ones(3, requires_grad=True)
    assert not check_kkt({"p": torch.zeros(3)}, z).worst().requires_grad


@pytest.mark.parametrize("name", ["z", "lam", "nu", "mu"])
def test_nan_in_an_answer_is_nan_in_its_residual_only(name):
    instance = cases.QPS["everything"]
    answer = {k: getattr(instance, k).clone() for k in ("z", "lam", "nu", "mu")}
    answer[name][2, 0] = NAN
    worst = check_kkt(instance.arguments(), **answer).worst()
    assert worst.isnan().nonzero().tolist() == [[2]]


p, G, zero = torch.zeros(2), torch.ones(1, 2), torch.zeros(2)
ERRORS = {
    "lam": ({"p": p, "G": G, "h": 1.0}, {}, r"lam is missing: the problem has G.*\(\*B, 1\)"),
    "nu": ({"p": p, "A": G, "b": 1.0}, {}, "nu is missing: the problem has A"),
    "mu": ({"p": p, "lb": 0.0}, {}, "mu is missing: the problem has lb or ub"),
    "z": ({"p": p}, {"z": None}, "z is missing: the problem has p"),
    "array": ({"p": p}, {"z": [0.0, 0.0]}, "z is a list: expected a torch.Tensor"),
    "shape": ({"p": p}, {"z": torch.zeros(3)}, r"z has shape \(3,\): expected \(\*B, 2\)"),
    "stray": ({"p": p}, {"lam": torch.zeros(3)}, r"lam has shape \(3,\): expected \(\*B, 0\)"),
    "device": ({"p": p}, {"z": zero.to("meta")}, "z is on meta, but p on cpu"),
    "batch": ({"p": torch.zeros(3, 2)}, {"z": torch.zeros(2, 2)}, r"z \(2, 2\).*problem \(3,\)"),
    "unknown key": ({"p": p, "order": 2}, {}, "'order' is no argument of a QP"),
    "problem": ({"Q": torch.eye(2)}, {}, "p is missing"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_what_does_not_fit(name):
    problem, answer, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        check_kkt(problem, **({"z": zero} | answer))


def cells(text):
    """The rows of a table, as {first word(s): the rest}."""
    rows = [line.rsplit(maxsplit=3) for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) == 4} | {
        line.rsplit(maxsplit=1)[0].strip(): line.split()[-1]
        for line in text.splitlines()
        if len(line.split()) < 4 and "worst" not in line
    }


def solved(status, primal):
    """A solution with given statuses and primal residuals, a step a sample more each."""
    sol = solve_qp(torch.eye(1), torch.full((len(status), 1), -0.5), lb=0.0, ub=1.0)
    primal = torch.tensor(primal, dtype=torch.float64)
    zero, codes = torch.zeros_like(primal), torch.tensor(status)
    return replace(
        sol,
        status=codes,
        residuals=Residuals(primal, zero, zero),
        iterations=torch.arange(len(status)) + 5,
        polished=codes == 0,
    )


def test_a_table_counts_and_names_the_worst():
    sol = solved([0, 3, 0, 1, 0], [1e-16, 0.5, 2e-16, 3e-16, 4e-16])
    sol.weakly_active[2:4, 0] = True
    found = cells(table(sol))
    assert found == {
        "samples": "5",
        "CONVERGED": "3",
        "PRIMAL_INFEASIBLE": "1",
        "REDUCED_ACCURACY": "1",
        "polished": "3",
        "weakly active": "2",
        "primal": ["5.0e-01", "1", "3.0e-16"],
        "dual": ["0.0e+00", "0", "0.0e+00"],
        "gap": ["0.0e+00", "0", "0.0e+00"],
        "iterations": ["9", "4", "7"],
    }


def test_nan_is_the_worst_and_leaves_the_median_alone():
    found = cells(table(solved([0, 6, 0, 0], [1e-16, NAN, 2e-16, 3e-16])))
    assert found["primal"] == ["nan", "1", "2.0e-16"]


def test_samples_are_named_by_their_place_in_the_flattened_batch():
    sol = solved([0] * 6, [0.0, 0, 0, 0, 1, 0])
    shape = (2, 3)
    folded = replace(
        sol,
        status=sol.status.view(shape),
        iterations=sol.iterations.view(shape),
        residuals=Residuals(*(r.view(shape) for r in sol.residuals)),
        weakly_active=sol.weakly_active.view(*shape, 1),
        polished=sol.polished.view(shape),
    )
    assert table(folded) == table(sol) and cells(table(sol))["primal"][1] == "4"


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (1,), (2, 3)])
def test_a_table_of_any_batch(shape):
    p = torch.zeros(*shape, 3, requires_grad=True)
    found = cells(table(solve_qp(torch.eye(3), p, torch.ones(1, 3), 1.0)))
    count = torch.Size(shape).numel()
    assert found["samples"] == found["polished"] == str(count)
    assert ("CONVERGED" in found) == (count > 0)
    assert count or found["primal"] == found["iterations"] == ["-", "-", "-"]


@pytest.mark.parametrize("code", Status)
def test_every_status_has_a_row(code):
    lengths = {len(line) for line in table(solved([code], [0.0])).splitlines()}
    assert f"  {code.name} " in table(solved([code], [0.0]))
    assert len(lengths) == 2  # columns end where their heads do


def test_verbose_logs_a_line_a_step(caplog):
    a = cases.arguments(cases.QPS["inequality"])
    with caplog.at_level(logging.INFO, logger="diffopt"):
        sol = solve_qp(**a, solver=InteriorPoint(verbose=True))
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == sol.iterations.max() + 1
    assert lines[0].endswith("unfinished 8 of 8") and lines[-1].endswith("unfinished 0 of 8")
    assert all(word in lines[0] for word in ("primal", "dual", "gap", "mu"))
