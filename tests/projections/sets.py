"""The table of sets. A new one is a row here and inherits every test that reads the table."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

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
    Nonnegative,
    Polyhedron,
    PSDCone,
    SecondOrderCone,
    Simplex,
    TransportPolytope,
)

from ..checks import times

DOUBLE = torch.float64
INF = float("inf")


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE)


EYE, PAIR, ONES = torch.eye(2, dtype=DOUBLE), vector(1, 1), vector(1, 1, 1)


class Case(NamedTuple):
    """A set, how far a point is from being a member (by definition), and random parameters."""

    make: Callable[..., Any]  # parameters by name -> the projection
    draw: Callable[..., dict[str, Tensor]]  # (normal: shape -> tensor of a sample) -> parameters
    violation: Callable[..., Tensor]  # (z, parameters by name) -> (*B)
    shape: tuple[int, ...] = (6,)
    smooth: bool = False  # second derivatives, where they are not all zero
    convex: bool = True
    fixed: tuple[str, ...] = ()  # parameters that may not be moved one by one
    reports: bool = False  # whether a NaN is reported, as solve_qp does


def excess(*parts: Tensor) -> Tensor:
    """The largest entry of a sample over all parts, each `(*B, k)`."""
    return torch.cat(torch.broadcast_tensors(*(p.amax(-1, keepdim=True) for p in parts)), -1).amax(
        -1
    )


def positive(normal, *shape: int) -> Tensor:
    return 0.5 + normal(*shape).abs()


def some_box(normal) -> dict[str, Tensor]:
    lb = normal(6)
    return {"lb": lb, "ub": lb + positive(normal, 6)}


def some_section(normal) -> dict[str, Tensor]:
    """A hyperplane through a point of the box."""
    box, a = some_box(normal), normal(6)
    inner = box["lb"] + (box["ub"] - box["lb"]) * normal(6).sigmoid()
    return {"a": a, "b": (a * inner).sum(-1), **box}


def some_polyhedron(normal) -> dict[str, Tensor]:
    """G z <= h and A z = b with room around a random point."""
    G, A, inner = normal(8, 6), normal(2, 6), normal(6)
    return {
        "G": G,
        "h": times(G, inner) + positive(normal, 8) / 2,
        "A": A,
        "b": times(A, inner),
        "lb": inner - 1,
        "ub": inner + 1,
    }


def some_dependent_rows(normal) -> dict[str, Tensor]:
    A, inner = normal(2, 6), normal(6)
    zero = torch.zeros_like(A[..., :1, :])
    A = torch.cat([A, 100 * A.sum(-2, keepdim=True), zero, A[..., :1, :]], -2)
    return {"A": A, "b": times(A, inner)}


def off_affine(z, A, b, **_):
    return (times(A, z) - b).abs()


def in_polyhedron(z, G, h, A, b, lb, ub):
    return excess(times(G, z) - h, off_affine(z, A, b), lb - z, z - ub)


def plane(z, a, b):
    return ((a * z).sum(-1) - b).unsqueeze(-1)


def masses(u: Tensor, v: Tensor) -> dict[str, Tensor]:
    """Marginals of sum 2 from any numbers."""
    return {"rows": 2 * u.softmax(-1), "columns": 2 * v.softmax(-1)}


def in_transport(Z, u, v):
    m = masses(u, v)
    row, column = (Z.sum(-1) - m["rows"]).abs(), (Z.sum(-2) - m["columns"]).abs()
    return excess(row, column, -Z.flatten(-2))


def in_psd(Z):
    asymmetry = (Z - Z.mT).abs().flatten(-2)
    return excess(-torch.linalg.eigvalsh((Z + Z.mT) / 2), asymmetry)


def radius(normal) -> dict[str, Tensor]:
    return {"radius": positive(normal)}


def nothing(normal) -> dict[str, Tensor]:
    return {}


def off_sphere(z, radius, p):
    return (torch.linalg.vector_norm(z, p, -1) - radius).abs()


def out_of_ball(z, radius, p):
    return torch.linalg.vector_norm(z, p, -1) - radius


CASES = {
    "box": Case(Box, some_box, lambda z, lb, ub: excess(lb - z, z - ub)),
    "box, no upper bound": Case(
        lambda lb: Box(lb=lb), lambda f: {"lb": f(6)}, lambda z, lb: excess(lb - z)
    ),
    "nonnegative": Case(Nonnegative, nothing, lambda z: excess(-z)),
    "linf ball": Case(LinfBall, radius, partial(out_of_ball, p=INF)),
    "simplex": Case(
        Simplex,
        lambda f: {"scale": positive(f)},
        lambda z, scale: excess(-z, (z.sum(-1) - scale).abs().unsqueeze(-1)),
    ),
    "simplex of one entry": Case(
        Simplex, lambda f: {"scale": positive(f)}, lambda z, scale: (z[..., 0] - scale).abs(), (1,)
    ),
    "l1 ball": Case(L1Ball, radius, partial(out_of_ball, p=1)),
    "l1 sphere": Case(L1Sphere, radius, partial(off_sphere, p=1), convex=False),
    "l2 ball": Case(L2Ball, radius, partial(out_of_ball, p=2), smooth=True),
    "l2 sphere": Case(L2Sphere, radius, partial(off_sphere, p=2), smooth=True, convex=False),
    "hyperplane": Case(
        Hyperplane,
        lambda f: {"a": f(6), "b": f()},
        lambda z, a, b: plane(z, a, b).abs()[..., 0],
        smooth=True,
    ),
    "half-space": Case(
        Halfspace,
        lambda f: {"a": f(6), "b": f()},
        lambda z, a, b: plane(z, a, b)[..., 0],
        smooth=True,
    ),
    "affine": Case(
        Affine,
        lambda f: {"A": f(3, 6), "b": f(3)},
        lambda z, **p: excess(off_affine(z, **p)),
        smooth=True,
    ),
    "affine, dependent rows": Case(
        Affine,
        some_dependent_rows,
        lambda z, **p: excess(off_affine(z, **p)),
        fixed=("A", "b"),
    ),
    "affine, one point": Case(
        Affine,
        lambda f: {"A": f(6, 6), "b": f(6)},
        lambda z, **p: excess(off_affine(z, **p)),
    ),
    "box and hyperplane": Case(
        BoxHyperplane,
        some_section,
        lambda z, a, b, lb, ub: excess(plane(z, a, b).abs(), lb - z, z - ub),
        smooth=True,
    ),
    "capped simplex": Case(
        lambda b: BoxHyperplane(torch.ones(6, dtype=DOUBLE), b, 0.0, 1.0),
        lambda f: {"b": 6 * f().sigmoid()},
        lambda z, b: excess(plane(z, torch.ones(6), b).abs(), -z, z - 1),
    ),
    "half-lines and hyperplane": Case(
        lambda a, b, lb: BoxHyperplane(a, b, lb),
        lambda f: {"a": positive(f, 6), "b": 20 + f(), "lb": f(6)},
        lambda z, a, b, lb: excess(plane(z, a, b).abs(), lb - z),
        smooth=True,
    ),
    "second-order cone": Case(
        SecondOrderCone,
        nothing,
        lambda z: torch.linalg.vector_norm(z[..., :-1], dim=-1) - z[..., -1],
        smooth=True,
    ),
    "second-order cone of t alone": Case(SecondOrderCone, nothing, lambda z: -z[..., -1], (1,)),
    "psd cone": Case(partial(PSDCone, order=2), nothing, in_psd, (4, 4), smooth=True),
    "polyhedron": Case(
        partial(Polyhedron, order=2), some_polyhedron, in_polyhedron, smooth=True, reports=True
    ),
    "polyhedron, no equation": Case(
        Polyhedron,
        lambda f: {"G": f(5, 6), "h": positive(f, 5)},
        lambda z, G, h: excess(times(G, z) - h),
        reports=True,
    ),
    "transport polytope": Case(
        lambda u, v: TransportPolytope(**masses(u, v), order=2),
        lambda f: {"u": f(3), "v": f(4)},
        in_transport,
        (3, 4),
        smooth=True,
    ),
}
BATCH = 8
TOLERANCE = 1e-10


class Drawn(NamedTuple):
    """A case with parameters for a batch, and points: inside, outside, far out."""

    case: Case
    parameters: dict[str, Tensor]
    x: Tensor

    def project(self, x: Tensor | None = None, **changed: Tensor) -> Tensor:
        parameters = self.parameters | changed
        return self.case.make(**parameters)(self.x if x is None else x)

    def violation(self, z: Tensor) -> Tensor:
        return self.case.violation(z, **self.parameters)

    def leaves(self) -> list[Tensor]:
        """x and the parameters, those that may be moved one by one as leaves."""
        names, values = ["x", *self.parameters], [self.x, *self.parameters.values()]
        return [
            v.clone().requires_grad_(k not in self.case.fixed)
            for k, v in zip(names, values, strict=True)
        ]

    def function(self, *values: Tensor) -> Tensor:
        """The answer from x and the parameters, one after another."""
        return self.project(values[0], **dict(zip(self.parameters, values[1:], strict=True)))


def draw(case: Case, batch: int = BATCH, seed: int = 0) -> Drawn:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator, dtype=DOUBLE)

    scale = torch.tensor([0.1, 1.0, 3.0, 30.0], dtype=DOUBLE).repeat(batch)[:batch]
    x = normal(*case.shape) * scale.view(-1, *[1] * len(case.shape))
    return Drawn(case, case.draw(normal), x)
