"""Projected and proximal gradient layers: minimality, derivatives, steps, isolation, errors."""

import gc
import math
import warnings
import weakref
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from diffopt import (
    FISTA,
    L1,
    ConvergenceError,
    ConvergenceWarning,
    ElasticNet,
    GroupLasso,
    NonnegativeL1,
    Projected,
    ProjectedGradient,
    Status,
    projected_gradient,
    proximal_gradient,
    solve_qp,
)
from diffopt.linear import GMRES, Anderson, Neumann
from diffopt.operators import Dense, Identity
from diffopt.projected_gradient import Direct

from .checks import directional_errors, times

SHARP = FISTA(tol=1e-12)
DOUBLE = {"dtype": torch.float64}


def simplex(z: Tensor) -> Tensor:
    """The projection on z >= 0, sum z = 1, by sorting."""
    u = z.sort(-1, descending=True).values
    excess = (u.cumsum(-1) - 1) / torch.arange(1, z.shape[-1] + 1, dtype=z.dtype)
    last = (u > excess).sum(-1, keepdim=True).clamp(min=1) - 1  # 0 for NaN
    return (z - excess.gather(-1, last)).clamp(min=0)


def ball(z: Tensor) -> Tensor:
    return z / z.norm(dim=-1, keepdim=True).clamp(min=1)


def quadratic(z: Tensor, a: dict) -> Tensor:
    return (times(a["Q"], z) * z / 2 + a["p"] * z).sum(-1)


def least_squares(z: Tensor, a: dict) -> Tensor:
    return (times(a["A"], z) - a["b"]).square().sum(-1) / 2


def logistic(z: Tensor, a: dict) -> Tensor:
    return torch.nn.functional.softplus(times(a["A"], z) * a["b"]).sum(-1)


def split(a: dict, ridge: Tensor | float = 0.0) -> Tensor:
    """The lasso as a QP in (z, t): |z| <= t, weight t in the objective."""
    A, b, n = a["A"], a["b"], a["A"].shape[-1]
    eye = torch.eye(n, **DOUBLE)
    zero = torch.zeros_like(A.mT @ A)
    Q = torch.cat([torch.cat([A.mT @ A + ridge * eye, zero], -1), torch.cat([zero, zero], -1)], -2)
    p = torch.cat([-times(A.mT, b), a["weight"].expand(*b.shape[:-1], n)], -1)
    G = torch.cat([torch.cat([eye, -eye], -1), torch.cat([-eye, -eye], -1)], -2)
    return solve_qp(Q, p, G=G, h=0.0).z[..., :n]


class Case(NamedTuple):
    inputs: dict  # what is differentiated, with the batch dimensions first or shared
    objective: Callable[[Tensor, dict], Tensor]
    prox: Callable[[dict], Callable]
    shape: tuple  # of z
    penalty: Callable[[Tensor, dict], Tensor] = lambda z, a: torch.zeros_like(z[..., 0])
    qp: Callable[[dict], Tensor] | None = None


def positive_definite(*shape: int, generator) -> Tensor:
    M = torch.randn(*shape, shape[-1], generator=generator, **DOUBLE)
    return M @ M.mT / shape[-1] + torch.eye(shape[-1], **DOUBLE) / 3


def make_cases() -> dict[str, Case]:
    g = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, **DOUBLE)

    def regression(*batch: int, rows: int = 24, n: int = 8) -> dict:
        return {"A": randn(*batch, rows, n) / 4, "b": randn(*batch, rows)}

    weight = torch.tensor(0.8, **DOUBLE)
    groups = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3])
    n = torch.ones(1, 6, **DOUBLE)
    return {
        "box": Case(
            {
                "Q": positive_definite(6, generator=g),
                "p": randn(5, 6),
                "ub": torch.rand(6, **DOUBLE),
            },
            quadratic,
            lambda a: Projected(lambda z: torch.minimum(z, a["ub"]).clamp(min=-1)),
            (5, 6),
            qp=lambda a: solve_qp(a["Q"], a["p"], lb=-1.0, ub=a["ub"]).z,
        ),
        "simplex": Case(
            {"Q": positive_definite(2, 3, 6, generator=g), "p": randn(2, 3, 6)},
            quadratic,
            lambda a: Projected(simplex),
            (2, 3, 6),
            qp=lambda a: solve_qp(a["Q"], a["p"], A=n, b=1.0, lb=0.0).z,
        ),
        "nonnegative least squares": Case(
            regression(5),
            least_squares,
            lambda a: Projected(lambda z: z.clamp(min=0)),
            (5, 8),
            qp=lambda a: solve_qp(a["A"].mT @ a["A"], -times(a["A"].mT, a["b"]), lb=0.0).z,
        ),
        "lasso": Case(
            regression(5) | {"weight": weight},
            least_squares,
            lambda a: L1(a["weight"]),
            (5, 8),
            lambda z, a: a["weight"] * z.abs().sum(-1),
            split,
        ),
        "nonnegative lasso, no batch": Case(
            regression() | {"weight": weight / 5},
            least_squares,
            lambda a: NonnegativeL1(a["weight"]),
            (8,),
            lambda z, a: torch.where((z >= 0).all(-1), a["weight"] * z.sum(-1), math.inf),
        ),
        "elastic net": Case(
            regression(5, rows=6) | {"weight": weight, "ridge": torch.tensor(0.5, **DOUBLE)},
            least_squares,
            lambda a: ElasticNet(a["weight"], a["ridge"]),
            (5, 8),
            lambda z, a: a["weight"] * z.abs().sum(-1) + a["ridge"] * z.square().sum(-1) / 2,
            lambda a: split(a, a["ridge"]),
        ),
        "group lasso": Case(
            regression(5) | {"weight": 2 * weight},
            least_squares,
            lambda a: GroupLasso(a["weight"], groups),
            (5, 8),
            lambda z, a: a["weight"] * sum(z[..., groups == k].norm(dim=-1) for k in range(4)),
        ),
        "logistic on a ball": Case(regression(5), logistic, lambda a: Projected(ball), (5, 8)),
        "logistic lasso": Case(
            regression(5) | {"weight": weight},
            logistic,
            lambda a: L1(a["weight"]),
            (5, 8),
            lambda z, a: a["weight"] * z.abs().sum(-1),
        ),
    }


CASES = make_cases()
QPS = {name: case for name, case in CASES.items() if case.qp}
BATCHES = {name: case for name, case in CASES.items() if len(case.shape) > 1}
OTHERS = {name: case for name, case in CASES.items() if not case.qp}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def find(case: Case, a: dict | None = None, **options):
    a = case.inputs if a is None else a
    z0 = torch.zeros(case.shape, dtype=next(iter(a.values())).dtype)
    return proximal_gradient(lambda z: case.objective(z, a), case.prox(a), z0, **options)


def leaves(case: Case) -> dict:
    return {k: v.clone().requires_grad_() for k, v in case.inputs.items()}


def gradients(case: Case, a: dict, z: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 2, z.numel(), **DOUBLE).view_as(z)
    grads = torch.autograd.grad((weights * z).sum(), list(a.values()))
    return [(v + v.mT) / 2 if k == "Q" else v for k, v in zip(a, grads, strict=True)]


@every
def test_no_point_of_the_set_is_better(case, generator):
    """The variational inequality: g'(w - z) + r(w) - r(z) >= 0 for every w, here 80 of them."""
    a = case.inputs
    for mode in (torch.no_grad, torch.enable_grad):  # without and with the Newton step
        with mode():
            sol = find(case)
        assert (sol.status == Status.CONVERGED).all() and sol.z.shape == case.shape
        assert (sol.residual < 1e-6).all() and (sol.steps < 100).all()
        z = sol.z.requires_grad_()
        (g,) = torch.autograd.grad(case.objective(z, a).sum(), z)
        for scale in [1e-3, 1e-1, 1, 10] * 20:
            away = torch.randn(case.shape, generator=generator, **DOUBLE) * scale
            w = case.prox(a)(z + away, torch.ones_like(z[..., :1]))
            gain = (g * (w - z)).sum(-1) + case.penalty(w, a) - case.penalty(z, a)
            assert (gain >= -1e-6 * (w - z).norm(dim=-1) - 1e-13).all()


@pytest.mark.parametrize("case", QPS.values(), ids=QPS)
def test_agrees_with_the_same_problem_as_a_qp(case):
    a = leaves(case)
    sol, truth = find(case, a), case.qp(a)
    torch.testing.assert_close(sol.z, truth, rtol=1e-9, atol=1e-9)
    pairs = zip(gradients(case, a, sol.z), gradients(case, a, truth), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)
    with torch.no_grad():
        torch.testing.assert_close(find(case, a).z, truth.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS)
def test_derivatives_are_those_of_finite_differences(case, generator):
    def layer(a: dict) -> tuple[Tensor]:
        with torch.enable_grad():
            return (find(case, a).z,)

    for name, error in directional_errors(layer, case.inputs, generator, eps=1e-4).items():
        assert error < 1e-6, name


@every
def test_step_and_operator_do_not_matter(case):
    """Backtracking or two given steps; GMRES, Anderson or a dense factor: one z, one gradient."""
    a = leaves(case)
    curvature = (
        torch.func.hessian(lambda z: case.objective(z, case.inputs).sum())(
            torch.zeros(case.shape, **DOUBLE)
        )
        .flatten(0, len(case.shape) - 1)
        .flatten(1)
    )
    bound = torch.linalg.eigvalsh(curvature).max().item()
    sol = find(case, a)
    grads = gradients(case, a, sol.z)
    ways = [
        {"solver": FISTA(step=1 / bound)},
        {"solver": FISTA(step=0.2 / bound)},
        {"operator": Direct()},
        {"operator": Anderson(rtol=1e-12)},
        {"operator": GMRES(rtol=1e-13)},
    ]
    for way in ways:
        other = find(case, a, **way)
        assert (other.status == Status.CONVERGED).all()
        torch.testing.assert_close(other.z, sol.z, rtol=0, atol=1e-10)
        for mine, theirs in zip(gradients(case, a, other.z), grads, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("operator, terms", [(Identity(), 1), (Neumann(3), 3)])
def test_reduced_gradients_are_the_series_they_claim(operator, terms):
    """|z - x|^2 / 2 with steps of 1/2, unconstrained: P (I - H / 2) = 1/2, dF/dx = -1/2."""
    x = torch.tensor([[3.0, -1.0]], **DOUBLE, requires_grad=True)
    sol = projected_gradient(
        lambda z: (z - x).square().sum(-1) / 2, lambda z: z, x.detach() + 1,
        solver=FISTA(step=0.5), operator=operator,
    )  # fmt: skip
    (g,) = torch.autograd.grad(sol.z.sum(), x)
    torch.testing.assert_close(g, torch.full_like(g, sum(0.5**k for k in range(1, terms + 1))))


def test_the_record_says_how_the_backward_solve_went():
    a = leaves(CASES["simplex"])
    sol = find(CASES["simplex"], a)
    assert sol.backward.status is None
    sol.z.square().sum().backward()
    assert sol.backward.status.shape == (2, 3) and (sol.backward.residual <= 1e-9).all()


def test_a_direct_operator_can_be_mapped():
    case = CASES["simplex"]
    p = case.inputs["p"]

    def layer(p: Tensor, operator: object) -> Tensor:
        return find(case, case.inputs | {"p": p}, operator=operator).z

    whole = torch.func.jacrev(lambda p: layer(p, Direct()))(p)
    x = p.clone().requires_grad_()
    row = torch.autograd.grad(layer(x, Direct())[1, 2, 0], x)[0]
    torch.testing.assert_close(whole[1, 2, 0], row, rtol=1e-9, atol=1e-12)
    with pytest.raises(RuntimeError, match="whose operator is MatrixFree with GMRES: .*Direct"):
        torch.func.jacrev(lambda p: layer(p, GMRES()))(p)


@pytest.mark.parametrize("name", ["simplex", "lasso", "logistic on a ball", "group lasso"])
def test_second_derivatives_are_right_or_raise(name, generator):
    case = CASES[name]

    def slope(order: int, a: dict) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            a = {k: v if v.requires_grad else v.clone().requires_grad_() for k, v in a.items()}
            value = find(case, a, order=order).z.pow(3).sum()
            return torch.autograd.grad(value, list(a.values()), create_graph=True)

    errors = directional_errors(lambda a: slope(2, a), case.inputs, generator, eps=1e-4)
    assert max(errors.values()) < 1e-6, errors
    a = leaves(case)
    first = slope(1, a)
    with pytest.raises(RuntimeError, match="order=2"):
        torch.autograd.grad(first[0].square().sum(), list(a.values()))


@pytest.mark.parametrize("name", ["simplex", "lasso", "group lasso", "logistic on a ball"])
def test_transforms_of_torch_func_agree_with_autograd(name):
    case = CASES[name]
    names = list(case.inputs)
    values = tuple(case.inputs.values())

    def total(*x: Tensor) -> Tensor:
        return find(case, dict(zip(names, x, strict=True))).z.square().sum()

    a = leaves(case)
    truth = torch.autograd.grad(total(*a.values()), list(a.values()))
    ours = torch.func.grad(total, argnums=tuple(range(len(names))))(*values)
    for mine, theirs in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)
    ways = tuple(torch.ones_like(v) for v in values)
    slope = torch.func.jvp(total, values, ways)[1]
    torch.testing.assert_close(slope, sum(v.sum() for v in truth), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("case", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_does_not_see_its_batch_mates(case, dtype):
    """The last sample beside NaN and huge neighbours: the same bits, steps and gradient."""
    a = {k: v.to(dtype) for k, v in case.inputs.items()}
    own = "p" if "p" in a else "b"
    wild = a[own].clone()
    rows = wild.view(-1, wild.shape[-1])
    rows[0], rows[1:-1] = torch.nan, 1e3
    outcome = []
    for value in (a[own], wild):
        x = value.clone().requires_grad_()
        sol = find(case, a | {own: x}, on_failure="ignore")
        (grad,) = torch.autograd.grad(sol.z.flatten(0, -2)[-1].square().sum(), x)
        outcome.append([v[(-1,) * (v.ndim - 1)] for v in (sol.z, grad)])
        outcome[-1] += [v.flatten()[-1] for v in (sol.steps, sol.residual)]
    for mine, theirs in zip(*outcome, strict=True):
        assert torch.equal(mine, theirs)
    status = sol.status.flatten()
    assert status[0] == Status.NUMERICAL_FAILURE and (status[1:] == Status.CONVERGED).all()
    assert sol.z.dtype == dtype


def test_single_precision_is_good_to_its_digits():
    for name in ("box", "lasso", "logistic on a ball"):
        case = CASES[name]
        a = {k: v.float().requires_grad_() for k, v in case.inputs.items()}
        b = leaves(case)
        z, truth = find(case, a).z, find(case, b).z
        torch.testing.assert_close(z.double(), truth, rtol=0, atol=1e-4)
        rough, exact = (gradients(case, x, y) for x, y in ((a, z), (b, truth)))
        for mine, theirs in zip(rough, exact, strict=True):
            assert (mine - theirs).norm() < 1e-2 * theirs.norm()


def test_the_answer_is_in_the_set_and_sparse_exactly():
    for order in (1, 2):
        with torch.enable_grad():
            z = find(CASES["simplex"], leaves(CASES["simplex"]), order=order).z
            assert (z >= 0).all() and (z == 0).any()
            torch.testing.assert_close(z.sum(-1), torch.ones(2, 3, **DOUBLE), rtol=0, atol=1e-15)
            z = find(CASES["lasso"], leaves(CASES["lasso"]), order=order).z
            small = z.abs() < 1e-9
            assert small.any() and (z[small] == 0).all()


def test_restart_saves_steps():
    """Condition 30 in 20 unknowns, solution inside: less than half of the steps."""
    Q = torch.diag(torch.logspace(-1.5, 0, 20, **DOUBLE))
    p = torch.linspace(-1, 1, 20, **DOUBLE).expand(2, 20)
    steps = []
    for restart in (True, False):
        sol = projected_gradient(
            lambda z: quadratic(z, {"Q": Q, "p": p}), lambda z: z, torch.zeros(2, 20, **DOUBLE),
            solver=FISTA(restart=restart),
        )  # fmt: skip
        assert (sol.status == Status.CONVERGED).all()
        steps.append(int(sol.steps.max()))
    assert 2 * steps[0] < steps[1], steps


def test_one_gradient_and_at_most_one_more_value_a_step():
    calls = []

    def objective(z: Tensor) -> Tensor:
        calls.append(z.requires_grad)
        return quadratic(z, CASES["box"].inputs)

    for solver, extra in ((FISTA(), True), (FISTA(step=0.1), False)):
        calls.clear()
        with torch.no_grad():
            sol = projected_gradient(
                objective, lambda z: z.clamp(-1, 1), torch.zeros(5, 6, **DOUBLE), solver=solver
            )
        looks = int(sol.steps.max()) + 1
        assert sum(calls) == looks + 2 * extra  # two for the first step
        assert len(calls) - sum(calls) == looks * extra


def test_a_start_at_the_minimiser_takes_no_step():
    case = CASES["logistic on a ball"]
    z = find(case, solver=SHARP).z
    again = projected_gradient(lambda x: case.objective(x, case.inputs), ball, z)
    assert (again.steps == 0).all()


def test_a_steep_start_does_not_keep_the_steps_short(generator):
    """(z - 30)^4 / 4 - c z, curvature 2700 at the start and 3 c^(2/3) at z = 30 + c^(1/3)."""
    c = torch.rand(4, 3, generator=generator, **DOUBLE)
    sol = projected_gradient(
        lambda z: ((z - 30) ** 4 / 4 - c * z).sum(-1), lambda z: z, torch.zeros(4, 3, **DOUBLE)
    )
    torch.testing.assert_close(sol.z, 30 + c ** (1 / 3), rtol=1e-9, atol=0)
    assert (sol.steps < 400).all()


def test_an_objective_that_ends_somewhere_is_kept_inside(generator):
    """Poisson regression, Az - b log(Az): not finite at z0 = 0, nor where momentum may lead."""
    A, b = torch.rand(4, 12, 5, generator=generator, **DOUBLE), torch.rand(4, 12, **DOUBLE)

    def objective(z: Tensor) -> Tensor:
        return (times(A, z) - b * times(A, z).log()).sum(-1)

    sol = projected_gradient(objective, lambda z: z.clamp(min=1e-6), torch.zeros(4, 5, **DOUBLE))
    assert (sol.status == Status.CONVERGED).all()
    g = torch.func.grad(lambda z: objective(z).sum())(sol.z)
    assert torch.minimum(g, sol.z - 1e-6).abs().max() < 1e-6


BAD = {  # name: (objective of one unknown, projection, status)
    "unbounded": (lambda z: -z.sum(-1), lambda z: z, Status.ITERATION_LIMIT),
    "no curvature bound": (lambda z: -(z**4).sum(-1) + z.sum(-1), lambda z: z, None),
    "NaN": (lambda z: z.sum(-1) * torch.nan, lambda z: z, Status.NUMERICAL_FAILURE),
    "NaN off the start": (
        lambda z: torch.where(z.sum(-1) == 0, z.sum(-1), torch.nan),
        lambda z: z,
        Status.NUMERICAL_FAILURE,
    ),
    "kink": (lambda z: (z - 1 / 3).abs().sum(-1), lambda z: z, None),
    "no projection": (lambda z: (z - 1).square().sum(-1), lambda z: z / 2, Status.INVALID_INPUT),
}


@pytest.mark.parametrize("objective, projection, status", BAD.values(), ids=BAD)
def test_failure_is_said_and_has_no_gradient(objective, projection, status):
    x = torch.ones(2, 1, **DOUBLE, requires_grad=True)
    z0, solver = torch.zeros(2, 1, **DOUBLE), FISTA(max_steps=60)

    def run(on_failure: str):
        return projected_gradient(
            lambda z: objective(z) + (x * z).sum(-1) / 2, projection, z0, solver=solver,
            on_failure=on_failure,
        )  # fmt: skip

    with pytest.warns(ConvergenceWarning, match="proximal gradient method: 2 of 2 samples failed"):
        sol = run("warn")
    assert (sol.status > Status.REDUCED_ACCURACY).all() and sol.z.isfinite().all()
    assert status is None or (sol.status == status).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (gradient,) = torch.autograd.grad(sol.z.sum(), x)
        assert (gradient == 0).all()
        torch.testing.assert_close(run("ignore").z, sol.z, rtol=0, atol=0)
        assert run("nan").z.isnan().all()
    with pytest.raises(ConvergenceError):
        run("raise")


def test_a_minimiser_that_is_not_unique_has_no_derivative():
    x = torch.tensor([[1.0, 3.0]], **DOUBLE, requires_grad=True)
    sol = projected_gradient(
        lambda z: (z.sum(-1) - x.sum(-1)) ** 2, lambda z: z, torch.zeros(1, 2, **DOUBLE)
    )
    assert sol.status.item() == Status.CONVERGED
    with pytest.warns(ConvergenceWarning, match="transposed linear solve: 1 of 1"):
        assert (torch.autograd.grad(sol.z[:, 0].sum(), x)[0] == 0).all()


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (3, 0), (0,), (0, 0)])
@pytest.mark.parametrize("operator", [GMRES(), Anderson(), Direct(), Neumann(2), Identity()])
def test_no_samples_or_no_unknowns_are_nothing_to_solve(shape, operator):
    x = torch.zeros(shape, requires_grad=True)
    sol = projected_gradient(
        lambda z: (z - x).square().sum(-1), lambda z: z, torch.zeros(shape), operator=operator
    )
    assert sol.z.shape == shape and sol.status.shape == shape[:-1]
    assert torch.autograd.grad(sol.z.sum(), x)[0].shape == shape


def test_memory_is_released_without_the_garbage_collector():
    x = torch.ones(2, 3, **DOUBLE, requires_grad=True)

    def run():
        captured = x * 2.0
        sol = projected_gradient(lambda z: (z - captured).square().sum(-1), ball, x.detach())
        return sol, weakref.ref(captured)

    gc.collect()
    gc.disable()
    try:
        sol, captured = run()
        torch.autograd.grad(sol.z[0, 0], x)
        del sol
        assert captured() is None
    finally:
        gc.enable()


def square(z: Tensor) -> Tensor:
    return z.square().sum(-1)


Z = torch.zeros(2, 3)
WRONG = {  # message: what is called
    r"objective\(z\) is a float32 tensor of shape \(\), but": lambda: projected_gradient(
        lambda z: z.square().sum(), lambda z: z, Z
    ),
    r"objective\(z\) is a float32 tensor of shape \(2, 3\)": lambda: projected_gradient(
        lambda z: z**2, lambda z: z, Z
    ),
    r"objective\(z\) is a float64 tensor .* dtype of the data": lambda: projected_gradient(
        lambda z: square(z.double()), lambda z: z, Z
    ),
    r"objective\(z\) is a float, but": lambda: projected_gradient(lambda z: 1.0, lambda z: z, Z),
    r"objective\(z\) has no gradient in z: .* without detach\(\)": lambda: projected_gradient(
        lambda z: square(z.detach()), lambda z: z, Z
    ),
    r"objective\(z\) has no gradient in z": lambda: projected_gradient(
        lambda z: square(torch.ones(2, 3, requires_grad=True)), lambda z: z, Z
    ),
    r"projection\(z\) is a float32 tensor of shape \(2, 1\)": lambda: projected_gradient(
        square, lambda z: z[:, :1], Z
    ),
    r"projection\(z\) is a float64 tensor": lambda: projected_gradient(
        square, lambda z: z.double(), Z
    ),
    r"prox\(z, step\) is a NoneType": lambda: proximal_gradient(square, lambda z, s: None, Z),
    r"z0 is a float32 tensor of shape \(\): .* z0.reshape\(1\)": lambda: projected_gradient(
        square, lambda z: z, torch.tensor(0.0)
    ),
    r"z0 is a int64 tensor .* float32 or float64": lambda: projected_gradient(
        square, lambda z: z, Z.long()
    ),
    "z0 is a list": lambda: projected_gradient(square, lambda z: z, [0.0]),
    r"operator=<bound method Dense.at .*: expected GMRES\(\)": lambda: projected_gradient(
        square, lambda z: z, Z, operator=Dense.at
    ),
    r"operator='gmres': expected GMRES\(\)": lambda: ProjectedGradient(
        lambda z: square(z), lambda z: z, operator="gmres"
    )(Z),
    "order=2 with a biased": lambda: projected_gradient(
        square, lambda z: z, Z, operator=Neumann(2), order=2
    ),
    "order=0": lambda: projected_gradient(square, lambda z: z, Z, order=0),
    "on_failure='no'": lambda: projected_gradient(square, lambda z: z, Z, on_failure="no"),
    r"FISTA\(step=0\): expected a positive": lambda: FISTA(step=0),
    r"FISTA\(tol=-1.0\)": lambda: FISTA(tol=-1.0),
    r"L1\(weight=-1.0\): expected a number >= 0": lambda: L1(-1.0),
    r"ElasticNet\(ridge='1'\): expected a number or": lambda: ElasticNet(1.0, "1"),
    r"GroupLasso\(groups=.* int64 vector of 0 to n - 1": lambda: GroupLasso(1.0, torch.tensor([1])),
    "z has 3 unknowns, but GroupLasso has groups for 1": lambda: proximal_gradient(
        square, GroupLasso(1.0, torch.tensor([0])), Z
    ),
    "'steps' is no option": lambda: ProjectedGradient(square, lambda z: z, steps=3),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_use_says_what_is_wrong(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


def test_the_module_learns_what_its_objective_holds():
    """The weights of a weighted projection on the simplex, recovered from its answers."""

    class Distance(torch.nn.Module):
        def __init__(self, weights: Tensor) -> None:
            super().__init__()
            self.log = torch.nn.Parameter(weights.log())

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return (self.log.exp() * (z - x).square()).sum(-1)

    truth = ProjectedGradient(Distance(torch.tensor([1.0, 2.0, 4.0], **DOUBLE)), simplex)
    layer = ProjectedGradient(Distance(torch.ones(3, **DOUBLE)), simplex, on_failure="raise")
    assert [name for name, _ in layer.named_parameters()] == ["objective.log"]
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(0), **DOUBLE)
    target, z = truth(torch.zeros_like(x), x).detach(), x
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=12, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (layer(z, x) - target).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    assert loss() < 1e-6 and (layer.solve(z, x).status == Status.CONVERGED).all()
    learned = layer.objective.log.detach().exp()
    torch.testing.assert_close(learned / learned[0], truth.objective.log.exp(), rtol=0.01, atol=0)
    assert "on_failure='raise'" in repr(layer)
