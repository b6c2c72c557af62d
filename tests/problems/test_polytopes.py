"""The oracles are known areas, the definition of a projection, and points counted at random."""

import math

import pytest
import torch

from problems import polytopes
from problems.polytopes import Polytope

SQUARE = polytopes.regular(4)  # |x|, |y| <= 1
KITE = Polytope(  # |x| + 2 |y| <= 2, in rows of several scales, with one row to spare
    torch.tensor([[1.0, 2], [-2, 4], [-0.5, -1], [3, -6], [1, 0]]).double(),
    torch.tensor([2.0, 4, 1, 6, 5]).double(),
)
NEEDLE = Polytope(  # a triangle with corners (0, 0), (20, 0), (0, 1)
    torch.tensor([[-1.0, 0], [0, -1], [1, 20]]).double(), torch.tensor([0.0, 0, 20]).double()
)
AREAS = {  # name: (polytope, vertices, area)
    "square": (SQUARE, 4, 4.0),
    "kite with scaled and spare rows": (KITE, 4, 4.0),
    "every row twice": (Polytope(*(torch.cat([x, x]) for x in SQUARE)), 4, 4.0),
    "triangle": (polytopes.regular(3), 3, 3 * math.sqrt(3)),
    "needle": (NEEDLE, 3, 10.0),
    "hexagon of radius 2": (polytopes.regular(6, 2.0), 6, 6 * 4 * math.tan(math.pi / 6)),
    "20-gon": (polytopes.regular(20), 20, 20 * math.tan(math.pi / 20)),
    "without 0": (Polytope(SQUARE.G, torch.tensor([4.0, 1, -3, 1]).double()), 4, 2.0),
    "empty": (Polytope(SQUARE.G, torch.tensor([1.0, 1, -3, 1]).double()), 0, 0.0),
}
KEYS = [(k, seed) for k in (4, 5, 7, 10) for seed in (0, 1)]
RANDOM = {(k, seed): polytopes.random_polytope(k, seed=seed) for k, seed in KEYS}


def turned(polytope, angle, shift=(0.0, 0.0)):
    """The polytope turned by `angle` about 0, and then moved by `shift`."""
    c, s = math.cos(angle), math.sin(angle)
    G = polytope.G @ torch.tensor([[c, s], [-s, c]], dtype=torch.float64)
    return Polytope(G, polytope.h + G @ torch.tensor(shift, dtype=torch.float64))


def contains(polytope, x, margin=1e-12):
    return (x @ polytope.G.T <= polytope.h + margin).all(-1)


@pytest.mark.parametrize("angle", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("name", AREAS)
def test_known_polygons_have_their_vertices_and_area(name, angle):
    polytope, corners, area = AREAS[name]
    polygon = polytopes.vertices(turned(polytope, angle, (0.5, -0.2)))
    edges = polygon - polygon.roll(1, 0)
    (x, y), (u, v) = edges.T, edges.roll(-1, 0).T
    assert int((x * v - u * y > 1e-9).sum()) == corners  # elsewhere it goes straight on, or stops
    assert polytopes.area(polygon) == pytest.approx(area, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("key", RANDOM)
def test_random_polytopes_have_all_their_facets(key):
    polytope = RANDOM[key]
    polygon = polytopes.vertices(polytope)
    assert len(polytope.G) == len(polygon) == key[0]
    assert contains(polytope, polygon).all() and (polytope.h > 0).all()
    on = (polygon @ polytope.G.T - polytope.h).abs() < 1e-12
    assert (on.sum(0) == 2).all() and (on.sum(1) == 2).all()
    assert (polygon - polygon.roll(1, 0)).norm(dim=1).min() >= polytopes.SHORTEST
    torch.testing.assert_close(polytope.G.norm(dim=1), torch.ones(key[0]).double())


@pytest.mark.parametrize("k", [5, 8])
def test_a_polygon_and_itself_turned_by_half_a_facet(k):
    """Their intersection is the regular 2k-gon around the same disc."""
    one, other = polytopes.regular(k), turned(polytopes.regular(k), math.pi / k)
    expected = 2 * (k * math.tan(math.pi / k) - 2 * k * math.tan(math.pi / (2 * k)))
    assert polytopes.symmetric_difference(one, other) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("shift", "expected"), [((0.5, 0.0), 2.0), ((2.0, 0.0), 8.0), ((9.0, 9.0), 8.0), ((0, 0), 0.0)]
)
def test_shifted_squares_differ_by_a_known_area(shift, expected):
    for angle in (0.0, 0.7):
        pair = turned(SQUARE, angle), turned(turned(SQUARE, 0.0, shift), angle)
        assert polytopes.symmetric_difference(*pair) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("noise", [0.0, 1e-16, 1e-12, 1e-6])
def test_rows_that_fall_together_do_no_harm(noise):
    """Where all edges coincide up to `noise`, so does the area of what differs."""
    generator = torch.Generator().manual_seed(0)
    for polytope in RANDOM.values():
        G, h = (x + noise * torch.randn(x.shape, generator=generator).double() for x in polytope)
        assert polytopes.symmetric_difference(polytope, Polytope(G, h)) <= 30 * noise + 1e-13


def test_the_symmetric_difference_is_what_points_counted_at_random_say():
    x = 8 * (torch.rand(200_000, 2, generator=torch.Generator().manual_seed(0)).double() - 0.5)
    for (k, seed), one in RANDOM.items():
        other = RANDOM[k, 1 - seed]
        counted = 64 * (contains(one, x) != contains(other, x)).double().mean()
        exact = polytopes.symmetric_difference(one, other)
        assert exact == pytest.approx(polytopes.symmetric_difference(other, one), abs=1e-12)
        assert exact == pytest.approx(float(counted), abs=0.08)  # 4 standard deviations


@pytest.mark.parametrize("key", RANDOM)
def test_projections_satisfy_the_variational_inequality(key):
    """(p - y)'(x - y) <= 0 for every vertex x says that y is the projection of p."""
    polytope = RANDOM[key]
    p = polytopes.points(300, seed=key[1]).view(3, 100, 2)
    y = polytopes.project(p, polytope)
    x = polytopes.vertices(polytope)
    assert contains(polytope, y).all()
    assert torch.einsum("bij,bivj->biv", p - y, x - y.unsqueeze(-2)).max() <= 1e-12
    assert torch.equal(y[contains(polytope, p, 0.0)], p[contains(polytope, p, 0.0)])
    assert torch.equal(polytopes.project(p[1, 7], polytope), y[1, 7])


def test_projections_on_the_disc_are_the_limit_of_those_on_polygons():
    p = polytopes.points(200)
    y = polytopes.project_disc(p)
    inside = p.norm(dim=1) <= 1
    assert y.norm(dim=1).max() <= 1 + 1e-12 and torch.equal(y[inside], p[inside])
    assert (polytopes.project(p, polytopes.regular(400)) - y).norm(dim=1).max() <= 8e-3


def test_points_and_polytopes_depend_on_the_seed_alone():
    for make in (
        lambda seed: polytopes.points(5, seed=seed),
        lambda seed: polytopes.random_polytope(6, seed=seed).h,
    ):
        assert torch.equal(make(1), make(1)) and not torch.equal(make(1), make(2))
    assert polytopes.points(4000, spread=3.0).std() == pytest.approx(3.0, rel=0.05)


STRIP = Polytope(SQUARE.G[[0, 2]], SQUARE.h[[0, 2]])


def test_an_unbounded_polytope_is_told_from_a_bounded_one():
    half = Polytope(SQUARE.G[:1], SQUARE.h[:1])
    wedge = turned(Polytope(SQUARE.G[:3], SQUARE.h[:3]), 0.1)
    assert not any(polytopes.bounded(x) for x in (half, STRIP, wedge))
    assert all(polytopes.bounded(x) for x, _, _ in AREAS.values())
    assert polytopes.symmetric_difference(STRIP, SQUARE) == math.inf
    square = polytopes.vertices(polytopes.regular(4, 3.0))
    assert polytopes.area(polytopes.clip(square, STRIP)) == pytest.approx(12.0)


def test_what_is_no_bounded_polytope_is_refused():
    with pytest.raises(ValueError, match="the 2 rows of G leave a half-plane of directions free"):
        polytopes.vertices(STRIP)
    with pytest.raises(ValueError, match=r"shapes \(4, 3\) and \(4,\): pass \(k, 2\)"):
        polytopes.vertices(Polytope(torch.ones(4, 3), torch.ones(4)))
    with pytest.raises(ValueError, match="G has a row that is zero"):
        polytopes.vertices(Polytope(torch.zeros(4, 2), torch.ones(4)))
    with pytest.raises(ValueError, match="the polytope is empty"):
        polytopes.project(torch.zeros(2), AREAS["empty"][0])
    with pytest.raises(ValueError, match="k is 3: choose 4 to 10 facets"):
        polytopes.random_polytope(3)
    with pytest.raises(ValueError, match="k is 2, radius is 1.0: choose k >= 3"):
        polytopes.regular(2)
