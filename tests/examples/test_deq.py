"""The example of deep equilibrium models: its parts on known answers, and the smoke run."""

import importlib.util
from pathlib import Path

import pytest
import torch

from diffopt import Anderson, fixed_point
from diffopt.operators import Identity

SCRIPT = Path(__file__).parents[2] / "examples" / "deq.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("deq_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_saved_counts_every_storage_once(example):
    """exp saves its result, 3 float32 numbers; the product its two factors, x and the result."""
    x = torch.ones(3, requires_grad=True)
    assert example.saved(lambda k: x.exp(), 0) == 12
    assert example.saved(lambda k: x.exp() * x, 0) == 24


def test_products_counts_products_with_W(example):
    W, f = example.tanh_layer(0)
    assert torch.linalg.matrix_norm(W, 2).item() == pytest.approx(0.97)
    with torch.no_grad(), example.Products() as products:
        sol = fixed_point(f, W.new_zeros(32, 100), solver=Anderson(rtol=1e-4))
    assert products.count == sol.steps.max() + 1


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_the_explicit_network_has_the_same_parameters(kind, example):
    explicit, implicit = (example.Classifier(kind, operator) for operator in (None, Identity()))
    shapes = [sorted(p.shape for p in n.parameters()) for n in (explicit, implicit)]
    assert shapes[0] == shapes[1]


def test_the_dense_layer_is_a_contraction(example):
    f = example.Dense(5)
    with torch.no_grad():
        f.W.parametrizations.weight.original.mul_(100)
    assert torch.linalg.matrix_norm(f.W.weight, 2).item() == pytest.approx(0.9)


def test_the_smoke_run_tells_the_story_and_draws_it(example, capsys, tmp_path):
    assert example.main(["--smoke", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("DEQ, exact gradient") == 2 and "Newton-Krylov" in out
    (picture,) = tmp_path.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
