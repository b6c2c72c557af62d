"""The doctor tells the truth, about a healthy installation and about a sick one."""

import importlib
import platform
import re
from dataclasses import replace
from importlib import metadata

import pytest
import torch

import diffopt

module = importlib.import_module("diffopt.doctor")  # the function may have the same name
doctor = module.doctor


def rows(text):
    return dict(line.split(": ", 1) for line in text.splitlines()[1:])


def test_versions_are_those_of_this_process():
    expected = (
        f"diffopt {diffopt.__version__}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, threads {torch.get_num_threads()}"
    )
    assert doctor().splitlines()[0] == expected


def test_a_healthy_device_passes():
    found = rows(doctor())
    assert re.fullmatch(r"float64 works, self-test passed \(error \d\.\de-?\+?\d+\)",
                        found["device cpu"])  # fmt: skip
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    assert (found["CUDA"] == "none") == (count == 0)
    assert all("self-test passed" in found[f"device cuda:{i}"] for i in range(count))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_self_test_needs_no_gradient_mode(mode):
    with mode():
        assert "self-test passed" in doctor()


@pytest.mark.parametrize("name", ["scipy", "torch", "no-such-package"])
def test_packages_are_found_as_installed(name, monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", (name,))
    try:
        expected = metadata.version(name)
    except metadata.PackageNotFoundError:
        expected = "absent"
    assert rows(doctor())[f"package {name}"] == expected


def test_an_engine_is_live_or_says_why_not(monkeypatch):
    assert rows(doctor())["engine torch"] == "live"
    monkeypatch.setitem(module.ENGINES, "other", lambda: "no compiler")
    assert rows(doctor())["engine other"] == "not live (no compiler)"


def off_by(error):
    def solve(*arguments, **options):
        sol = diffopt.solve_qp(*arguments, **options)
        return replace(sol, z=sol.z + error)

    return solve


@pytest.mark.parametrize("error, said", [(1e-9, "1.0e-09"), (float("nan"), "nan")])
def test_a_wrong_answer_fails(error, said, monkeypatch):
    monkeypatch.setattr(module, "solve_qp", off_by(error))
    assert rows(doctor())["device cpu"].endswith(f"self-test FAILED (error {said})")


def test_a_wrong_derivative_fails(monkeypatch):
    def solve(Q, p, **options):
        return diffopt.solve_qp(Q, 2 * p - p.detach(), **options)

    monkeypatch.setattr(module, "solve_qp", solve)
    assert rows(doctor())["device cpu"].endswith("self-test FAILED (error 5.0e-01)")


def test_a_device_that_does_not_work_is_reported_and_not_raised(monkeypatch):
    devices = [torch.device("cpu"), torch.device("cuda:99")]
    monkeypatch.setattr(module, "_devices", lambda: devices)
    found = rows(doctor())
    assert "passed" in found["device cpu"]
    assert found["device cuda:99"].count("FAILED (") == 2
    assert found["CUDA"].startswith("FAILED (")
