"""What defines a projection: a member, the nearest one, and the map does not expand."""

import torch
from torch import Tensor

from .sets import TOLERANCE, Case, Drawn


def inner(a: Tensor, b: Tensor, case: Case) -> Tensor:
    return (a * b).flatten(-len(case.shape)).sum(-1)


def many_points(drawn: Drawn) -> Tensor:
    """`(k, B, ...)`: far and near, on the boundary, and (of a convex set) inside."""
    x = torch.stack([drawn.x * s for s in (-1.0, 0.3, 1.0, 3.0)] + [drawn.x.flip(0)])
    z = drawn.project(x)
    inside = [z.mean(0, keepdim=True)] if drawn.case.convex else []
    return torch.cat([x, z, (x + z) / 2, *inside])


def test_the_answer_is_a_member(drawn):
    assert drawn.violation(drawn.project(many_points(drawn))).max() <= TOLERANCE * 10


def test_members_stay(drawn):
    z = drawn.project(many_points(drawn))
    assert (drawn.project(z) - z).abs().max() <= TOLERANCE


def test_no_member_is_nearer(drawn):
    """<x - Px, y - Px> <= 0 for every y of a convex set; by distance for the others."""
    x = many_points(drawn)
    z = drawn.project(x)
    y = z.unsqueeze(1)  # every answer is a member, and so is what lies between them
    members = torch.cat([y, (y + y.flip(0)) / 2]) if drawn.case.convex else y
    assert drawn.violation(members).max() <= TOLERANCE * 10
    gap, case = x - z, drawn.case
    size = 1 + inner(x, x, case)
    if case.convex:
        assert (inner(gap, members - z, case) / size).max() <= TOLERANCE
    else:
        away = x - members
        assert ((inner(gap, gap, case) - inner(away, away, case)) / size).max() <= TOLERANCE


def test_nonexpansive(convex):
    x = many_points(convex)
    z, case = convex.project(x), convex.case
    dx, dz = x.unsqueeze(1) - x, z.unsqueeze(1) - z
    assert (inner(dz, dz, case).sqrt() - inner(dx, dx, case).sqrt()).max() <= TOLERANCE * 10
