"""`ConvexLayer` as a module: saved, copied, shown, warm-started, trained, and misused."""

import copy
import pickle

import cvxpy as cp
import pytest
import torch
from torch import nn

from diffopt import ConvexLayer, InteriorPoint

x, y, top = cp.Variable(3, name="x"), cp.Parameter(3, name="y"), cp.Parameter(name="top")
CONSTRAINTS = [cp.sum(x) == 1, x >= 0, x <= top]
PROBLEM = cp.Problem(cp.Minimize(cp.sum_squares(x - y)), CONSTRAINTS)
POINTS = torch.tensor([[0.9, 0.5, -1.0], [0.0, 0.0, 3.0]]).double()
NEAREST = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.1, 0.8]]).double()


def simplex(**options):
    return ConvexLayer(PROBLEM, [y, top], [x], **options)


def curved():
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - y)), [cp.norm2(x) <= top])
    return ConvexLayer(problem, [y, top], [x])


def test_known_answers():
    torch.testing.assert_close(simplex()(POINTS, 0.8)[0], NEAREST)


def test_parameters_and_variables_come_in_the_users_order():
    nu = CONSTRAINTS[0].dual_variables[0]
    other = ConvexLayer(PROBLEM, [top, y], [nu, x])
    multiplier, point = other(0.8, POINTS)
    torch.testing.assert_close(point, NEAREST)
    # 2 (x - y) + nu = 0 where no limit is met
    torch.testing.assert_close(multiplier, torch.tensor([0.4, -0.2]).double())


@pytest.mark.parametrize("make", [simplex, curved])
def test_saving_copying_and_moving(make):
    layer = make()
    expected = layer(POINTS, 0.8)[0]
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other(POINTS, 0.8)[0].equal(expected)
        other.load_state_dict(layer.state_dict())
    assert not layer.state_dict() and not list(layer.parameters())
    for moved in (layer.float(), layer.to("cpu"), layer.double(), layer.eval()):
        assert moved(POINTS, 0.8)[0].equal(expected)


def test_fits_a_model_and_lets_it_learn():
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.choice, self.after = nn.Linear(5, 3), simplex(), nn.Linear(3, 1)

        def forward(self, v):
            return self.after(self.choice(self.before(v), 0.8)[0])

    model, data = Model(), torch.randn(16, 5)
    adam, losses = torch.optim.Adam(model.parameters(), lr=0.05), []
    for _ in range(20):
        loss = (model(data).squeeze(-1) - data[:, 0]).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert model.before.weight.grad.abs().sum() > 0 and losses[-1] < 0.8 * losses[0]


def test_solve_says_how_it_went():
    sol = simplex().solve(POINTS, 0.8)
    assert sol.values[0].equal(simplex()(POINTS, 0.8)[0])
    assert sol.status.tolist() == [0, 0] and (sol.iterations > 0).all()
    assert all((r <= 1e-8).all() and r.shape == (2,) for r in sol.residuals)
    assert "ConvexSolution of (2, 3)" in repr(sol)
    other = curved().solve(POINTS, 0.8)
    assert other.status.tolist() == [0, 0] and other.residuals.primal.isnan().all()


def test_a_warm_start_saves_steps_and_changes_nothing():
    layer = simplex()
    first = layer.solve(POINTS, 0.8)
    again = layer.solve(POINTS + 1e-3, 0.8, warm_start=first)
    cold = layer.solve(POINTS + 1e-3, 0.8)
    assert (again.iterations < cold.iterations).all()
    torch.testing.assert_close(again.values[0], cold.values[0], rtol=0, atol=1e-10)


def test_options_and_solver_reach_solve_qp():
    weak = torch.tensor([0.0, 0.0, 1.0]).double().requires_grad_()  # x_0 >= 0 is weakly active
    pulls = {}
    for how in ("active", "inactive", "central"):
        (found,) = simplex(degenerate=how)(weak, 5.0)
        pulls[how] = torch.autograd.grad(found[0], weak)[0][0].item()
    assert pulls["active"] < pulls["central"] < pulls["inactive"]
    few = simplex(solver=InteriorPoint(max_steps=1), on_failure="nan")
    assert few(POINTS, 0.8)[0][1].isnan().all()


def test_repr_shows_parameters_and_sizes():
    for part in ("y, top", "3 unknowns", "1 equalities", "3 lower and 3 upper bounds"):
        assert part in repr(simplex())


def test_nothing_of_the_users_is_touched():
    """Not the values of variables and parameters, nor the arguments."""
    y.value, x.value = [1.0, 2, 3], [4.0, 5, 6]
    given = POINTS.clone()
    simplex()(given, 0.8)
    assert list(y.value) == [1, 2, 3] and list(x.value) == [4, 5, 6] and given.equal(POINTS)
    y.value = x.value = None


def minimise(objective, constraints=(), parameters=(y,), variables=(x,), **options):
    problem = cp.Problem(cp.Minimize(objective), list(constraints))
    return ConvexLayer(problem, list(parameters), list(variables), **options)


a, b = cp.Parameter(name="a", nonneg=True), cp.Parameter(name="b", nonneg=True)
whole, stray = cp.Variable(3, integer=True), cp.Variable(2, name="stray")
diagonal = cp.Variable((2, 2), diag=True, name="D")
SQUARES = cp.sum_squares(x - y)
PROBLEMS = {  # name: (how to make it, the message)
    "no problem": (lambda: ConvexLayer(SQUARES, [y], [x]), "problem is a .*: expected a cvxpy.Pr"),
    "not convex": (
        lambda: minimise(-SQUARES),
        "problem is not convex: the objective does not follow the DCP rules",
    ),
    "a constraint is not convex": (
        lambda: minimise(SQUARES, [x >= 0, cp.sum_squares(x) >= 1]),
        r"not convex: constraint 1 \(.*\) does not follow",
    ),
    "a parameter of unknown sign": (
        lambda: minimise(SQUARES + top * cp.norm1(x), [], [y, top]),
        "objective does not follow .* A parameter counts as of no sign, .* unless declared nonneg",
    ),
    "two parameters multiplied": (
        lambda: minimise(SQUARES, [x <= a * b], [y, a, b]),
        r"not DPP in constraint 0 .*: a product may hold one parameter",
    ),
    "a function of a parameter": (
        lambda: minimise(cp.exp(a) * cp.sum(x) + SQUARES, [], [y, a]),
        "not DPP in the objective",
    ),
    "integers": (lambda: minimise(cp.sum_squares(whole - y), [], [y], [whole]), "boolean or integ"),
    "parameter missing": (
        lambda: minimise(SQUARES, [x <= a]),
        "parameters lacks a, which the problem has",
    ),
    "parameter of another": (
        lambda: minimise(SQUARES, [], [y, a]),
        "parameters has a, which the problem does not use",
    ),
    "parameter twice": (lambda: minimise(SQUARES, [], [y, y]), "parameters names one twice: y, y"),
    "no parameter": (lambda: minimise(SQUARES, [], []), r"parameters=\[\]: expected a list"),
    "no variable": (lambda: minimise(SQUARES, [], [y], []), r"variables=\[\]: expected a list"),
    "a parameter as a variable": (lambda: minimise(SQUARES, [], [y], [y]), "has a Parameter in it"),
    "variable of another": (
        lambda: minimise(SQUARES, [], [y], [x, stray]),
        "variables has stray, which is neither a variable of the problem nor",
    ),
    "a diagonal variable": (
        lambda: minimise(cp.sum_squares(diagonal - 1) + SQUARES, (), [y], [x, diagonal]),
        r"variable D is declared diag, .*: ask for a vector v of its entries",
    ),
    "shifted rows": (
        lambda: minimise(SQUARES, infeasible="closest"),
        "'infeasible' is no option of a layer: .* add a variable s >= 0",
    ),
    "an unknown option": (lambda: minimise(SQUARES, maxiter=5), "'maxiter' is no option of a laye"),
    "no geometric program": (lambda: minimise(SQUARES, gp=True), "problem is no geometric program"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_that_is_no_layer_says_what_to_change(name):
    make, message = PROBLEMS[name]
    with pytest.raises(ValueError, match=message):
        make()


CALLS = {  # name: (arguments, the message)
    "too few": ((POINTS,), "1 parameters given: expected 2, in this order: y, top"),
    "too many": ((POINTS, 1.0, 1.0), "3 parameters given: expected 2"),
    "a wrong shape": ((POINTS[:, :2], 0.8), r"y has shape \(2, 2\): expected \('\*B', 3\)"),
    "too few dimensions": ((POINTS[0, 0], 0.8), r"y has shape \(\): expected"),
    "no tensor": (([1.0, 2.0, 3.0], 0.8), "y is a list: expected a torch.Tensor"),
    "a flag": ((POINTS, True), "top is a bool"),
    "complex numbers": ((POINTS.cfloat(), 0.8), "y is .*complex64: expected real"),
    "sparse": ((POINTS.to_sparse(), 0.8), "y is torch.sparse_coo"),
    "another device": (
        (POINTS.to("meta"), POINTS[:, 0]),
        "top is on cpu, but the first par.* meta",
    ),
    "batches that do not fit": (
        (POINTS, torch.ones(3)),
        r"do not broadcast together: y \(2, 3\), top \(3,\)",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_says_what_is_wrong(name):
    given, message = CALLS[name]
    with pytest.raises(ValueError, match=message):
        simplex()(*given)


def test_a_warm_start_of_another_kind_is_refused():
    layer = simplex()
    with pytest.raises(ValueError, match="warm_start is a QPSolution: expected the ConvexSol"):
        layer.solve(POINTS, 0.8, warm_start=layer.solve(POINTS, 0.8).qp)
