"""Batches: shapes that broadcast, samples that fail, dtypes, transforms, higher derivatives."""

import warnings

import cvxpy as cp
import pytest
import torch
from torch.func import grad, jacrev, vmap

from diffopt import ConvergenceError, ConvergenceWarning, ConvexLayer, Status

from .cases import CASES

x, A, b, c = cp.Variable(3), cp.Parameter((4, 3)), cp.Parameter(4), cp.Parameter()
PROBLEM = cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + c * cp.sum(x)), [x >= -1, x <= 1])
QP = ConvexLayer(PROBLEM, [A, b, c], [x])
CONES = ConvexLayer(
    cp.Problem(cp.Minimize(cp.sum_squares(A @ x - b) + c * cp.sum(x)), [cp.norm2(x) <= 1]),
    [A, b, c],
    [x],
)
LAYERS = {"quadratic program": (QP, 1e-9), "other cones": (CONES, 1e-6)}
SHAPES = {  # name: batch dimensions of A, b, c, and of the answer
    "none": ((), (), (), ()),
    "all": ((5,), (5,), (5,), (5,)),
    "some": ((), (5,), (), (5,)),
    "one of one": ((1,), (5,), (), (5,)),
    "all of one": ((1,), (1,), (1,), (1,)),
    "two dimensions": ((2, 3), (2, 3), (2, 3), (2, 3)),
    "outer product": ((2, 1), (3,), (), (2, 3)),
    "three dimensions": ((2, 1, 1), (3, 1), (2,), (2, 3, 2)),
    "empty": ((0,), (), (0,), (0,)),
}


def draw(leads, generator):
    own = (4, 3), (4,), ()
    return [
        torch.randn((*lead, *s), generator=generator, dtype=torch.float64)
        for lead, s in zip(leads, own, strict=True)
    ]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("name", SHAPES)
def test_batches_broadcast_and_shared_parameters_get_the_sum(name, kind, generator):
    *leads, batch = SHAPES[name]
    layer, accuracy = LAYERS[kind]
    shared = [v.requires_grad_() for v in draw(leads, generator)]
    (found,) = layer(*shared)
    assert found.shape == (*batch, 3)
    whole = [
        v.detach().expand((*batch, *v.shape[len(lead) :])).reshape(-1, *v.shape[len(lead) :])
        for v, lead in zip(shared, leads, strict=True)
    ]
    whole = [v.clone().requires_grad_() for v in whole]
    (flat,) = layer(*whole)
    torch.testing.assert_close(found, flat.view(found.shape), rtol=0, atol=accuracy)
    ours = torch.autograd.grad(found.sin().sum(), shared)
    each = torch.autograd.grad(flat.sin().sum(), whole)
    for got, parts, v in zip(ours, each, shared, strict=True):
        expected = parts.view((*batch, *parts.shape[1:]))
        torch.testing.assert_close(got, expected.sum_to_size(v.shape), rtol=0, atol=10 * accuracy)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_number_is_a_parameter_too(kind, generator):
    layer, accuracy = LAYERS[kind]
    given = draw([(2,), (2,), ()], generator)[:2]
    torch.testing.assert_close(
        layer(*given, 0.5)[0], layer(*given, torch.tensor(0.5).double())[0], rtol=0, atol=accuracy
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", LAYERS)
def test_dtypes_are_the_users_and_the_work_is_in_float64(kind, dtype, generator):
    layer, _ = LAYERS[kind]
    given = [v.to(dtype).requires_grad_() for v in draw([(3,), (3,), ()], generator)]
    (found,) = layer(*given)
    (exact,) = layer(*(v.detach().double() for v in given))
    assert found.dtype == dtype and found.detach().equal(exact.to(dtype))
    assert all(g.dtype == dtype for g in torch.autograd.grad(found.sum(), given))


# min |x - y|^2 subject to  low <= x_1 + x_2 <= 1, and without an answer where low > 1;
# with |x| <= t, other cones
y, low = cp.Parameter(2), cp.Parameter()
z = cp.Variable(2)
ROWS = [low <= cp.sum(z), cp.sum(z) <= 1]
BOUNDED = cp.Problem(cp.Minimize(cp.sum_squares(z - y)), ROWS)
CURVED = cp.Problem(cp.Minimize(cp.sum_squares(z - y)), [*ROWS, cp.norm2(z) <= 2])
POINTS = torch.tensor([[2.0, 1.0], [0.0, 0.0], [-1.0, 0.0]]).double()


@pytest.mark.parametrize("problem", [BOUNDED, CURVED], ids=["quadratic program", "other cones"])
def test_a_sample_without_an_answer_harms_nobody(problem):
    """z = (1, 0) for (2, 1), and (0.25, 0.25) for (0, 0) with low = 0.5."""
    layer = ConvexLayer(problem, [y, low], [z])
    points = POINTS.clone().requires_grad_()
    with pytest.warns(ConvergenceWarning, match=r"sample 2: PRIMAL_INFEASIBLE"):
        sol = layer.solve(points, torch.tensor([0.0, 0.5, 2.0]).double())
    assert sol.status.tolist() == [0, 0, 3]
    expected = torch.tensor([[1.0, 0.0], [0.25, 0.25]]).double()
    torch.testing.assert_close(sol.values[0][:2], expected, rtol=0, atol=1e-7)
    (pull,) = torch.autograd.grad(sol.values[0][:, 0].sum(), points)
    expected = torch.tensor([[0.5, -0.5], [0.5, -0.5], [0.0, 0.0]]).double()
    torch.testing.assert_close(pull, expected, rtol=0, atol=1e-5)


def test_neighbours_of_a_bad_sample_are_bit_identical():
    layer = ConvexLayer(BOUNDED, [y, low], [z], on_failure="ignore")
    good = layer(POINTS, torch.tensor([0.0, 0.5, -9.0]).double())[0]
    for bad in (2.0, float("nan"), float("inf")):
        mixed = layer(POINTS, torch.tensor([0.0, 0.5, bad]).double())[0]
        assert mixed[:2].equal(good[:2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_neighbours_of_a_sample_without_numbers_are_solved_with_other_cones_too(bad):
    """Of a NaN diffcp said "ScsWork allocation error!", for the whole batch."""
    layer = ConvexLayer(CURVED, [y, low], [z], on_failure="ignore")
    points = POINTS.clone().requires_grad_()
    sol = layer.solve(points, torch.tensor([bad, 0.5, -9.0]).double())
    assert sol.status.tolist() == [Status.INVALID_INPUT, 0, 0]
    expected = torch.tensor([[0.0, 0.0], [0.25, 0.25], [-1.0, 0.0]]).double()
    torch.testing.assert_close(sol.values[0], expected, rtol=0, atol=1e-7)
    (pull,) = torch.autograd.grad(sol.values[0][:, 0].sum(), points)
    expected = torch.tensor([[0.0, 0.0], [0.5, -0.5], [1.0, 0.0]]).double()
    torch.testing.assert_close(pull, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("problem", [BOUNDED, CURVED], ids=["quadratic program", "other cones"])
def test_where_all_samples_fail_the_gradient_is_zero(problem):
    layer = ConvexLayer(problem, [y, low], [z], on_failure="ignore")
    points = POINTS.clone().requires_grad_()
    (pull,) = torch.autograd.grad(layer(points, 2.0)[0].sum(), points)
    assert not pull.any()


def test_an_unbounded_sample_is_named():
    """min w x over x >= 0."""
    s, w = cp.Variable(), cp.Parameter()
    layer = ConvexLayer(cp.Problem(cp.Minimize(w * s), [s >= 0]), [w], [s])
    with pytest.warns(ConvergenceWarning, match="sample 1: DUAL_INFEASIBLE"):
        sol = layer.solve(torch.tensor([1.0, -1.0]))
    assert sol.status.tolist() == [0, 4] and sol.values[0][0] == 0


@pytest.mark.parametrize("problem", [BOUNDED, CURVED], ids=["quadratic program", "other cones"])
def test_what_to_do_on_failure_is_the_users_choice(problem):
    low_ = torch.tensor([0.0, 0.5, 2.0]).double()
    with pytest.raises(ConvergenceError, match="PRIMAL_INFEASIBLE"):
        ConvexLayer(problem, [y, low], [z], on_failure="raise")(POINTS, low_)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        (found,) = ConvexLayer(problem, [y, low], [z], on_failure="nan")(POINTS, low_)
        ConvexLayer(problem, [y, low], [z], on_failure="ignore")(POINTS, low_)
    assert found[2].isnan().all() and found[:2].isfinite().all()


def test_a_parameter_that_does_not_matter_has_a_zero_gradient():
    """d is in the constant of the objective only, w in a row that is never active."""
    d, w = cp.Parameter(2), cp.Parameter()
    problem = cp.Problem(cp.Minimize(cp.sum_squares(z - y) + cp.sum(d)), [z[0] <= w])
    layer = ConvexLayer(problem, [d, y, w], [z])
    leaves = [torch.ones(2).requires_grad_(), torch.zeros(2).requires_grad_()]
    leaves.append(torch.tensor(5.0, requires_grad=True))
    grads = torch.autograd.grad(layer(*leaves)[0].sum(), leaves)
    assert [g.tolist() for g in grads] == [[0, 0], [1, 1], 0]


SMOOTH = ["two-sided", "parametric form", "used twice", "scalars", "defined", "unconstrained"]


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_of_second_order(name):
    case = CASES[name]
    layer = ConvexLayer(case.problem, case.parameters, case.variables, order=2)
    leaves = [v[:2].clone().requires_grad_() for v in case.values]
    assert torch.autograd.gradcheck(layer, leaves, atol=1e-6, rtol=1e-6)
    assert torch.autograd.gradgradcheck(layer, leaves, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_one_order_too_many_raises(kind, generator):
    leaves = [v.requires_grad_() for v in draw([(2,), (2,), ()], generator)]
    layer, _ = LAYERS[kind]
    (slope,) = torch.autograd.grad(layer(*leaves)[0].sum(), leaves[1], create_graph=True)
    with pytest.raises(RuntimeError, match="order"):
        slope.sum().backward()


def test_vmap_and_jacrev(generator):
    A_, b_, c_ = draw([(3,), (3,), ()], generator)
    mapped = vmap(lambda A, b: QP(A, b, c_)[0])(A_, b_)
    torch.testing.assert_close(mapped, QP(A_, b_, c_)[0], rtol=0, atol=1e-10)
    one = jacrev(lambda b: QP(A_[0], b, c_)[0])(b_[0])
    rows = [grad(lambda b, i=i: QP(A_[0], b, c_)[0][i])(b_[0]) for i in range(3)]
    torch.testing.assert_close(one, torch.stack(rows), rtol=0, atol=1e-10)
    both = vmap(jacrev(lambda A, b: QP(A, b, c_)[0], argnums=1))(A_, b_)
    torch.testing.assert_close(both[0], one, rtol=0, atol=1e-9)
