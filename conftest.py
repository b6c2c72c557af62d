"""The names that the examples in docstrings use."""

import pytest
import torch

import diffopt
from diffopt.operators import Dense


@pytest.fixture(autouse=True)
def _names(doctest_namespace):
    public = {name: getattr(diffopt, name) for name in diffopt.__all__}
    doctest_namespace.update(public, torch=torch, diffopt=diffopt, Dense=Dense)
