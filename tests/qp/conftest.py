"""Every test of this folder runs with every engine of `cases.ENGINES` as the default solver."""

from contextlib import nullcontext

import pytest

from diffopt import solve_qp

from .. import cases
from ..native.emulation import emulated


@pytest.fixture(params=cases.ENGINES, autouse=True, scope="module")
def engine(request):
    """The name of the engine; what a module has cached is forgotten when it changes."""
    defaults = solve_qp.__kwdefaults__
    before, defaults["solver"] = defaults["solver"], cases.ENGINES[request.param]
    with emulated() if request.param == "cuda" else nullcontext():
        yield request.param
    defaults["solver"] = before
    for value in vars(request.module).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()
