"""The plan of the example against the KKT conditions of what it says, and the smoke run."""

import importlib.util
from pathlib import Path

import pytest
import torch

from problems.buildings import Model, cost, simulate
from problems.weather import weather

from .. import checks

SCRIPT = Path(__file__).parents[2] / "examples" / "mpc.py"
WINTER = weather(3, days=2, beyond=24, seed=5)


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("mpc_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def first_steps(example, model, y):
    """What (2) heats at the first step of each spell."""
    return example.heating(model, y, WINTER.forecasts(24).at(slice(None), 10))


def test_the_plan_is_the_cheapest_there_is(example):
    """By dynamic programming without a QP: the cost of the best of a grid of first steps.

    With a plan of two steps, of which the last x is due too, everything is cheap to try.
    """
    model, ahead = example.TRUE, WINTER.forecasts(2).at(slice(None), 12)
    y = torch.tensor([17.0, 19.5, 21.0]).double()
    grid = torch.linspace(0, 8, 401).double()
    first, second = torch.meshgrid(grid, grid, indexing="ij")
    x1 = model.step(y[:, None, None], first, ahead.d[:, None, None, 0])
    x2 = model.step(x1, second, ahead.d[:, None, None, 1])
    total = 0.0
    for k, (x, u) in enumerate(((x1, first), (x2, second))):
        low, high = (v[:, k, None, None] for v in (ahead.low, ahead.high))
        missed = (low - x).clamp(min=0) + (x - high).clamp(min=0)
        weight, price = (v[:, k, None, None] for v in (ahead.weight, ahead.price))
        total = total + price * u + 0.05 * u.square() + weight * missed.square() / 2
    best = first.flatten()[total.flatten(1).argmin(1)]
    old, example.AHEAD = example.AHEAD, 2
    try:
        found = example.heating(model, y, ahead)
    finally:
        example.AHEAD = old
    assert (found - best).abs().max() <= 0.021  # a step of the grid
    assert found.max() > 1


def test_models_in_a_batch_are_planned_as_they_are_alone(example):
    y = torch.tensor([17.0, 19.0, 21.0]).double()
    models = [example.TRUE, example.START]
    together = Model.of(torch.stack([m.numbers for m in models]).unsqueeze(1))
    both = first_steps(example, together, y)
    assert both.shape == (2, 3)
    for found, model in zip(both, models, strict=True):
        assert (found - first_steps(example, model, y)).abs().max() <= 1e-8


def test_gradients_against_finite_differences(example, generator):
    y = torch.tensor([18.0, 19.0, 19.5]).double()
    inputs = {"numbers": example.TRUE.numbers * torch.rand(5).double().add(0.5), "y": y}
    errors = checks.directional_errors(
        lambda given: (first_steps(example, Model.of(given["numbers"]), given["y"]),),
        inputs,
        generator,
        eps=1e-7,
    )
    assert max(errors.values()) <= 1e-6, errors


def test_at_the_true_numbers_imitation_has_nothing_to_learn(example):
    """The loss and its gradient are zero there, and nowhere near the start."""
    run = example.controlled(example.TRUE, WINTER, 48, seed=1)
    ahead = WINTER.forecasts(24).at(slice(None), slice(0, 48))
    for model, right in ((example.TRUE, True), (example.START, False)):
        numbers = model.numbers.clone().requires_grad_()
        u = example.heating(Model.of(numbers), run.y, ahead)
        loss = (u - run.u).square().mean()
        loss.backward()
        assert (loss <= 1e-12) == right and (numbers.grad.abs().max() <= 1e-4) == right


def test_the_expert_is_better_than_not_to_heat(example):
    run = example.controlled(example.TRUE, WINTER, 96, seed=1)
    idle = simulate(example.TRUE, WINTER, lambda k, y: 0 * y, 96)
    assert cost(WINTER, run.x, run.u).sum() < 0.7 * cost(WINTER, idle.x, idle.u).sum()


def test_the_smoke_run_tells_the_story_and_draws_it(example, capsys, tmp_path):
    assert example.main(["--smoke", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for line in ("expert", "imitation", "least squares", "instruments", "untrained", "thermostat"):
        assert f"\n  {line}" in out
    (picture,) = tmp_path.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
