"""Answers that can be worked out by hand."""

from functools import partial

import pytest
import torch

from diffopt.projections import (
    Affine,
    Box,
    BoxHyperplane,
    Halfspace,
    Hyperplane,
    L1Ball,
    L1Sphere,
    L2Ball,
    L2Sphere,
    LinfBall,
    Polyhedron,
    PSDCone,
    SecondOrderCone,
    Simplex,
    TransportPolytope,
)

from .sets import DOUBLE, EYE, INF, ONES, vector

ANSWERS = {
    "box": (Box(-1.0, vector(1, 2)), vector(-3, 3), vector(-1, 2)),
    "box, a fixed entry": (Box(vector(1, 0), vector(1, 9)), vector(5, 5), vector(1, 5)),
    "box of infinite x": (Box(0.0, 1.0), vector(-INF, INF), vector(0, 1)),
    "simplex": (Simplex(), vector(0.9, 0.5, -1), vector(0.7, 0.3, 0)),
    "simplex, all equal": (Simplex(2.0), vector(5, 5, 5, 5), vector(0.5, 0.5, 0.5, 0.5)),
    "simplex of scale 0": (Simplex(0.0), vector(3, 1, 3), vector(0, 0, 0)),
    "simplex, far off": (Simplex(), vector(1e15, 1e15, 0), vector(0.5, 0.5, 0)),
    "l1 ball": (L1Ball(), vector(0.9, -0.5, 0.1), vector(0.7, -0.3, 0)),
    "l1 ball, inside": (L1Ball(2.0), vector(0.9, -0.5, 0.1), vector(0.9, -0.5, 0.1)),
    "l1 ball of radius 0": (L1Ball(0.0), vector(1, -2), vector(0, 0)),
    "l1 sphere, from inside": (L1Sphere(), vector(0.5, -0.1), vector(0.7, -0.3)),
    "l1 sphere, from zero": (L1Sphere(), vector(0, 0), vector(0.5, 0.5)),
    "l2 ball": (L2Ball(2.0), vector(3, 4), vector(1.2, 1.6)),
    "l2 ball, huge": (L2Ball(), vector(3e200, 4e200), vector(0.6, 0.8)),
    "l2 ball, tiny": (L2Ball(1e-200), vector(3e-200, 4e-200), vector(6e-201, 8e-201)),
    "l2 ball of radius 0": (L2Ball(0.0), vector(3, 4), vector(0, 0)),
    "l2 sphere, from zero": (L2Sphere(3.0), vector(0, 0), vector(3, 0)),
    "linf ball": (LinfBall(1.0), vector(-3, 0.5), vector(-1, 0.5)),
    "hyperplane": (Hyperplane(vector(1, 1), 1.0), vector(2, 1), vector(1, 0)),
    "hyperplane, all space": (Hyperplane(vector(0, 0), 0.0), vector(2, 1), vector(2, 1)),
    "hyperplane, huge": (Hyperplane(vector(1e200, 1e200), 1e200), vector(2, 1), vector(1, 0)),
    "half-space": (Halfspace(vector(0, 2), 1.0), vector(2, 1), vector(2, 0.5)),
    "half-space, inside": (Halfspace(vector(0, 2), 1.0), vector(2, 0), vector(2, 0)),
    "half-space, all space": (Halfspace(vector(0, 0), 1.0), vector(2, 0), vector(2, 0)),
    "affine": (Affine(torch.ones(2, 3, dtype=DOUBLE), 3.0), vector(1, 2, 6), vector(-1, 0, 4)),
    "affine, no row": (Affine(torch.zeros(1, 2, dtype=DOUBLE)), vector(1, 2), vector(1, 2)),
    "capped simplex": (
        BoxHyperplane(ONES, 2.0, 0.0, 1.0),
        vector(3, 1, 0.5),
        vector(1, 0.75, 0.25),
    ),
    "section, at a vertex": (BoxHyperplane(ONES, 3.0, 0.0, 1.0), vector(3, -1, 0), ONES),
    "section, at the other": (BoxHyperplane(ONES, 0.0, 0.0, 1.0), vector(3, -1, 0), 0 * ONES),
    "section, unbounded": (BoxHyperplane(ONES, 0.0), vector(3, 0, 0), vector(2, -1, -1)),
    "section, a zero": (
        BoxHyperplane(vector(1, 0, -1), 0.0, -1.0, 1.0),
        vector(4, 7, 2),
        vector(1, 1, 1),
    ),
    "section, a = 0": (BoxHyperplane(vector(0, 0), 0.0, 0.0, 1.0), vector(4, 0.5), vector(1, 0.5)),
    "section, no freedom": (BoxHyperplane(ONES, 6.0, ONES * 2, ONES * 2), ONES, ONES * 2),
    "second-order cone": (SecondOrderCone(), vector(3, 4, 1), vector(1.8, 2.4, 3)),
    "second-order cone, inside": (SecondOrderCone(), vector(3, 4, 6), vector(3, 4, 6)),
    "second-order cone, polar": (SecondOrderCone(), vector(3, 4, -6), vector(0, 0, 0)),
    "second-order cone, apex": (SecondOrderCone(), vector(0, 0, 0), vector(0, 0, 0)),
    "psd": (PSDCone(), 2 * EYE.flip(0), torch.ones(2, 2, dtype=DOUBLE)),
    "psd of a skew matrix": (PSDCone(), torch.tensor([[1.0, 2], [-2, -1]]).double(), EYE * EYE[0]),
    "psd of zero": (PSDCone(), 0 * EYE, 0 * EYE),
    "polyhedron": (Polyhedron(EYE, 1.0), vector(2, 0.5), vector(1, 0.5)),
    "polyhedron, whole space": (Polyhedron(), vector(2, 0.5), vector(2, 0.5)),
    "doubly stochastic": (TransportPolytope(), (EYE + 1) / 2, EYE / 2 + 0.25),
    "transport, a corner": (TransportPolytope(), 9 * EYE, EYE),
    "transport, one column": (
        TransportPolytope(vector(1, 2), 3.0),
        EYE[:, :1],
        vector(1, 2)[:, None],
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_known_answers(name):
    project, x, z = ANSWERS[name]
    torch.testing.assert_close(project(x), z, rtol=1e-12, atol=1e-12 * float(z.abs().max() > 1e-9))


def test_sections_of_small_integers(generator):
    """Many equal breakpoints, zero entries, fixed entries, infinite bounds, b at the ends."""
    draw_of = partial(torch.randint, generator=generator, size=(4000, 5))
    a, x = draw_of(-1, 2).double(), draw_of(-3, 4).double()
    lb = draw_of(-2, 1).double()
    ub = lb + draw_of(0, 3)
    ub[:1000, 0], lb[500:1500, 1] = INF, -INF
    inside = torch.where(lb.isfinite(), lb, torch.where(ub.isfinite(), ub, 0.0))
    b = (a * inside).sum(-1)
    z = BoxHyperplane(a, b, lb, ub)(x)
    assert ((z >= lb) & (z <= ub)).all()
    assert ((a * z).sum(-1) - b).abs().max() <= 1e-13
    still = a == 0
    torch.testing.assert_close(z[still], torch.minimum(torch.maximum(x, lb), ub)[still])
    # x - z = t a + mu for one t, where mu <= 0 if z_i < ub_i and mu >= 0 if z_i > lb_i
    rise, fall = z < ub, z > lb
    t = (x - z) / torch.where(still, 1.0, a)
    least = torch.where((rise & (a > 0)) | (fall & (a < 0)), t, -INF).amax(-1)
    most = torch.where((fall & (a > 0)) | (rise & (a < 0)), t, INF).amin(-1)
    assert (least <= most + 1e-12).all()
