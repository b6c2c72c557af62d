"""The program that the solver sees, as a function of the parameters: `Reduced`.

With x_J the unknowns that the presolve removes and x_K those it keeps, the rows R that define them
say  A_RJ x_J = b_R - A_RK x_K,  where A_RJ is lower triangular level by level with a constant
diagonal. So  x_J = T x_K + t,  and  1/2 x'Px + q'x  subject to the rows S that are left becomes

    Q = P_KK + P_KJ T + T'P_JK + T'P_JJ T        p = q_K + P_KJ t + T'(q_J + P_JJ t)
    G = A_SK + A_SJ T                            h = b_S - A_SJ t

T and t are the columns of one matrix W = (T t), so that each product is made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..optional import package
from .affine import Affine
from .canonical import Canonical
from .entries import Array, Entries
from .presolve import Bound, Level, Plan

Block = Affine | None
Values = Sequence[Tensor]


@dataclass(frozen=True)
class Links:
    """One level: its unknowns are  own (x_K 1) - earlier x_J',  in units of the pivots.

    Attributes:
        own: `(rows, K + 1)`.
        earlier: coefficients of those removed unknowns, from number `first` on, that come before.
        pivots: `(rows,)`.
    """

    own: Block
    earlier: Block
    first: int
    pivots: Tensor


@dataclass(frozen=True)
class Limits:
    """Bounds of some unknowns: rows of b, to be divided by the coefficients."""

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
            tuple(_links(program, level, K, J) for level in plan.levels),
        )

    def substitution(self, values: Values) -> Tensor | None:
        """W = (T t), `(B|1, J, K + 1)`, for these parameters; None if nothing is removed."""
        W: Tensor | None = None
        for links in self.levels:
            own = _value(links.own, values, len(links.pivots), self.K + 1, links.pivots)
            if W is not None and links.earlier is not None:
                earlier = links.earlier(values)
                own = own - earlier @ W[:, links.first : links.first + earlier.shape[-1]]
            W = own if W is None else _behind(W, own)
        return W

    def problem(self, values: Values, W: Tensor | None) -> dict[str, Any]:
        """The arguments of `solve_qp`, one batch dimension each."""
        found = self._objective(values, W) | self._rows(values, W)
        return {name: value for name, value in found.items() if value is not None}

    def _objective(self, values: Values, W: Tensor | None) -> dict[str, Tensor | None]:
        """Q and p, from  (Q p) = (P_KK q_K) + P_KJ W + T'(P_JJ W + (P_JK q_J))."""
        Q = None if self.P_KK is None else self.P_KK(values)
        p = self._linear(self.q_K, values, self.K)
        if W is None:
            return {"Q": Q, "p": p}
        T, inner = W[..., :-1], None
        if self.P_JJ is not None:
            inner = self.weighted(values, W)
        if self.q_J is not None:
            q_J = torch.nn.functional.pad(self.q_J(values), (self.K, 0))
            inner = q_J if inner is None else inner + q_J
        if inner is not None:
            pulled = T.mT @ inner
            p = p + pulled[..., -1]
            if self.P_JJ is not None:
                Q = pulled[..., :-1] if Q is None else Q + pulled[..., :-1]
        if self.P_KJ is not None:
            cross = self.P_KJ(values) @ W
            both = cross[..., :-1] + cross[..., :-1].mT
            Q, p = both if Q is None else Q + both, p + cross[..., -1]
        return {"Q": Q, "p": p}

    def weighted(self, values: Values, M: Tensor) -> Tensor:
        """P_JJ M."""
        assert self.P_JJ is not None
        P = self.P_JJ(values)
        return P * M if self.diagonal else P @ M

    def _linear(self, block: Block, values: Values, size: int) -> Tensor:
        like = self.ub.coefficients
        return _value(block, values, size, 1, like).squeeze(-1)

    def _rows(self, values: Values, W: Tensor | None) -> dict[str, Tensor | None]:
        """G, h, h_lower, A, b, lb and ub."""
        e, m, *_ = self.counts
        A = _value(self.A_K, values, e, self.K, self.ub.coefficients)
        G = _value(self.G_K, values, m, self.K, self.ub.coefficients)
        limit = self._linear(self.rhs, values, sum(self.counts))
        if W is not None and self.through is not None:
            moved = self.through(values) @ W
            A, G = A + moved[:, :e, :-1], G + moved[:, e : e + m, :-1]
            limit = limit - moved[..., -1]
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


def _links(program: Canonical, level: Level, K: Array, J: Array) -> Links:
    """The definitions of one level, divided by their pivots."""
    sparse = package("scipy.sparse", extra="cvxpy")
    A, b = program.A.within(level.rows, K), program.b.within(level.rows, np.zeros(1, int))
    own = Entries(
        np.concatenate([A.row, b.row]),
        np.concatenate([A.col, np.full(len(b), len(K))]),
        sparse.vstack([-A.weights, b.weights]).tocsr(),
    )
    before = program.A.within(level.rows, J[: int(np.flatnonzero(J == level.unknowns[0])[0])])
    first, stop = int(before.col.min(initial=len(J))), int(before.col.max(initial=-1)) + 1
    before = Entries(before.row, before.col - first, before.weights)
    rows = len(level.rows)
    return Links(
        Affine.of(_divided(own, level.pivots, sparse), (rows, len(K) + 1), program.shapes),
        Affine.of(_divided(before, level.pivots, sparse), (rows, stop - first), program.shapes),
        first,
        torch.from_numpy(level.pivots.astype(float)),
    )


def _divided(entries: Entries, pivots: Array, sparse: Any) -> Entries:
    scale = sparse.diags_array(1 / pivots[entries.row])
    return Entries(entries.row, entries.col, (scale @ entries.weights).tocsr())


def _value(block: Block, values: Values, rows: int, cols: int, like: Tensor) -> Tensor:
    return like.new_zeros(1, rows, cols) if block is None else block(values)


def _behind(W: Tensor, own: Tensor) -> Tensor:
    """The substitution with further unknowns behind."""
    size = max(len(W), len(own))
    return torch.cat([W.expand(size, -1, -1), own.expand(size, -1, -1)], 1)
