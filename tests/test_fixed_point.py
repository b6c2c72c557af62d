"""`fixed_point`: solvers, backward operators, isolation of bad samples; each a row of a table."""

import math

import pytest
import torch
from torch.func import jacrev, jvp, vjp

from diffopt import ConvergenceError, ConvergenceWarning, Status, _native
from diffopt.fixed_point import (
    Anderson,
    Broyden,
    Direct,
    Handover,
    NewtonKrylov,
    Picard,
    Unrolled,
    fixed_point,
    jacobian_penalty,
    spectral_radius,
)
from diffopt.linear import GMRES, Neumann
from diffopt.linear import Anderson as LinearAnderson
from diffopt.operators import Dense, Identity

F64 = torch.float64
TIGHT = {"rtol": 1e-13, "atol": 1e-13, "max_steps": 500}
SOLVERS = {
    "picard": Picard(**TIGHT),
    "damped": Picard(damping=0.7, **TIGHT),
    "anderson": Anderson(**TIGHT),
    "anderson, damped": Anderson(damping=0.8, memory=3, **TIGHT),
    "broyden": Broyden(**TIGHT),
    "broyden, small": Broyden(memory=4, **TIGHT),
    "newton": NewtonKrylov(**TIGHT),
}
EXACT = {
    "gmres": GMRES(rtol=1e-13),
    "anderson": LinearAnderson(rtol=1e-13),
    "direct": Direct(),
    "handover, refined": Handover(refine=GMRES(rtol=1e-13)),
    "unrolled": Unrolled(200),
}
REDUCED = {"neumann": Neumann(3), "identity": Identity(), "handover": Handover()}


@pytest.fixture
def layer():
    """(W, x, f): z = tanh(W z + x), a contraction; five samples of four unknowns."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(4, 4, generator=generator, dtype=F64)
    W = (0.7 * W / torch.linalg.matrix_norm(W, 2)).requires_grad_()
    x = torch.randn(5, 4, generator=generator, dtype=F64).requires_grad_()
    return W, x, lambda z: torch.tanh(z @ W.T + x)


def at(layer, **options):
    W, x, f = layer
    return fixed_point(f, torch.zeros(5, 4, dtype=F64), **options)


def solver_for(operator):
    return Broyden(**TIGHT) if isinstance(operator, Handover) else Anderson(**TIGHT)


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("name", SOLVERS)
class TestSolvers:
    def test_the_answer_is_a_fixed_point(self, name, layer):
        sol = at(layer, solver=SOLVERS[name])
        assert (sol.status == Status.CONVERGED).all()
        assert (layer[2](sol.z) - sol.z).abs().max() < 1e-12

    def test_known_answer(self, name):
        """cos z = z at the Dottie number, 0.739085133215160642 (OEIS A003957)."""
        z0 = torch.tensor([[0.0], [1.0], [0.7]], dtype=F64)
        sol = fixed_point(torch.cos, z0, solver=SOLVERS[name])
        assert (sol.z - 0.73908513321516064166).abs().max() < 1e-12

    def test_a_sample_does_not_depend_on_its_batch(self, name, layer):
        W, x, f = layer
        whole = at(layer, solver=SOLVERS[name])
        for i in range(5):
            one = fixed_point(
                lambda z, i=i: torch.tanh(z @ W.T + x[i : i + 1]),
                torch.zeros(1, 4, dtype=F64),
                solver=SOLVERS[name],
            )
            assert (one.z - whole.z[i]).abs().max() < 1e-12
            # products of other shapes round differently: a step more or less at the last digit
            assert abs(int(one.steps) - int(whole.steps[i])) <= 2

    def test_a_nan_sample_touches_no_other(self, name, layer):
        W, x, f = layer
        poison = torch.zeros(5, 1, dtype=F64)
        poison[2] = math.nan
        with pytest.warns(ConvergenceWarning, match="sample 2: NUMERICAL_FAILURE"):
            sol = fixed_point(lambda z: f(z) + poison, torch.zeros(5, 4, dtype=F64),
                              solver=SOLVERS[name])  # fmt: skip
        clean = at(layer, solver=SOLVERS[name])
        others = [0, 1, 3, 4]
        assert torch.equal(sol.z[others], clean.z[others])
        assert sol.status.tolist() == [0, 0, int(Status.NUMERICAL_FAILURE), 0, 0]
        g = torch.autograd.grad(sol.z.sum(), W, retain_graph=True)[0]
        h = torch.autograd.grad(clean.z[others].sum(), W)[0]
        torch.testing.assert_close(g, h, rtol=1e-9, atol=1e-12)

    def test_float32_stays_float32(self, name, layer):
        W, x, _ = (v.detach().float() if isinstance(v, torch.Tensor) else v for v in layer)
        kind = type(SOLVERS[name])
        sol = fixed_point(
            lambda z: torch.tanh(z @ W.T + x), torch.zeros(5, 4), solver=kind(rtol=1e-5)
        )
        assert sol.z.dtype == torch.float32 and (sol.status == 0).all()

    def test_a_tuple_of_scales(self, name):
        """u = 1 + v / 4, v = u / 2: u = 8 / 7, v = 4 / 7, each sample and entry."""
        z0 = torch.zeros(3, 2, 2, dtype=F64), torch.zeros(3, 4, dtype=F64)

        def f(z):
            u, v = z
            return 1 + v.view(3, 2, 2) / 4, u.reshape(3, 4) / 2

        u, v = fixed_point(f, z0, solver=SOLVERS[name]).z
        torch.testing.assert_close(u, torch.full_like(u, 8 / 7))
        torch.testing.assert_close(v, torch.full_like(v, 4 / 7))

    def test_the_history_ends_at_the_residual(self, name, layer):
        kind = type(SOLVERS[name])
        sol = at(layer, solver=kind(**TIGHT, history=True))
        assert sol.history.shape == (int(sol.steps.max()) + 1, 5)
        torch.testing.assert_close(sol.history.min(0).values, sol.residual)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("kind", [Anderson, Broyden])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (130, 64), (5, 1031), (5000, 64)])
def test_both_histories_take_the_same_steps(kind, dtype, tolerance, shape, monkeypatch):
    if _native.core is None:
        pytest.skip(f"no compiled core: {_native.reason}")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    W = torch.randn(shape[1], shape[1], generator=generator, dtype=dtype)
    W = 0.9 * W / torch.linalg.matrix_norm(W, 2)
    solver = kind(rtol=1e-20, atol=1e-20, max_steps=9, memory=4)

    def solve():
        f = lambda z: torch.tanh(z @ W.T + x)  # noqa: E731
        return fixed_point(f, torch.zeros_like(x), solver=solver, on_failure="ignore").z

    mine = solve()
    monkeypatch.setattr(_native, "core", None)
    assert (mine - solve()).abs().max() < tolerance


def test_under_autocast_f_is_in_half_precision_and_the_state_is_not():
    layer = torch.nn.Linear(4, 4)
    torch.nn.init.orthogonal_(layer.weight, gain=0.3)
    seen = []

    def f(z):
        out = layer(z)
        seen.append(out.dtype)
        return out

    with torch.autocast("cpu", torch.bfloat16):
        sol = fixed_point(f, torch.zeros(2, 4), solver=Anderson(rtol=1e-2))
    assert set(seen) == {torch.bfloat16} and sol.z.dtype == torch.float32
    sol.z.sum().backward()
    exact = torch.linalg.solve(torch.eye(4) - layer.weight, layer.bias)
    assert (sol.z - exact).norm() < 0.05 * exact.norm() * 2**0.5
    assert layer.weight.grad.norm() > 0


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("memory", [4, 30])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (F64, 1e-9)])
def test_what_is_handed_over_is_a_samples_own(memory, dtype, tolerance):
    """The second sample is slower, and fills the memory when the first is done."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(8, 8, generator=generator, dtype=F64)
    W = (W / torch.linalg.matrix_norm(W, 2)).to(dtype)
    a, x0 = torch.tensor([[0.3], [0.95]], dtype=dtype), torch.ones(2, 8, dtype=dtype)
    grads = []
    for part in (slice(0, 1), slice(0, 2)):
        x = x0[part].clone().requires_grad_()
        sol = fixed_point(
            lambda z, x=x, part=part: torch.tanh(a[part] * (z @ W.T) + x),
            torch.zeros_like(x), solver=Broyden(rtol=1e-5, memory=memory), operator=Handover(),
        )  # fmt: skip
        grads.append(torch.autograd.grad(sol.z.sum(), x)[0][0])
    assert sol.steps[1] > sol.steps[0]
    assert (grads[0] - grads[1]).abs().max() < tolerance


@pytest.mark.usefixtures("core")
def test_a_stalled_sample_keeps_what_it_has_learned():
    """The first has no fixed point, one entry drifts; the second fills the memory afterwards."""
    a, w = torch.tensor([[0.3], [0.95]], dtype=F64), torch.linspace(-1, 1, 8, dtype=F64)
    w[3:5] = 0
    drift = torch.zeros(2, 8, dtype=F64)
    drift[0, 4] = 5e-5
    grads = []
    for part in (slice(0, 1), slice(0, 2)):
        x = torch.ones(2, 8, dtype=F64)[part].requires_grad_()

        def f(z, x=x, part=part):
            moved = torch.tanh(a[part] * w * z.flip(1) + x)
            return torch.where(drift[part] > 0, z + drift[part], moved)

        sol = fixed_point(
            f, torch.zeros_like(x), on_failure="ignore", operator=Handover(),
            solver=Broyden(rtol=0.0, atol=1e-6, memory=4, patience=2),
        )  # fmt: skip
        grads.append(torch.autograd.grad(sol.z[0].sum(), x)[0][0])
    assert sol.status[0] == Status.REDUCED_ACCURACY and sol.steps[1] > sol.steps[0]
    torch.testing.assert_close(*grads, rtol=1e-6, atol=0)


def test_unrolling_leaves_the_value_alone():
    x = torch.ones(1, 2, dtype=F64, requires_grad=True)
    sol = fixed_point(lambda z: x - 1.5 * z, torch.zeros(1, 2, dtype=F64), operator=Unrolled(100))
    torch.testing.assert_close(sol.z.detach(), x.detach() / 2.5)


def test_zero_is_a_fixed_point_like_any_other():
    sol = fixed_point(lambda z: z / 2, torch.zeros(2, 2), solver=Anderson(atol=0.0))
    assert (sol.status == 0).all() and (sol.z == 0).all()


def test_newton_steps_back_from_where_f_is_not_defined():
    """z = z - log z at 1; from 3 the full step is to a negative number."""
    sol = fixed_point(
        lambda z: z - z.log(), torch.full((1, 1), 3.0, dtype=F64), solver=NewtonKrylov(**TIGHT)
    )
    assert abs(sol.z.item() - 1) < 1e-12


def test_the_start_is_left_alone():
    z0 = torch.ones(2, 2)
    with torch.no_grad():
        fixed_point(lambda z: z, z0).z.add_(5)
    assert (z0 == 1).all()


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 3, 0)])
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_no_samples_or_no_unknowns_are_nothing_to_solve(solver, shape):
    for operator in (*EXACT.values(), *REDUCED.values()):
        if isinstance(operator, Handover) and not isinstance(solver, Broyden):
            continue
        x = torch.zeros(shape, requires_grad=True)
        sol = fixed_point(lambda z, x=x: z / 2 + x, torch.zeros(shape), solver=solver,
                          operator=operator)  # fmt: skip
        assert sol.z.shape == shape and sol.steps.tolist() == sol.status.tolist() == [0] * shape[0]
        assert torch.autograd.grad(sol.z.sum(), x)[0].shape == shape
    assert jacobian_penalty(torch.cos, x).tolist() == spectral_radius(torch.cos, x).tolist()


def test_anderson_and_newton_find_what_picard_cannot():
    """z = -1.5 z + x has the slope -1.5: Picard diverges, the others are exact on linear maps."""
    x = torch.tensor([[1.0, -2.0]], dtype=F64)
    for solver in (Anderson(), Broyden(), NewtonKrylov()):
        sol = fixed_point(lambda z: x - 1.5 * z, torch.zeros(1, 2, dtype=F64), solver=solver)
        torch.testing.assert_close(sol.z, x / 2.5)
    with pytest.warns(ConvergenceWarning, match="raise max_steps"):
        sol = fixed_point(
            lambda z: x - 1.5 * z, torch.zeros(1, 2, dtype=F64), solver=Picard(max_steps=50)
        )
    assert sol.status.item() == Status.ITERATION_LIMIT


@pytest.mark.parametrize("name", EXACT)
class TestExactGradients:
    def test_gradients_are_those_of_the_implicit_function_theorem(self, name, layer):
        W, x, _ = layer
        operator = EXACT[name]
        sol = at(layer, solver=solver_for(operator), operator=operator)
        v = torch.arange(20.0, dtype=F64).view(5, 4) / 10 - 1
        got = torch.autograd.grad(sol.z, (W, x), v)
        z = sol.z.detach()
        slope = 1 - z * z  # of tanh, at the fixed point
        J = slope.unsqueeze(-1) * W.detach()
        u = torch.linalg.solve((torch.eye(4, dtype=F64) - J).mT, v) * slope
        torch.testing.assert_close(got[1], u, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(got[0], u.T @ z, rtol=1e-8, atol=1e-10)

    def test_a_scaled_loss_has_a_scaled_gradient(self, name, layer):
        operator = EXACT[name]
        z = at(layer, solver=solver_for(operator), operator=operator).z
        one, tiny = (
            torch.autograd.grad(s * z.square().sum(), layer[0], retain_graph=True)[0]
            for s in (1.0, 1e-9)
        )
        torch.testing.assert_close(tiny * 1e9, one, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("operator", [GMRES(), LinearAnderson(), Direct(), Neumann(30)])
@pytest.mark.parametrize("scale", [1e-24, 1e24])
def test_the_size_of_the_loss_does_not_matter_in_float32_either(operator, scale):
    """z = z / 2 + x: dz/dx = 2; the squares of such gradients are no numbers in float32."""
    x = torch.tensor([[1.0, -2.0], [3.0, 0.5]], requires_grad=True)
    sol = fixed_point(lambda z: z.flip(1) / 2 + x, torch.zeros(2, 2), operator=operator)
    weights = torch.tensor([[1.0, 0.0], [2.0, -1.0]])
    (g,) = torch.autograd.grad(sol.z, x, scale * weights)
    exact = weights @ torch.tensor([[4.0, 2.0], [2.0, 4.0]]) / 3
    torch.testing.assert_close(g / scale, exact, rtol=1e-4, atol=1e-5)
    assert (sol.backward.status == 0).all()


@pytest.mark.parametrize("name", REDUCED)
def test_reduced_gradients_are_the_series_they_claim(name, layer):
    """Neumann(3): v + J'v + J'J'v; Identity: v; a handover: near the exact one."""
    W, x, _ = layer
    operator = REDUCED[name]
    z = at(layer, solver=solver_for(operator), operator=operator).z
    v = torch.ones(5, 4, dtype=F64)
    (got,) = torch.autograd.grad(z, x, v)
    slope = 1 - z.detach() ** 2
    J = slope.unsqueeze(-1) * W.detach()
    JT = lambda u: (J.mT @ u.unsqueeze(-1)).squeeze(-1)  # noqa: E731
    exact = torch.linalg.solve((torch.eye(4, dtype=F64) - J).mT, v) * slope
    if name == "handover":
        assert (got - exact).norm() < 0.3 * exact.norm()
    else:
        terms = {"neumann": v + JT(v) + JT(JT(v)), "identity": v}[name]
        torch.testing.assert_close(got, terms * slope)


def test_the_record_says_how_the_backward_solve_went(layer):
    sol = at(layer, operator=GMRES(rtol=1e-9))
    assert sol.backward.residual is None
    sol.z.sum().backward()
    assert (sol.backward.status == 0).all() and (sol.backward.residual <= 1e-9).all()
    sol = at(layer, operator=GMRES(rtol=1e-13, restart=1, max_cycles=1), on_failure="ignore")
    sol.z.sum().backward()
    assert (sol.backward.status != 0).any()


def test_second_derivatives(layer):
    W, x, f = layer
    z0 = torch.zeros(5, 4, dtype=F64)

    def z(x):
        g = lambda z: torch.tanh(z @ W.detach().T + x)  # noqa: E731
        return fixed_point(g, z0, solver=Anderson(**TIGHT), operator=GMRES(rtol=1e-14), order=2).z

    assert torch.autograd.gradcheck(z, (x,), atol=1e-7)
    assert torch.autograd.gradgradcheck(z, (x,), atol=1e-6)
    first = torch.autograd.grad(at(layer).z.square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="order=2"):
        torch.autograd.grad(first.sum(), x)


def test_forward_and_reverse_mode_are_transposed(layer):
    W, x, _ = layer

    def z(x):
        return fixed_point(
            lambda z: torch.tanh(z @ W.detach().T + x), torch.zeros(5, 4, dtype=F64),
            solver=Anderson(**TIGHT), operator=GMRES(rtol=1e-13),
        ).z  # fmt: skip

    u, v = torch.ones(5, 4, dtype=F64), torch.arange(20.0, dtype=F64).view(5, 4)
    x = x.detach()
    forward = jvp(z, (x,), (u,))[1]
    reverse = vjp(z, x)[1](v)[0]
    torch.testing.assert_close((forward * v).sum(), (reverse * u).sum())


def test_the_mapped_derivative_needs_a_direct_operator(layer):
    """jacrev maps the backward pass: with a factor; without one it says whose fault it is."""
    W, x, _ = (v.detach() if isinstance(v, torch.Tensor) else v for v in layer)

    def z(x, **options):
        f = lambda z: torch.tanh(z @ W.T + x)  # noqa: E731
        return fixed_point(f, torch.zeros_like(x), solver=Anderson(**TIGHT), **options).z

    J = jacrev(lambda x: z(x, operator=Direct()))(x)
    slope = (1 - z(x) ** 2).unsqueeze(-1)
    eye = torch.eye(4, dtype=F64)
    for i in range(5):
        exact = torch.linalg.solve(eye - slope[i] * W, eye * slope[i])
        torch.testing.assert_close(J[i, :, i], exact, rtol=1e-8, atol=1e-10)
    for operator, name in ((None, "MatrixFree with GMRES"), (LinearAnderson(), "Anderson")):
        with pytest.raises(RuntimeError, match=rf"operator is .*{name}: .*operator=Direct\(\)"):
            jacrev(lambda x, operator=operator: z(x, operator=operator))(x)


@pytest.mark.parametrize("on_failure", ["warn", "raise", "nan", "ignore"])
def test_a_sample_that_does_not_converge(on_failure, layer, recwarn):
    """z = 2 z + x from 0 diverges under Picard; z = z / 2 + x does not."""
    slope = torch.tensor([[2.0], [0.5]], dtype=F64)
    x = torch.ones(2, 3, dtype=F64, requires_grad=True)

    def solve():
        return fixed_point(
            lambda z: slope * z + x, torch.zeros(2, 3, dtype=F64), solver=Picard(max_steps=60),
            on_failure=on_failure,
        )  # fmt: skip

    if on_failure == "raise":
        with pytest.raises(ConvergenceError, match="sample 0: ITERATION_LIMIT"):
            solve()
        return
    sol = solve()
    assert len(recwarn) == (on_failure == "warn")
    recwarn.clear()
    assert sol.status.tolist() == [int(Status.ITERATION_LIMIT), 0]
    assert sol.z[0].isnan().all() == (on_failure == "nan")
    (g,) = torch.autograd.grad(sol.z[1].sum(), x)
    torch.testing.assert_close(g, torch.tensor([[0.0] * 3, [2.0] * 3], dtype=F64))


def test_near_enough_is_used_and_said(layer):
    sol = at(layer, solver=Picard(rtol=1e-8, atol=0, max_steps=22))
    assert (sol.residual <= 100).all() and (sol.status == Status.REDUCED_ACCURACY).any()
    sol.z.sum().backward()
    assert layer[0].grad.abs().min() > 0


def test_the_gradient_does_not_depend_on_the_start(layer):
    W, x, f = layer
    grads = [
        torch.autograd.grad(fixed_point(f, z0, solver=Anderson(**TIGHT)).z.square().sum(), (W, x))
        for z0 in (torch.zeros(5, 4, dtype=F64), torch.ones(5, 4, dtype=F64, requires_grad=True))
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_no_graph_where_none_is_wanted(layer):
    with torch.no_grad():
        assert not at(layer).z.requires_grad
    evaluations = []
    W, x, f = layer

    def counted(z):
        evaluations.append(z)
        return f(z)

    sol = fixed_point(counted, torch.zeros(5, 4, dtype=F64))
    assert len(evaluations) == int(sol.steps.max()) + 2  # the last one is in the graph


WRONG = {
    "z0 is a list": ("z0 is a list", [torch.zeros(2, 2)], torch.cos, {}),
    "no batch": ("unsqueeze", torch.zeros(3), torch.cos, {}),
    "half": ("autocast", torch.zeros(2, 2, dtype=torch.bfloat16), torch.cos, {}),
    "integers": ("float32 or float64", torch.zeros(2, 2, dtype=torch.int64), torch.cos, {}),
    "two batches": ("one batch", (torch.zeros(2, 2), torch.zeros(3, 2)), lambda z: z, {}),
    "shape": ("same shape", torch.zeros(2, 3), lambda z: z[:, :2], {}),
    "dtype": ("one dtype", torch.zeros(2, 3), lambda z: z.double(), {}),
    "not a tensor": ("f\\(z\\) is a NoneType", torch.zeros(2, 3), lambda z: None, {}),
    "solver": ("expected an Anderson", torch.zeros(2, 3), torch.cos, {"solver": "anderson"}),
    "solver class": ("expected an Anderson", torch.zeros(2, 3), torch.cos, {"solver": Anderson}),
    "operator": ("expected GMRES", torch.zeros(2, 3), torch.cos, {"operator": "exact"}),
    "operator class": ("expected GMRES", torch.zeros(2, 3), torch.cos, {"operator": GMRES}),
    "an operator made": (
        "expected GMRES", torch.zeros(2, 3), torch.cos, {"operator": Dense.of(torch.eye(3))},
    ),
    "handover": ("only solver=Broyden", torch.zeros(2, 3), torch.cos, {"operator": Handover()}),
    "order": ("positive integer", torch.zeros(2, 3), torch.cos, {"order": 0}),
    "in place": ("out-of-place", torch.zeros(2, 3), lambda z: z.mul_(0.5).add_(1), {}),
    "handover order": (
        "biased", torch.zeros(2, 3), torch.cos,
        {"order": 2, "solver": Broyden(), "operator": Handover()},
    ),
    "neumann order": ("biased", torch.zeros(2, 3), torch.cos, {"order": 2, "operator": Neumann(1)}),
    "unrolled order": ("order", torch.zeros(2, 3), torch.cos, {"order": 0, "operator": Unrolled()}),
    "biased order": (
        "biased", torch.zeros(2, 3), torch.cos, {"order": 2, "operator": Identity()},
    ),
    "on_failure": ("on_failure", torch.zeros(2, 3), torch.cos, {"on_failure": "stop"}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_use_says_what_is_wrong(name):
    match, z0, f, options = WRONG[name]
    with pytest.raises(ValueError, match=match):
        fixed_point(f, z0, **options)


@pytest.mark.parametrize(
    "kind, options",
    [
        (Picard, {"damping": 0.0}),
        (Picard, {"damping": 1.5}),
        (Anderson, {"memory": 0}),
        (Anderson, {"memory": 2.5}),
        (Anderson, {"rtol": -1.0}),
        (Anderson, {"rtol": 0.0, "atol": 0.0}),
        (Broyden, {"max_steps": 0}),
        (NewtonKrylov, {"forcing": 0.0}),
        (Unrolled, {"steps": 0}),
    ],
)
def test_settings_are_checked(kind, options):
    with pytest.raises(ValueError, match=f"{kind.__name__}"):
        kind(**options)
