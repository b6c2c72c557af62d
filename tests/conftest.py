import pytest
import torch

from diffopt import _native

torch.set_num_threads(1)  # of problems this small, threads only wait for each other


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=["native", "torch"])
def core(request, monkeypatch):
    """With the compiled core, and without it."""
    if request.param == "torch":
        monkeypatch.setattr(_native, "core", None)
    elif _native.core is None:
        pytest.skip(f"no compiled core: {_native.reason}")
