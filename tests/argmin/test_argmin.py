"""`argmin` where it is hard: failures, kinks, foreign solvers, wrong use."""

import threading
import time

import pytest
import torch
from torch import nn

from diffopt import SQP, ConvergenceError, ConvergenceWarning, ScipyMinimize, Status, argmin

from .cases import CASES, d, distance, full, off_sphere

X = d([3.0, 4.0], [-0.6, 0.8])


def sphere(x=X, z0=None, **options):
    z0 = x.detach() + 0.1 if z0 is None else z0
    return argmin(lambda z: distance(z, x), z0, equality=lambda z: off_sphere(z, x), **options)


def hopeless(**options):
    """z^2 + x <= 0 has a solution for x <= 0 only."""
    x = d([-4.0], [1.0]).requires_grad_()
    return x, argmin(
        lambda z: -z.sum(-1), full(3.0, 2, 1), inequality=lambda z: z**2 + x, **options
    )


# name: (function, starts) without a feasible point
INFEASIBLE = {
    "z^2 = -1": (lambda z: z**2 + 1, d([2.0], [-0.3], [0.0])),
    "two circles": (
        lambda z: torch.stack([z.square().sum(-1) - 1, (z - 3).square().sum(-1) - 1], -1),
        d([0.0, 1.0], [5.0, -2.0]),
    ),
    "parallel lines": (lambda z: torch.stack([z.sum(-1), z.sum(-1) - 1], -1), d([0.3, -0.5])),
}


@pytest.mark.parametrize("hessian", ["exact", "bfgs"])
@pytest.mark.parametrize("name", INFEASIBLE)
def test_what_is_infeasible_is_called_so(name, hessian):
    e, z0 = INFEASIBLE[name]
    f = lambda z: z.square().sum(-1)  # noqa: E731
    sol = argmin(f, z0, equality=e, solver=SQP(hessian=hessian), on_failure="ignore")
    assert (sol.status == Status.PRIMAL_INFEASIBLE).all()


def test_an_objective_without_end_is_called_so():
    sol = argmin(lambda z: -z.square().sum(-1), full(1.0, 1, 2), on_failure="ignore")
    assert sol.status.tolist() == [Status.DUAL_INFEASIBLE]


def test_hs26_whose_minimum_is_not_strict_is_solved():
    sol = argmin(
        lambda z: (z[..., 0] - z[..., 1]) ** 2 + (z[..., 1] - z[..., 2]) ** 4,
        d([-2.6, 2.0, 2.0]),
        equality=lambda z: (1 + z[..., 1:2] ** 2) * z[..., :1] + z[..., 2:] ** 4 - 3,
    )
    assert sol.status.tolist() == [Status.CONVERGED]
    torch.testing.assert_close(sol.z, full(1.0, 1, 3), atol=1e-3, rtol=0)


def test_policies_of_failure():
    with pytest.warns(ConvergenceWarning, match="argmin: 1 of 2 samples failed"):
        x, sol = hopeless()
    assert sol.status.tolist() == [Status.CONVERGED, Status.PRIMAL_INFEASIBLE]
    assert sol.z[0].item() == pytest.approx(2.0, abs=1e-9)
    (grad,) = torch.autograd.grad(sol.z.sum(), x)
    assert grad[0].item() == pytest.approx(-0.25, abs=1e-9) and grad[1].item() == 0
    with pytest.raises(ConvergenceError, match="PRIMAL_INFEASIBLE"):
        hopeless(on_failure="raise")
    x, sol = hopeless(on_failure="nan")
    assert sol.z[1].isnan() and sol.z[0].isfinite()
    assert torch.autograd.grad(sol.z[0].sum(), x)[0].isfinite().all()


def test_no_derivative_at_a_minimum_that_is_not_strict():
    """The point of the circle nearest to its centre is any."""
    x = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    sol = sphere(x, full(0.5, 1, 2))
    assert sol.status.tolist() == [Status.CONVERGED]
    with pytest.warns(ConvergenceWarning, match="the transposed linear solve"):
        (grad,) = torch.autograd.grad(sol.z[0, 0], x)
    assert (grad == 0).all()


@pytest.mark.parametrize("limit", ["inequality", "bound"])
@pytest.mark.parametrize("degenerate, slope", [("central", 0.5), ("active", 0), ("inactive", 1)])
def test_kinks(limit, degenerate, slope):
    """min (z - x)^2 / 2 + z^4 over z >= 0 at x = 0: dz/dx is 0 on the left and 1 on the right."""
    x = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    kind = dict(inequality=lambda z: -z) if limit == "inequality" else dict(lb=0.0)
    sol = argmin(
        lambda z: distance(z, x) + (z**4).sum(-1), full(1.0, 3, 1), degenerate=degenerate, **kind
    )
    assert sol.weakly_active.any(-1).all()
    (grad,) = torch.autograd.grad(sol.z.sum(), x)
    torch.testing.assert_close(grad, full(slope, 3, 1), atol=1e-9, rtol=0)


def test_dependent_constraints_get_multipliers_of_least_norm():
    """nu_0 + 2 nu_1 is what counts, so that nu is along (1, 2)."""
    sol = CASES["equality, twice the same"].solve()
    torch.testing.assert_close(sol.nu[:, 1], 2 * sol.nu[:, 0], atol=1e-9, rtol=0)


def test_derivatives_with_respect_to_bounds():
    lb, ub = d(-0.5, -0.5).requires_grad_(), torch.tensor(1.0).double().requires_grad_()
    solve = lambda lb, ub: argmin(  # noqa: E731
        lambda z: torch.cosh(z - X).sum(-1), 0 * X, lb=lb, ub=ub
    )
    sol = solve(lb, ub)
    assert sol.z.tolist() == [[1.0, 1.0], [-0.5, 0.8]]
    assert torch.autograd.gradcheck(lambda *b: (solve(*b).z, solve(*b).mu), (lb, ub))


def test_transforms_of_torch_func():
    def loss(x):
        return sphere(x, X + 0.1).z[:, 0].sum()

    x = X.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(torch.func.grad(loss)(X), want)
    tangent = torch.ones_like(X)
    slope = torch.func.jvp(loss, (X,), (tangent,))[1]
    torch.testing.assert_close(slope, (want * tangent).sum())


@pytest.mark.parametrize("method", ["trust-constr", "SLSQP", "slsqp"])
def test_scipy_solves_the_samples_of_a_batch_together(method):
    case = CASES["all, softmax"]
    calls = []
    f = lambda z: calls.append(len(z)) or case.f(z, case.x)  # noqa: E731
    sol = argmin(
        f, case.z0, equality=lambda z: case.e(z, case.x), lb=1e-9,
        solver=ScipyMinimize(method, options={"maxiter": 300}),
    )  # fmt: skip
    torch.testing.assert_close(sol.z, case.known(case.x), atol=1e-9, rtol=0)
    assert set(calls) == {3}


@pytest.mark.parametrize("method", ["COBYQA", "cobyqa", "COBYLA"])
def test_methods_with_a_lock_solve_one_sample_after_another(method):
    sol = argmin(lambda z: torch.cosh(z - X[:, :1]).sum(-1), 0 * X[:, :1], lb=-0.5,
                 solver=ScipyMinimize(method))  # fmt: skip
    torch.testing.assert_close(sol.z, d([3.0], [-0.5]), atol=1e-9, rtol=0)


def test_an_error_in_a_function_ends_the_threads_of_scipy():
    before, calls = threading.active_count(), []

    def f(z):
        calls.append(z)
        if len(calls) == 6:
            raise KeyError("of the user")
        return torch.cosh(z - X).sum(-1)

    with pytest.raises(KeyError, match="of the user"):
        argmin(f, 0 * X, solver=ScipyMinimize())
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


BADLY_SCALED = {  # (objective, start, solution)
    "Brown": (
        lambda z: (z[:, 0] - 1e6) ** 2 + (z[:, 1] - 2e-6) ** 2 + (z.prod(-1) - 2) ** 2,
        d([1.0, 1.0]),
        d([1e6, 2e-6]),
    ),
    "Powell": (
        lambda z: (1e4 * z.prod(-1) - 1) ** 2 + ((-z).exp().sum(-1) - 1.0001) ** 2,
        d([0.0, 1.0]),
        d([1.09815933e-5, 9.10614674]),
    ),
}


@pytest.mark.parametrize("name", BADLY_SCALED)
def test_badly_scaled_unknowns(name):
    """More, Garbow & Hillstrom, "Testing Unconstrained Optimization Software" (1981), 3 and 4."""
    f, z0, known = BADLY_SCALED[name]
    sol = argmin(f, z0)
    assert sol.status.tolist() == [Status.CONVERGED]
    torch.testing.assert_close(sol.z, known, atol=0, rtol=1e-8)


def test_a_users_solver_gets_the_problem_and_is_not_believed():
    seen = []

    def projected(problem, z0):
        seen.append((problem.n, problem.e, problem.m, z0.shape, z0.dtype))
        z = X / X.norm(dim=-1, keepdim=True)
        return z + d([1e-6], [0.3])  # good to 1e-6, and wrong

    x = X.clone().requires_grad_()
    sol = sphere(x, solver=projected, on_failure="ignore")
    assert seen == [(2, 1, 0, (2, 2), torch.float64)]
    assert sol.status.tolist() == [Status.CONVERGED, Status.ITERATION_LIMIT]
    torch.testing.assert_close(sol.z[0], X[0] / 5, atol=1e-12, rtol=0)
    (grad,) = torch.autograd.grad(sol.z[:, 0].sum(), x)
    torch.testing.assert_close(grad[0], sphere(x).z[0, 1].detach() * d(0.8, -0.6) / 5)
    assert (grad[1] == 0).all()


def test_newton_steps_are_of_second_order_where_the_hessian_was_convexified():
    """At a solution whose Hessian is indefinite, a point good to 1e-6 becomes one to rounding."""
    x = d([0.5684, -1.0845, -1.3986])

    def solve(z0, **options):
        return argmin(
            lambda z: torch.cosh(z - x).sum(-1), z0, inequality=lambda z: off_sphere(z, x),
            equality=lambda z: z[:, :1] * z[:, 1:2] - 0.1, **options,
        )  # fmt: skip

    want = solve(d([0.5893, 0.1697, -0.7899]))
    sol = solve(want.z + d(1e-6, -1e-6, 2e-6), solver=lambda problem, z0: z0)
    assert sol.residuals.worst().item() <= 1e-13
    torch.testing.assert_close(sol.z, want.z, atol=1e-12, rtol=0)


def test_a_users_solver_may_return_multipliers():
    z, nu = X / X.norm(dim=-1, keepdim=True), (X.norm(dim=-1, keepdim=True) - 1) / 2
    sol = sphere(solver=lambda problem, z0: (z, nu, None, None))
    torch.testing.assert_close(sol.nu, nu, atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match=r"solver returned nu of shape \(2,\)"):
        sphere(solver=lambda problem, z0: (z, nu[:, 0], None, None))
    with pytest.raises(ValueError, match="solver returned z of 3"):
        sphere(solver=lambda problem, z0: 3)
    with pytest.raises(ValueError, match="a tuple of 2"):
        sphere(solver=lambda problem, z0: (z, nu))


def test_parameters_of_modules_get_gradients_in_their_dtype():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.Softplus(), nn.Linear(4, 1))
    sol = argmin(lambda z: net(z)[..., 0] + z.square().sum(-1), torch.zeros(3, 2))
    assert (sol.status == 0).all() and sol.residuals.dual.max() <= 1e-10
    sol.z.sum().backward()
    assert net[0].weight.grad.dtype == torch.float32 and net[0].weight.grad.abs().sum() > 0


def test_without_gradients_the_value_is_the_same():
    want = sphere().z
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(sphere().z, want.detach())


def test_an_empty_batch():
    sol = sphere(X[:0], X[:0])
    assert sol.z.shape == (0, 2) and sol.nu.shape == (0, 1) and sol.status.shape == (0,)


F = lambda z: z.square().sum(-1)  # noqa: E731
NUMBERS = torch.zeros(2)
WRONG = {
    "objective with a dimension too many": (dict(objective=lambda z: z), "objective.z. is a"),
    "objective summed over the batch": (dict(objective=lambda z: z.sum()), "one number a sample"),
    "objective without gradient": (dict(objective=lambda z: F(z.detach())), "no gradient in z"),
    "constraint without gradient": (
        dict(inequality=lambda z: 1 - z.detach()), "inequality.z. has no gradient in z",
    ),
    "float32 written in place": (
        dict(objective=lambda z: F(z - NUMBERS.add_(1.0)), z0=X.float()), "in place .add_.",
    ),
    "float32 assigned to": (
        dict(objective=lambda z: NUMBERS.__setitem__(0, 1.0) or F(z - NUMBERS), z0=X.float()),
        "in place .__setitem__.",
    ),
    "no function": (dict(objective=3), "objective is a int"),
    "constraint without rows": (dict(equality=F), r"c.unsqueeze\(-1\)"),
    "samples mixed": (dict(objective=lambda z: F(z - z.mean(0))), "depends on the z of other"),
    "rows mixed": (dict(inequality=lambda z: z + z.flip(0)), "depends on the z of other"),
    "integers": (dict(z0=torch.ones(2, 2, dtype=torch.int64)), "z0 is a int64 tensor"),
    "a list": (dict(z0=[1.0]), "z0 is a list"),
    "crossed bounds": (dict(lb=1.0, ub=0.0), "lb is above ub"),
    "bounds of another shape": (dict(lb=torch.zeros(3)), r"lb has shape \(3,\)"),
    "a class": (dict(solver=SQP), "expected an SQP"),
    "a name": (dict(solver="SLSQP"), "expected an SQP"),
    "a policy": (dict(degenerate="left"), "degenerate='left'"),
    "an order": (dict(order=0), "order=0"),
    "a failure": (dict(on_failure="stop"), "on_failure='stop'"),
    "a warm start": (dict(warm_start=X), "warm_start is a Tensor"),
    "a method": (
        dict(solver=ScipyMinimize("L-BFGS-B"), equality=lambda z: z), "cannot handle constraints",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_says_what_is_wrong(name):
    changes, message = WRONG[name]
    arguments = dict(objective=F, z0=X) | changes
    with pytest.raises(ValueError, match=message):
        argmin(arguments.pop("objective"), arguments.pop("z0"), **arguments)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(tol=0), "tol=0"),
        (dict(max_steps=0), "max_steps=0"),
        (dict(hessian="x"), "hessian='x'"),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        SQP(**changes)
