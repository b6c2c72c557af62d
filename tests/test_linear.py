"""Iterative linear solvers and operators: each solves, transposes, and reports its own failure."""

import pytest
import torch

from diffopt.linear import GMRES, Anderson, Neumann
from diffopt.operators import Dense, Identity, MatrixFree
from diffopt.solution import Status

METHODS = {
    "gmres": GMRES(),
    "gmres, restarted": GMRES(restart=6, max_cycles=60),
    "anderson": Anderson(),
    "neumann": Neumann(200),
}


@pytest.fixture
def system(generator):
    """Matrices near I, with a solution for each sample, one of them zero."""
    A = 0.2 * torch.randn(5, 12, 12, generator=generator, dtype=torch.float64)
    A = torch.eye(12, dtype=torch.float64) + A / A.flatten(1).norm(dim=-1)[:, None, None]
    x = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    x[3] = 0.0
    return A, x, (A @ x.unsqueeze(-1)).squeeze(-1)


def apply(A):
    return lambda x: (A @ x.unsqueeze(-1)).squeeze(-1)


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("name", METHODS)
class TestMethods:
    def test_solves_to_its_tolerance(self, name, system):
        A, x, v = system
        out = METHODS[name].solve(apply(A), v)
        assert (out.status == Status.CONVERGED).all()
        torch.testing.assert_close(out.value, x, rtol=1e-8, atol=1e-9)

    def test_reports_the_true_relative_residual(self, name, system):
        A, _, v = system
        out = METHODS[name].solve(apply(A), v)
        truth = (apply(A)(out.value) - v).norm(dim=-1) / v.norm(dim=-1).clamp(min=1e-300)
        torch.testing.assert_close(out.residual, truth, rtol=1e-3, atol=1e-15)

    def test_scale_does_not_matter(self, name, system):
        A, _, v = system
        plain, tiny = METHODS[name].solve(apply(A), v), METHODS[name].solve(apply(A), 1e-30 * v)
        torch.testing.assert_close(tiny.value * 1e30, plain.value, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_scale_does_not_matter_in_float32(self, name, scale, system):
        A, x, v = (t.float() for t in system)
        out = METHODS[name].solve(apply(A), scale * v)
        assert (out.status == Status.CONVERGED).all() and (out.residual < 2e-5).all()
        torch.testing.assert_close(out.value / scale, x, rtol=1e-3, atol=1e-4)

    def test_a_nan_sample_is_alone_with_it(self, name, system):
        A, x, v = system
        A = A.clone()
        A[2, 0, 0] = torch.nan
        out = METHODS[name].solve(apply(A), v)
        keep = [0, 1, 3, 4]
        assert out.status[2] == Status.NUMERICAL_FAILURE
        assert (out.status[keep] == Status.CONVERGED).all()
        torch.testing.assert_close(out.value[keep], x[keep], rtol=1e-8, atol=1e-9)

    def test_more_batch_dimensions(self, name, system):
        A, x, v = system
        A, x, v = A[:4].view(2, 2, 12, 12), x[:4].view(2, 2, 12), v[:4].view(2, 2, 12)
        out = METHODS[name].solve(apply(A), v)
        assert out.status.shape == out.residual.shape == out.steps.shape == (2, 2)
        torch.testing.assert_close(out.value, x, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["gmres", "anderson"])
def test_failure_is_reported(name):
    """A rotation by 90 degrees defeats GMRES(1) and Anderson(1); a singular A defeats all."""
    rotation = torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]], dtype=torch.float64)
    v = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    short = {"gmres": GMRES(restart=1), "anderson": Anderson(memory=1, max_steps=20)}[name]
    out = short.solve(apply(rotation), v)
    assert out.status.item() == Status.ITERATION_LIMIT and out.residual.item() >= 0.99
    singular = torch.diag_embed(torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    out = METHODS[name].solve(apply(singular), v.flip(-1))
    assert out.status.item() == Status.ITERATION_LIMIT and out.residual.item() >= 0.99


def test_gmres_of_full_memory_is_exact_in_one_cycle(generator):
    A = torch.randn(3, 30, 30, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 30, generator=generator, dtype=torch.float64)
    out = GMRES(max_cycles=2).solve(apply(A), apply(A)(x))
    assert (out.status == Status.CONVERGED).all()
    torch.testing.assert_close(out.value, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", [GMRES(), Anderson()])
def test_float32_ends_at_its_rounding_errors(method, generator):
    M = torch.randn(3, 30, 30, generator=generator) / 20
    v = torch.randn(3, 30, generator=generator)
    sol = method.solve(lambda x: x - (M @ x.unsqueeze(-1)).squeeze(-1), v)
    assert (sol.status == 0).all() and (sol.residual < 2e-5).all()


def test_gmres_applies_the_matrix_as_often_as_it_has_to():
    """Of identity plus rank one two Krylov vectors hold the answer, whatever n and `restart`."""
    generator = torch.Generator().manual_seed(3)
    u, v = torch.randn(2, 4, 50, generator=generator, dtype=torch.float64)
    count = 0

    def matvec(x):
        nonlocal count
        count += 1
        return x + 0.1 * u * (v * x).sum(-1, keepdim=True)

    x = torch.randn(4, 50, generator=generator, dtype=torch.float64)
    sol = GMRES(rtol=1e-12).solve(matvec, matvec(x))
    torch.testing.assert_close(sol.value, x, rtol=1e-10, atol=1e-10)
    assert count <= 1 + 2 + 2  # the right-hand side, the space, and the residual before and after


def test_a_sample_of_gmres_does_not_gain_from_slower_ones():
    """Its own Krylov space ends where it has come to the tolerance."""
    generator = torch.Generator().manual_seed(4)
    easy = torch.eye(20, dtype=torch.float64) * 2
    hard = torch.randn(20, 20, generator=generator, dtype=torch.float64) + 8 * easy
    v = torch.randn(2, 20, generator=generator, dtype=torch.float64)
    both = torch.stack([easy + 1e-3 * hard, hard])
    method = GMRES(rtol=1e-4)
    sol = method.solve(lambda x: (both @ x.unsqueeze(-1)).squeeze(-1), v)
    alone = method.solve(lambda x: x @ both[0].T, v[:1])
    torch.testing.assert_close(sol.value[:1], alone.value, rtol=1e-12, atol=1e-13)


def test_neumann_that_diverges_is_reported():
    out = Neumann(2000).solve(lambda x: 5 * x, torch.ones(1, 2, dtype=torch.float64))
    assert out.status.item() == Status.NUMERICAL_FAILURE


OPERATORS = {
    "dense": lambda F, z: Dense.at(F, z),
    "matrix-free": lambda F, z: MatrixFree(F, z, GMRES(rtol=1e-14)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_the_jacobian(name, generator):
    """A solve(v) = v with A by finite differences, and <u, A^-1 v> = <A^-T u, v>."""
    W = torch.randn(6, 6, generator=generator, dtype=torch.float64) / 4
    z, u, v = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)

    def residual(z):
        return z - torch.tanh(z @ W.mT) * z

    operator = OPERATORS[name](residual, z)
    x = operator.solve(v).value
    eps = 1e-6
    Ax = (residual(z + eps * x) - residual(z - eps * x)) / (2 * eps)
    torch.testing.assert_close(Ax, v, rtol=1e-7, atol=1e-7)
    y = operator.solve_transpose(u).value
    torch.testing.assert_close((u * x).sum(-1), (y * v).sum(-1), rtol=1e-10, atol=1e-10)


def test_rebuilding_an_operator_keeps_it():
    matrix = torch.eye(3, dtype=torch.float64) * 2
    operator = Dense.of(matrix)
    again = operator.rebuild(*operator.tensors())
    assert torch.equal(again.solve(torch.ones(3).double()).value, torch.full((3,), 0.5).double())
    assert Identity().tensors() == () and Identity().rebuild() == Identity()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_does_not_matter_to_a_dense_operator_in_float32(scale):
    out = Dense.of(torch.tensor([[2.0, 0.0], [1.0, 4.0]])).solve(scale * torch.tensor([2.0, 5.0]))
    torch.testing.assert_close(out.value, torch.full((2,), scale))
    assert out.status == Status.CONVERGED and out.residual < 1e-6


def test_singular_dense_reports_each_sample():
    matrix = torch.tensor([[[0.0]], [[2.0]]])
    out = Dense.of(matrix).solve(torch.ones(2, 1))
    assert out.status.tolist() == [Status.NUMERICAL_FAILURE, Status.CONVERGED]
    zero = Dense.of(matrix).solve(torch.zeros(2, 1))
    assert zero.status.tolist() == [0, 0] and (zero.value == 0).all()


@pytest.mark.parametrize(
    "settings", [(GMRES, "restart"), (GMRES, "rtol"), (Anderson, "memory"), (Neumann, "terms")]
)
def test_settings_must_be_positive(settings):
    method, name = settings
    with pytest.raises(ValueError, match=rf"{method.__name__}\({name}=0\): expected a positive"):
        method(**{name: 0})
