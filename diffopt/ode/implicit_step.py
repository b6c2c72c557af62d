"""One step of any method; of the implicit ones by Newton's method, stage by stage."""

from __future__ import annotations

from functools import cache
from math import prod

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..implicit import implicit_root
from ..nodes import recorded
from .methods import Solver
from .newton import UNKNOWN, Newton, Stage, chord_matrix, matrix_at, solve_stage
from .step import Slope, Step, combined, explicit_step
from .stiff import Implicit, ImplicitAdaptive, ImplicitFixedStep
from .tableaus import Row


def any_step(
    f: Slope,
    solver: Solver,
    times: Tensor,
    h: Tensor,
    y: Tensor,
    slope: Tensor,
    ahead: bool,
    order: int = 1,
) -> Step:
    """The step from y, where f is `slope`, over h `(B,)`.

    Args:
        times: t + c h, `(stages, B)`.
        ahead: whether f is wanted at the end of the step too.
        order: how many derivatives of it are exact; of an explicit method all are.
    """
    if isinstance(solver, ImplicitFixedStep | ImplicitAdaptive):
        return implicit_step(f, solver, times, h, y, slope, order)
    return explicit_step(f, solver.tableau, times, h, y, slope, ahead)


def implicit_step(
    f: Slope, solver: Implicit, times: Tensor, h: Tensor, y: Tensor, slope: Tensor, order: int
) -> Step:
    """As `any_step`. A sample whose Newton iteration fails is NaN.

    The slopes are found without a record; each is then differentiated as the root that it is. A
    sample with h = 0 keeps its state.
    """
    tableau, over = solver.tableau, h.to(y.dtype).unsqueeze(1)
    weight, moving = tableau.implicit * over, h.detach() != 0
    with torch.no_grad():
        A = chord_matrix(f, times[0], weight, y.detach())
    rate, count = torch.full_like(h, UNKNOWN, requires_grad=False), moving.long()
    found = Newton(slope, moving, torch.zeros_like(moving), rate, count)
    slopes, increments, z, attach = [slope], [(over * slope).contiguous()], y, False
    for i in range(1, len(tableau.a)):
        base = combined(y, tableau.a[i][:i], increments)
        stage = Stage(f, times[i], base, weight)
        with torch.no_grad():
            guess = _guess(extrapolation(tableau.c, i), slopes, moving)
            start = found._replace(k=guess, running=moving & ~found.failed)
            found = solve_stage(stage, start, A, solver, y)
            k = torch.where(found.failed.unsqueeze(1), torch.nan, found.k)
        attach = _recorded(stage, k) if i == 1 else attach
        if attach:
            k = implicit_root(stage.residual, k, matrix_at(stage.residual, k), order)
        slopes.append(k)
        increments.append((over * k).contiguous())
        z = combined(base, (tableau.implicit,), increments[-1:])
    return Step(z, slopes[-1], increments, found.evaluations)


def _recorded(stage: Stage, k: Tensor) -> bool:
    """Whether a derivative can be asked for."""
    if not recorded():
        return False
    forward = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return forward or stage.residual(k).requires_grad


def _guess(weights: Row, slopes: list[Tensor], moving: Tensor) -> Tensor:
    """The weighted slopes; of a sample at rest the first one."""
    first = slopes[0]
    guess = combined(weights[0] * first, (0.0, *weights[1:]), slopes)
    return torch.where(moving.unsqueeze(1), guess, first)


@cache
def extrapolation(c: Row, i: int) -> Row:
    """Weights of the slopes before stage i in a guess of its own.

    The slope at the same time, if there is one; else the parabola through the first three.
    """
    if c[i] in c[:i]:
        same = max(j for j in range(i) if c[j] == c[i])
        return tuple(float(j == same) for j in range(i))
    nodes = c[: min(i, 3)]
    return tuple(
        prod((c[i] - v) / (u - v) for k, v in enumerate(nodes) if k != j)
        for j, u in enumerate(nodes)
    )
