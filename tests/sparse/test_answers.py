"""Every solver, every kind of problem: the same answer, the same derivatives."""

import functools

import pytest
import torch
from torch.autograd import forward_ad

from diffopt import Clarabel, Found, Status, solve_qp_sparse
from problems.sparse_qp import control_qp, obstacle_qp, portfolio_qp, random_sparse_qp

from .. import cases as tables
from .. import checks
from .cases import (
    OUTPUTS,
    SOLVERS,
    close,
    dense,
    single,
    solve_dense,
    solve_sparse,
    sparse,
    weighted,
)

QPS = {**tables.QPS, **tables.DEGENERATE}
STRUCTURED = {
    "control": control_qp(15, 3, 2),
    "obstacle": obstacle_qp(7),
    "portfolio": portfolio_qp(30, 4),
    "random patterns": random_sparse_qp(60, 30, 6, entries=4),
}
# On linear programs ADMM is slow: not what it is for.
PAIRS = [
    (name, solver)
    for name in QPS
    for solver in SOLVERS
    if not ("linear program" in name and solver == "ADMM")
]


def gradients(loss, leaves):
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@functools.cache
def truth(name: str, place: int = 0, degenerate: str = "central"):
    """(the solution, its gradients) of `solve_qp`, in float64 and dense."""
    leaves = {k: v.requires_grad_() for k, v in single(QPS[name], place).items()}
    sol = solve_dense(leaves, degenerate=degenerate)
    return sol, gradients(weighted(sol), leaves)


class TestAgainstDense:
    @pytest.mark.parametrize("name, solver", PAIRS)
    def test_values_and_gradients(self, name, solver):
        a = single(QPS[name])
        leaves, (theirs, slopes) = sparse(a), truth(name)
        ours = solve_sparse(leaves, solver=SOLVERS[solver])
        assert ours.status == Status.CONVERGED and ours.polished
        assert checks.kkt_error(a, ours) <= 1e-12
        for key in OUTPUTS:
            close(getattr(ours, key), getattr(theirs, key))
        assert torch.equal(ours.weakly_active, theirs.weakly_active)
        for key, grad in gradients(weighted(ours), leaves).items():
            close(dense(grad), slopes[key])

    @pytest.mark.parametrize("degenerate", ["central", "active", "inactive"])
    @pytest.mark.parametrize("solver", SOLVERS)
    def test_kinks(self, degenerate, solver):
        name = "weak and duplicated rows"
        leaves, (_, slopes) = sparse(single(QPS[name], 1)), truth(name, 1, degenerate)
        ours = solve_sparse(leaves, solver=SOLVERS[solver], degenerate=degenerate)
        assert ours.weakly_active.any()
        for key, grad in gradients(weighted(ours), leaves).items():
            close(dense(grad), slopes[key])

    def test_second_derivative(self):
        a = single(tables.QPS["everything"])

        def curvature(leaves, sol):
            first = gradients_of(weighted(sol), leaves)
            return gradients(sum((g.square()).sum() for g in first), leaves)

        def gradients_of(loss, leaves):
            some = {k: v for k, v in leaves.items() if k not in "QGA"}
            return torch.autograd.grad(loss, list(some.values()), create_graph=True)

        leaves, full = sparse(a), {k: v.clone().requires_grad_() for k, v in a.items()}
        ours = curvature(leaves, solve_sparse(leaves, order=2))
        theirs = curvature(full, solve_dense(full, order=2))
        for key, grad in ours.items():
            close(dense(grad), theirs[key])

    @pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # inside forward_ad
    def test_forward_mode(self):
        """Of vectors: torch has no forward mode through sparse matrices."""
        a = single(tables.QPS["everything"])
        leaves, theirs = sparse(a), {k: v.requires_grad_() for k, v in a.items()}
        with forward_ad.dual_level():
            p = forward_ad.make_dual(a["p"].detach(), torch.ones_like(a["p"]))
            held = {k: v.detach() for k, v in leaves.items()} | {"p": p}
            along = forward_ad.unpack_dual(weighted(solve_sparse(held))).tangent
        (grad,) = torch.autograd.grad(weighted(solve_dense(theirs)), theirs["p"])
        close(along, grad.sum())

    def test_second_derivative_raises_with_order_one(self):
        leaves = sparse(single(tables.QPS["inequality"]))
        loss = weighted(solve_sparse(leaves))
        (first,) = torch.autograd.grad(loss, leaves["p"], create_graph=True)
        with pytest.raises(RuntimeError, match="order=2"):
            torch.autograd.grad(first.sum(), leaves["p"])


class TestStructured:
    @pytest.mark.parametrize("name", STRUCTURED)
    @pytest.mark.parametrize("solver", SOLVERS)
    def test_answer(self, name, solver):
        instance = STRUCTURED[name]
        a = {k: v for k, v in tables.arguments(instance).items()}
        sol = solve_sparse(a, solver=SOLVERS[solver])
        assert sol.status == Status.CONVERGED and sol.polished
        assert checks.kkt_error({k: dense(v) for k, v in a.items()}, sol) <= 1e-12
        if instance.z is not None:
            for key in OUTPUTS:
                close(getattr(sol, key), getattr(instance, key), 1e-9)

    @pytest.mark.parametrize("name", STRUCTURED)
    def test_finite_differences(self, name):
        """On the stored entries, the pattern being fixed."""
        a = tables.arguments(STRUCTURED[name])
        matrices = {k: v for k, v in a.items() if k in "QGA"}

        def outputs(inputs):
            held = {}
            for k, v in inputs.items():
                if k in matrices:
                    v = torch.sparse_coo_tensor(matrices[k].indices(), v, matrices[k].shape)
                held[k] = v
            sol = solve_sparse(held)
            return tuple(getattr(sol, key) for key in OUTPUTS)

        inputs = {k: v.values() if k in matrices else v for k, v in a.items()}
        Q = inputs.pop("Q")  # a random direction of its entries need not stay convex
        errors = checks.directional_errors(
            lambda x: outputs({"Q": Q, **x}), inputs, torch.Generator().manual_seed(0)
        )
        assert max(errors.values()) <= 1e-6, errors


class TestLarge:
    """Random patterns, whose factor would be dense: MINRES."""

    def test_random_patterns(self):
        instance = random_sparse_qp(3000, 1500, 300)
        a = {k: v.requires_grad_() for k, v in tables.arguments(instance).items()}
        sol = solve_sparse(a, solver=SOLVERS["ADMM"])
        assert sol.status == Status.CONVERGED and sol.polished
        for key in OUTPUTS:
            close(getattr(sol, key), getattr(instance, key), 1e-10)
        # The derivative along the direction in which everything but the matrices grows is known:
        # z and the multipliers are linear in (p, h, b) as long as the active set holds.
        loss = weighted(sol)
        loss.backward()
        along = sum((a[k].grad * a[k].detach()).sum() for k in ("p", "h", "b"))
        torch.testing.assert_close(along, loss.detach(), rtol=1e-9, atol=0)
        assert a["G"].grad.indices().equal(a["G"].indices())

    @pytest.mark.parametrize("name", ["everything", "box and equality", "equality only"])
    def test_iterative_and_direct_solves_agree(self, name, monkeypatch):
        a = single(tables.QPS[name])
        results = []
        for cheap in (1e9, -1.0):
            monkeypatch.setattr("diffopt.sparse.linear.CHEAP", cheap)
            leaves = sparse(a)
            sol = solve_sparse(leaves)
            results.append((sol, gradients(weighted(sol), leaves)))
        (one, first), (other, second) = results
        for key in OUTPUTS:
            close(getattr(one, key), getattr(other, key), 1e-10)
        for key in first:
            close(dense(first[key]), dense(second[key]), 1e-9)

    def test_a_row_of_a_known_unknown_without_a_factor(self, monkeypatch):
        """0.37 z_0 = b at the bound of z_0 leaves a row of zeros, its right-hand side rounding."""
        slopes = []
        for cheap in (1e9, -1.0):
            monkeypatch.setattr("diffopt.sparse.linear.CHEAP", cheap)
            Q = torch.tensor([[1.3, 0.4], [0.4, 0.7]], dtype=torch.float64).to_sparse()
            p = torch.tensor([-2.0, 1.1], dtype=torch.float64, requires_grad=True)
            A = torch.tensor([[0.37, 0.0]], dtype=torch.float64).to_sparse()
            b = torch.tensor([0.37 * 0.91], dtype=torch.float64, requires_grad=True)
            ub = torch.tensor([0.91, 9.0], dtype=torch.float64, requires_grad=True)
            sol = solve_qp_sparse(Q, p, A=A, b=b, ub=ub)
            slopes.append(torch.cat(torch.autograd.grad(weighted(sol), [p, b, ub])))
        close(slopes[1], slopes[0], 1e-9)

    def test_dependent_rows_without_a_factor(self, monkeypatch):
        monkeypatch.setattr("diffopt.sparse.linear.CHEAP", -1.0)
        a = single(tables.DEGENERATE["weak and duplicated rows"])
        close(solve_sparse(sparse(a)).lam, solve_dense(a).lam)


class TestChoice:
    """What solves the problem where no solver is named."""

    @pytest.mark.parametrize("name", ["control", "random patterns"])
    def test_clarabel_where_a_factor_is_cheap(self, name):
        a = tables.arguments(STRUCTURED[name])
        ours, theirs = solve_sparse(a), solve_sparse(a, solver=Clarabel())
        assert ours.iterations == theirs.iterations and torch.equal(ours.z, theirs.z)

    def test_admm_where_it_is_dear(self):
        """At n = 2000, without any threshold moved."""
        a = tables.arguments(random_sparse_qp(2000, 1000, 200))
        ours, theirs = solve_sparse(a), solve_sparse(a, solver=SOLVERS["ADMM"])
        assert ours.iterations == theirs.iterations and torch.equal(ours.z, theirs.z)

    def test_clarabel_for_unknowns_without_curvature(self, monkeypatch):
        monkeypatch.setattr("diffopt.sparse.automatic.CHEAP", -1.0)
        a = sparse(single(tables.QPS["linear program"]))
        assert solve_sparse(a).iterations == solve_sparse(a, solver=Clarabel()).iterations

    def test_clarabel_where_admm_fails(self, monkeypatch):
        asked = []

        def admm(max_iter):
            def solver(qp):
                asked.append(max_iter)
                return Found(float("nan") * qp.p, None, None, None, Status.CONVERGED, 7)

            return solver

        monkeypatch.setattr("diffopt.sparse.automatic.CHEAP", -1.0)
        monkeypatch.setattr("diffopt.sparse.automatic.ADMM", admm)
        a = tables.arguments(STRUCTURED["portfolio"])
        ours, theirs = solve_sparse(a), solve_sparse(a, solver=Clarabel())
        assert asked and ours.iterations == theirs.iterations and torch.equal(ours.z, theirs.z)

    @pytest.mark.parametrize("name", tables.HOPELESS)
    def test_no_solution_is_not_admm_s_word_alone(self, name, monkeypatch):
        monkeypatch.setattr("diffopt.sparse.automatic.CHEAP", -1.0)
        instance, why = tables.HOPELESS[name]
        sol = solve_sparse(sparse(single(instance)), on_failure="ignore")
        assert Status(int(sol.status)).name == f"{why}_INFEASIBLE"


class TestCorners:
    def test_no_constraints_but_one_bound(self):
        Q = torch.eye(2, dtype=torch.float64).to_sparse()
        p = torch.tensor([1.0, -1.0], dtype=torch.float64)
        sol = solve_qp_sparse(Q, p, lb=0.0)
        assert sol.z.tolist() == [0.0, 1.0] and sol.mu.tolist() == [-1.0, 0.0]
        assert sol.lam.shape == (0,) and sol.nu.shape == (0,)

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_all_unknowns_fixed(self, solver):
        Q = torch.eye(2, dtype=torch.float64).to_sparse().requires_grad_()
        at = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        p = torch.zeros(2, dtype=torch.float64)
        sol = solve_qp_sparse(Q, p, lb=at.detach(), ub=at, solver=SOLVERS[solver])
        assert sol.z.tolist() == [1.0, 2.0]
        close(sol.mu.detach(), torch.tensor([-1.0, -2.0], dtype=torch.float64), 1e-12)
        (grad,) = torch.autograd.grad(sol.z.sum(), at)
        assert grad.tolist() == [1.0, 1.0]

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_rows_of_zeros_infinite_limits_and_equal_ones(self, solver):
        """Rows: zero, absent, z_0 = 1/2 by two equal limits, zero in A; z_1 = 3 by p alone."""
        G = torch.tensor([[0.0, 0], [1, 1], [1, 0]], dtype=torch.float64).to_sparse()
        A = torch.zeros(1, 2, dtype=torch.float64).to_sparse()
        inf = float("inf")
        sol = solve_qp_sparse(
            torch.eye(2, dtype=torch.float64).to_sparse(),
            torch.tensor([0.0, -3.0], dtype=torch.float64),
            G,
            torch.tensor([1.0, inf, 0.5], dtype=torch.float64),
            A,
            0.0,
            h_lower=torch.tensor([-inf, -inf, 0.5], dtype=torch.float64),
            solver=SOLVERS[solver],
        )
        close(sol.z, torch.tensor([0.5, 3.0], dtype=torch.float64), 1e-12)
        close(sol.lam, torch.tensor([0.0, 0.0, -0.5], dtype=torch.float64), 1e-12)
        close(sol.nu, torch.zeros(1, dtype=torch.float64), 1e-12)

    @pytest.mark.parametrize("solver", SOLVERS)
    @pytest.mark.parametrize("far", [1e9, 1e12, 1e20])
    def test_limits_far_away_are_no_matter(self, solver, far):
        Q, p = torch.eye(2).double().to_sparse(), torch.tensor([-1.0, 2.0], dtype=torch.float64)
        ub = torch.tensor([far, -3.0], dtype=torch.float64)
        sol = solve_qp_sparse(Q, p, lb=-far, ub=ub, solver=SOLVERS[solver])
        close(sol.z, torch.tensor([1.0, -3.0], dtype=torch.float64), 1e-12)
        close(sol.mu, torch.tensor([0.0, 1.0], dtype=torch.float64), 1e-12)

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_least_norm_among_multipliers_of_the_right_sign(self, solver):
        """Three rows at the vertex 0: lam_0 + lam_2 = 3 and lam_1 + lam_2 = 0 with lam >= 0.

        Without the signs the shortest would be (2, -1, 1).
        """
        G = torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64).to_sparse()
        p = torch.tensor([-3.0, 0.0], dtype=torch.float64)
        Q = torch.eye(2, dtype=torch.float64).to_sparse()
        sol = solve_qp_sparse(Q, p, G, 0.0, solver=SOLVERS[solver])
        close(sol.lam, torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64), 1e-9)

    def test_gradient_where_nothing_is_left_to_solve(self):
        """0.7 z = b holds z at its bound: the conditions left of the free unknowns are rounding.

        Moving p moves the multipliers of least norm only, (nu, mu) = -(0.7, 1) (1.3 z + p) / 1.49.
        """
        at = {"A": torch.tensor([[0.7]], dtype=torch.float64).to_sparse(), "ub": 3.0}
        Q = 1.3 * torch.eye(1, dtype=torch.float64).to_sparse()
        p = torch.tensor([-2.0], dtype=torch.float64, requires_grad=True)
        b = torch.tensor([0.7 * 3.0], dtype=torch.float64, requires_grad=True)
        sol = solve_qp_sparse(Q, p, b=b, **at)
        slopes = torch.autograd.grad(0.3 * sol.nu.sum() - 0.9 * sol.mu.sum(), [p, b])
        close(slopes[0], torch.tensor([(0.9 - 0.7 * 0.3) / 1.49], dtype=torch.float64), 1e-9)
        assert slopes[1].abs() > 0

    def test_gradient_beside_a_row_of_zeros(self):
        """Without it the problem is another, with the same z; the row itself has no gradient."""
        Q = torch.tensor([[3.0, 0.7, 0.3], [0.7, 0.9, 0.1], [0.3, 0.1, 1.1]], dtype=torch.float64)
        p = torch.tensor([1.0, -2.0, -2.0], dtype=torch.float64)
        G = torch.tensor([[0.0, 0.3, 1.0]], dtype=torch.float64)
        b = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
        slopes = []
        for rows in (1, 2):
            A = torch.tensor([[1.0, 0.6, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)[:rows]
            sol = solve_qp_sparse(Q.to_sparse(), p, G.to_sparse(), 0.1, A.to_sparse(), b[:rows])
            loss = sol.z[0] + 0.7 * sol.lam.sum() + 0.4 * sol.nu.sum()
            slopes += torch.autograd.grad(loss, b)
        assert slopes[0].abs().sum() > 0.1
        close(slopes[1], slopes[0], 1e-9)

    def test_proximal_picks_the_solution_of_least_norm(self):
        """min z_0 + z_1 on the simplex: every point is a solution."""
        a = {"A": torch.ones(1, 2, dtype=torch.float64).to_sparse(), "b": 1.0, "lb": 0.0}
        sol = solve_qp_sparse(None, torch.ones(2, dtype=torch.float64), **a, proximal=1e-6)
        close(sol.z, torch.tensor([0.5, 0.5], dtype=torch.float64), 1e-9)

    def test_only_the_symmetric_part_of_Q_counts(self):
        Q = torch.tensor([[2.0, 1.0], [0.0, 2.0]], dtype=torch.float64).to_sparse()
        Q.requires_grad_()
        sol = solve_qp_sparse(Q, torch.tensor([-5.0, -4.0], dtype=torch.float64))
        # [2, 1/2; 1/2, 2] z = (5, 4)
        close(sol.z.detach(), torch.tensor([32 / 15, 22 / 15], dtype=torch.float64), 1e-12)
        (grad,) = torch.autograd.grad(sol.z[0], Q)
        # u = Q^-1 e_0 = (8, -2) / 15, and dQ_ij = -(u_i z_j + u_j z_i) / 2 where stored
        truth = torch.tensor([-256.0, -(176 - 64) / 2, 44.0], dtype=torch.float64) / 225
        close(grad.values(), truth, 1e-12)


class TestFailures:
    @pytest.mark.parametrize("name", tables.HOPELESS)
    @pytest.mark.parametrize("solver", SOLVERS)
    def test_status_and_zero_gradient(self, name, solver):
        instance, why = tables.HOPELESS[name]
        leaves = sparse(single(instance))
        sol = solve_sparse(leaves, solver=SOLVERS[solver], on_failure="ignore")
        assert Status(int(sol.status)).name == f"{why}_INFEASIBLE"
        for grad in gradients(weighted(sol), leaves).values():
            assert not dense(grad).any()

    def test_crossed_limits_are_never_given_to_a_solver(self):
        def solver(qp):
            raise AssertionError("called")

        Q, p = torch.eye(2).to_sparse(), torch.zeros(2)
        sol = solve_qp_sparse(Q, p, lb=1.0, ub=0.0, solver=solver, on_failure="ignore")
        assert sol.status == Status.PRIMAL_INFEASIBLE

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_nonfinite_data(self, value):
        p = torch.tensor([1.0, value], requires_grad=True)
        Q = torch.eye(2).to_sparse().requires_grad_()
        sol = solve_qp_sparse(Q, p, on_failure="ignore")
        assert sol.status == Status.INVALID_INPUT and sol.z.isnan().all()
        grads = torch.autograd.grad(sol.z.nan_to_num().sum(), [p, Q])
        assert not grads[0].any() and not grads[1].to_dense().any()

    @pytest.mark.parametrize("cheap", [1e9, -1.0])  # by a factor, or by Lanczos
    def test_indefinite_Q(self, cheap, monkeypatch):
        monkeypatch.setattr("diffopt.sparse.convexity.CHEAP", cheap)
        Q = torch.tensor([[1.0, 2.0], [2.0, 1.0]]).to_sparse()
        sol = solve_qp_sparse(Q, torch.zeros(2), lb=-1.0, ub=1.0, on_failure="ignore")
        assert sol.status == Status.INVALID_INPUT

    def test_policies(self):
        Q, p = torch.eye(2).to_sparse(), torch.zeros(2, requires_grad=True)
        problem = {"Q": Q, "p": p, "lb": 1.0, "ub": 0.0}
        with pytest.warns(UserWarning, match="1 of 1 samples failed"):
            solve_qp_sparse(**problem)
        with pytest.raises(RuntimeError, match="PRIMAL_INFEASIBLE"):
            solve_qp_sparse(**problem, on_failure="raise")
        sol = solve_qp_sparse(**problem, on_failure="nan")
        assert sol.z.isnan().all()
        assert torch.autograd.grad(sol.z.sum(), p)[0].isnan().all()

    def test_a_derivative_that_does_not_exist_is_reported(self):
        """min z_0 + z_1 on the simplex: the solution is a whole edge."""
        b = torch.ones(1, dtype=torch.float64, requires_grad=True)
        A = torch.ones(1, 2, dtype=torch.float64).to_sparse()
        sol = solve_qp_sparse(None, torch.ones(2, dtype=torch.float64), A=A, b=b, lb=0.0)
        assert sol.status == Status.CONVERGED
        with pytest.warns(UserWarning, match="linear solve: 1 of 1 samples failed"):
            (grad,) = torch.autograd.grad(sol.z[0] - sol.z[1], b)
        assert not grad.any()

    def test_a_solver_that_gives_up(self):
        """Nothing active at z = 0 says nothing of the vertex of a linear program."""
        a = sparse(single(tables.QPS["linear program"]))

        def nothing(qp):
            return Found(0 * qp.p, None, None, None, Status.ITERATION_LIMIT, 1)

        with pytest.warns(UserWarning, match="ITERATION_LIMIT"):
            sol = solve_sparse(a, solver=nothing)
        assert not sol.polished
        assert not any(g.any() for g in map(dense, gradients(weighted(sol), a).values()))

    def test_a_solver_without_multipliers(self):
        """What is active is read off the slacks; the multipliers are the polish's."""
        a = single(tables.QPS["everything"])

        def bare(qp):
            return Clarabel()(qp)._replace(nu=None, lam=None, mu=None)

        ours, theirs = solve_sparse(sparse(a), solver=bare), solve_dense(a)
        for key in OUTPUTS:
            close(getattr(ours, key).detach(), getattr(theirs, key))
