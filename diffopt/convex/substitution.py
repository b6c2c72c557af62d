"""The unknowns that are removed as a function of those kept: `Substitution`, made by a `Chain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..optional import package
from ..qp.problem import matvec
from .affine import Affine, samples
from .canonical import Canonical
from .entries import Array, Entries
from .presolve import Level, Plan

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
class Chain:
    """The definitions of the unknowns that are removed, level by level.

    Attributes:
        kept: how many unknowns are kept.
        capped: which unknowns of the first level sit at their limit, which may be infinite; empty
            if none do.
    """

    kept: int
    levels: tuple[Links, ...]
    capped: Tensor

    @classmethod
    def of(cls, program: Canonical, plan: Plan) -> Chain:
        """What `plan` removes of `program`."""
        links = (_links(program, level, plan.kept, removed(plan)) for level in plan.levels)
        return cls(len(plan.kept), tuple(links), _capped(program, plan))

    def __call__(self, values: Values) -> Substitution | None:
        """The substitution for these parameters; None if no unknown is removed."""
        found: Substitution | None = None
        far: Tensor | None = None
        for links in self.levels:
            rows = len(links.pivots)
            T = -value(links.kept, values, rows, self.kept, links.pivots)
            t = vector(links.b, values, rows, links.pivots)
            if found is not None and links.earlier is not None:
                M = links.earlier(values)
                run = slice(links.first, links.first + M.shape[-1])
                T, t = T - M @ found.T[:, run], t - matvec(M, found.t[:, run])
            if found is None and len(self.capped):
                far = torch.where(self.capped & t.isinf(), t.detach().sign(), 0.0)
                t = t.masked_fill(far != 0, 0.0)
            found = Substitution(T, t) if found is None else _behind(found, T, t)
        return None if found is None else found._replace(far=far)


def removed(plan: Plan) -> Array:
    """The unknowns that leave, level by level."""
    return np.concatenate([np.zeros(0, int), *(level.unknowns for level in plan.levels)])


def _capped(program: Canonical, plan: Plan) -> Tensor:
    """Which unknowns of the first level an inequality defines: they sit at their limit."""
    rows = plan.levels[0].rows if plan.levels else np.zeros(0, int)
    capped = rows >= program.equalities
    return torch.from_numpy(capped if capped.any() else capped[:0])


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


def value(block: Block, values: Values, rows: int, cols: int, like: Tensor) -> Tensor:
    """A block, zeros of the dtype of `like` where there is none."""
    return like.new_zeros(1, rows, cols) if block is None else block(values)


def vector(block: Block, values: Values, rows: int, like: Tensor) -> Tensor:
    """The same of a block with one column, `(B|1, rows)`."""
    return value(block, values, rows, 1, like).squeeze(-1)


def _behind(found: Substitution, *new: Tensor) -> Substitution:
    """The substitution with further unknowns behind."""
    out = []
    for a, b in zip((found.T, found.t), new, strict=True):
        size = samples(a, b)
        out.append(torch.cat([v.expand(size, *v.shape[1:]) for v in (a, b)], 1))
    return Substitution(*out)
