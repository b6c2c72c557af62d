"""Every row of the table by every route: the solution, its multipliers, and their derivatives."""

import numpy as np
import pytest
import torch
from cvxpylayers.torch import CvxpyLayer

from diffopt import ConvexLayer
from diffopt.convex.cvxpylayers import DiffoptSolver

from .. import checks
from .cases import CASES
from .oracle import clarabel, everything, kkt_error, put

ROUTES = {
    "ConvexLayer": lambda case, variables: ConvexLayer(case.problem, case.parameters, variables),
    "DiffoptSolver": lambda case, variables: CvxpyLayer(
        case.problem, case.parameters, variables, solver=DiffoptSolver()
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def test_the_canonical_program_is_solved(case):
    """Its KKT conditions, in the matrices that CVXPY makes for the values of one sample."""
    x, y = everything(case.problem, case.parameters, case.variables, case.values)
    for i in range(4):
        put(case.parameters, case.values, i)
        assert kkt_error(case.problem, x[i], y[i]) <= 1e-9


@pytest.mark.parametrize("route", ROUTES)
def test_variables_and_multipliers_are_those_of_cvxpy(case, route):
    """Multipliers too: they are unique in this table, and CVXPY's signs are the users'."""
    wanted = case.variables + case.multipliers()
    found = ROUTES[route](case, wanted)(*case.values)
    for i in range(4):
        put(case.parameters, case.values, i)
        optimum = clarabel(case.problem)
        for variable, value in zip(wanted, found, strict=True):
            assert value[i].shape == variable.shape
            np.testing.assert_allclose(value[i].numpy(), variable.value, rtol=1e-6, atol=1e-6)
        for variable, value in zip(case.variables, found, strict=False):
            variable.save_value(value[i].numpy())
        assert abs(case.problem.objective.value - optimum) <= 1e-8 * (1 + abs(optimum))
        assert max((c.violation().max() for c in case.problem.constraints), default=0) <= 1e-9


@pytest.mark.parametrize("route", ROUTES)
def test_derivatives_of_variables_and_multipliers(case, route, generator):
    layer = ROUTES[route](case, case.variables + case.multipliers())
    inputs = {p.name(): v for p, v in zip(case.parameters, case.values, strict=True)}
    errors = checks.directional_errors(
        lambda given: layer(*given.values()), inputs, generator, eps=1e-5
    )
    assert max(errors.values()) <= 1e-6, errors


def test_both_routes_agree(case):
    """cvxpylayers reads the upper triangle of a symmetric parameter, we the mean of both."""
    wanted = case.variables + case.multipliers()
    answers = []
    for route in ROUTES.values():
        leaves = [v.clone().requires_grad_() for v in case.values]
        found = route(case, wanted)(*leaves)
        grads = torch.autograd.grad(sum(v.sin().sum() for v in found), leaves)
        sums = [
            g + g.mT if p.ndim == 2 and p.is_symmetric() else g
            for p, g in zip(case.parameters, grads, strict=True)
        ]
        answers.append([*found, *sums])
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def answer(layer, values):
    """The variables, and the gradients of a function of all."""
    leaves = [v.clone().requires_grad_() for v in values]
    found = layer(*leaves)
    return [*found, *torch.autograd.grad(sum(v.sin().sum() for v in found), leaves)]


def test_a_sample_does_not_see_its_mates(case):
    """Bit for bit at its place of a batch of that size; elsewhere torch sums in other orders."""
    layer = ConvexLayer(case.problem, case.parameters, case.variables)
    whole = answer(layer, case.values)
    mixed = answer(layer, [v[[2, 1, 1, 3]] for v in case.values])
    alone = answer(layer, [v[2:3] for v in case.values])
    for a, b, c in zip(whole, mixed, alone, strict=True):
        assert a[1].equal(b[1]) and a[3].equal(b[3])
        for other in (b[0], c[0]):
            torch.testing.assert_close(a[2], other, rtol=1e-9, atol=1e-9)
