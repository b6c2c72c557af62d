"""The program that the solver sees, as a function of the parameters: `Reduced`.

With x_J the unknowns that the presolve removes and x_K those it keeps, the rows R that define them
say  A_RJ x_J = b_R - A_RK x_K,  where A_RJ is lower triangular level by level with a constant
diagonal. So  x_J = T x_K + t,  and  1/2 x'Px + q'x  subject to the rows S that are left becomes

    Q = P_KK + P_KJ T + T'P_JK + T'P_JJ T        p = q_K + P_KJ t + T'(q_J + P_JJ t)
    G = A_SK + A_SJ T                            h = b_S - A_SJ t

T and t are kept apart: T is often the same for all samples where t is not, and so is Q then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..qp.problem import matvec
from .affine import Affine, samples
from .canonical import Canonical
from .entries import Array, Entries
from .limits import Limits, spread
from .presolve import Plan
from .rounding import cleared, doubtful, vanishing
from .substitution import Block, Chain, Substitution, Values, removed, value, vector


@dataclass(frozen=True)
class Reduced:
    """The blocks of the program by kept (K) and removed (J) unknowns and by kind of row.

    Attributes:
        K, J: how many unknowns are kept, and removed.
        counts: of the rows that stay: equalities, inequalities, other sides, upper and lower
            bounds, in which order `rhs`, and `through`, their coefficients of x_J, have them.
        paired: which inequality each other side belongs to.
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
    doubtful: Tensor
    ub: Limits
    lb: Limits
    chain: Chain
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
            doubtful(A, plan.levels, K, np.concatenate(groups[:3])),
            Limits.of(plan.ub, K),
            Limits.of(plan.lb, K),
            Chain.of(program, plan),
        )
        holders = (reduced, *reduced.chain.levels)
        blocks = [v for h in holders for v in vars(h).values() if isinstance(v, Affine)]
        used = {term.parameter for affine in blocks for term in affine.terms}
        return replace(reduced, idle=tuple(k for k in range(len(shapes)) if k not in used))

    def problem(self, values: Values, found: Substitution | None) -> dict[str, Any]:
        """The arguments of `solve_qp`, one batch dimension each."""
        data = self._objective(values, found) | self._rows(values, found)
        return {name: value for name, value in data.items() if value is not None}

    def _objective(self, values: Values, found: Substitution | None) -> dict[str, Tensor | None]:
        """Q and p."""
        Q = None if self.P_KK is None else self.P_KK(values)
        p = vector(self.q_K, values, self.K, self.ub.coefficients)
        if found is None:
            return {"Q": Q, "p": p}
        T, t = found.T, found.t
        inner = None if self.q_J is None else vector(self.q_J, values, self.J, T)
        if self.P_JJ is not None:
            Q = _plus(Q, T.mT @ self.weighted(values, T))
            inner = _plus(inner, self.weighted(values, t.unsqueeze(-1)).squeeze(-1))
        if self.P_KJ is not None:
            M = self.P_KJ(values)
            cross = M @ T
            Q, p = _plus(Q, cross + cross.mT), p + matvec(M, t)
        return {"Q": Q, "p": p if inner is None else p + matvec(T.mT, inner)}

    def weighted(self, values: Values, M: Tensor) -> Tensor:
        """P_JJ M."""
        assert self.P_JJ is not None
        P = self.P_JJ(values)
        return P * M if self.diagonal else P @ M

    def _rows(self, values: Values, found: Substitution | None) -> dict[str, Tensor | None]:
        """G, h, h_lower, A, b, lb and ub."""
        e, m, *_ = self.counts
        A = value(self.A_K, values, e, self.K, self.ub.coefficients)
        G = value(self.G_K, values, m, self.K, self.ub.coefficients)
        limit = vector(self.rhs, values, sum(self.counts), self.ub.coefficients)
        if found is not None and self.through is not None:
            M = self.through(values)
            nil = self._vanishing(A, G, limit, M, found) if len(self.doubtful) else None
            A, G = A + M[:, :e] @ found.T, G + M[:, e : e + m] @ found.T
            limit = limit - matvec(M, found.t)
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


def remaining(plan: Plan) -> Array:
    """The rows that stay, kind by kind."""
    bounds = [b.row for b in (*plan.ub, *plan.lb)]
    other = plan.lower[plan.lower >= 0]
    return np.concatenate([plan.equalities, plan.upper, other, np.array(bounds, int)])


def _column(diagonal: Entries) -> Entries:
    return Entries(diagonal.row, np.zeros_like(diagonal.row), diagonal.weights)


def _plus(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a + b


def _far(limit: Tensor, M: Tensor, far: Tensor) -> Tensor:
    """`limit`, infinite in rows that hold an unknown at an infinite limit."""
    pull = matvec(M[..., : far.shape[-1]].detach(), far)
    return limit.masked_fill(pull < 0, torch.inf).masked_fill(pull > 0, -torch.inf)
