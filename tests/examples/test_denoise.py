"""The layer of the example against the definition of its problem, and the smoke run."""

import importlib.util
from pathlib import Path

import pytest
import torch

from problems.signals import differences, piecewise_constant

from .. import checks

SCRIPT = Path(__file__).parents[2] / "examples" / "denoise.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("denoise_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


SIGNALS = piecewise_constant(6, seed=3).noisy
CASES = {  # name: (y, D, w)
    "total variation": (SIGNALS, differences(100), 21.0),
    "a weight for each difference": (SIGNALS, differences(100), 30 * normal(6, 99).abs()),
    "no differences at all": (SIGNALS[:, :20], torch.eye(20).double(), 40.0),
    "learned D": (SIGNALS, 20 * differences(100) + normal(99, 100), 1.0),
    "random D, few rows": (SIGNALS, normal(30, 100), 15.0),
    "second differences": (SIGNALS[:, :40], differences(39) @ differences(40), 25.0),
    "one signal": (SIGNALS[0], differences(100), 21.0),
    "two batch dimensions": (SIGNALS.view(2, 3, 100), differences(100), 21.0),
}


@pytest.mark.parametrize("name", CASES)
def test_primal_and_dual_agree(name, example):
    """z = y - D'u with |u| <= w, and u = w sign(D z) where D z is not zero: u is in w d|.|_1(D z).

    The rows of D are independent, so that z alone determines u.
    """
    y, D, w = CASES[name]
    z = example.prox(y, D, w)
    u = (y - z) @ torch.linalg.pinv(D)
    w = torch.as_tensor(w, dtype=torch.float64).expand_as(u)
    assert z.shape == y.shape
    assert (y - z - u @ D).abs().max() <= 1e-9
    assert (u.abs() <= w + 1e-9).all()
    Dz = z @ D.mT
    apart = Dz.abs() > 1e-8
    assert apart.any() and not apart.all()
    assert (u - w * Dz.sign())[apart].abs().max() <= 1e-9


def test_known_answers(example):
    """A step of 10 shrinks by w on each side; a large w leaves the mean, and w = 0 everything."""
    y = torch.tensor([0.0, 10.0]).double()
    for w, z in ((2.0, [2.0, 8.0]), (7.0, [5.0, 5.0])):
        torch.testing.assert_close(example.prox(y, differences(2), w).tolist(), z)
    mean = SIGNALS.mean(-1, keepdim=True).expand_as(SIGNALS)
    torch.testing.assert_close(example.prox(SIGNALS, differences(100), 1e4), mean)
    assert example.prox(SIGNALS, differences(100), torch.zeros(99).double()).equal(SIGNALS)


@pytest.mark.parametrize("name", CASES)
def test_gradients_against_finite_differences(name, example, generator):
    y, D, w = CASES[name]
    w = torch.as_tensor(w, dtype=torch.float64).expand(*y.shape[:-1], len(D)).contiguous()
    inputs = {"y": y, "D": D, "w": w}
    errors = checks.directional_errors(
        lambda given: (example.prox(**given),), inputs, generator, eps=1e-7
    )
    assert max(errors.values()) <= 1e-6, errors


@pytest.mark.parametrize("name", ["OptNet", "Adaptive"])
def test_what_is_learned_starts_as_total_variation(name, example):
    model = getattr(example, name)(lam=13.0)
    with torch.no_grad():
        z = model(SIGNALS)
    torch.testing.assert_close(z, example.prox(SIGNALS, differences(100), 13.0))


@pytest.mark.parametrize("name", ["OptNet", "Adaptive"])
def test_every_parameter_learns(name, example):
    """After one step, that is: the last layer of the network starts as zero."""
    data = piecewise_constant(40, seed=5)
    model = getattr(example, name)(lam=21.0)
    before = example.error(model, data)
    example.learn(model, data, batch=40, epochs=2, rate=1e-4)
    loss = (model(data.noisy) - data.clean).square().mean()
    loss.backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())
    assert loss.item() < before


def test_the_smoke_run_tells_the_story_and_draws_it(example, capsys, tmp_path):
    assert example.main(["--smoke", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for line in (
        "total variation, best weight",
        "OptNet",
        "weights by a network",
        "told the jumps",
    ):
        assert line in out
    (picture,) = tmp_path.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
