"""The loop alone, driven by a stub whose errors are scripted: exact counts, states, statuses."""

from typing import NamedTuple

import pytest
import torch

from diffopt.iterate import Measure, iterate
from diffopt.solution import Status

NAN, INF = float("nan"), float("inf")


class Counter(NamedTuple):
    count: torch.Tensor  # (B, 1): steps this sample has taken
    nested: tuple


class Inner(NamedTuple):
    twice: torch.Tensor


def run(script, verdicts=None, **options):
    """Sample i has error script[i][k] after k steps; the last entry repeats."""
    script = [row + [row[-1]] * 50 for row in script]
    calls = []

    def at(table, state):
        rows = zip(table, state.count, strict=True)
        return torch.tensor([row[int(k)] for row, k in rows])

    def measure(state):
        verdict = None
        if verdicts is not None:
            verdict = at([row + [-1] * 50 for row in verdicts], state)
        return Measure(at(script, state), verdict, carry="carried")

    def step(state, carry):
        assert carry == "carried"
        calls.append(1)
        return Counter(state.count + 1, Inner(2 * (state.count + 1)))

    start = torch.zeros(len(script), 1, dtype=torch.int64)
    return iterate(measure, step, Counter(start, Inner(start)), **options), len(calls)


def test_each_sample_stops_by_itself():
    out, calls = run([[9.0, 5.0, 0.5], [0.1], [9.0, 0.9, 0.1]], max_steps=10)
    assert out.steps.tolist() == [2, 0, 1] and calls == 2
    assert out.value.count.flatten().tolist() == [2, 0, 1]
    assert out.value.nested.twice.flatten().tolist() == [4, 0, 2]
    assert out.residual.tolist() == pytest.approx([0.5, 0.1, 0.9])
    assert (out.status == Status.CONVERGED).all()


def test_step_limit_returns_the_best_iterate():
    out, calls = run([[9.0, 3.0, 7.0, 8.0]], max_steps=3)
    assert out.status.item() == Status.ITERATION_LIMIT
    assert out.value.count.item() == 1 and out.residual.item() == 3.0
    assert out.steps.item() == 3 and calls == 3


def test_breakdown_freezes_one_sample_only():
    out, _ = run([[9.0, 4.0, NAN], [9.0, 8.0, 7.0, 0.5]], max_steps=10)
    assert out.status.tolist() == [Status.NUMERICAL_FAILURE, Status.CONVERGED]
    assert out.value.count.flatten().tolist() == [1, 3] and out.steps.tolist() == [2, 3]


def test_an_error_that_is_infinite_at_once_has_no_best_but_a_status():
    out, _ = run([[INF], [0.5]], max_steps=10)
    assert out.status.tolist() == [Status.NUMERICAL_FAILURE, Status.CONVERGED]
    assert out.residual[0].isinf()


def test_patience_ends_a_stalled_sample():
    out, calls = run([[9.0, 5.0]], max_steps=50, patience=4)
    assert out.steps.item() == 5 and calls == 5
    assert out.status.item() == Status.ITERATION_LIMIT and out.value.count.item() == 1


def test_verdicts_end_a_sample_and_convergence_outranks_them():
    verdicts = [[-1, int(Status.PRIMAL_INFEASIBLE)], [int(Status.PRIMAL_INFEASIBLE)]]
    out, _ = run([[9.0, 8.0], [0.5]], verdicts, max_steps=5)
    assert out.status.tolist() == [Status.PRIMAL_INFEASIBLE, Status.CONVERGED]
    assert out.steps.tolist() == [1, 0]


def test_history_holds_every_error():
    out, _ = run([[9.0, 5.0, 0.5]], max_steps=10, history=True)
    assert out.history.flatten().tolist() == [9.0, 5.0, 0.5]
