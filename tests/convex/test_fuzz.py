"""The presolve on random programs: nothing that it does may change an answer."""

import numpy as np
import pytest

from diffopt import ConvexLayer

from .. import checks
from .fuzz import random_program
from .oracle import clarabel, everything, kkt_error, put

SEEDS = range(30)
REPEATED = range(100, 115)  # with rows that say again what others say


def check(b, values):
    """The canonical program is solved, and the variables are CVXPY's."""
    layer = ConvexLayer(b.problem, b.parameters, b.variables)
    x, y = everything(b.problem, b.parameters, b.variables, values)
    found = layer(*values)
    for i in range(len(values[0])):
        put(b.parameters, values, i)
        assert kkt_error(b.problem, x[i], y[i]) <= 1e-9
        clarabel(b.problem)
        for variable, value in zip(b.variables, found, strict=True):
            np.testing.assert_allclose(value[i].numpy(), variable.value, rtol=1e-6, atol=1e-6)
    return layer


def errors(layer, b, values, generator):
    inputs = {p.name(): v for p, v in zip(b.parameters, values, strict=True)}
    return checks.directional_errors(
        lambda given: layer(*given.values()), inputs, generator, eps=1e-5
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_random_programs(seed, generator):
    b = random_program(seed)
    values = b.data(2, seed)
    layer = check(b, values)
    found = errors(layer, b, values, generator)
    assert max(found.values()) <= 1e-5, (b.pieces, found)


@pytest.mark.parametrize("seed", REPEATED)
def test_random_programs_with_rows_that_say_the_same_again(seed, generator):
    """Their multipliers are not unique, yet valid. `dependent` ones admit no finite difference: to
    move one of the three sides alone leaves no feasible point."""
    b = random_program(seed, again=True)
    values = b.data(2, seed)
    layer = check(b, values)
    if "dependent" not in b.pieces:
        found = errors(layer, b, values, generator)
        assert max(found.values()) <= 1e-5, (b.pieces, found)
