"""The example's measures, and its smoke run."""

import importlib.util
from pathlib import Path

import pytest
import torch

from problems.convex import simplex

SCRIPT = Path(__file__).parents[2] / "examples" / "compare_cvxpylayers.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("compare_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_differences_are_absolute_of_variables_and_relative_of_gradients(example):
    one = torch.ones(2, 3)
    a = example.Answer([one, 5 * one], [10 * one, one], 0.0, 0.0)
    b = example.Answer([one, 4.5 * one], [10 * one, 1.25 * one], 0.0, 0.0)
    assert example.difference(a, b) == pytest.approx((0.5, 0.2))
    assert example.difference(b, b) == (0, 0)


@pytest.mark.filterwarnings("ignore:solver='auto' resolved:UserWarning")
@pytest.mark.parametrize("route", ["ConvexLayer", "DiffoptSolver", "MOREAU", "default"])
def test_every_route_projects_on_the_simplex(route, example):
    """(0.9, 0.5, -1) goes to (0.7, 0.3, 0); weights w pull w - mean of w where x > 0 back."""
    task = simplex(3, scale=2.0)
    point = torch.tensor([[0.9, 0.5, -1.0]]).double()
    answer = example.call(example.layer(route, task), (point,))
    torch.testing.assert_close(
        answer.variables[0], torch.tensor([[0.7, 0.3, 0.0]]).double(), atol=1e-3, rtol=0
    )
    weight = torch.randn(1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pull = (weight[0, 0] - weight[0, 1]) / 2
    torch.testing.assert_close(
        answer.gradients[0], torch.stack([pull, -pull, 0 * pull])[None], atol=1e-2, rtol=0
    )
    assert answer.forward > 0 and answer.backward > 0


@pytest.mark.filterwarnings("ignore:solver='auto' resolved:UserWarning")
def test_a_bound_as_it_is_usually_written_is_lost_on_the_way_to_moreau(example):
    """If this fails, cvxpylayers is mended: then the example and its text have to change."""
    assert example.as_written(lambda scale: simplex(5, scale), 4) > 0.1


def test_the_smoke_run_checks_all_answers_and_draws_them(example, capsys, tmp_path):
    assert example.main(["--smoke", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("diffopt.ConvexLayer") == len(example.SMOKE)
    assert out.count("x >= 0 and not 2 x >= 0: wrong by") == 3
    (picture,) = tmp_path.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
