"""Benchmarks are scripts that import their neighbours, from the folder where they lie."""

import importlib
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    """A function: the name of a script in the folder to its module; float64 while it is in use."""
    monkeypatch.syspath_prepend(FOLDER)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield importlib.import_module
    torch.set_default_dtype(before)
