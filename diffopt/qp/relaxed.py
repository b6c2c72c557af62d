"""Answers where the constraints contradict each other: the rows are shifted, the bounds hold.

    h_lower <= Gz - s_G <= h,    Az - s_A = b,    lb <= z <= ub

* "closest": the shifts s of least Euclidean norm for which a point exists, and the QP with its
  rows shifted so. Two QPs, the second with the shifts of the first, both differentiated: the
  derivative of the pair is that of the closest feasible QP.
* "elastic": every unit of shift costs `penalty`; one QP. If the multipliers of the QP are no larger
  than that, its own solution is the answer, without shifts (the penalty is exact).

A sample that has a solution (and, for "elastic", small multipliers) is left as it is, with shifts
of zero, whose derivative is zero.

Source: Chiche & Gilbert, "How the augmented Lagrangian algorithm can deal with an infeasible convex
quadratic optimization problem" (J. Convex Anal. 23, 2016), for the closest feasible QP; as a layer:
Bambade, Schramm, Taylor & Carpentier, "Leveraging augmented-Lagrangian techniques for
differentiating over infeasible quadratic programs in machine learning" (ICLR 2024); Nocedal &
Wright, Numerical Optimization (2nd ed., 2006), sec. 17.2, for the exact penalty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..solution import Status, fill_failed, report
from ..tree import put, take
from .kkt import Blocks
from .layer import Answer, solve
from .options import Options
from .problem import QP, largest, matvec


class Shifts(NamedTuple):
    """By how much the rows were moved to make a QP feasible, and differentiable like z.

    Attributes:
        G: h_lower <= Gz - G <= h, `(*B, m)`.
        A: Az - A = b, `(*B, e)`.
    """

    G: Tensor
    A: Tensor


def solve_closest(qp: QP, options: Options, warm: Blocks | None) -> tuple[Answer, Shifts]:
    """The answer of each QP, or of the closest feasible one."""
    return _relaxed(qp, options, warm, _without_answer, _closest)


def solve_elastic(qp: QP, options: Options, warm: Blocks | None) -> tuple[Answer, Shifts]:
    """The answer of each QP with rows that may be shifted, at `penalty` a unit."""

    def wanting(answer: Answer) -> Tensor:
        price = largest(answer.x.nu.detach(), answer.x.y.detach()[:, : qp.m])
        return _without_answer(answer) | (price > options.price())

    return _relaxed(qp, options, warm, wanting, _elastic)


def _relaxed(
    qp: QP,
    options: Options,
    warm: Blocks | None,
    wanting: Callable[[Answer], Tensor],
    relax: Callable[[QP, Options], tuple[Answer, Shifts]],
) -> tuple[Answer, Shifts]:
    """The QPs as they are, but those that `wanting` names by `relax`."""
    silent = replace(options, on_failure="ignore")
    answer = solve(qp, silent, warm)
    if torch._C._functorch.is_batchedtensor(answer.facts.status):
        raise NotImplementedError(
            f"infeasible={options.infeasible!r} under torch.func.vmap: which samples need it is "
            "not known there; give the mapped dimension as a batch dimension of the arguments"
        )
    shifts = Shifts(answer.x.z.new_zeros(qp.batch, qp.m), torch.zeros_like(answer.x.nu))
    some = wanting(answer).nonzero().flatten()
    if len(some):
        part, moved = relax(take(qp, some), silent)
        part = part.after(answer.facts.steps[some])
        answer, shifts = put(answer, some, part), put(shifts, some, moved)
    report(answer.facts.status, answer.facts.error, options.on_failure, "solve_qp")
    return answer, Shifts(*(fill_failed(v, answer.facts.status, 0.0) for v in shifts))


def _without_answer(answer: Answer) -> Tensor:
    """Samples that are proved infeasible, or of which nothing could be proved."""
    status = answer.facts.status
    return (status == int(Status.PRIMAL_INFEASIBLE)) | (status == int(Status.ITERATION_LIMIT))


def _closest(qp: QP, options: Options) -> tuple[Answer, Shifts]:
    shifts, sign, z = _least_shifts(qp, options)
    # The limits are those of z to the last bit: what is feasible by rounding only is infeasible.
    Gz, Az = matvec(qp.G, z).detach(), matvec(qp.A, z).detach()
    lower, upper = qp.lower[:, : qp.m] + shifts.G, qp.upper[:, : qp.m] + shifts.G
    # A row that had to move is at its shifted limit in every feasible point: an equality.
    lower, upper = torch.where(sign > 0, upper, lower), torch.where(sign < 0, lower, upper)
    lower, upper = (torch.where(sign != 0, _valued(Gz, v), v) for v in (lower, upper))
    feasible = replace(
        qp,
        b=_valued(Az, qp.b + shifts.A),
        lower=torch.cat([lower, qp.lower[:, qp.m :].expand(len(lower), -1)], -1),
        upper=torch.cat([upper, qp.upper[:, qp.m :].expand(len(upper), -1)], -1),
    )
    return solve(feasible, options), shifts


def _valued(value: Tensor, graph: Tensor) -> Tensor:
    """`value` with the derivative of `graph`, which is infinite only where it is not used."""
    return value + torch.where(graph.isfinite(), graph - graph.detach(), 0.0)


def _least_shifts(qp: QP, options: Options) -> tuple[Shifts, Tensor, Tensor]:
    """(the shifts of least norm, the signs of those of G, a point that needs no more).

    They minimise 1/2 |s|^2 over (z, s_G, s_A), and are the multipliers of that QP themselves, so
    that a row that need not move is known, and has a shift of exactly zero.
    """
    n, m, e = qp.n, qp.m, qp.A.shape[-2]
    extended = _with_slacks(qp, [-1.0], [-1.0], least=-torch.inf)
    size = torch.cat([qp.p.new_zeros(n), qp.p.new_ones(m + e)])
    extended = replace(extended, Q=torch.diag(size).unsqueeze(0), p=torch.zeros_like(size)[None])
    found = solve(extended, replace(options, smoothing=None))
    G, A = found.x.z[:, n:].split([m, e], -1)
    sign = found.x.y[:, :m].detach().sign()
    return Shifts(torch.where(sign != 0, G, 0.0), A), sign, found.x.z[:, :n]


def _elastic(qp: QP, options: Options) -> tuple[Answer, Shifts]:
    """min 1/2 z'Qz + p'z + penalty (sum of the slacks), which relax every limit that there is."""
    n, m, e = qp.n, qp.m, qp.A.shape[-2]
    sides = {-1.0: qp.upper[:, :m], 1.0: qp.lower[:, :m]}
    signs = [sign for sign, limit in sides.items() if bool(limit.isfinite().any())]
    extended = _with_slacks(qp, signs, [-1.0, 1.0], least=0.0)
    extra = len(signs) * m + 2 * e
    pad = torch.nn.functional.pad
    extended = replace(
        extended, Q=pad(qp.Q, (0, extra, 0, extra)), p=pad(qp.p, (0, extra), value=options.price())
    )
    answer = solve(extended, options)
    slack_G, slack_A = answer.x.z[:, n:].split([len(signs) * m, 2 * e], -1)
    G = slack_G.new_zeros(len(slack_G), m)
    for j, sign in enumerate(signs):
        G = G - sign * slack_G[:, j * m : (j + 1) * m]
    over, under = slack_A.split([e, e], -1)
    k = m + (n if qp.bounded else 0)
    x = Blocks(answer.x.z[:, :n], answer.x.nu, answer.x.y[:, :k])
    facts = answer.facts.cut(n, m)
    return Answer(x, facts), Shifts(G, over - under)


def _with_slacks(qp: QP, signs_G: list[float], signs_A: list[float], least: float) -> QP:
    """`qp` with unknowns t >= `least` more: Gz + sum of sign t, and Az + sum of sign t."""
    m, e = qp.m, qp.A.shape[-2]
    own_G = [sign * torch.eye(m).to(qp.p) for sign in signs_G]
    own_A = [sign * torch.eye(e).to(qp.p) for sign in signs_A]
    none_G, none_A = qp.p.new_zeros(m, len(signs_A) * e), qp.p.new_zeros(e, len(signs_G) * m)
    G, A = torch.cat([*own_G, none_G], -1), torch.cat([none_A, *own_A], -1)
    size = max(qp.lower.shape[0], qp.upper.shape[0])

    def limits(v: Tensor, absent: float, extra: float) -> Tensor:
        v = v.expand(size, -1)
        bounds = v[:, m:] if qp.bounded else v.new_full((size, qp.n), absent)
        return torch.cat([v[:, :m], bounds, v.new_full((size, G.shape[-1]), extra)], -1)

    return replace(
        qp,
        G=torch.cat([qp.G, G.expand(len(qp.G), -1, -1)], -1),
        A=torch.cat([qp.A, A.expand(len(qp.A), -1, -1)], -1),
        lower=limits(qp.lower, -torch.inf, least),
        upper=limits(qp.upper, torch.inf, torch.inf),
        bounded=True,
    )
