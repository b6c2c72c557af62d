"""What goes in and what comes out: layouts, patterns, lists, dtypes, and what is refused."""

import numpy as np
import pytest
import scipy.sparse
import torch

import diffopt
from diffopt import ADMM, OSQP, PIQP, Clarabel, QPSolution, solve_qp_sparse
from problems.sparse_qp import random_sparse_qp

from .. import cases as tables
from .cases import OUTPUTS, close, dense, single, solve_dense, solve_sparse, sparse, weighted

LAYOUTS = {
    "COO": lambda M: M.to_sparse_coo(),
    "CSR": lambda M: M.to_sparse_csr(),
}


def problem():
    return single(tables.QPS["everything"])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.filterwarnings("ignore:Sparse CSC tensor support is in beta")
class TestLayouts:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_gradient_has_the_pattern_of_the_leaf(self, layout):
        instance = random_sparse_qp(20, 10, 3, entries=3)
        a = {k: dense(v) for k, v in tables.arguments(instance).items()}
        full = {k: v.clone().requires_grad_() for k, v in a.items()}
        leaves = {k: (LAYOUTS[layout](v) if k in "QGA" else v.clone()) for k, v in a.items()}
        leaves = {k: v.detach().requires_grad_() for k, v in leaves.items()}
        weighted(solve_dense(full)).backward()
        weighted(solve_sparse(leaves)).backward()
        for key, leaf in leaves.items():
            ours, theirs = leaf.grad, full[key].grad
            assert ours.layout == leaf.layout
            if key in "QGA":
                assert ours._nnz() == leaf._nnz()
                theirs = torch.where(a[key] != 0, theirs, 0.0)
            close(dense(ours), theirs)

    @pytest.mark.parametrize("layout", ["COO", "CSR", "CSC"])
    def test_gradient_reaches_the_values(self, layout):
        a = problem()
        M = a["G"].to_sparse_csc() if layout == "CSC" else LAYOUTS[layout](a["G"])
        values = M.values().clone().requires_grad_()
        if layout == "COO":
            G = torch.sparse_coo_tensor(M.indices(), values, M.shape)
        elif layout == "CSR":
            G = torch.sparse_csr_tensor(M.crow_indices(), M.col_indices(), values, M.shape)
        else:
            G = torch.sparse_csc_tensor(M.ccol_indices(), M.row_indices(), values, M.shape)
        weighted(solve_sparse({**sparse(a), "G": G})).backward()
        full = {k: v.clone().requires_grad_() for k, v in a.items()}
        weighted(solve_dense(full)).backward()
        by_column = full["G"].grad.T if layout == "CSC" else full["G"].grad
        close(values.grad, by_column.flatten())

    def test_entries_given_twice_add_up_and_share_the_gradient(self):
        at, values = torch.tensor([[0, 0], [0, 0]]), torch.tensor([1.0, 1.0], dtype=torch.float64)
        values.requires_grad_()
        Q = torch.sparse_coo_tensor(at, values, (1, 1))
        sol = solve_qp_sparse(Q, torch.tensor([-4.0], dtype=torch.float64))  # z = 4 / Q
        close(sol.z.detach(), torch.tensor([2.0], dtype=torch.float64), 1e-12)
        (grad,) = torch.autograd.grad(sol.z.sum(), values)
        close(grad, torch.tensor([-1.0, -1.0], dtype=torch.float64), 1e-12)

    @pytest.mark.parametrize("kind", ["csr_matrix", "csc_array", "coo_array", "dia_array"])
    def test_matrices_of_scipy_are_constants(self, kind):
        a = problem()
        ours = {
            k: getattr(scipy.sparse, kind)(v.numpy()) if k in "QGA" else v for k, v in a.items()
        }
        ours["p"] = ours["p"].clone().requires_grad_()
        full = {**a, "p": a["p"].clone().requires_grad_()}
        weighted(solve_dense(full)).backward()
        weighted(solve_sparse(ours)).backward()
        close(ours["p"].grad, full["p"].grad)

    @pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")
    def test_blocks_are_refused(self):
        with pytest.raises(ValueError, match="Q is torch.sparse_bsr.*pass Q.to_sparse_coo"):
            solve_qp_sparse(torch.eye(2).to_sparse_bsr((1, 1)), torch.zeros(2))


class TestNumbers:
    def test_float32_in_float32_out(self):
        a = {k: v.float() for k, v in problem().items()}
        leaves = sparse(a)
        sol = solve_sparse(leaves)
        weighted(sol).backward()
        assert all(getattr(sol, key).dtype == torch.float32 for key in OUTPUTS)
        assert all(leaf.grad.dtype == torch.float32 for leaf in leaves.values())
        theirs = solve_dense(a)
        for key in OUTPUTS:
            close(getattr(sol, key).detach(), getattr(theirs, key), 1e-6)

    def test_limits_as_numbers(self):
        Q, p = torch.eye(3).to_sparse(), torch.tensor([-2.0, 0.0, 2.0])
        assert solve_qp_sparse(Q, p, lb=-1, ub=1.0).z.tolist() == [1.0, 0.0, -1.0]

    def test_units_of_the_data_do_not_matter(self):
        """The objective times 1e8."""
        a = single(tables.QPS["objective in units of 1e-08"])
        b = single(tables.QPS["everything"])
        close(solve_sparse(sparse(a)).z, solve_sparse(sparse(b)).z, 1e-10)

    def test_no_graph_where_none_is_needed(self):
        a = {k: (v.to_sparse() if k in "QGA" else v) for k, v in problem().items()}
        assert not solve_sparse(a).z.requires_grad
        with torch.no_grad():
            assert not solve_sparse(sparse(problem())).z.requires_grad

    def test_repr_and_table(self):
        a = {k: (v.to_sparse() if k in "QGA" else v) for k, v in problem().items()}
        assert "CONVERGED        1" in repr(solve_sparse(a))


class TestLists:
    names = ("everything", "linear program", "one unknown", "equality only")

    @pytest.mark.parametrize("threads", [1, 2])
    def test_each_as_alone(self, threads):
        lone = [sparse(single(tables.QPS[name])) for name in self.names]
        together = [sparse(single(tables.QPS[name])) for name in self.names]
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            solutions = solve_qp_sparse(together)
        finally:
            torch.set_num_threads(before)
        assert all(isinstance(sol, QPSolution) for sol in solutions)
        sum(weighted(sol) for sol in solutions).backward()
        for alone, a, sol in zip(lone, together, solutions, strict=True):
            expected = solve_sparse(alone)
            weighted(expected).backward()
            for key in OUTPUTS:
                assert torch.equal(getattr(sol, key), getattr(expected, key))
            for key in a:
                assert torch.equal(dense(a[key].grad), dense(alone[key].grad))

    def test_one_warning_names_the_failed_ones(self):
        good = {"Q": torch.eye(1).to_sparse(), "p": torch.zeros(1)}
        bad = {**good, "lb": 1.0, "ub": 0.0}
        with pytest.warns(UserWarning, match="2 of 4 samples failed\n  sample 1, 3") as record:
            solutions = solve_qp_sparse([good, bad, good, bad])
        assert len(record) == 1 and [int(sol.status) for sol in solutions] == [0, 3, 0, 3]

    def test_no_problem(self):
        assert solve_qp_sparse([]) == []

    def test_errors_name_the_problem(self):
        good = {"Q": torch.eye(1).to_sparse(), "p": torch.zeros(1)}
        with pytest.raises(ValueError, match="problem 1: 'q' is no argument"):
            solve_qp_sparse([good, {"q": 1}])
        with pytest.raises(ValueError, match="inside its dicts"):
            solve_qp_sparse([good], torch.zeros(1))


EYE = torch.eye(2).to_sparse()
P = torch.zeros(2)
BAD = {
    "Q is dense, of shape": {"Q": torch.eye(2), "p": P},
    "1 of its dimensions dense": {"Q": torch.eye(2).to_sparse(1), "p": P},
    "Q is a ndarray: expected a sparse": {"Q": np.eye(2), "p": P},
    "Q has shape .3, 3.: expected .2, 2.": {"Q": torch.eye(3).to_sparse(), "p": P},
    "Q is torch.complex64": {"Q": (1j * torch.eye(2)).to_sparse(), "p": P},
    "A has shape .1, 3.: expected .1, 2.": {
        "Q": EYE,
        "p": P,
        "A": torch.ones(1, 3).to_sparse(),
        "b": 1.0,
    },
    "p is missing": {"Q": EYE, "p": None},
    "p is a tensor of shape .1, 2.": {"Q": EYE, "p": torch.zeros(1, 2)},
    "G and its limits": {"Q": EYE, "p": P, "G": EYE},
    "A and b come together": {"Q": EYE, "p": P, "b": 1.0},
    "h has shape .3,.: expected .2,.": {"Q": EYE, "p": P, "G": EYE, "h": torch.zeros(3)},
    "lb is a str": {"Q": EYE, "p": P, "lb": "0"},
    "solver='OSQP': expected Clarabel": {"Q": EYE, "p": P, "solver": "OSQP"},
    "solver=<class": {"Q": EYE, "p": P, "solver": OSQP},
    "order=0": {"Q": EYE, "p": P, "order": 0},
    "degenerate='both'": {"Q": EYE, "p": P, "degenerate": "both"},
    "proximal=-1": {"Q": EYE, "p": P, "proximal": -1},
    "on_failure='shout'": {"Q": EYE, "p": P, "on_failure": "shout"},
    "Q is on meta.*pass Q.cpu": {"Q": EYE.to("meta"), "p": P},
    "lb is on meta.*pass lb.cpu": {"Q": EYE, "p": P, "lb": torch.zeros(2, device="meta")},
}


class TestBadInput:
    @pytest.mark.parametrize("message", BAD)
    def test_named(self, message):
        with pytest.raises(ValueError, match=message):
            solve_qp_sparse(**BAD[message])

    @pytest.mark.parametrize("solver", [Clarabel, PIQP, OSQP, ADMM])
    def test_settings(self, solver):
        tolerance = "eps" if solver in (OSQP, ADMM) else "tol"
        with pytest.raises(ValueError, match=f"{solver.__name__}.{tolerance}=0"):
            solver(**{tolerance: 0})
        with pytest.raises(ValueError, match="max_iter=0.: expected a positive whole number"):
            solver(max_iter=0)

    def test_threads_of_clarabel(self):
        with pytest.raises(ValueError, match="threads=-1"):
            Clarabel(threads=-1)

    def test_missing_package(self, monkeypatch):
        def gone(name):
            raise ModuleNotFoundError(name, name=name.split(".")[0])

        monkeypatch.setattr(diffopt.optional, "import_module", gone)
        with pytest.raises(ImportError, match='pip install "torch-diffopt.solvers."'):
            solve_qp_sparse(EYE, P)

    def test_transforms_are_refused(self):
        with pytest.raises(RuntimeError, match="torch.func.*use torch.autograd"):
            torch.func.grad(lambda p: solve_qp_sparse(EYE, p, lb=-1.0).z.sum())(P)
