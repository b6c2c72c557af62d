"""What can be solved for before the solver sees the program: `presolve`, once a layer.

CVXPY's canonical programs carry unknowns of their own (y = Lx - b for a sum of squares, t for an
absolute value) and write bounds and two-sided rows as plain rows. A dense batched solver pays for
all of it at every call, so here

* an equality that gives an unbounded unknown as  pivot x_j = b - (the rest),  pivot a constant,
  defines x_j, and both leave: y, and the states of a controlled system too (condensing). A chain
  of definitions may be `DEPTH` links long; then one unknown stays, as in multiple shooting;
* an unknown that costs nothing, and that no row but its own upper limit holds down, sits at that
  limit:  |u| <= 1, which CVXPY writes as  u <= t, -u <= t, t <= 1,  becomes two bounds. Else t is
  not unique, and no derivative exists;
* a row with one constant entry becomes a bound;
* two rows that are each other's negative become one with two sides.

Which it is follows from the pattern alone, and so holds for all values of the parameters.

Source: the reductions are those of linear programming, Andersen & Andersen, "Presolving in linear
programming" (Math. Prog. 71, 1995), as far as they need no values; the partial condensing is
Axehill, "Controlling the level of sparsity in MPC" (Systems & Control Letters 76, 2015).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from .canonical import Canonical
from .entries import Array

# The powers of an unstable system grow with every link. Of 20 steps over which the states grow to
# 4e8 all samples are solved with chains of 30 links, and a quarter is not with chains of 2.
DEPTH = 30
PIVOT = 0.1  # the least size of a pivot, relative to the largest constant of its row


class Level(NamedTuple):
    """Unknowns that their rows give in terms of those kept and those of earlier levels."""

    unknowns: Array
    rows: Array
    pivots: Array


class Bound(NamedTuple):
    """A row with one constant entry."""

    unknown: int
    row: int
    coefficient: float


@dataclass(frozen=True)
class Plan:
    """Who leaves, and what the rest becomes.

    Attributes:
        kept: unknowns that the solver sees.
        levels: unknowns that leave, in the order in which they can be computed.
        equalities: rows that stay equalities.
        upper: rows that stay inequalities.
        lower: for each of them its negative, which is its other side, or -1.
        lb, ub: rows that become bounds of unknowns that are kept.
    """

    kept: Array
    levels: tuple[Level, ...]
    equalities: Array
    upper: Array
    lower: Array
    lb: tuple[Bound, ...]
    ub: tuple[Bound, ...]


@dataclass
class Table:
    """The pattern of A by rows and by columns; a coefficient is NaN if a parameter is in it."""

    program: Canonical
    rows: dict[int, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    cols: dict[int, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))

    def __post_init__(self) -> None:
        A = self.program.A
        for r, c, v in zip(A.row.tolist(), A.col.tolist(), A.constants().tolist(), strict=True):
            if v != 0:
                self.rows[r][c] = self.cols[c][r] = v

    def free(self, j: int) -> bool:
        """Whether no row is a bound of unknown j alone."""
        return all(len(self.rows[r]) > 1 or r < self.program.equalities for r in self.cols[j])


class Definition(NamedTuple):
    """x_j as given by a row: the unknowns that it needs."""

    row: int
    pivot: float
    needs: frozenset[int]


def presolve(program: Canonical) -> Plan:
    """What leaves `program`, from its pattern."""
    table = Table(program)
    defined = _defined(table, _capped(table))
    levels = _levels(defined, program.n)
    gone = {int(j): int(r) for v in levels for j, r in zip(v.unknowns, v.rows, strict=True)}
    moving = _moving(levels, defined)
    kept = np.array([j for j in range(program.n) if j not in gone])
    rest = [r for r in range(program.m) if r not in set(gone.values())]
    equalities = [r for r in rest if r < program.equalities]
    bounds: dict[tuple[int, bool], Bound] = {}
    general = []
    for r in rest[len(equalities) :]:
        bound = _bound(table.rows[r], r, gone, moving)
        if bound and bounds.setdefault((bound.unknown, bound.coefficient > 0), bound) is bound:
            continue
        general.append(r)
    upper, lower = _paired(program, general)
    sides = [
        tuple(b for (_, above), b in bounds.items() if above is side) for side in (False, True)
    ]
    return Plan(kept, levels, np.array(equalities, int), upper, lower, *sides)


def _capped(table: Table) -> dict[int, Definition]:
    """Unknowns without cost that sit at their only limit above, or below."""
    program, out = table.program, {}
    costly = {*program.q.row[program.q.constants() != 0], *program.P.row}
    for j in set(range(program.n)) - costly - program.wanted:
        caps = [r for r in table.cols[j] if len(table.rows[r]) == 1]
        others = [v for r, v in table.cols[j].items() if r not in caps]
        if len(caps) == 1 and caps[0] >= program.equalities and others:
            pivot = table.cols[j][caps[0]]
            if all(v * pivot < 0 for v in others) and min(table.cols[j]) >= program.equalities:
                out[j] = Definition(caps[0], pivot, frozenset())
    return out


def _defined(table: Table, out: dict[int, Definition]) -> dict[int, Definition]:
    """Unbounded unknowns that an equality gives; rows with fewest undefined unknowns first.

    So a path is followed from where it starts, whatever the order of its rows.
    """
    left = {r: sum(j not in out for j in table.rows[r]) for r in range(table.program.equalities)}
    heap = sorted((count, r) for r, count in left.items())
    while heap:
        count, r = heappop(heap)
        if left.get(r) != count:
            continue  # done, or in the heap again with a lower count
        del left[r]
        j = _candidate(table, r, out)
        if j is None:
            continue
        out[j] = Definition(r, table.rows[r][j], frozenset(table.rows[r]) - {j})
        for other in left.keys() & table.cols[j].keys():
            left[other] -= 1
            heappush(heap, (left[other], other))
    return out


def _candidate(table: Table, r: int, out: dict[int, Definition]) -> int | None:
    """What row r may define: of the candidates the one least used."""
    row = table.rows[r]
    largest = max((abs(v) for v in row.values() if v == v), default=0.0)
    fit = [j for j, v in row.items() if abs(v) >= PIVOT * largest > 0 and j not in out]
    for j in sorted((j for j in fit if table.free(j)), key=lambda j: (len(table.cols[j]), j)):
        if not _reaches(frozenset(row) - {j}, j, out) and len(out) < table.program.n - 1:
            return j
    return None


def _reaches(start: frozenset[int], j: int, defined: dict[int, Definition]) -> bool:
    """Whether one of `start` needs x_j, directly or through others."""
    seen: set[int] = set()
    stack = [k for k in start if k in defined]
    while stack:
        needs = defined[stack.pop()].needs
        if j in needs:
            return True
        stack += [k for k in needs if k in defined and k not in seen]
        seen |= needs
    return False


def _levels(defined: dict[int, Definition], n: int) -> tuple[Level, ...]:
    """The definitions in an order in which each needs earlier ones only, at most `DEPTH` deep."""
    depth: dict[int, int] = {}
    for j in _sorted(defined):
        deep = 1 + max((depth.get(k, 0) for k in defined[j].needs), default=0)
        if deep <= DEPTH:
            depth[j] = deep
    out = []
    for level in range(1, 1 + max(depth.values(), default=0)):
        chosen = sorted((j for j in depth if depth[j] == level), key=lambda j: defined[j].row)
        rows = np.array([defined[j].row for j in chosen])
        pivots = np.array([defined[j].pivot for j in chosen])
        out.append(Level(np.array(chosen), rows, pivots))
    return tuple(out)


def _sorted(defined: dict[int, Definition]) -> list[int]:
    """The unknowns that are defined, each behind those that it needs."""
    out: dict[int, None] = {}
    for first in defined:
        stack = [first]
        while stack:
            j = stack[-1]
            ahead = [k for k in defined[j].needs if k in defined and k not in out]
            stack += ahead
            if not ahead:
                out[stack.pop()] = None
    return list(out)


def _moving(levels: tuple[Level, ...], defined: dict[int, Definition]) -> set[int]:
    """The unknowns that leave and yet depend on one that is kept."""
    gone = {int(j) for level in levels for j in level.unknowns}
    out: set[int] = set()
    for level in levels:
        for j in map(int, level.unknowns):
            if any(k not in gone or k in out for k in defined[j].needs):
                out.add(j)
    return out


def _bound(row: dict[int, float], r: int, gone: dict[int, int], moving: set[int]) -> Bound | None:
    """Row r as a bound, if it is one."""
    here = [j for j in row if j not in gone]
    if len(here) != 1 or row[here[0]] != row[here[0]] or moving.intersection(row):
        return None
    return Bound(here[0], r, row[here[0]])


def _paired(program: Canonical, rows: list[int]) -> tuple[Array, Array]:
    """Inequalities, and for each its negative or -1."""
    A = program.A
    order = np.lexsort((A.col, A.row))
    starts = np.searchsorted(A.row[order], np.arange(program.m + 1))
    waiting: dict[tuple[object, ...], list[int]] = defaultdict(list)
    partner: dict[int, int] = {}
    for r in rows:
        own = A.take(order[starts[r] : starts[r + 1]])
        w = own.weights.sorted_indices()
        sign = np.sign(w.data[0]) if len(w.data) else 0.0
        key = own.col.tobytes(), w.indptr.tobytes(), w.indices.tobytes(), (sign * w.data).tobytes()
        if waiting[*key, -sign]:
            partner[waiting[*key, -sign].pop()] = r
        else:
            waiting[*key, sign].append(r)
    others = set(partner.values())
    upper = np.array([r for r in rows if r not in others], int)
    return upper, np.array([partner.get(int(r), -1) for r in upper], int)
