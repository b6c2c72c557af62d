"""The polytope example as its user meets it, and the two roads to its layer."""

import importlib.util
from pathlib import Path

import pytest
import torch

from problems import polytopes

SCRIPT = Path(__file__).parents[2] / "examples" / "polytope.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("polytope_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["qp", "gradient"])
def test_both_layers_project(name, example):
    """Against the projection found from the edges, and by central differences in G and h."""
    G, h = (x.requires_grad_() for x in polytopes.random_polytope(4, seed=1))
    p, layer = polytopes.points(6, seed=2), example.LAYERS[name]
    y = polytopes.project(p, polytopes.Polytope(G.detach(), h.detach()))
    torch.testing.assert_close(layer(p, G, h).detach(), y, atol=1e-9, rtol=0)
    assert torch.autograd.gradcheck(lambda G, h: layer(p, G, h), (G, h), atol=1e-6)


def test_a_row_is_moved_to_where_it_is_missing(example):
    """Of a square with one side too far out that side comes back, and the others stay."""
    generator = torch.Generator().manual_seed(0)
    model = example.LearnedPolytope(4, example.by_qp, generator)
    square = polytopes.regular(4)
    model.normals.data, model.log_h.data = square.G.clone(), torch.tensor([3.0, 0, 0, 0]).double()
    p = polytopes.points(200, seed=0)
    model.move_a_row(p, polytopes.project(p, square), generator)
    assert polytopes.symmetric_difference(model.polytope(), square) <= 1e-9
    assert torch.equal(model.normals.data[1:], square.G[1:])


def test_no_row_is_moved_where_that_does_not_help(example):
    generator = torch.Generator().manual_seed(0)
    model = example.LearnedPolytope(7, example.by_qp, generator)
    before = example.detached(model.polytope())
    p = polytopes.points(200, seed=0)
    model.move_a_row(p, model(p).detach(), generator)
    assert all(map(torch.equal, model.polytope(), before))


def test_the_smoke_run_tells_the_story_and_draws_it(example, capsys, tmp_path):
    assert example.main(["--smoke", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "right (2 %)" in out and "unit disc, 20 rows" in out
    (picture,), (animation,) = tmp_path.glob("*.png"), tmp_path.glob("*.gif")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
    assert animation.read_bytes().startswith(b"GIF89a")
    assert 10_000 < animation.stat().st_size < 1_000_000


def test_both_layers_learn_the_same(example, capsys):
    assert example.main(["--smoke", "--layer", "gradient"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["qp", "gradient"]
    assert lines[1].split()[1:4] == lines[2].split()[1:4]  # area, %, error
