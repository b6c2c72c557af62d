"""The roots and hypergradients of the example against their definitions, and the smoke run."""

import importlib.util
from pathlib import Path

import pytest
import torch

from problems.diabetes import splits
from problems.mislabelled import mislabelled

from .. import checks

SCRIPT = Path(__file__).parents[2] / "examples" / "hyperparameters.py"
DATA = splits(3, noise=2)
TASK = mislabelled(60, 30, wrong="next")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("hyperparameters_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_ridge_is_at_its_minimum_and_shrinks_what_is_penalised(example):
    logs = normal(3, 1, 12)
    w = example.ridge(DATA.train, logs)
    assert w.shape == (3, 5, 12)
    assert (DATA.train.gradient(w) + logs.exp() * w).abs().max() <= 1e-10
    heavy = example.ridge(DATA.train, torch.full((12,), 30.0).double())
    assert heavy.abs().max() <= 1e-8


def test_hypergradients_of_penalties_three_ways(example, generator):
    """By the implicit function, by the normal equations, and by finite differences."""
    logs = normal(3, 1, 12).requires_grad_()
    DATA.valid.error(example.ridge(DATA.train, logs)).sum().backward()
    formula = example.by_hand(DATA.train, DATA.valid, logs.detach()).sum(1, keepdim=True)
    assert (logs.grad - formula).abs().max() <= 1e-10 * formula.abs().max()
    errors = checks.directional_errors(
        lambda given: (DATA.valid.error(example.ridge(DATA.train, given["logs"])) / 1e3,),
        {"logs": logs.detach()},
        generator,
        eps=1e-6,
    )
    assert max(errors.values()) <= 1e-6, errors


def test_the_regression_is_a_root_of_its_gradient(example):
    weights = torch.rand(60).double()
    z, residual = example.regression(TASK.train, weights)
    assert residual(z).abs().max() <= 1e-6
    at = normal(650).requires_grad_()
    loss = (weights * TASK.train.losses(at)).mean() + example.RHO * at.square().sum() / 2
    (gradient,) = torch.autograd.grad(loss, at)
    assert (residual(at) - gradient).abs().max() <= 1e-12
    again = example.regression(TASK.train, weights, start=z)[0]
    assert (again - z).abs().max() <= 1e-3


def test_hypergradients_of_weights_against_finite_differences(example):
    """Along the gradient itself, where the difference is largest; F(root) is 1e-6 here."""
    theta = normal(60).requires_grad_()

    def worth(theta):
        root, residual = example.regression(TASK.train, theta.sigmoid())
        operator = example.MatrixFree(residual, root, example.GMRES(rtol=1e-10))
        z = example.implicit_root(residual, root, operator)
        return TASK.valid.losses(z).mean()

    (gradient,) = torch.autograd.grad(worth(theta), theta)
    along, step = gradient / gradient.norm(), 1e-3
    with torch.no_grad():
        slope = (worth(theta + step * along) - worth(theta - step * along)) / (2 * step)
    assert slope.item() == pytest.approx(gradient.norm().item(), rel=1e-4)


def test_cleaning_lowers_the_validation_loss(example):
    start = example.regression(TASK.train, torch.full((60,), 0.5).double())[0]
    weights = example.clean(TASK.train, TASK.valid, 3)
    end = example.regression(TASK.train, weights)[0]
    before, after = (TASK.valid.losses(z).mean() for z in (start, end))
    assert after < 0.8 * before
    assert weights[TASK.dirty].mean() < weights[~TASK.dirty].mean()


def test_the_smoke_run_tells_the_story_and_draws_it(example, capsys, tmp_path):
    assert example.main(["--smoke", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for line in ("least squares", "a penalty each", "relative error of (1)", "cleaned", "AUC"):
        assert f"\n  {line}" in out
    (picture,) = tmp_path.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
