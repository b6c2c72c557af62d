"""Exact cover: choose columns so that each row of a 0/1 matrix has exactly one of them.

The columns that may still be chosen are the bits of one Python integer, bit i for column i, and
`ExactCover.search` repeats (Knuth's Algorithm X, with unit propagation):

    1. a row without a column left is a dead end;
    2. a row with one column left settles it, which excludes all columns that share a row with it;
    3. if every row is settled this is a solution, else branch on the row with the fewest left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from operator import and_, or_
from random import Random


class ExactCover:
    """An exact cover problem: `incidence[r][i]` says whether column i covers row r.

    Example:
        >>> cover = ExactCover([[1, 1, 0], [0, 1, 1]])
        >>> [columns(z) for z in cover.search(cover.settle([]))]
        [[0, 2], [1]]
    """

    def __init__(self, incidence: Sequence[Sequence[int | bool]]) -> None:
        self.masks = tuple(sum(1 << i for i, x in enumerate(row) if x) for row in incidence)
        everything = (1 << len(incidence[0])) - 1
        touched = (
            reduce(or_, (m for m in self.masks if m >> i & 1), 0) for i in range(len(incidence[0]))
        )
        self.everything = everything
        self.keep = tuple(everything & ~t | 1 << i for i, t in enumerate(touched))

    def settle(self, chosen: Iterable[int]) -> int:
        """The columns that remain possible when those listed are chosen."""
        return reduce(and_, (self.keep[i] for i in chosen), self.everything)

    def forced(self, alive: int) -> bool:
        """Whether steps 1 and 2 alone, without a branch, find a solution within `alive`."""
        alive, unsettled, _ = self._propagate(alive, self.masks)
        return bool(alive) and not unsettled

    def search(
        self, alive: int, random: Random | None = None, masks: Iterable[int] | None = None
    ) -> Iterator[int]:
        """Every solution within the columns `alive`, as bits.

        `random` shuffles the branches, which otherwise ascend; `masks` are the rows not settled
        yet, by default all.
        """
        alive, unsettled, branches = self._propagate(alive, self.masks if masks is None else masks)
        if alive and not unsettled:
            yield alive
        order = columns(branches)  # none at a solution or a dead end
        if random is not None:
            random.shuffle(order)
        for i in order:
            yield from self.search(alive & self.keep[i], random, unsettled)

    def _propagate(self, alive: int, masks: Iterable[int]) -> tuple[int, list[int], int]:
        """Do steps 1 and 2; return the columns left, the unsettled rows, and the columns of one
        with the fewest. A dead end has no column left, a solution has no unsettled row.
        """
        before = None
        while alive != before:  # the last pass changes nothing, so its counts are up to date
            before, fewest, branches = alive, len(self.keep) + 1, 0
            unsettled: list[int] = []
            for mask in masks:
                places = alive & mask
                count = places.bit_count()
                if count == 0:
                    return 0, [], 0
                if count == 1:
                    alive &= self.keep[places.bit_length() - 1]
                    continue
                unsettled.append(mask)
                if count < fewest:
                    fewest, branches = count, places
            masks = unsettled
        return alive, unsettled, branches


def columns(bits: int) -> list[int]:
    """The positions of the ones of `bits`, ascending."""
    positions = []
    while bits:
        positions.append((bits & -bits).bit_length() - 1)
        bits &= bits - 1
    return positions
