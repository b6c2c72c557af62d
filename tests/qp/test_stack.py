"""Problems of different sizes: a stack answers as each problem alone."""

from dataclasses import fields

import pytest
import torch

from diffopt import QPSolution, Status, solve_qp
from diffopt.qp.stack import FIELDS, QPStack, stack_qps
from diffopt.tree import tensors
from problems.random_qp import infeasible_qp, random_lp, random_qp

from .. import cases

OUTPUTS = ("z", "lam", "nu", "mu")
STACKS = {
    "everything": [
        random_qp(4, 6, 2, seed=1),
        random_qp(7, 3, 0, seed=2),
        random_lp(5, 9, 1, seed=3),
        random_qp(3, 0, 1, seed=4),
        random_qp(6, bounds=True, seed=5),
        random_qp(8, 5, 2, two_sided=True, bounds=True, seed=6),
        random_qp(1, seed=7),
        random_qp(5, 8, 1, rank=2, seed=8),
        random_lp(6, 4, 2, bounds=True, seed=9),
    ],
    "linear programs": [random_lp(n, 2 * n, n // 3, seed=n) for n in (2, 3, 5, 8)],
    "equal sizes": [random_qp(5, 6, 2, seed=k) for k in range(3)],
    "equal n, no Q": [random_lp(5, 9, seed=1), random_lp(5, 12, 2, seed=2)],
    "a row of G for some": [random_qp(4, seed=1), random_qp(4, 3, seed=2), random_qp(2, seed=3)],
    "a row of A for some": [random_qp(4, seed=1), random_qp(6, 0, 2, seed=2)],
    "bounds for some": [random_qp(6, bounds=True, seed=1), random_qp(3, 2, seed=2)],
    "one problem": [random_qp(4, 5, 1, two_sided=True, bounds=True)],
}


def leaves(name):
    return [
        {k: v.clone().requires_grad_() for k, v in cases.arguments(instance).items()}
        for instance in STACKS[name]
    ]


def gradients(solutions, problems):
    """Of a random linear function of all answers, the same for the same sizes."""
    generator = torch.Generator().manual_seed(0)
    loss = 0.0
    for sol in solutions:
        for key in OUTPUTS:
            value = getattr(sol, key)
            loss = loss + (value * torch.randn(value.shape, generator=generator).double()).sum()
    return torch.autograd.grad(loss, [v for a in problems for v in a.values()])


@pytest.mark.parametrize("name", STACKS)
def test_answers_and_gradients_equal_those_of_single_solves(name):
    problems = leaves(name)
    stack = stack_qps(problems)
    together = stack.unstack(solve_qp(**stack))
    alone = [solve_qp(**{"Q": None} | a) for a in problems]
    for ours, truth, instance in zip(together, alone, STACKS[name], strict=True):
        assert ours.status == truth.status == Status.CONVERGED and ours.polished
        assert torch.equal(ours.weakly_active, truth.weakly_active)
        for key in OUTPUTS:
            value = getattr(ours, key)
            torch.testing.assert_close(value, getattr(truth, key), rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(value, getattr(instance, key), rtol=1e-9, atol=1e-9)
    truth = gradients(alone, problems)
    for ours, exact in zip(gradients(together, problems), truth, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_holds_Q_and_the_blocks_that_some_problem_has(name):
    problems = [cases.arguments(instance) for instance in STACKS[name]]
    stack = stack_qps(problems)
    assert set(stack) == {"Q"} | {k for a in problems for k in a}
    assert all(len(v) == len(problems) and not v.isnan().any() for v in stack.values())


@pytest.mark.parametrize("infeasible", ["report", "closest"])
@pytest.mark.parametrize("name", STACKS)
def test_every_field_has_the_shape_of_a_single_solve(name, infeasible):
    problems = [cases.arguments(instance) for instance in STACKS[name]]
    stack = stack_qps(problems)
    together = stack.unstack(solve_qp(**stack, infeasible=infeasible))
    for ours, a in zip(together, problems, strict=True):
        truth = solve_qp(**{"Q": None} | a, infeasible=infeasible)
        for key in FIELDS:
            one, other = getattr(ours, key), getattr(truth, key)
            assert type(one) is type(other)
            pairs = zip(tensors(one), tensors(other), strict=True)
            assert all(v.shape == w.shape and v.dtype == w.dtype for v, w in pairs)


def test_the_padding_is_an_unknown_that_is_zero_and_rows_that_say_nothing():
    full = cases.arguments(random_qp(3, 2, 1, two_sided=True, bounds=True))
    small = {"Q": torch.tensor([[2.0]]).double(), "p": torch.tensor([-4.0]).double()}
    stack = stack_qps([full, small])
    inf = float("inf")
    expected = {
        "Q": [[2, 0, 0], [0, 1, 0], [0, 0, 1]], "p": [-4, 0, 0], "G": [[0] * 3] * 2, "h": [inf] * 2,
        "h_lower": [-inf] * 2, "A": [[0] * 3], "b": [0], "lb": [-inf] * 3, "ub": [inf] * 3,
    }  # fmt: skip
    assert {k: v[1].tolist() for k, v in stack.items()} == expected
    assert all(torch.equal(v[0], full[k]) for k, v in stack.items())
    sol = solve_qp(**stack)
    torch.testing.assert_close(sol.z[1], torch.tensor([2.0, 0, 0]).double(), rtol=0, atol=1e-15)
    assert all((v[1] == 0).all() for v in (sol.lam, sol.nu, sol.mu))


def test_every_field_of_a_solution_is_in_the_table():
    assert set(FIELDS) == {field.name for field in fields(QPSolution)}


def test_weakly_active_is_rows_of_G_then_bounds_without_the_padding():
    """z <= 0 is weakly active in the middle problem: as a row of G, then as a bound."""
    row, wide = {"p": torch.zeros(1), "G": torch.ones(1, 1), "h": 0.0}, random_qp(3, 4, bounds=True)
    bound = {"p": torch.zeros(2), "ub": torch.tensor([1.0, 0.0])}
    for middle, expected in ((row, [True, False]), (bound, [False, True])):
        n = len(middle["p"])
        middle = {"Q": torch.eye(n)} | middle
        middle = {k: v.double() if torch.is_tensor(v) else v for k, v in middle.items()}
        stack = stack_qps([cases.arguments(wide), middle, cases.arguments(wide)])
        sol = stack.unstack(solve_qp(**stack))[1]
        assert sol.weakly_active.tolist() == expected


def test_numbers_and_tensors_without_a_dimension_are_limits():
    x = torch.tensor(0.5, requires_grad=True)  # its dtype does not count, as in solve_qp
    one = {"Q": torch.eye(2).double(), "p": -torch.ones(2).double(), "ub": x, "lb": -1}
    two = {"p": torch.ones(3).double(), "lb": 2.0, "Q": None, "G": torch.ones(1, 3).double()}
    stack = stack_qps([one, two | {"h_lower": 7.0}])
    assert "h" not in stack and stack["h_lower"].tolist() == [[-float("inf")], [7.0]]
    first, second = stack.unstack(solve_qp(**stack))
    assert first.z.tolist() == [0.5, 0.5]
    assert abs(second.z.sum().item() - 7) <= 1e-12
    first.z.sum().backward()
    assert x.grad == 2


def test_a_bad_problem_leaves_its_neighbours_alone():
    bad = cases.arguments(infeasible_qp(3, 5, 1))
    good = cases.arguments(random_qp(6, 4, 2))
    stack = stack_qps([good, bad, good])
    one, two, three = stack.unstack(solve_qp(**stack, on_failure="ignore"))
    assert [s.status.item() for s in (one, two, three)] == [0, Status.PRIMAL_INFEASIBLE, 0]
    truth = solve_qp(**good).z
    for sol in (one, three):
        torch.testing.assert_close(sol.z, truth, rtol=1e-9, atol=1e-9)


def test_low_precision_is_kept():
    problems = [
        {k: v.float() for k, v in cases.arguments(instance).items()}
        for instance in STACKS["everything"]
    ]
    stack = stack_qps(problems)
    assert all(v.dtype == torch.float32 for v in stack.values())
    for sol, a in zip(stack.unstack(solve_qp(**stack)), problems, strict=True):
        assert sol.z.dtype == torch.float32
        truth = solve_qp(**{"Q": None} | a).z
        torch.testing.assert_close(sol.z, truth, rtol=1e-6, atol=1e-6)


def test_the_derivative_of_many_problems_is_taken_in_one_pass_over_the_batch():
    """One backward node for the whole batch: a slice a problem would cost the batch each time."""
    problems = [cases.arguments(random_qp(1 + k % 3, seed=k)) for k in range(20)]
    for a in problems:
        a["p"] = a["p"].clone().requires_grad_()
    stack = stack_qps(problems)
    nodes = {sol.z.grad_fn.next_functions[0][0] for sol in stack.unstack(solve_qp(**stack))}
    assert len({node.next_functions[0][0] for node in nodes}) == 1


p, G = torch.zeros(2), torch.ones(1, 2)
ERRORS = {
    "empty": ([], "problems is empty"),
    "no mapping": ([torch.zeros(2)], "problem 0: a problem is a Tensor"),
    "a single dict": ({"p": p}, "problem 0: a problem is a str"),
    "unknown key": ([{"p": p}, {"p": p, "H": G}], "problem 1: 'H' is no argument"),
    "no p": ([{"p": p}, {"Q": torch.eye(2)}], "problem 1: p is missing"),
    "limit missing": ([{"p": p, "G": G, "h": 1.0}, {"p": p, "G": G}], "problem 1: G and its"),
    "shape": ([{"p": p}, {"p": p, "lb": torch.zeros(3)}], "problem 1: lb has shape"),
    "batch": ([{"p": p}, {"p": torch.zeros(5, 2)}], r"problem 1: its arguments .* \(5,\)"),
    "batch of one": ([{"p": p, "G": G[None], "h": 1.0}], "problem 0: its arguments have batch"),
    "dtype": ([{"p": p}, {"p": p.double()}], "problem 1: p is torch.float64 on cpu, but p of"),
    "dtype of a block": ([{"p": p, "Q": torch.eye(2).half()}], "problem 0: Q is torch.float16"),
    "integers": ([{"p": torch.zeros(2, dtype=torch.int64)}], "problem 0: p is torch.int64"),
    "device": ([{"p": p}, {"p": p.to("meta")}], "problem 1: p is torch.float32 on meta"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_problem_and_the_argument(name):
    problems, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        stack_qps(problems)


def test_a_solution_of_another_stack_is_refused():
    one, two = (stack_qps([{"p": torch.zeros(n), "Q": torch.eye(n)}] * 2) for n in (2, 3))
    with pytest.raises(ValueError, match=r"solution.z has shape \(2, 3\): expected \(2, 2\)"):
        one.unstack(solve_qp(**two))
    assert isinstance(one, QPStack) and one.sizes[0] == (2, 0, 0)
