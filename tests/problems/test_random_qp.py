"""The generators keep their word: known answers satisfy KKT, hopeless problems carry a proof."""

from types import SimpleNamespace

import pytest
import torch

from problems.random_qp import infeasible_qp, random_lp, random_qp, unbounded_qp

from .. import cases, checks

KNOWN = cases.QPS | cases.LARGE_QPS | cases.DEGENERATE


@pytest.mark.parametrize("name", KNOWN)
def test_known_answers_satisfy_the_kkt_conditions(name):
    instance = KNOWN[name]
    sol = SimpleNamespace(z=instance.z, lam=instance.lam, nu=instance.nu, mu=instance.mu)
    assert checks.kkt_error(instance.arguments(), sol).max() <= 1e-13


def test_condition_and_rank_are_as_asked():
    Q = random_qp(12, 20, rank=7, condition=1e5).Q
    values = torch.linalg.eigvalsh(Q)
    assert (values[:5].abs() <= 1e-14).all()
    assert values[-1] / values[5] == pytest.approx(1e5, rel=1e-6)


@pytest.mark.parametrize("shared", [(), ("Q",)])
def test_a_diagonal_Q_has_the_eigenvalues_asked_for_in_random_order(shared):
    Q = random_qp(6, rank=4, active=2, bounds=True, batch=(3,), diagonal=True, shared=shared).Q
    values = Q.diagonal(dim1=-2, dim2=-1)
    assert Q.shape == ((6, 6) if shared else (3, 6, 6)) and torch.equal(Q, torch.diag_embed(values))
    expected = torch.tensor([0.0, 0.0, 0.1, 0.1 ** (2 / 3), 0.1 ** (1 / 3), 1.0]).double()
    torch.testing.assert_close(values.sort(-1)[0], expected.expand_as(values))
    assert shared or not torch.equal(values[0], values[1])


def test_the_vertex_of_a_linear_program_is_nondegenerate():
    lp = random_lp(6, 15, 2)
    active = (lp.G @ lp.z - lp.h).abs() < 1e-12
    assert lp.Q is None and active.sum() == 4 and (lp.lam[active] >= 0.1).all()
    assert torch.linalg.matrix_rank(torch.cat([lp.G[active], lp.A])) == 6


def test_same_seed_same_problem():
    one, two, other = (random_qp(4, 3, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.p, two.p) and not torch.equal(one.p, other.p)


def test_counts_without_a_unique_solution_are_refused():
    with pytest.raises(ValueError, match="a unique solution needs 4 to 3 active limits"):
        random_qp(5, 3, 1, rank=0)
    with pytest.raises(ValueError, match="m=1: two rows at least"):
        infeasible_qp(3, 1)


def test_unbounded_problems_fall_along_a_feasible_ray():
    """The null space of (Q, A) holds a d with Gd < 0 and p'd = -margin."""
    qp = unbounded_qp(6, 5, 2, margin=0.3)
    _, _, Vh = torch.linalg.svd(torch.cat([qp.Q, qp.A]))
    d = Vh[-1]
    d = d * torch.sign(-qp.p @ d)
    assert (qp.Q @ d).abs().max() <= 1e-14 and (qp.A @ d).abs().max() <= 1e-14
    assert (qp.G @ d < 0).all() and float(qp.p @ d) == pytest.approx(-0.3, rel=1e-9)
