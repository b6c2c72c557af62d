"""The factor: residuals of its solves, the adjoint identity, and the equilibration under it."""

import dataclasses

import pytest
import torch

from diffopt.qp.arguments import check
from diffopt.qp.kkt import Blocks, KKTFamily
from diffopt.qp.scaling import equilibrate, unscale, unscale_products
from diffopt.qp.structure import Constant, Dense, Diagonal
from diffopt.tree import take
from problems.random_qp import random_qp

from .. import cases

NAMES = ["inequality and equality", "box and equality", "everything", "shared matrices",
         "linear program, box", "equality only", "semidefinite"]  # fmt: skip


def prepared(name):
    arguments = cases.QPS[name].arguments()
    qp = check(**arguments).qp()
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


def qp_of(
    n, m=0, e=0, *, shared=("Q", "G", "A"), bounds=False, diagonal=False, rank=None, copies=0
):
    """The equilibrated QP of six samples, with `copies` rows of G twice."""
    kwargs = {"shared": shared, "bounds": bounds, "rank": rank}
    a = random_qp(n, m, e, batch=(6,), **kwargs).arguments()
    if diagonal:
        a["Q"] = torch.diag(torch.linspace(0.1, 1, n, dtype=torch.float64))
    if copies:
        a["G"] = torch.cat([a["G"], a["G"][..., :copies, :]], -2)
        a["h"] = torch.cat([a["h"], a["h"][..., :copies]], -1)
    return equilibrate(check(**a).qp())[0]


# name: (QP, kind of its factor, whether the samples share the factor of H)
STRUCTURES = {
    "diagonal Q, bounds": (qp_of(12, bounds=True, diagonal=True), Diagonal, False),
    "diagonal Q, bounds, equalities": (
        qp_of(12, 0, 4, bounds=True, diagonal=True), Diagonal, False),
    "diagonal Q, few rows": (qp_of(12, 5, 2, bounds=True, diagonal=True), Diagonal, False),
    "diagonal Q, few rows, no bounds": (qp_of(12, 5, 2, diagonal=True), Diagonal, False),
    "diagonal Q, few rows of each sample": (
        qp_of(12, 4, 2, shared=("A",), bounds=True, diagonal=True), Diagonal, False),
    "diagonal Q, many rows": (qp_of(12, 20, 2, bounds=True, diagonal=True), Dense, False),
    "linear program, bounds": (qp_of(12, 0, 4, bounds=True, rank=0), Diagonal, False),
    "linear program, few rows": (qp_of(12, 5, 2, bounds=True, rank=0), Dense, False),
    "shared, few rows": (qp_of(12, 6, 2), Constant, True),
    "shared, many rows": (qp_of(12, 20, 2), Dense, False),
    "shared, bounds": (qp_of(12, 5, 2, bounds=True), Dense, False),
    "shared, semidefinite": (qp_of(12, 6, 6, rank=4), Dense, False),
    "shared G only": (qp_of(12, 15, 2, shared=("G",)), Dense, False),
    "shared Q only": (qp_of(12, 15, 2, shared=("Q",)), Dense, False),
    "nothing shared": (qp_of(12, 15, 2, shared=(), bounds=True), Dense, False),
    "shared, equalities only": (qp_of(12, 0, 4), Constant, True),
    "shared, equalities only, semidefinite": (qp_of(12, 0, 8, rank=5), Dense, True),
    "equalities only": (qp_of(12, 0, 4, shared=()), Dense, False),
    "shared Q alone": (qp_of(12), Constant, True),
}  # fmt: skip


def some_activity(qp, generator):
    """t: as many active rows as leave the system regular, the others inactive or between.

    Of a linear program all others are between, since nothing else holds the unknowns.
    """
    k, free = qp.lower.shape[-1], qp.n - qp.A.shape[-2]
    t = torch.rand(qp.batch, k, generator=generator, dtype=torch.float64)
    order = torch.rand(qp.batch, k, generator=generator).argsort(-1)
    inactive = (order >= k // 2) & bool(qp.Q.any())
    return torch.where(order < free // 3, 0.0, torch.where(inactive, 1.0, t))


def matrix(qp, t, transpose):
    """The unregularised matrix of the module's docstring, `(B, n + e + k, n + e + k)`."""
    full = {v: getattr(qp, v).expand(qp.batch, -1, -1) for v in ("Q", "A", "G")}
    eye = torch.eye(qp.n, dtype=torch.float64).expand(qp.batch, -1, -1)
    C = torch.cat([full["G"], eye], 1) if qp.bounded else full["G"]
    A, zero = full["A"], torch.zeros
    e, k = A.shape[1], C.shape[1]
    top = torch.cat([qp.weight.unsqueeze(-1) * full["Q"], A.mT, C.mT], -1)
    middle = torch.cat([A, zero(qp.batch, e, e + k)], -1)
    low = torch.cat([(1 - t).unsqueeze(-1) * C, zero(qp.batch, k, e), -torch.diag_embed(t)], -1)
    K = torch.cat([top, middle, low], 1)
    return K.mT if transpose else K


@pytest.mark.parametrize("name", STRUCTURES)
class TestStructure:
    def test_the_kind_is_the_expected_one(self, name, generator):
        qp, kind, shared = STRUCTURES[name]
        family = KKTFamily.of(qp)
        assert type(family.kind) is kind
        root = family.factorize(some_activity(qp, generator)).factor.root
        assert root.L.shape[0] == (1 if shared else qp.batch)
        assert root.L.ndim == (2 if kind is Diagonal else 3)

    @pytest.mark.parametrize("transpose", [False, True])
    def test_solutions_are_those_of_the_dense_matrix(self, name, transpose, generator):
        qp, _, _ = STRUCTURES[name]
        t, r = some_activity(qp, generator), random_blocks(qp, generator)
        x, _ = KKTFamily.of(qp).factorize(t).solve_hard(r, transpose)
        K = matrix(qp, t, transpose)
        x, r = torch.cat(x, -1), torch.cat(r, -1)
        rest = (K @ x.unsqueeze(-1)).squeeze(-1) - r
        assert (rest.norm(dim=-1) / (r.norm(dim=-1) + 1e-3 * x.norm(dim=-1))).max() <= 1e-12
        truth = torch.linalg.solve(K, r)
        bound = 1e-13 * torch.linalg.cond(K)
        assert ((x - truth).norm(dim=-1) / truth.norm(dim=-1) <= bound).all()

    @pytest.mark.parametrize("transpose", [False, True])
    def test_one_unrefined_solve_is_nearly_right(self, name, transpose, generator):
        """A wrong formula could hide behind refinement: what it leaves to do is small."""
        qp, _, _ = STRUCTURES[name]
        t, r = some_activity(qp, generator), random_blocks(qp, generator)
        _, error = KKTFamily.of(qp, refinements=1).factorize(t).solve(r, transpose)
        assert error.max() <= 1e-9

    def test_samples_can_be_picked(self, name, generator):
        qp, _, _ = STRUCTURES[name]
        t, r = some_activity(qp, generator), random_blocks(qp, generator)
        family = KKTFamily.of(qp)
        kkt = family.factorize(t)
        x, _ = kkt.solve(r)
        for index in (torch.tensor([4, 1]), torch.tensor([3])):
            part = Blocks(*(v[index] for v in r))
            for small in (take(kkt, index), take(family, index).factorize(t[index])):
                for ours, truth in zip(small.solve(part)[0], x, strict=True):
                    torch.testing.assert_close(ours, truth[index], rtol=1e-9, atol=1e-9)

    def test_leading_dimensions_broadcast(self, name, generator):
        qp, _, _ = STRUCTURES[name]
        kkt = KKTFamily.of(qp).factorize(some_activity(qp, generator))
        several = [random_blocks(qp, generator) for _ in range(3)]
        x, _ = kkt.solve(Blocks(*(torch.stack(v) for v in zip(*several, strict=True))))
        for i, r in enumerate(several):
            for ours, truth in zip(x, kkt.solve(r)[0], strict=True):
                torch.testing.assert_close(ours[i], truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("structure", [{"diagonal": True, "bounds": True}, {}])
def test_dependent_active_rows_are_solved_where_they_are_kept(structure, transpose, generator):
    qp = qp_of(12, 4, 2, copies=2, **structure)
    t = torch.ones(6, qp.lower.shape[-1], dtype=torch.float64)
    t[:, [0, 1, 4, 5]] = 0.0  # rows 4 and 5 are rows 0 and 1 again
    family = KKTFamily.of(qp)
    kkt = family.factorize(t)
    assert not isinstance(family.kind, Dense)
    r = kkt.apply(random_blocks(qp, generator), transpose)  # consistent
    _, error = kkt.solve_hard(r, transpose)
    assert error.max() <= 1e-11


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("kind", [Constant, Diagonal])
def test_eliminating_a_definite_Q_is_accurate(kind, condition, generator):
    """One solve without refinement leaves no more than with the rows in H."""
    a = random_qp(12, 5, 2, batch=(6,), condition=condition, shared=("Q", "G", "A")).arguments()
    if kind is Diagonal:
        a["Q"] = torch.diag(a["Q"].diagonal())
    qp = equilibrate(check(**a).qp())[0]
    t, r = some_activity(qp, generator), random_blocks(qp, generator)
    errors = []
    for other in (kind, Dense):
        kkt = KKTFamily(qp, other.of(qp, 1e-9), 1e-9, 1).factorize(t)
        errors.append(kkt.solve(r)[1].max())
    assert errors[0] <= max(10 * errors[1], 1e-13)


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


def test_rows_in_any_units_are_brought_to_one_and_the_unknowns_stay_in_bounds():
    G = torch.diag(torch.logspace(-12, 12, 6, dtype=torch.float64))
    qp = check(torch.eye(6).double(), torch.ones(6).double(), G, 1.0, None, None, None, None,
               None).qp()  # fmt: skip
    scaled, scaling = equilibrate(qp)
    rows = scaled.G.abs().amax(-1)
    assert rows.min() >= 0.5 and rows.max() <= 1.5
    unknowns = scaling.z / scaling.z.amax()
    assert unknowns.min() >= 1e-8  # each factor is kept in 1e-4 ... 1e4


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
