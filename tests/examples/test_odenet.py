"""The example of ODE-nets: its measures on known answers, and the smoke run."""

import importlib.util
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "examples" / "odenet.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("odenet_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_peak_counts_what_is_alive_at_a_time(example):
    """Of 1000 float64: a chain that keeps nothing needs two at a time, one that keeps all, all."""
    x = torch.ones(1000, dtype=torch.float64, requires_grad=True)

    def forgotten():
        with torch.no_grad():
            y = x.detach()
            for _ in range(10):
                y = y + 1
        return y.sum() + x[:1].sum()

    def kept():
        y = x
        for _ in range(10):
            y = y.exp().clamp(max=1.0)  # each saves its result, or its argument
        return y

    assert 16_000 <= example.peak(forgotten) <= 26_000
    assert 80_000 <= example.peak(kept) <= 250_000


def test_the_networks_have_the_sizes_of_the_source(example):
    """A block of the residual network has 20 + 20 + 20 + 1 parameters, the dynamics 20 more."""
    sizes = [
        sum(p.numel() for p in m.parameters()) for m in (example.Residual(), example.ode_net())
    ]
    assert sizes == [3 * 61, 81]


def test_the_smoke_run_tells_the_story_and_draws_it(example, capsys, tmp_path):
    assert example.main(["--smoke", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "best increasing function" in out and "1.3110" in out and "Backsolve()" in out
    pictures = sorted(tmp_path.glob("*.png"))
    assert [p.name for p in pictures] == ["odenet-cost-smoke.png", "odenet-smoke.png"]
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
