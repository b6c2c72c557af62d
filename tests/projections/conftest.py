import pytest

from .sets import CASES, Drawn, draw, nothing


@pytest.fixture(params=CASES)
def drawn(request) -> Drawn:
    """Each set of the table, with random parameters and points."""
    return draw(CASES[request.param])


@pytest.fixture(params=[name for name, case in CASES.items() if case.draw is not nothing])
def adjustable(request) -> Drawn:
    """Each set that has parameters."""
    return draw(CASES[request.param])


@pytest.fixture(params=[name for name, case in CASES.items() if case.convex])
def convex(request) -> Drawn:
    """Each set that is convex."""
    return draw(CASES[request.param])
