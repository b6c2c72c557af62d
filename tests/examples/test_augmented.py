"""The example of augmented ODE-nets: its parts, and the smoke run."""

import importlib.util
from pathlib import Path

import pytest
import torch

from diffopt import NeuralODE

SCRIPT = Path(__file__).parents[2] / "examples" / "augmented.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("augmented_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_linear_function_sees_what_was_appended(example):
    torch.manual_seed(0)
    model, x = example.ODENet(5), torch.randn(4, 2)
    y = example.solved(model, x)
    assert y.shape == (4, 41, 7) and torch.equal(y[:, 0, :2], x) and y[:, 0, 2:].eq(0).all()
    with torch.no_grad():
        torch.testing.assert_close(model(x), model.head(y[:, -1]))


def test_without_evaluations_a_residual_network_is_no_flow(example):
    assert not any(isinstance(m, NeuralODE) for m in example.Residual().modules())
    assert len(example.Residual().blocks) == 5


def test_smooth_is_a_moving_mean(example):
    assert example.smooth([1.0, 2.0, 3.0, 6.0], 2).tolist() == [1.5, 2.5, 4.5]
    assert example.smooth([1.0, 3.0]).tolist() == [2.0]


def test_the_smoke_run_tells_the_story_and_draws_it(example, capsys, tmp_path):
    assert example.main(["--smoke", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "5 zeros appended" in out and "best increasing function" in out
    (picture,) = tmp_path.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
