"""Hidden polygons to be learned from projections on them, and the judge: areas that differ.

A polytope in the plane is {x : G x <= h}, a `Polytope(G, h)` with one row for each facet; a
polygon is the tensor of its vertices, `(V, 2)`, counterclockwise, `(0, 2)` if it is empty. The
projection of a point p on it, argmin 1/2 |p - y|^2 subject to G y <= h, is found from the edges
of the polygon, so no solver is needed to know it.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

SHORTEST, TRIES = 0.3, 10_000  # of `random_polytope`


class Polytope(NamedTuple):
    """The set {x : G x <= h} in the plane: G `(k, 2)`, h `(k,)`, of any scale row by row."""

    G: Tensor
    h: Tensor


def regular(k: int, radius: float = 1.0) -> Polytope:
    """Return the regular k-gon around the disc of this radius, with unit rows in float64.

    ValueError if `k` < 3 or `radius` is not positive.

        >>> vertices(regular(4)).tolist()[0]
        [1.0, -1.0]
    """
    if k < 3 or not radius > 0:
        raise ValueError(f"k is {k}, radius is {radius}: choose k >= 3 and radius > 0")
    angles = torch.arange(k, dtype=torch.float64) * (2 * math.pi / k)
    return Polytope(torch.stack([angles.cos(), angles.sin()], 1), angles.new_full((k,), radius))


def random_polytope(k: int, *, seed: int = 0) -> Polytope:
    """Return a random k-gon with 0 inside, unit rows in float64, no facet shorter than 0.3.

    The angles of its normals are even but for a fifth of their distance either way, with a random
    turn of all; its offsets h are 0.6 to 1.4. ValueError if `k` is not in 4..10.

        >>> len(vertices(random_polytope(7, seed=3)))
        7
    """
    if not 4 <= k <= 10:
        raise ValueError(f"k is {k}: choose 4 to 10 facets")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(TRIES):
        jitter, turn, offset = torch.rand(3, k, generator=generator, dtype=torch.float64)
        steps = torch.arange(k) + k * turn[0] + 0.4 * (jitter - 0.5)
        angles = steps * (2 * math.pi / k)
        found = Polytope(torch.stack([angles.cos(), angles.sin()], 1), 0.6 + 0.8 * offset)
        polygon = vertices(found)
        if len(polygon) == k and _edges(polygon).norm(dim=1).min() >= SHORTEST:
            return found
    raise AssertionError(f"no {k}-gon in {TRIES} tries")


def points(count: int, *, spread: float = 2.0, seed: int = 0) -> Tensor:
    """Return `count` points drawn from N(0, spread^2 I), `(count, 2)`, float64."""
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(count, 2, generator=generator, dtype=torch.float64)


def project(p: Tensor, polytope: Polytope) -> Tensor:
    """Return the point of the polytope nearest to each point p, `(*B, 2)`.

    A point inside is its own projection; for another it is the nearest one of an edge. ValueError
    if the polytope is unbounded or empty.

        >>> project(torch.tensor([[3.0, 0.5], [0.25, 0.0]]), regular(4)).tolist()
        [[1.0, 0.5], [0.25, 0.0]]
    """
    polygon = vertices(polytope)
    if not len(polygon):
        raise ValueError("the polytope is empty: nothing can be projected on it")
    q = p.unsqueeze(-2).to(polygon.dtype)
    edges = _edges(polygon)
    t = ((q - polygon) * edges).sum(-1) / edges.square().sum(-1).clamp_min(1e-300)
    nearest = polygon + t.clamp(0, 1).unsqueeze(-1) * edges  # (*B, V, 2)
    first = (q - nearest).square().sum(-1).argmin(-1, keepdim=True).unsqueeze(-1)
    y = nearest.gather(-2, first.expand(*first.shape[:-1], 2)).squeeze(-2)
    inside = (q @ polytope.G.to(q).T <= polytope.h.to(q)).all(-1)
    return torch.where(inside, q.squeeze(-2), y).to(p.dtype)


def project_disc(p: Tensor) -> Tensor:
    """Return the point of the unit disc nearest to each p, `(*B, 2)`: p / max(1, |p|)."""
    return p / p.norm(dim=-1, keepdim=True).clamp_min(1.0)


def bounded(polytope: Polytope) -> bool:
    """Return whether the normals leave no half-plane free; if they do, it is unbounded or empty."""
    return _widest_gap(_unit_rows(polytope)[0]) < math.pi * (1 - 1e-12)


def vertices(polytope: Polytope) -> Tensor:
    """Return the polygon `(V, 2)` of a bounded polytope, in float64; redundant rows are no harm.

    A direction u between neighbouring unit normals is a g + b g' with a, b >= 0, and a + b is at
    most 1 / cos(gap / 2). So u'x <= max h / cos(gap / 2): the square of this size holds the
    polytope, which is cut out of it. ValueError if the polytope is not `bounded`, or its shapes
    are wrong.
    """
    G, h = _unit_rows(polytope)
    if not bounded(polytope):
        raise ValueError(
            f"the {len(G)} rows of G leave a half-plane of directions free: the polytope is "
            "unbounded or empty; cut it out of a polygon with `clip`"
        )
    size = 2 * float(h.abs().max()) / math.cos(_widest_gap(G) / 2)
    square = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]], dtype=h.dtype)
    return clip(size * square, polytope)


def clip(polygon: Tensor, polytope: Polytope) -> Tensor:
    """Return the part of a convex polygon `(V, 2)` that lies in the polytope, in float64.

    Row by row: a vertex with g'x <= h stays, and an edge with just one such end is cut. Accurate
    to rounding at the size of `polygon`, also where edges fall together.

    Source: Sutherland & Hodgman, "Reentrant polygon clipping" (Communications of the ACM, 1974).
    """
    V = polygon.to(torch.float64)
    for g, offset in zip(*_unit_rows(polytope), strict=True):
        if not len(V):
            break
        over = V @ g - offset
        over_next = over.roll(-1)
        t = over / torch.where(over == over_next, 1.0, over - over_next)
        cut = V + t.unsqueeze(1) * _edges(V)
        kept = torch.stack([over <= 0, (over < 0) & (over_next > 0) | (over > 0) & (over_next < 0)])
        V = torch.stack([V, cut], 1)[kept.T]  # each vertex, and then the cut of the edge after it
    return V if len(V) > 2 else V[:0]


def area(polygon: Tensor) -> float:
    """Return the area of a polygon `(V, 2)`, positive if counterclockwise, by the shoelace formula.

    >>> area(vertices(regular(4)))
    4.0
    """
    if not len(polygon):
        return 0.0
    (x, y), (u, v) = (polygon - polygon[0]).T, (polygon - polygon[0]).roll(-1, 0).T
    return 0.5 * float((x * v - u * y).sum())


def symmetric_difference(first: Polytope, second: Polytope) -> float:
    """Return the area of the points in just one of the two; inf if one alone is unbounded.

    Zero if and only if they are the same set, up to rounding: it sees a facet that is missing, as
    the error of projections may not. ValueError if neither is bounded.

        >>> symmetric_difference(regular(4), regular(4, radius=2.0))
        12.0
    """
    if bounded(first) != bounded(second):
        return math.inf
    one, other = vertices(first), vertices(second)
    return max(0.0, area(one) + area(other) - 2 * area(clip(one, second)))


def _edges(polygon: Tensor) -> Tensor:
    """From each vertex to the next, `(V, 2)`."""
    return polygon.roll(-1, 0) - polygon


def _unit_rows(polytope: Polytope) -> tuple[Tensor, Tensor]:
    """(G, h) in float64 with rows of length one; ValueError if that is impossible."""
    G, h = (x.detach().to("cpu", torch.float64) for x in polytope)
    if G.ndim != 2 or G.shape[1] != 2 or h.shape != G.shape[:1] or not len(G):
        shapes = f"{tuple(G.shape)} and {tuple(h.shape)}"
        raise ValueError(f"G and h have shapes {shapes}: pass (k, 2) and (k,), k >= 1")
    size = G.norm(dim=1)
    if not (size > 0).all() or not (size.isfinite() & h.isfinite()).all():
        raise ValueError("G has a row that is zero or not finite, or h is not finite: drop it")
    return G / size.unsqueeze(1), h / size


def _widest_gap(G: Tensor) -> float:
    """The largest angle between neighbouring unit rows, 2 pi for one row alone."""
    angles = torch.atan2(G[:, 1], G[:, 0]).sort().values
    return float(torch.cat([angles[1:], angles[:1] + 2 * math.pi]).sub(angles).max())
