"""The example of declarative layers: its layers, and the smoke run."""

import importlib.util
from pathlib import Path

import pytest
import torch

from problems import outliers

SCRIPT = Path(__file__).parents[2] / "examples" / "declarative.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("declarative_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_quadratic_penalty_pools_to_the_mean(example):
    x = outliers.sets(5, 20).points
    z = example.Pooling("mean")(x)
    torch.testing.assert_close(z.detach(), x.mean(1))


@pytest.mark.parametrize("name", ["pseudo-Huber", "Welsch"])
def test_a_far_point_pulls_less_than_a_near_one(name, example):
    distance, pull = example.pulls(name)
    assert pull[distance < 0.1].min() > 3 * pull[distance > 3].abs().max()


def test_derivatives_of_the_projection(example):
    x, y = example.pairs(5, seed=3)
    model = example.Ellipse()
    model.L.data = example.TURN @ torch.diag(1 / example.TRUE_AXES)
    torch.testing.assert_close(model(x).detach(), y, atol=1e-10, rtol=0)

    def projected(x, L):
        return torch.func.functional_call(model, {"L": L}, (x,))

    L = model.L.detach().requires_grad_()
    assert torch.autograd.gradcheck(projected, (x.requires_grad_(), L), fast_mode=True)


def test_the_layers_agree_with_what_is_known(example):
    assert example.agreement(1) <= 1e-9 and example.huber_agreement() <= 1e-9


def test_the_smoke_run_tells_the_story_and_draws_it(example, capsys, tmp_path):
    assert example.main(["--smoke", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Welsch" in out and "outliers named" in out and "half axes 1.6" in out
    (picture,) = tmp_path.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
