"""The generators of sparse QPs: what they promise, checked from the definition."""

import pytest
import torch

from problems.sparse_qp import control_qp, obstacle_qp, portfolio_qp, random_sparse_qp

from .. import checks


def dense(instance):
    given = {k: v for k, v in instance.arguments().items() if v is not None}
    return {k: v.to_dense() if v.is_sparse else v for k, v in given.items()}


class TestRandom:
    @pytest.mark.parametrize("options", [{}, {"diagonal": True}, {"seed": 3}])
    @pytest.mark.parametrize("sizes", [(40, 20, 8), (40, 0, 8), (40, 20, 0)])
    def test_the_answer_is_known(self, sizes, options):
        instance = random_sparse_qp(*sizes, entries=4, **options)
        assert checks.kkt_error(dense(instance), instance) <= 1e-14
        Q = instance.Q.to_dense()
        assert torch.equal(Q, Q.T) and torch.linalg.eigvalsh(Q)[0] > 0.05
        assert (instance.lam > 0).sum() == sizes[1] // 2

    def test_entries(self):
        instance = random_sparse_qp(400, 100, 50, entries=7)
        assert 6.5 * 100 <= instance.G._nnz() <= 700 and 6.5 * 50 <= instance.A._nnz() <= 350
        assert random_sparse_qp(400, 100, 50, diagonal=True).Q._nnz() == 400


class TestStructured:
    def test_control_is_the_dynamics(self):
        """The rows of A, z = (x_1, u_0, ...) rolled out from x_0, leave nothing."""
        steps, states, inputs = 5, 3, 2
        a = dense(control_qp(steps, states, inputs))
        z = torch.randn(
            steps, states + inputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        A, b = a["A"].view(steps, states, steps, states + inputs), a["b"].view(steps, states)
        F, B = -A[1, :, 0, :states], -A[0, :, 0, states:]
        now = b[0]  # F x_0
        for t in range(steps):
            z[t, :states] = now + B @ z[t, states:]
            now = F @ z[t, :states]
        torch.testing.assert_close(a["A"] @ z.flatten(), a["b"], rtol=0, atol=1e-12)
        torch.testing.assert_close(F @ F.T, torch.eye(states, dtype=torch.float64))
        assert a["ub"].view(steps, -1)[:, states:].eq(0.2).all() and a["lb"].equal(-a["ub"])

    def test_obstacle_is_the_laplacian(self):
        side = 6
        Q = dense(obstacle_qp(side))["Q"]
        line = torch.arange(side, dtype=torch.float64)
        z = (line.unsqueeze(1).square() + 3 * line).flatten()  # its Laplacian is 2
        inner = (-(Q @ z)).view(side, side)[1:-1, 1:-1]
        torch.testing.assert_close(inner, torch.full_like(inner, 2.0))

    def test_portfolio_is_its_factor_model(self):
        """With y = F'w the objective is w'Dw / 2 + |F'w|^2 / 2 - returns'w."""
        assets, factors = 12, 3
        a = dense(portfolio_qp(assets, factors))
        F, budget = a["A"][:factors, :assets].T, a["A"][factors]
        assert torch.equal(a["A"][:factors, assets:], -torch.eye(factors, dtype=torch.float64))
        assert budget[:assets].eq(1).all() and not budget[assets:].any()
        assert a["b"].tolist() == [0.0] * factors + [1.0]
        assert torch.equal(a["Q"][assets:, assets:], torch.eye(factors, dtype=torch.float64))
        assert 0 < (F == 0).double().mean() < 1
        assert a["lb"][:assets].eq(0).all() and a["lb"][assets:].isinf().all()
