"""`implicit_root`: orders, routes, transforms, memory, isolation of bad samples."""

import gc
import warnings
import weakref

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from diffopt import ConvergenceError, ConvergenceWarning, implicit_root
from diffopt.implicit import implicit_root_of
from diffopt.linear import GMRES, Anderson, Neumann
from diffopt.operators import Dense, Identity, MatrixFree

# z^3 + a z - 1 = 0 at a = 1.3, by repeated implicit differentiation
DERIVATIVES = (-0.252165, 0.115159, 0.027338)
A = torch.tensor([1.3], dtype=torch.float64)


def cubic(a, order=1):
    """The real root of z^3 + a z - 1, elementwise."""
    with torch.no_grad():
        z = torch.full_like(a, 0.6)
        for _ in range(20):
            z = z - (z**3 + a * z - 1) / (3 * z * z + a)
    return implicit_root(lambda z: z**3 + a * z - 1, z, order=order)


def total(order=1):
    return lambda a: cubic(a, order).sum()


def nested_grad(f, times):
    for _ in range(times):
        f = (lambda inner: lambda a: grad(inner)(a).sum())(f)
    return f


def by_autograd(order, times):
    a = A.clone().requires_grad_()
    y = cubic(a, order).sum()
    for _ in range(times):
        (y,) = torch.autograd.grad(y, a, create_graph=True)
        y = y.sum()
    return y


def by_backward(order, times):
    a = A.clone().requires_grad_()
    y = cubic(a, order).sum()
    for _ in range(times):
        a.grad = None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using backward.. with create_graph=True")
            y.backward(create_graph=True)
        y = a.grad.sum()
    a.grad = None
    return y


ROUTES = {
    "autograd.grad": by_autograd,
    "backward": by_backward,
    "func.grad": lambda order, times: nested_grad(total(order), times)(A),
}
SECOND = {
    "grad of grad": lambda f: grad(lambda a: grad(f)(a).sum()),
    "jacfwd of grad": lambda f: lambda a: jacfwd(grad(f))(a).sum(),
    "jacrev of grad": lambda f: lambda a: jacrev(grad(f))(a).sum(),
    "jacfwd of jacfwd": lambda f: lambda a: jacfwd(jacfwd(f))(a).sum(),
    "jacrev of jacfwd": lambda f: lambda a: jacrev(jacfwd(f))(a).sum(),
    "hessian": lambda f: lambda a: hessian(f)(a).sum(),
}


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("route", ROUTES)
def test_known_derivatives(route, order):
    for times in range(1, order + 1):
        value = ROUTES[route](order, times)
        assert value.item() == pytest.approx(DERIVATIVES[times - 1], abs=1e-6)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("route", ROUTES)
def test_one_derivative_too_many_raises(route, order):
    with pytest.raises(RuntimeError, match="order=2"):
        ROUTES[route](order, order + 1)


@pytest.mark.parametrize("route", SECOND)
def test_second_derivatives_of_torch_func(route):
    assert float(SECOND[route](total(2))(A).sum()) == pytest.approx(DERIVATIVES[1], abs=1e-6)
    with pytest.raises(RuntimeError, match="order=2"):
        SECOND[route](total(1))(A)


@pytest.mark.parametrize("power", [1, 2])
def test_a_second_derivative_is_never_silently_wrong(power):
    """z^3 + a^2 z - 1: theta enters F twice, and the loss may be linear in z or not."""
    a = A.clone().requires_grad_()
    z = implicit_root(lambda z: z**3 + a * a * z - 1, torch.tensor([0.5], dtype=torch.float64))
    (first,) = torch.autograd.grad(z.pow(power).sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="order=2"):
        torch.autograd.grad(first.sum(), a)


@pytest.mark.parametrize("create_graph", [False, True])
def test_a_known_pull_back_gives_the_same_gradient_and_no_second(create_graph):
    """M z = s b for a matrix M and a scale s: F = M z - s b, u^T dF/db = -s u."""
    generator = torch.Generator().manual_seed(0)
    M = torch.randn(4, 3, 3, generator=generator, dtype=torch.float64)
    b = torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    s = torch.full((4, 3), 2.0, dtype=torch.float64)
    asked = []

    def pull_back(u, needed, scale):
        asked.append(list(needed))
        return [None, -scale * u]

    z = implicit_root_of(torch.linalg.solve(M, s * b), Dense.of(M), pull_back, [s], [None, b])
    loss = (z**2).sum()
    (got,) = torch.autograd.grad(loss, b, create_graph=create_graph)
    (want,) = torch.autograd.grad((torch.linalg.solve(M, s * b) ** 2).sum(), b)
    torch.testing.assert_close(got, want)
    assert asked == [[False, True]]
    if create_graph:
        with pytest.raises(RuntimeError, match="order=2"):
            torch.autograd.grad(got.sum(), b)


def test_transforms_agree():
    a = torch.tensor([[1.3], [1.0], [2.0]], dtype=torch.float64)
    expected = torch.stack([grad(total())(row) for row in a])
    leaf = a.clone().requires_grad_()
    vmap(total())(leaf).sum().backward()
    each = {
        "vmap of grad": vmap(grad(total()))(a),
        "grad of vmap": grad(lambda a: vmap(total())(a).sum())(a),
        "autograd of vmap": leaf.grad,
        "jacrev": jacrev(cubic)(a).sum((2, 3)),
        "jacfwd": jacfwd(cubic)(a).sum((2, 3)),
        "jvp": jvp(cubic, (a,), (torch.ones_like(a),))[1],
    }
    for name, value in each.items():
        torch.testing.assert_close(value, expected, msg=name)


def test_matrix_free_under_transforms_is_right_or_raises(weights):
    """grad, vjp and jvp agree with Dense, also where forward modes nest; vmap raises."""
    W, x = (v.detach() for v in weights)
    layers = [lambda W, op=op: coupled(1, op)(W, x) for op in (EXACT["dense"], EXACT["gmres"])]
    rounds = {
        "grad": lambda f: grad(lambda W: f(W).sum())(W),
        "vjp": lambda f: torch.func.vjp(f, W)[1](torch.ones_like(x))[0],
        "jvp": lambda f: jvp(f, (W,), (torch.ones_like(W),))[1],
    }
    for name, call in rounds.items():
        dense, free = (call(layer) for layer in layers)
        torch.testing.assert_close(free, dense, msg=name)
    with pytest.raises(RuntimeError, match="vmap .*MatrixFree.*operator=None"):
        jacrev(layers[1])(W)
    with pytest.raises(RuntimeError):  # torch's own: the captured W is out of reach
        jacfwd(layers[1])(W)


def coupled(order=1, operator=None):
    """A batch of roots of z - tanh(W z + x), W shared by the samples."""

    def function(W, x):
        def residual(z):
            return z - torch.tanh(z @ W.mT + x)

        with torch.no_grad():
            z = torch.zeros_like(x)
            for _ in range(200):
                z = torch.tanh(z @ W.mT + x)
        return implicit_root(residual, z, operator and operator(residual, z), order)

    return function


@pytest.fixture
def weights(generator):
    W = torch.randn(4, 4, generator=generator, dtype=torch.float64) / 5
    x = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    return W.requires_grad_(), x.requires_grad_()


EXACT = {
    "dense": lambda F, z: Dense.at(F, z),
    "gmres": lambda F, z: MatrixFree(F, z, GMRES(rtol=1e-13)),
    "anderson": lambda F, z: MatrixFree(F, z, Anderson(rtol=1e-12)),
}


@pytest.mark.parametrize("name", EXACT)
def test_gradcheck(name, weights):
    assert torch.autograd.gradcheck(coupled(1, EXACT[name]), weights, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("name", EXACT)
def test_gradgradcheck(name, weights):
    assert torch.autograd.gradgradcheck(coupled(2, EXACT[name]), weights, atol=1e-7, rtol=1e-6)


def test_the_value_is_improved_by_the_newton_step():
    rough = torch.tensor([0.6], dtype=torch.float64)

    def residual(z):
        return z**3 + A * z - 1

    z = implicit_root(residual, rough)
    assert residual(z).abs() < residual(rough).abs() / 10
    assert implicit_root(residual, z, order=2).requires_grad is False


def test_closures_and_modules_get_gradients(weights):
    _, x = weights
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4, dtype=torch.float64)
    with torch.no_grad():
        layer.weight *= 0.3
        z = torch.zeros_like(x)
        for _ in range(200):
            z = torch.tanh(layer(z) + x)
    loss = implicit_root(lambda z: z - torch.tanh(layer(z) + x), z).pow(2).sum()
    implicit = torch.autograd.grad(loss, [*layer.parameters(), x])
    z = torch.zeros_like(x)
    for _ in range(60):
        z = torch.tanh(layer(z) + x)
    unrolled = torch.autograd.grad(z.pow(2).sum(), [*layer.parameters(), x])
    for ours, truth in zip(implicit, unrolled, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("differentiate", [False, True])
def test_memory_is_released_without_the_garbage_collector(name, order, differentiate, weights):
    """No cycle keeps the graph: what the residual closes over dies with the result."""
    W, x = weights

    def run():
        captured = W * 1.0
        operators = []

        def residual(z):
            return z - torch.tanh(z @ captured.mT + x)

        with torch.no_grad():
            z = torch.zeros_like(x)
            for _ in range(200):
                z = torch.tanh(z @ captured.mT + x)
        operators.append(EXACT[name](residual, z))
        out = implicit_root(residual, z, operators[0], order)
        return out, weakref.ref(captured), weakref.ref(operators[0])

    gc.collect()
    gc.disable()
    try:
        out, captured, operator = run()
        if differentiate:
            torch.autograd.grad(out.sum(), W)
        assert operator() is not None
        del out
        assert captured() is None and operator() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", EXACT)
def test_a_nan_sample_leaves_its_neighbours_alone(name, weights):
    """A root that is NaN: neighbours and the shared W get bit-identical values and gradients."""
    W, x = weights

    def run(z, x):
        def residual(v):
            return v - torch.tanh(v @ W.mT + x)

        out = implicit_root(residual, z, EXACT[name](residual, z.nan_to_num(0.0)))
        loss = torch.where(out.isfinite(), out, 0.0).pow(2).sum()
        return out, torch.autograd.grad(loss, (W, x))

    root = coupled()(W, x).detach()
    broken = root.clone()
    broken[1] = torch.nan
    out, (grad_W, grad_x) = run(broken, x)
    clean, (clean_W, clean_x) = run(root[[0, 2]], x[[0, 2]])
    assert out[1].isnan().all() and torch.equal(grad_x[1], torch.zeros_like(grad_x[1]))
    torch.testing.assert_close(out[[0, 2]], clean, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(grad_x[[0, 2]], clean_x, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(grad_W, clean_W, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", EXACT)
def test_gradient_of_a_scaled_loss_is_scaled(name, weights):
    W, x = weights
    plain, scaled = (
        torch.autograd.grad(c * coupled(1, EXACT[name])(W, x).sum(), W)[0] for c in (1.0, 1e-7)
    )
    torch.testing.assert_close(scaled, 1e-7 * plain, rtol=1e-10, atol=0)


def test_a_singular_jacobian_is_reported_not_hidden():
    """z^2 = x at x = 0: no derivative exists; its neighbour x = 4 is not touched."""
    x = torch.tensor([[0.0], [4.0]], dtype=torch.float64, requires_grad=True)
    z = implicit_root(lambda z: z * z - x, x.detach().sqrt())
    with pytest.warns(ConvergenceWarning, match="1 of 2 samples failed\n  sample 0: NUMERICAL"):
        (gradient,) = torch.autograd.grad(z.sum(), x)
    assert gradient.tolist() == [[0.0], [0.25]]


def test_a_linear_solver_that_does_not_converge_says_so(weights):
    W, x = weights
    short = coupled(1, lambda F, z: MatrixFree(F, z, GMRES(restart=1, max_cycles=1)))
    with pytest.warns(ConvergenceWarning, match="the linear solve: . of 3 samples failed"):
        out = short(W, x)
    with pytest.warns(ConvergenceWarning, match="transposed linear solve: 3 of 3 samples failed"):
        (gradient,) = torch.autograd.grad(out.sum(), W)
    assert (gradient == 0).all()
    strict = coupled(
        1, lambda F, z: MatrixFree(F, z, GMRES(restart=1, max_cycles=1), on_failure="raise")
    )
    with pytest.raises(ConvergenceError, match="ITERATION_LIMIT"):
        strict(W, x)


def test_reduced_gradients_are_terms_of_the_neumann_series(weights):
    W, x = weights
    one = torch.autograd.grad(coupled(1, lambda F, z: Identity())(W, x).sum(), W)[0]
    also = torch.autograd.grad(
        coupled(1, lambda F, z: MatrixFree(F, z, Neumann(1)))(W, x).sum(), W
    )[0]
    many = torch.autograd.grad(
        coupled(1, lambda F, z: MatrixFree(F, z, Neumann(80)))(W, x).sum(), W
    )[0]
    exact = torch.autograd.grad(coupled()(W, x).sum(), W)[0]
    torch.testing.assert_close(one, also)
    torch.testing.assert_close(many, exact)
    assert (one - exact).abs().max() > 1e-3


def test_wrong_use_says_what_is_wrong():
    root = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"residual\(root\) has shape \(2, 1\), but root has"):
        implicit_root(lambda z: z.sum(-1, keepdim=True), root)
    with pytest.raises(ValueError, match="order=0: expected a positive integer"):
        implicit_root(lambda z: z, root, order=0)
