"""The loop that nobody watches, driven by scripts: it ends each sample where `iterate` ends it."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import pytest
import torch

from diffopt import device, unattended
from diffopt.iterate import Measure
from diffopt.solution import Status
from diffopt.unattended import Limits, _attended, run

from .unseen import Watch, believe

NAN, INF, LONG = float("nan"), float("inf"), 60


class State(NamedTuple):
    value: torch.Tensor  # (B, 1): what the steps add up to
    count: torch.Tensor  # (B,): steps this sample has taken


@dataclass(frozen=True)
class Script:
    """Sample i has error errors[i, k] after k steps; so for all tables."""

    errors: torch.Tensor
    verdicts: torch.Tensor  # codes, -1 for none
    suspected: torch.Tensor  # bool: where there is a verdict, and at false alarms
    failing: torch.Tensor  # bool: the step from there cannot be done unseen
    limits: ClassVar[Limits] = Limits(max_steps=30, patience=6)

    def measure(self, state):
        return Measure(_at(self.errors, state), None, State(state.value, state.count))

    def suspects(self, state, carry):
        assert torch.equal(state.count, carry.count)
        return _at(self.suspected, state)

    def verdict(self, state, carry):
        assert torch.equal(state.count, carry.count)
        return _at(self.verdicts, state)

    def step(self, state, carry, attended):
        lost = _at(self.failing, state) & (not attended)
        moved = 1.0 + (state.count - carry.count)  # of another state, the carry would show
        value = state.value + torch.where(lost, NAN, moved).unsqueeze(-1)
        return State(value, state.count + 1)

    def sound(self, state):
        return state.value.isfinite().all(-1)


def _at(table, state):
    return table.gather(1, state.count.unsqueeze(-1)).squeeze(-1)


def script(size, seed, alarms, failures):
    """Errors that fall at random, some stall, break down or end by a verdict."""
    g = torch.Generator().manual_seed(seed)
    errors = (torch.randn(size, LONG, generator=g).double() * 2 + 6).cumsum(-1)
    errors = (30 - errors / 4 + 8 * torch.rand(size, LONG, generator=g).double()).exp()
    errors[torch.rand(size, LONG, generator=g) < 0.01] = NAN
    errors[torch.rand(size, LONG, generator=g) < 0.01] = INF
    odds = torch.where(errors.isfinite(), 0.02, 0.5)
    some = torch.rand(size, LONG, generator=g) < odds
    verdicts = torch.where(some, int(Status.PRIMAL_INFEASIBLE), -1)
    suspected = some | (torch.rand(size, LONG, generator=g) < alarms)
    return Script(errors, verdicts, suspected, torch.rand(size, LONG, generator=g) < failures)


def solved(task, runner):
    size = len(task.errors)
    return runner(task, State(torch.zeros(size, 1).double(), torch.zeros(size).long()))


def assert_equal(a, b):
    assert torch.equal(a.status, b.status) and torch.equal(a.steps, b.steps)
    assert torch.equal(a.value.count, b.value.count) and torch.equal(a.value.value, b.value.value)
    torch.testing.assert_close(a.residual, b.residual, rtol=0, atol=0, equal_nan=True)


RATES = [(0, 0, 0), (1, 0.1, 0), (2, 0, 0.1), (3, 0.1, 0.1)]  # seed, alarms, failures


@pytest.mark.parametrize("late", [1, 2, 5])
@pytest.mark.parametrize("full", [1, 16, 10**9])
@pytest.mark.parametrize("seed, alarms, failures", RATES)
def test_samples_end_as_in_the_loop_that_is_watched(
    seed, alarms, failures, full, late, monkeypatch
):
    for size in (1, 2, 37):
        task = script(size, seed, alarms, failures)
        expected = solved(task, _attended)
        believe(monkeypatch, full)
        monkeypatch.setattr(device, "AHEAD", late)
        assert_equal(solved(task, run), expected)
    assert len(set(expected.status.tolist())) >= 3  # the scripts have them all


@pytest.mark.parametrize("seed, alarms, failures", [RATES[0], RATES[3]])
def test_replays_do_the_same_and_leave_earlier_answers_alone(seed, alarms, failures, monkeypatch):
    believe(monkeypatch)
    tasks = [script(37, seed + more, alarms, failures) for more in (0, 10, 20)]
    found = [solved(task, lambda *a: run(*a, graph=True)) for task in tasks]
    for task, ours in zip(tasks, found, strict=True):
        assert_equal(ours, solved(task, _attended))


def test_nobody_looks_where_nobody_waits(monkeypatch):
    believe(monkeypatch, full=4)
    task = script(64, 0, 0, 0)
    quiet = Script(task.errors.nan_to_num(1e9), torch.full_like(task.verdicts, -1),
                   torch.zeros_like(task.suspected), task.failing)  # fmt: skip
    monkeypatch.setattr(Script, "suspects", lambda self, state, carry: None)
    with Watch() as watch:
        out = solved(quiet, run)
    assert not watch.waits and (out.status == Status.CONVERGED).any()


def test_a_glance_is_of_a_while_ago():
    glance = device.Glance()
    seen = [glance.look(torch.tensor([k, 10 * k])) for k in range(7)]
    assert seen == [None, None, [0, 0], None, [2, 20], None, [4, 40]]


def test_a_glance_is_kept_on_the_host_whatever_the_default_device_is():
    glance = device.Glance()
    with torch.device("meta"):
        glance.look(torch.tensor([3], device="cpu"))
    glance.look(torch.tensor([4]))
    assert glance.look(torch.tensor([5])) == [3]


def test_steps_without_effect_end_with_an_error(monkeypatch):
    believe(monkeypatch)
    monkeypatch.setattr(unattended, "advanced", lambda task, p: p)
    with pytest.raises(RuntimeError, match="makes no progress"):
        solved(script(3, 0, 0, 0), run)
