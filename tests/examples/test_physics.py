"""The fields of the example against the laws they stand for, and the smoke run."""

import importlib.util
from pathlib import Path

import pytest
import torch

from diffopt import Dopri5, odeint
from problems.mechanics import pendulum_acceleration, pendulum_lagrangian, spring_energy

SCRIPT = Path(__file__).parents[2] / "examples" / "physics.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("physics_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def states(count, size):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, size, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("recorded", [True, False])
def test_the_true_hamiltonian_gives_the_law_of_the_spring(recorded, example):
    f, y = example.Hamiltonian(), states(5, 2)
    del f.H
    f.H = spring_energy
    with torch.set_grad_enabled(recorded):
        slope = f(None, y)
    torch.testing.assert_close(slope, torch.stack([y[:, 1], -y[:, 0]], 1))


@pytest.mark.parametrize("recorded", [True, False])
def test_the_true_lagrangian_gives_newtons_law(recorded, example):
    f, y = example.Lagrangian(pendulum_lagrangian), states(5, 4)
    q, v = y.chunk(2, 1)
    with torch.set_grad_enabled(recorded):
        slope = f(None, y)
    torch.testing.assert_close(slope, torch.cat([v, pendulum_acceleration(q, v)], 1))


def fields(example):
    torch.manual_seed(0)
    return {
        "Hamiltonian": (example.Hamiltonian().double(), 2),
        "Lagrangian": (example.Lagrangian(example.LearnedL()).double(), 4),
    }


@pytest.mark.parametrize("name", ["Hamiltonian", "Lagrangian"])
def test_without_gradients_the_field_is_the_same_and_keeps_no_graph(name, example):
    f, size = fields(example)[name]
    y = states(3, size)
    with torch.no_grad():
        slope = f(None, y)
    assert not slope.requires_grad and not y.requires_grad
    torch.testing.assert_close(slope, f(None, y).detach())


@pytest.mark.parametrize("name", ["Hamiltonian", "Lagrangian"])
def test_gradients_through_odeint_against_finite_differences(name, example):
    """In the first state, and in a direction of all the parameters."""
    f, size = fields(example)[name]
    y0, t = states(2, size).requires_grad_(), torch.linspace(0, 0.5, 3).double()
    parameters = [p for p in f.parameters() if p.grad_fn is None]
    direction = [torch.randn_like(p) for p in parameters]

    def end(y0, s):
        moved = {n: p + s * d for (n, p), d in zip(f.named_parameters(), direction, strict=True)}
        field = lambda t, y: torch.func.functional_call(f, moved, (t, y))  # noqa: E731
        solver = Dopri5(rtol=1e-3, atol=1e-3, first_step=0.25, max_step=0.25)
        return odeint(field, y0, t, solver=solver).ys

    assert torch.autograd.gradcheck(
        end, (y0, torch.zeros((), dtype=torch.float64).requires_grad_())
    )


@pytest.mark.parametrize("name", ["Hamiltonian", "Lagrangian"])
def test_every_parameter_but_a_constant_learns(name, example):
    """A constant in H or L changes nothing: its gradient is zero or absent."""
    f, size = fields(example)[name]
    odeint(f, states(4, size), torch.tensor([0.0, 0.3]).double()).y1.square().sum().backward()
    *learned, last = f.parameters()
    assert all(p.grad.abs().max() > 0 for p in learned)
    assert last.grad is None or last.grad.abs().max() == 0


def test_the_smoke_run_tells_the_story_and_draws_it(example, capsys, tmp_path):
    assert example.main(["--smoke", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for line in ("Hamiltonian, slopes", "Plain, paths", "the true L", "Lagrangian"):
        assert line in out
    (picture,) = tmp_path.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
