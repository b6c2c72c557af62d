"""The README's quick start runs as it stands, and its commands are those of CI."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


QUICK_START, CVXPY, FIXED_POINTS, ODES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_quick_start_runs_and_is_right(capsys):
    code = QUICK_START
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 10
    torch.manual_seed(0)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    z, p = names["sol"].z, names["p"]
    assert (z >= 0).all() and z.sum(-1).detach().numpy() == pytest.approx(1.0)
    assert p.grad.isfinite().all() and p.grad.abs().sum() > 0
    assert "CONVERGED       32" in capsys.readouterr().out


def test_the_cvxpy_problem_is_solved_and_differentiated(capsys):
    torch.manual_seed(0)
    names = {}
    exec(compile(CVXPY, "README.md", "exec"), names)
    nearest, points = names["nearest"], names["points"]
    assert nearest.sum(-1).detach().numpy() == pytest.approx(1.0, abs=1e-5)
    assert (nearest.abs().sum(-1) <= 1.5 + 1e-5).all()
    assert points.grad.isfinite().all() and (points.grad.abs().sum(-1) > 0).all()
    assert "torch.Size([128, 50])" in capsys.readouterr().out


def test_the_fixed_point_is_one_and_is_learned(capsys):
    torch.manual_seed(0)
    names = {"__name__": "readme"}
    exec(compile(FIXED_POINTS, "README.md", "exec"), names)
    assert "0, 0, 0" in capsys.readouterr().out
    assert all(p.grad.abs().sum() > 0 for p in names["layer"].parameters())


def test_the_ode_arrives_and_is_learned(capsys):
    torch.manual_seed(0)
    names = {"__name__": "readme"}
    exec(compile(ODES, "README.md", "exec"), names)
    assert "torch.Size([128, 5, 2])" in capsys.readouterr().out
    assert (names["sol"].status == 0).all()
    assert all(p.grad.abs().sum() > 0 for p in names["field"].parameters())


def test_files_that_the_readme_names_exist():
    for path in re.findall(r"`((?:examples|benchmarks|docs)/[\w./]+)`|\]\((docs/[\w./]+)\)", TEXT):
        assert (ROOT / "".join(path)).exists(), path


def test_ci_runs_the_test_command_of_the_readme():
    """CI looks the command up by this pattern: it must find exactly one line."""
    pattern = re.search(r"grep -E '(.*)' README.md", (ROOT / ".ci" / "run").read_text()).group(1)
    assert len(re.findall(pattern, TEXT, re.M)) == 1
