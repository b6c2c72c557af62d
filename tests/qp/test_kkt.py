"""The factor: residuals of its solves, the adjoint identity, and the equilibration under it."""

import dataclasses

import pytest
import torch

from diffopt.qp.arguments import build
from diffopt.qp.kkt import Blocks, KKTFamily
from diffopt.qp.scaling import equilibrate, unscale, unscale_products

from .. import cases

NAMES = ["inequality and equality", "box and equality", "everything", "shared matrices",
         "linear program, box", "equality only", "semidefinite"]  # fmt: skip


def prepared(name):
    arguments = cases.QPS[name].arguments()
    qp, _ = build(**arguments)
    return qp, *equilibrate(qp)


def activity(name, qp, generator):
    """t of the true active set, and of a random interior point."""
    instance = cases.QPS[name]
    y = torch.cat([instance.lam, instance.mu] if qp.bounded else [instance.lam], -1)
    exact = torch.where(y.view(qp.batch, -1) == 0, 1.0, 0.0)
    interior = torch.rand(exact.shape, generator=generator, dtype=torch.float64)
    return {"active set": exact, "interior": interior}


def random_blocks(qp, generator):
    sizes = (qp.n, qp.A.shape[-2], qp.lower.shape[-1])
    return Blocks(
        *(torch.randn(qp.batch, k, generator=generator, dtype=torch.float64) for k in sizes)
    )


def dot(a, b):
    return sum((x * y).sum(-1) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("name", NAMES)
class TestFactor:
    def test_solves_satisfy_the_unregularised_system(self, name, transpose, generator):
        _, scaled, _ = prepared(name)
        for t in activity(name, scaled, generator).values():
            kkt = KKTFamily.of(scaled).factorize(t)
            r = random_blocks(scaled, generator)
            x, error = kkt.solve(r, transpose)
            rest = r.minus(kkt.apply(x, transpose)).norm()
            assert (rest / r.norm()).max() <= 1e-11
            assert (error <= 1e-12).all()
            torch.testing.assert_close(
                error, rest / (r.norm() + 1e-3 * x.norm()), rtol=0, atol=1e-13
            )

    def test_the_transposed_system_is_the_adjoint(self, name, transpose, generator):
        _, scaled, _ = prepared(name)
        for t in activity(name, scaled, generator).values():
            kkt = KKTFamily.of(scaled).factorize(t)
            u, v = random_blocks(scaled, generator), random_blocks(scaled, generator)
            left = dot(u, kkt.apply(v, transpose))
            torch.testing.assert_close(left, dot(kkt.apply(u, not transpose), v))


def test_diagonal_problems_form_no_matrix():
    qp, scaled, _ = prepared("box")
    diagonal = build(torch.eye(20).double(), cases.QPS["box"].p, None, None, None, None, 0.0, None,
                     None)[0]  # fmt: skip
    assert KKTFamily.of(diagonal).base.ndim == 2
    assert KKTFamily.of(scaled).base.ndim == 3


@pytest.mark.parametrize("name", NAMES)
def test_equilibration_brings_rows_and_columns_to_one(name):
    qp, scaled, _ = prepared(name)
    stacked = torch.cat([m.expand(qp.batch, -1, -1) for m in (scaled.A, scaled.G)], 1).abs()
    if stacked.shape[1]:
        rows = stacked.amax(-1)
        assert rows.min() >= 0.5 and rows.max() <= 1.5


@pytest.mark.parametrize("name", NAMES)
def test_scaling_keeps_the_problem(name, generator):
    """Residuals of the scaled point, unscaled, are those of the unscaled point."""
    qp, scaled, scaling = prepared(name)
    point = random_blocks(qp, generator)
    user = unscale(scaling, *point)
    found = unscale_products(scaling, scaled.products(*point))
    for ours, truth in zip(found, qp.products(*user), strict=True):
        torch.testing.assert_close(ours, truth.expand_as(ours), rtol=1e-9, atol=1e-9)
    back = qp.residuals(*user, found)
    for ours, truth in zip(back, qp.residuals(*user), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)


def test_a_matrix_of_huge_and_tiny_rows_stays_in_bounds():
    G = torch.diag(torch.logspace(-12, 12, 6, dtype=torch.float64))
    qp, _ = build(torch.eye(6).double(), torch.ones(6).double(), G, 1.0, None, None, None, None,
                  None)  # fmt: skip
    _, scaling = equilibrate(qp)
    for factor in (scaling.z / scaling.z.amax(), scaling.rows / scaling.rows.amax()):
        assert factor.min() >= 1e-8  # each factor is kept in 1e-4 ... 1e4


@pytest.mark.parametrize("name", NAMES)
def test_units_do_not_matter(name):
    """z in units of 1e-6, the objective in units of 1e8: the equilibrated problem is the same."""
    qp, scaled, _ = prepared(name)
    z, f = 1e6, 1e-8  # new = old times these, for unknowns and objective
    other = dataclasses.replace(
        qp, Q=qp.Q * f / z**2, p=qp.p * f / z, b=qp.b * z, lower=qp.lower * z, upper=qp.upper * z
    )
    again, _ = equilibrate(other)
    weighted = [q.Q * q.weight.unsqueeze(-1) for q in (scaled, again)]
    torch.testing.assert_close(*weighted)
    for key in ("G", "A", "p", "b", "lower", "upper"):
        torch.testing.assert_close(getattr(scaled, key), getattr(again, key))
