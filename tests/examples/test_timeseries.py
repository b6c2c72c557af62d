"""The parts of the example on what is known of them, and the smoke run."""

import importlib.util
from pathlib import Path

import pytest
import torch

from problems.spirals import spirals

SCRIPT = Path(__file__).parents[2] / "examples" / "timeseries.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("timeseries_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def series(count=5, seed=0):
    data = spirals(count, 20, seed=seed)
    return data.t.float(), data.noisy.float()


def model(example, kind):
    torch.manual_seed(0)
    return getattr(example, kind)().eval()


@pytest.mark.parametrize("kind", ["LatentODE", "Recurrent"])
def test_a_series_does_not_depend_on_its_neighbours(kind, example):
    (t, x), network = series(), model(example, kind)
    together = network(t, x, t)[0]
    alone = network(t[2:3], x[2:3], t[2:3])[0]
    torch.testing.assert_close(together[2:3], alone, rtol=1e-4, atol=1e-4)


def test_a_point_does_not_depend_on_the_other_times_asked_for(example):
    """To the tolerance of the solver, that is; each series at times of its own."""
    (t, x), network = series(), model(example, "LatentODE")
    every, some = network(t, x, t)[0], network(t, x, t[:, [0, 7, 19]])[0]
    torch.testing.assert_close(every[:, [0, 7, 19]], some, rtol=0, atol=1e-4)


def test_the_encoder_sees_when_and_in_which_order(example):
    (t, x), network = series(), example.Encoder(4)
    before = network(t, x)
    assert not network(2 * t, x).equal(before) and not network(t, x.flip(1)).equal(before)


def test_read_takes_the_chosen_observations(example):
    t, x = series(2)
    times, points = example.read(t, x, torch.tensor([[0, 3], [1, 19]]))
    assert times.equal(torch.stack([t[0, [0, 3]], t[1, [1, 19]]]))
    assert points.equal(torch.stack([x[0, [0, 3]], x[1, [1, 19]]]))


@pytest.mark.parametrize("kind", ["LatentODE", "Recurrent"])
def test_every_parameter_learns(kind, example):
    (t, x), network = series(), model(example, kind).train()
    found, kl = network(t, x, t)
    ((found - x).square().sum() + kl.sum()).backward()
    assert all(p.grad.abs().max() > 0 for p in network.parameters())


def test_the_divergence_is_that_of_normals(example):
    (t, x), network = series(), model(example, "LatentODE")
    mean, log_std = network.encoder(t, x).chunk(2, 1)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(mean, log_std.exp()), normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(network(t, x, t)[1], kl)


def test_the_smoke_run_tells_the_story_and_draws_it(example, capsys, tmp_path):
    assert example.main(["--smoke", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "latent ODE" in out and "recurrent" in out and "steps of the solver" in out
    (picture,) = tmp_path.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
