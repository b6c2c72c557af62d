"""Every case of the table: the KKT conditions, the known answer, derivatives, batches, dtypes."""

import pytest
import torch

from diffopt import Status

from .cases import CASES, SOLVERS

EVERY = pytest.mark.parametrize("name", CASES)


def parts(sol):
    return [sol.z, sol.lam, sol.nu, sol.mu]


def near(case, x, **options):
    """The solution from a start next to it, as the derivative does not depend on the way."""
    return case.solve(x, (case.known(case.x).detach() + 0.01).expand_as(case.z0), **options)


def stationarity(case, sol):
    """grad f + c'(z)'lam + e'(z)'nu + mu, from the functions and nothing else."""
    z = sol.z.detach().requires_grad_()
    total = case.f(z, case.x).sum()
    for function, y in ((case.c, sol.lam), (case.e, sol.nu)):
        if function is not None:
            total = total + (function(z, case.x) * y.detach()).sum()
    return torch.autograd.grad(total, z)[0] + sol.mu.detach()


@EVERY
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_known_answer_and_the_kkt_conditions(name, solver):
    case = CASES[name]
    if solver == "SLSQP" and not case.easy:
        pytest.skip("too hard for SLSQP")
    sol = case.solve(solver=SOLVERS[solver])
    assert (sol.status == Status.CONVERGED).all()
    torch.testing.assert_close(sol.z, case.known(case.x), atol=1e-8, rtol=0)
    size = 1 + sol.mu.abs().amax()
    assert stationarity(case, sol).abs().max() <= 1e-8 * size
    if case.c is not None:
        c = case.c(sol.z, case.x)
        assert c.max() <= 1e-8 and (sol.lam >= 0).all() and (sol.lam * c).abs().max() <= 1e-8
    if case.e is not None:
        assert case.e(sol.z, case.x).abs().max() <= 1e-8
    for bound, sign in (("lb", -1), ("ub", 1)):
        if bound in case.bounds:
            gap = sign * (case.bounds[bound] - sol.z)
            assert gap.min() >= 0 and (gap * (sign * sol.mu).clamp(min=0)).abs().max() <= 1e-8


@EVERY
def test_derivatives_are_those_of_finite_differences(name):
    """Of z and all multipliers, each weighted by chance."""
    case = CASES[name]
    x = case.x.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: parts(near(case, x)), x, atol=1e-5, rtol=1e-5, fast_mode=True
    )


@pytest.mark.parametrize(
    "name",
    ["unconstrained, exponential", "equality, sphere", "inequality, ball", "bounds, cosh"]
    + ["all, softmax", "all, HS71"],
)
def test_second_derivatives_are_those_of_finite_differences(name):
    case = CASES[name]
    x = case.x.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x: parts(near(case, x, order=2)), x, atol=1e-4, rtol=1e-4, fast_mode=True
    )


@EVERY
def test_the_derivative_is_that_of_the_known_answer(name):
    case = CASES[name]
    x = case.x.clone().requires_grad_()
    known = case.known(x)
    if not known.requires_grad:
        pytest.skip("known at one x only")
    weight = torch.linspace(1, 2, known.numel(), dtype=torch.float64).view(known.shape)
    (want,) = torch.autograd.grad((weight * known).sum(), x)
    (got,) = torch.autograd.grad((weight * near(case, x).z).sum(), x)
    torch.testing.assert_close(got, want, atol=1e-8, rtol=1e-8)


@EVERY
def test_a_sample_does_not_depend_on_its_neighbours(name):
    """Alone it is solved as among others, in the same number of steps."""
    case = CASES[name]
    start = case.known(case.x) + 0.05
    whole = case.solve(z0=start.expand_as(case.z0))
    for i in range(len(case.x)):
        alone = case.solve(case.x[i : i + 1], start.expand_as(case.z0)[i : i + 1])
        torch.testing.assert_close(alone.z[0], whole.z[i], atol=1e-10, rtol=0)
        assert alone.iterations[0] == whole.iterations[i]


@EVERY
def test_a_nan_sample_fails_alone(name):
    case = CASES[name]
    x, z0 = (torch.cat([v, v[:1], v]) for v in (case.x, case.z0))
    at = len(case.x)
    x[at] = torch.nan
    x.requires_grad_()
    z0 = case.known(x).detach().nan_to_num(0.5).expand_as(z0) + 0.01
    sol = case.solve(x, z0, on_failure="ignore")
    assert sol.status[at] == Status.NUMERICAL_FAILURE
    good = [i for i in range(len(x)) if i != at]
    known = case.known(x[good]).expand_as(sol.z[good])
    torch.testing.assert_close(sol.z[good], known, atol=1e-8, rtol=0)
    (grad,) = torch.autograd.grad(sol.z[good].sum(), x)
    assert grad[good].isfinite().all() and grad[good].abs().sum() > 0


@EVERY
def test_float32_is_solved_in_float64(name):
    case = CASES[name]
    x = case.x.float().requires_grad_()
    start = (case.known(case.x) + 0.01).expand_as(case.z0)
    sol = case.solve(x, start.float())
    assert sol.z.dtype == sol.lam.dtype == torch.float32 and sol.residuals.dual.max() <= 1e-8
    torch.testing.assert_close(sol.z, case.known(x.double()).float(), atol=2e-6, rtol=2e-6)
    (grad,) = torch.autograd.grad(sol.z.sum(), x)
    assert grad.dtype == torch.float32
    y = case.x.float().double().requires_grad_()
    (want,) = torch.autograd.grad(near(case, y).z.sum(), y)
    torch.testing.assert_close(grad.double(), want, atol=1e-5, rtol=1e-5)


@EVERY
def test_a_warm_start_at_the_solution_takes_no_step(name):
    case = CASES[name]
    sol = near(case, case.x)
    again = case.solve(warm_start=sol)
    assert (again.iterations == 0).all()
    torch.testing.assert_close(again.z, sol.z, atol=1e-10, rtol=0)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_batch_dimensions(batch):
    case = CASES["inequality, ball"]
    x = case.x[0] * 5 + torch.arange(6.0).double().view(2, 3, 1) if batch else case.x[0] * 5
    sol = case.solve(x, torch.zeros_like(x))
    assert sol.lam.shape == (*batch, 1) and sol.status.shape == batch
    assert sol.weakly_active.shape == (*batch, 4)
    torch.testing.assert_close(sol.z, case.known(x), atol=1e-8, rtol=0)
