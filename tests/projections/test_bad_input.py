"""Bad input raises a ValueError that names the argument; empty sets, where one cannot ask."""

import pytest
import torch
from torch.func import vmap

from diffopt import ConvergenceError, ConvergenceWarning
from diffopt.projections import (
    Affine,
    Box,
    BoxHyperplane,
    EntropicTransport,
    Halfspace,
    Hyperplane,
    L1Ball,
    L1Sphere,
    L2Ball,
    L2Sphere,
    LinfBall,
    Polyhedron,
    PSDCone,
    Simplex,
    TransportPolytope,
)

from .sets import DOUBLE, EYE, INF, ONES, PAIR, vector

X23 = torch.zeros(2, 3, dtype=DOUBLE)
BAD = {
    "x is no tensor": (Simplex(), [1.0, 2.0], "x is a list"),
    "x of integers": (Simplex(), torch.ones(3, dtype=torch.int64), "x has dtype"),
    "x is a number": (L2Ball(), torch.tensor(1.0), "x has shape"),
    "x without entries": (Simplex(), torch.zeros(3, 0), "x has shape"),
    "x no matrix": (PSDCone(), vector(1, 2), "x has shape"),
    "x not square": (PSDCone(), X23, "square"),
    "lb of another size": (Box(PAIR, 3.0), X23, "lb has shape"),
    "a of another size": (Halfspace(PAIR, 3.0), X23, "a has shape"),
    "A of another size": (Affine(torch.ones(4, 2)), X23, "A has shape"),
    "A is a vector": (Affine(PAIR), X23, "A has shape"),
    "b of another size": (Affine(torch.ones(4, 3), PAIR), X23, "b has shape"),
    "h of another size": (Polyhedron(torch.ones(4, 3), PAIR), X23, "h has shape"),
    "rows of another size": (TransportPolytope(ONES), X23, "rows has shape"),
    "columns of another size": (EntropicTransport(1.0, PAIR), X23, "columns has shape"),
    "radius of another batch": (L1Ball(ONES), X23, "radius has shape"),
    "b of another batch": (BoxHyperplane(ONES, ONES), X23, "b has shape"),
    "a complex radius": (L2Ball(torch.ones(2, dtype=torch.complex64)), X23, "radius is complex"),
    "radius is a string": (Box("0", 1.0), X23, "lb='0'"),
    "on another device": (L2Ball(torch.ones(2, device="meta")), X23, "radius is on meta"),
    # empty sets
    "lb > ub": (Box(1.0, vector(2, 2, 0)), X23, "lower bound exceeds"),
    "a = 0, b != 0": (Hyperplane(0 * ONES, 1.0), X23, "a = 0"),
    "a = 0, b < 0": (Halfspace(0 * ONES, -1.0), X23, "a = 0"),
    "contradicting rows": (Affine(torch.ones(2, 3), PAIR * vector(1, 2)), X23, "contradict"),
    "box missed": (BoxHyperplane(ONES, 4.0, 0.0, 1.0), X23, "no point"),
    "box missed below": (BoxHyperplane(-ONES, 1.0, 0.0, 1.0), X23, "no point"),
    "section, lb > ub": (BoxHyperplane(ONES, 0.0, 2.0, 1.0), X23, "lower bound exceeds"),
    "negative rows": (TransportPolytope(vector(-1, 4), 1.0), X23, "rows has a negative"),
    "zero columns": (
        EntropicTransport(1.0, vector(0, 1, 1)),
        X23,
        "columns has a negative or zero",
    ),
    "different sums": (TransportPolytope(), X23, "different sums"),
    "different sums, entropic": (EntropicTransport(), X23, "different sums"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    project, x, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        project(x)


@pytest.mark.parametrize("make", [L1Ball, L1Sphere, L2Ball, L2Sphere, LinfBall, Simplex])
@pytest.mark.parametrize("value", [-1.0, torch.nan, "1", True, None])
def test_a_bad_size_is_refused_at_once(make, value):
    with pytest.raises(ValueError, match=f"{make.__name__}.*expected a number >= 0"):
        make(value)
    with pytest.raises(ValueError, match=r"(radius|scale) has a negative entry.*\(sample 1\)"):
        make(vector(1, -1))(X23)


def test_epsilon_must_be_positive():
    with pytest.raises(ValueError, match="epsilon=0.0.*expected a positive number"):
        EntropicTransport(epsilon=0.0)
    with pytest.raises(ValueError, match="epsilon has a negative or zero"):
        EntropicTransport(epsilon=vector(1, 0))(torch.zeros(2, 3, 3))


@pytest.mark.parametrize("half", [{"G": EYE}, {"h": PAIR}, {"A": EYE}, {"b": PAIR}])
def test_a_matrix_needs_its_vector(half):
    with pytest.raises(ValueError, match="come together"):
        Polyhedron(**half)(PAIR)


EMPTY = {  # a set for a number, which is empty for -1 and not for 1
    "box": lambda s: Box(0.0, s.expand(2)),
    "simplex": Simplex,
    "l1 ball": L1Ball,
    "l1 sphere": L1Sphere,
    "l2 ball": L2Ball,
    "l2 sphere": L2Sphere,
    "linf ball": LinfBall,
    "hyperplane": lambda s: Hyperplane(0 * PAIR, s - 1),
    "half-space": lambda s: Halfspace(0 * PAIR, s),
    "affine": lambda s: Affine(torch.ones(2, 2).double(), torch.stack([s, s.abs()])),
    "section": lambda s: BoxHyperplane(PAIR, s, 0.0, 1.0),
    "transport polytope": lambda s: TransportPolytope(torch.stack([s, 2 - s]), 1.0),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_set_is_nan_where_one_cannot_ask(name):
    x = X23[:2, :2] if name != "transport polytope" else torch.zeros(2, 2, 2).double()
    z = vmap(lambda s, x: EMPTY[name](s)(x))(vector(-1, 1), x)
    assert z[0].isnan().all() and z[1].isfinite().all()


def test_an_empty_polyhedron_is_reported_as_by_the_solver():
    h = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=DOUBLE)  # -1 <= z <= 1, and z <= -1, z >= 1
    G = torch.tensor([[1.0], [-1.0]], dtype=DOUBLE)
    x = torch.full((2, 1), 3.0, dtype=DOUBLE)
    with pytest.warns(ConvergenceWarning, match="sample 1: PRIMAL_INFEASIBLE"):
        z = Polyhedron(G, h)(x)
    assert z[0].item() == pytest.approx(1.0)
    with pytest.raises(ConvergenceError):
        Polyhedron(G, h, on_failure="raise")(x)
    assert Polyhedron(G, h, on_failure="nan")(x).isnan().flatten().tolist() == [False, True]


def test_infinite_limits_of_a_polyhedron_are_absent():
    z = Polyhedron(EYE, vector(1, INF), lb=vector(-INF, 0))(vector(3, 9))
    torch.testing.assert_close(z, vector(1, 9))
