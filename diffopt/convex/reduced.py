"""The program that the solver sees, as a function of the parameters: `Reduced`.

With x_J the unknowns that the presolve removes and x_K those it keeps, the rows R that define them
say  A_RJ x_J = b_R - A_RK x_K,  where A_RJ is lower triangular level by level with a constant
diagonal. So  x_J = T x_K + t,  and  1/2 x'Px + q'x  subject to the rows S that are left becomes

    Q = P_KK + P_KJ T + T'P_JK + T'P_JJ T        p = q_K + P_KJ t + T'(q_J + P_JJ t)
    G = A_SK + A_SJ T                            h = b_S - A_SJ t

T and t are kept apart: T is often the same for all samples where t is not, and so is Q then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..optional import package
from .affine import Affine, samples
from .canonical import Canonical
from .entries import Array, Entries
from .limits import Limits, spread
from .presolve import Level, Plan
from .rounding import cleared, doubtful, vanishing

Block = Affine | None
Values = Sequence[Tensor]


class Substitution(NamedTuple):
    """x_J = T x_K + t, `(B|1, J, K)` and `(B|1, J)`.

    An unknown at an infinite limit has T = t = 0, and the sign of the limit in `far`, `(B|1, J')`
    for the J' unknowns of the first level: in rows without it 0 times infinity would be NaN.
    """

    T: Tensor
    t: Tensor
    far: Tensor | None = None


@dataclass(frozen=True)
class Links:
    """One level: its unknowns are  b - kept x_K - earlier x_J',  all divided by the pivots.

    Attributes:
        earlier: coefficients of those removed unknowns, from number `first` on, that come before.
    """

    kept: Block
    earlier: Block
    first: int
    b: Block
    pivots: Tensor


@dataclass(frozen=True)
class Reduced:
    """The blocks of the program by kept (K) and removed (J) unknowns and by kind of row.

    Attributes:
        K, J: how many unknowns are kept, and removed.
        counts: of the rows that stay: equalities, inequalities, other sides, upper and lower
            bounds, in which order `rhs`, and `through`, their coefficients of x_J, have them.
        paired: which inequality each other side belongs to.
        capped: which unknowns of the first level sit at their limit, which may be infinite; empty
            if none do.
        doubtful: equalities, inequalities and other sides of which rounding may be all that is
            left.
        idle: parameters that are in none of the blocks.
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
    capped: Tensor
    doubtful: Tensor
    ub: Limits
    lb: Limits
    levels: tuple[Links, ...]
    idle: tuple[int, ...] = ()

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
        reduced = cls(
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
            _capped(program, plan),
            doubtful(A, plan.levels, K, np.concatenate(groups[:3])),
            Limits.of(plan.ub, K),
            Limits.of(plan.lb, K),
            tuple(_links(program, level, K, J) for level in plan.levels),
        )
        blocks = [value for value in vars(reduced).values() if isinstance(value, Affine)]
        used = {term.parameter for affine in blocks for term in affine.terms}
        return replace(reduced, idle=tuple(k for k in range(len(shapes)) if k not in used))

    def substitution(self, values: Values) -> Substitution | None:
        """The removed unknowns by those kept, for these parameters; None if there are none."""
        found: Substitution | None = None
        far: Tensor | None = None
        for links in self.levels:
            rows = len(links.pivots)
            T = -_value(links.kept, values, rows, self.K, links.pivots)
            t = self._vector(links.b, values, rows)
            if found is not None and links.earlier is not None:
                M = links.earlier(values)
                run = slice(links.first, links.first + M.shape[-1])
                T, t = T - M @ found.T[:, run], t - times(M, found.t[:, run])
            if found is None and len(self.capped):
                far = torch.where(self.capped & t.isinf(), t.detach().sign(), 0.0)
                t = t.masked_fill(far != 0, 0.0)
            found = Substitution(T, t) if found is None else _behind(found, T, t)
        return None if found is None else found._replace(far=far)

    def problem(self, values: Values, found: Substitution | None) -> dict[str, Any]:
        """The arguments of `solve_qp`, one batch dimension each."""
        data = self._objective(values, found) | self._rows(values, found)
        return {name: value for name, value in data.items() if value is not None}

    def _objective(self, values: Values, found: Substitution | None) -> dict[str, Tensor | None]:
        """Q and p."""
        Q = None if self.P_KK is None else self.P_KK(values)
        p = self._vector(self.q_K, values, self.K)
        if found is None:
            return {"Q": Q, "p": p}
        T, t = found.T, found.t
        inner = None if self.q_J is None else self._vector(self.q_J, values, self.J)
        if self.P_JJ is not None:
            Q = _plus(Q, T.mT @ self.weighted(values, T))
            inner = _plus(inner, self.weighted(values, t.unsqueeze(-1)).squeeze(-1))
        if self.P_KJ is not None:
            M = self.P_KJ(values)
            cross = M @ T
            Q, p = _plus(Q, cross + cross.mT), p + times(M, t)
        return {"Q": Q, "p": p if inner is None else p + times(T.mT, inner)}

    def weighted(self, values: Values, M: Tensor) -> Tensor:
        """P_JJ M."""
        assert self.P_JJ is not None
        P = self.P_JJ(values)
        return P * M if self.diagonal else P @ M

    def _vector(self, block: Block, values: Values, size: int) -> Tensor:
        return _value(block, values, size, 1, self.ub.coefficients).squeeze(-1)

    def _rows(self, values: Values, found: Substitution | None) -> dict[str, Tensor | None]:
        """G, h, h_lower, A, b, lb and ub."""
        e, m, *_ = self.counts
        A = _value(self.A_K, values, e, self.K, self.ub.coefficients)
        G = _value(self.G_K, values, m, self.K, self.ub.coefficients)
        limit = self._vector(self.rhs, values, sum(self.counts))
        if found is not None and self.through is not None:
            M = self.through(values)
            nil = self._vanishing(A, G, limit, M, found) if len(self.doubtful) else None
            A, G = A + M[:, :e] @ found.T, G + M[:, e : e + m] @ found.T
            limit = limit - times(M, found.t)
            if nil is not None:
                A, G = cleared(A, nil[:, :e, :-1]), cleared(G, nil[:, e : e + m, :-1])
                limit = cleared(limit, nil[..., -1])
            limit = limit if found.far is None else _far(limit, M, found.far)
        b, h, other, upper, lower = limit.split(self.counts, -1)
        return {
            "A": A if e else None,
            "b": b if e else None,
            "G": G if m else None,
            "h": h if m else None,
            "h_lower": spread(self.paired, -other, m, -torch.inf) if len(self.paired) else None,
            "ub": self.ub.bounds(upper, self.K, torch.inf),
            "lb": self.lb.bounds(lower, self.K, -torch.inf),
        }

    def _vanishing(
        self, A: Tensor, G: Tensor, limit: Tensor, M: Tensor, found: Substitution
    ) -> Tensor:
        """Where rounding is all that substitution will leave, `(B|1, rows, K + 1)`."""
        k, rows = self.doubtful, limit.shape[-1]
        size = samples(A, G)
        own = torch.cat([v.expand(size, -1, -1) for v in (A, G, -G[:, self.paired])], 1)
        nil = vanishing(own[:, k], limit[:, k], M[:, k], found.T, found.t)
        return nil.new_zeros(len(nil), rows, self.K + 1).index_copy(1, k, nil)


def _far(limit: Tensor, M: Tensor, far: Tensor) -> Tensor:
    """`limit`, infinite in rows that hold an unknown at an infinite limit."""
    pull = times(M[..., : far.shape[-1]].detach(), far)
    return limit.masked_fill(pull < 0, torch.inf).masked_fill(pull > 0, -torch.inf)


def removed(plan: Plan) -> Array:
    """The unknowns that leave, level by level."""
    return np.concatenate([np.zeros(0, int), *(level.unknowns for level in plan.levels)])


def remaining(plan: Plan) -> Array:
    """The rows that stay, kind by kind."""
    bounds = [b.row for b in (*plan.ub, *plan.lb)]
    other = plan.lower[plan.lower >= 0]
    return np.concatenate([plan.equalities, plan.upper, other, np.array(bounds, int)])


def _capped(program: Canonical, plan: Plan) -> Tensor:
    """Which unknowns of the first level an inequality defines: they sit at their limit."""
    rows = plan.levels[0].rows if plan.levels else np.zeros(0, int)
    capped = rows >= program.equalities
    return torch.from_numpy(capped if capped.any() else capped[:0])


def _column(diagonal: Entries) -> Entries:
    return Entries(diagonal.row, np.zeros_like(diagonal.row), diagonal.weights)


def _links(program: Canonical, level: Level, K: Array, J: Array) -> Links:
    """The definitions of one level, divided by their pivots."""
    before = J[: int(np.flatnonzero(level.unknowns[0] == J)[0])]
    earlier = program.A.within(level.rows, before)
    first, stop = int(earlier.col.min(initial=len(J))), int(earlier.col.max(initial=-1)) + 1
    earlier = Entries(earlier.row, earlier.col - first, earlier.weights)
    kept, b = program.A.within(level.rows, K), program.b.within(level.rows, np.zeros(1, int))

    def block(entries: Entries, cols: int) -> Block:
        shape = len(level.rows), cols
        return Affine.of(_divided(entries, level.pivots), shape, program.shapes)

    pivots = torch.from_numpy(level.pivots.astype(float))
    return Links(block(kept, len(K)), block(earlier, stop - first), first, block(b, 1), pivots)


def _divided(entries: Entries, pivots: Array) -> Entries:
    """Rows of A over their pivots."""
    sparse = package("scipy.sparse", extra="cvxpy")
    scale = sparse.diags_array(1 / pivots[entries.row])
    return Entries(entries.row, entries.col, (scale @ entries.weights).tocsr())


def _value(block: Block, values: Values, rows: int, cols: int, like: Tensor) -> Tensor:
    return like.new_zeros(1, rows, cols) if block is None else block(values)


def times(M: Tensor, v: Tensor) -> Tensor:
    """M v, `(B|1, rows)`."""
    return (M @ v.unsqueeze(-1)).squeeze(-1)


def _plus(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


def _behind(found: Substitution, *new: Tensor) -> Substitution:
    """The substitution with further unknowns behind."""
    out = []
    for a, b in zip((found.T, found.t), new, strict=True):
        size = samples(a, b)
        out.append(torch.cat([v.expand(size, *v.shape[1:]) for v in (a, b)], 1))
    return Substitution(*out)
