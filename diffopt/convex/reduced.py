"""The program that the solver sees, as a function of the parameters: `Reduced`.

With x_J the unknowns that the presolve removes and x_K those it keeps, the rows R that define them
say  A_RJ x_J = b_R - A_RK x_K,  where A_RJ is lower triangular level by level with a constant
diagonal. So  x_J = T x_K + x0,  and  1/2 x'Px + q'x  subject to the rows S that are left becomes

    Q = P_KK + P_KJ T + T'P_JK + T'P_JJ T        p = q_K + P_KJ x0 + T'(q_J + P_JJ x0)
    G = A_SK + A_SJ T                            h = b_S - A_SJ x0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .affine import Affine
from .canonical import Canonical
from .entries import Array, Entries
from .presolve import Bound, Plan

Block = Affine | None
Values = Sequence[Tensor]


class Substitution(NamedTuple):
    """x_J = T x_K + x0, `(B|1, J, K)` and `(B|1, J)`."""

    T: Tensor
    x0: Tensor


@dataclass(frozen=True)
class Links:
    """One level: its unknowns from those kept and those of earlier levels."""

    kept: Block
    earlier: Block
    b: Block
    pivots: Tensor


@dataclass(frozen=True)
class Limits:
    """Bounds of some unknowns: `side * limit / coefficient` of rows of b."""

    unknowns: Tensor
    coefficients: Tensor
    all: bool  # every unknown has one, in order


@dataclass(frozen=True)
class Reduced:
    """The blocks of the program by kept (K) and removed (J) unknowns and by kind of row.

    Attributes:
        K, J: how many unknowns are kept, and removed.
        counts: of the rows that stay: equalities, inequalities, other sides, upper and lower
            bounds, in which order `rhs`, and `through`, their coefficients of x_J, have them.
        paired: which inequality each other side belongs to.
    """

    K: int
    J: int
    counts: tuple[int, ...]
    P_KK: Block
    P_KJ: Block
    P_JJ: Block
    diagonal: bool  # P_JJ is
    q_K: Block
    q_J: Block
    A_K: Block
    G_K: Block
    through: Block
    rhs: Block
    paired: Tensor
    ub: Limits
    lb: Limits
    levels: tuple[Links, ...]

    @classmethod
    def of(cls, program: Canonical, plan: Plan) -> Reduced:
        """The blocks of `program` that `plan` makes of it."""
        K, J = plan.kept, removed(plan)
        A, P, shapes = program.A, program.P, program.shapes
        zero = np.zeros(1, int)

        def block(entries: Entries, rows: Array, cols: Array) -> Block:
            part = entries.within(rows, cols)
            return Affine.of(part, (len(rows), len(cols)), shapes)

        inner = P.within(J, J)
        diagonal = bool((inner.row == inner.col).all())
        rows = remaining(plan)
        groups = plan.equalities, plan.upper, plan.lower[plan.lower >= 0], plan.ub, plan.lb
        levels, before = [], 0
        for level in plan.levels:
            links = block(A, level.rows, K), block(A, level.rows, J[:before])
            pivots = torch.from_numpy(level.pivots.astype(float))
            levels.append(Links(*links, block(program.b, level.rows, zero), pivots))
            before += len(level.rows)
        return cls(
            len(K),
            len(J),
            tuple(len(group) for group in groups),
            block(P, K, K),
            block(P, K, J),
            Affine.of(_column(inner), (len(J), 1), shapes) if diagonal else block(P, J, J),
            diagonal,
            block(program.q, K, zero),
            block(program.q, J, zero),
            block(A, plan.equalities, K),
            block(A, plan.upper, K),
            block(A, rows, J),
            block(program.b, rows, zero),
            torch.from_numpy(np.flatnonzero(plan.lower >= 0)),
            _limits(plan.ub, K),
            _limits(plan.lb, K),
            tuple(levels),
        )

    def substitution(self, values: Values) -> Substitution | None:
        """The removed unknowns by those kept, for these parameters; None if there are none."""
        found: Substitution | None = None
        for links in self.levels:
            T = -_value(links.kept, values, (len(links.pivots), self.K), links.pivots)
            x0 = _vector(links.b, values, len(links.pivots), links.pivots)
            if found is not None and links.earlier is not None:
                M = links.earlier(values)
                T, x0 = T - M @ found.T, x0 - _times(M, found.x0)
            T, x0 = T / links.pivots.unsqueeze(-1), x0 / links.pivots
            found = Substitution(T, x0) if found is None else _behind(found, T, x0)
        return found

    def problem(self, values: Values, found: Substitution | None) -> dict[str, Any]:
        """The arguments of `solve_qp`, one batch dimension each."""
        objective = self._objective(values, found)
        rows = self._rows(values, found)
        return {name: value for name, value in (objective | rows).items() if value is not None}

    def _objective(self, values: Values, found: Substitution | None) -> dict[str, Tensor | None]:
        """Q and p."""
        Q = None if self.P_KK is None else self.P_KK(values)
        like = self.paired.new_zeros((), dtype=torch.float64)
        p = _vector(self.q_K, values, self.K, like)
        if found is None:
            return {"Q": Q, "p": p}
        T, x0 = found
        inner = None if self.q_J is None else self.q_J(values).squeeze(-1)
        if self.P_JJ is not None:
            PT, Px = self.weighted(values, T), self.weighted(values, x0.unsqueeze(-1)).squeeze(-1)
            Q = _plus(Q, T.mT @ PT)
            inner = _plus(inner, Px)
        if self.P_KJ is not None:
            M = self.P_KJ(values)
            cross = M @ T
            Q, p = _plus(Q, cross + cross.mT), p + _times(M, x0)
        return {"Q": Q, "p": p if inner is None else p + _times(T.mT, inner)}

    def weighted(self, values: Values, M: Tensor) -> Tensor:
        """P_JJ M."""
        assert self.P_JJ is not None
        P = self.P_JJ(values)
        return P * M if self.diagonal else P @ M

    def _rows(self, values: Values, found: Substitution | None) -> dict[str, Tensor | None]:
        """G, h, h_lower, A, b, lb and ub."""
        e, m, *_ = self.counts
        like = self.paired.new_zeros((), dtype=torch.float64)
        A = _value(self.A_K, values, (e, self.K), like)
        G = _value(self.G_K, values, (m, self.K), like)
        limit = _vector(self.rhs, values, sum(self.counts), like)
        if found is not None and self.through is not None:
            M = self.through(values)
            A, G = A + M[:, :e] @ found.T, G + M[:, e : e + m] @ found.T
            limit = limit - _times(M, found.x0)
        b, h, other, upper, lower = limit.split(self.counts, -1)
        return {
            "A": A if e else None,
            "b": b if e else None,
            "G": G if m else None,
            "h": h if m else None,
            "h_lower": _spread(self.paired, -other, m, -torch.inf) if len(self.paired) else None,
            "ub": _bounds(self.ub, upper, self.K, torch.inf),
            "lb": _bounds(self.lb, lower, self.K, -torch.inf),
        }


def removed(plan: Plan) -> Array:
    """The unknowns that leave, level by level."""
    return np.concatenate([np.zeros(0, int), *(level.unknowns for level in plan.levels)])


def remaining(plan: Plan) -> Array:
    """The rows that stay, kind by kind."""
    bounds = [b.row for b in (*plan.ub, *plan.lb)]
    other = plan.lower[plan.lower >= 0]
    return np.concatenate([plan.equalities, plan.upper, other, np.array(bounds, int)])


def _column(diagonal: Entries) -> Entries:
    return Entries(diagonal.row, np.zeros_like(diagonal.row), diagonal.weights)


def _limits(bounds: tuple[Bound, ...], kept: Array) -> Limits:
    place = {int(j): k for k, j in enumerate(kept)}
    unknowns = torch.tensor([place[b.unknown] for b in bounds], dtype=torch.int64)
    coefficients = torch.tensor([b.coefficient for b in bounds], dtype=torch.float64)
    return Limits(unknowns, coefficients, unknowns.tolist() == list(range(len(kept))))


def _bounds(limits: Limits, rhs: Tensor, n: int, absent: float) -> Tensor | None:
    if not len(limits.unknowns):
        return None
    value = rhs / limits.coefficients + 0.0  # no -0
    return value if limits.all else _spread(limits.unknowns, value, n, absent)


def _spread(places: Tensor, v: Tensor, size: int, absent: float) -> Tensor:
    """`v` at `places` of a vector that is `absent` elsewhere."""
    full = v.new_full((1, size), absent).expand(len(v), -1)
    return full.scatter(-1, places.expand(len(v), -1), v)


def _value(block: Block, values: Values, shape: tuple[int, int], like: Tensor) -> Tensor:
    return like.new_zeros(1, *shape) if block is None else block(values)


def _vector(block: Block, values: Values, size: int, like: Tensor) -> Tensor:
    return like.new_zeros(1, size) if block is None else block(values).squeeze(-1)


def _times(M: Tensor, v: Tensor) -> Tensor:
    return (M @ v.unsqueeze(-1)).squeeze(-1)


def _plus(a: Any, b: Any) -> Any:
    return b if a is None else a + b


def _behind(found: Substitution, T: Tensor, x0: Tensor) -> Substitution:
    """The substitution with further unknowns behind."""
    size = max(len(found.T), len(T), len(x0), len(found.x0))
    joined = (torch.cat([a.expand(size, *a.shape[1:]), b.expand(size, *b.shape[1:])], 1)
              for a, b in zip(found, (T, x0), strict=True))  # fmt: skip
    return Substitution(*joined)
