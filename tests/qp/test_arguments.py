"""Bad input gets an error that names the argument, its value and the remedy."""

import pytest
import torch

from diffopt import InteriorPoint, solve_qp

Q, p, G, A = torch.eye(4), torch.zeros(3, 4), torch.ones(2, 4), torch.ones(1, 4)
WRONG = {
    "shape of Q": (dict(Q=torch.eye(3)), r"Q has shape \(3, 3\): expected \(\*B, 4, 4\)"),
    "Q is no matrix": (dict(Q=torch.ones(4)), r"Q has shape \(4,\): expected"),
    "Q is a list": (dict(Q=[[1.0]]), "Q is a list: expected a torch.Tensor"),
    "p missing": (dict(p=None), "p is missing"),
    "p without unknowns": (dict(p=torch.zeros(3, 0)), "at least one unknown"),
    "columns of G": (dict(G=torch.ones(2, 3), h=1.0), r"G has shape \(2, 3\)"),
    "G is a vector": (
        dict(G=torch.ones(4), h=1.0),
        r"G must be a tensor of shape \(\*B, rows, 4\)",
    ),
    "length of h": (dict(G=G, h=torch.ones(3)), r"h has shape \(3,\): expected \(\*B, 2\)"),
    "G without h": (dict(G=G), "G and its limits come together"),
    "h without G": (dict(h=1.0), "G and its limits come together"),
    "h_lower without G": (dict(h_lower=1.0), "G and its limits come together"),
    "A without b": (dict(A=A), "A and b come together"),
    "b without A": (dict(b=torch.ones(1)), "A and b come together"),
    "length of lb": (dict(lb=torch.zeros(5)), r"lb has shape \(5,\): expected \(\*B, 4\)"),
    "ub is a string": (dict(ub="1"), "ub must be a tensor"),
    "batches": (dict(lb=torch.zeros(2, 4)), "do not broadcast together.*p \\(3, 4\\)"),
    "complex": (dict(Q=torch.eye(4) * 1j), "Q is complex"),
    "device": (dict(ub=torch.ones(4, device="meta")), "ub is on meta, but p is on cpu"),
    "order": (dict(order=0), "order=0: expected a positive integer"),
    "on_failure": (dict(on_failure="print"), "on_failure='print' is not one of"),
    "degenerate": (dict(degenerate="left"), "degenerate='left'"),
    "infeasible": (dict(infeasible="ignore"), "infeasible='ignore'"),
    "solver": (dict(solver="osqp"), "solver='osqp': expected an InteriorPoint"),
    "sparse": (dict(A=torch.ones(1, 4).to_sparse(), b=1.0), "A is sparse .*to_dense"),
    "penalty": (dict(infeasible="elastic", penalty=-1.0), "penalty=-1.0: expected a positive"),
    "penalty alone": (dict(penalty=10.0), "penalty=10.0: .*infeasible='elastic'"),
    "smoothing": (dict(smoothing=-1.0), "smoothing=-1.0: expected a positive"),
    "proximal": (dict(proximal=-1.0), "proximal=-1.0: expected"),
    "warm start": (dict(warm_start=torch.ones(4)), "warm_start is a Tensor: expected"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    changes, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        solve_qp(**dict(Q=Q, p=p) | changes)


def test_inputs_are_not_changed():
    arguments = dict(Q=torch.eye(4) + 1, p=torch.ones(4), G=G, h=torch.ones(2), lb=torch.zeros(4))
    before = {k: v.clone() for k, v in arguments.items()}
    solve_qp(**arguments)
    assert all(torch.equal(v, before[k]) for k, v in arguments.items())


def test_integers_are_read_as_numbers():
    sol = solve_qp(torch.eye(2, dtype=torch.int64), torch.tensor([-1, 2]), lb=0)
    torch.testing.assert_close(sol.z, torch.tensor([1.0, 0.0]))


def test_settings_of_the_solver_must_be_positive():
    with pytest.raises(ValueError, match=r"InteriorPoint\(eps=-1e-08\): expected a positive"):
        InteriorPoint(eps=-1e-8)
