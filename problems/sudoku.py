"""Sudoku of size 4x4 and 9x9: solved grids, puzzles with one solution, an exact solver and a judge.

A board is an int64 tensor `(*B, N, N)`, N = k*k with k = 2 or 3; 0 is a blank, 1..N are digits. In
one-hot form z[(r*N + c)*N + d] = 1 says "row r, column c holds digit d + 1", and the whole game is

    A z = 1,   z in {0, 1}^(N^3),

each row of A asking for exactly one among N entries of z (`rules`). So solving is a search for an
exact cover (`exact_cover`).
"""

import math
from functools import cache
from itertools import islice
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from .exact_cover import ExactCover, columns


class Score(NamedTuple):
    """Four fractions in [0, 1] over a batch of boards; `judge` says what they count."""

    exact: float
    valid: float
    givens: float
    cells: float


def rules(size: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return `(A, b)`: the equalities A z = b = 1 that every solved grid satisfies in one-hot form.

    A is `(4*N*N, N**3)`, b is `(4*N*N,)`. N*N rows each, in this order: one digit per cell (r, c);
    each digit d once per row (r, d), per column (c, d), per block (block, d), blocks counted row by
    row. They are dependent: A has rank 40 of 64 for 4x4 and 249 of 324 for 9x9.
    ValueError if `size` (N) is neither 4 nor 9.
    """
    if size not in (4, 9):
        raise ValueError(f"size is {size}: choose 4 or 9")
    k = math.isqrt(size)
    z = torch.eye(size**3, dtype=dtype).view(size, size, size, -1)  # z[r, c, d] picks that entry
    block = z.view(k, k, k, k, size, -1).sum((1, 3))
    A = torch.cat([unit.reshape(size**2, -1) for unit in (z.sum(2), z.sum(1), z.sum(0), block)])
    return A, A.new_ones(len(A))


def encode(board: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the one-hot form `(*B, N**3)` of boards: entry (r*N + c)*N + digit - 1; blanks are 0.

    ValueError if `board` is not int64 `(*B, N, N)` with entries 0..N.
    """
    size = _size(board)
    return torch.nn.functional.one_hot(board, size + 1)[..., 1:].flatten(-3).to(dtype)


def decode(z: Tensor) -> Tensor:
    """Return the boards `(*B, N, N)` that hold in each cell the digit with the largest entry of z.

    z is real, `(*B, N**3)`. ValueError if its last dimension is neither 64 nor 729.
    """
    size = {64: 4, 729: 9}.get(z.shape[-1] if z.ndim else 0)
    if size is None:
        raise ValueError(f"z has shape {tuple(z.shape)}: the last dimension must be 64 or 729")
    return z.reshape(*z.shape[:-1], size, size, size).argmax(-1) + 1


def grids(size: int, count: int | None = None, *, seed: int = 0) -> Tensor:
    """Return distinct solved grids `(count, N, N)`.

    4x4: all 288 in lexicographic order, or `count` of them drawn without replacement, so slices of
    `grids(4, 288, seed=1)` are a train and a test set without a common solution. 9x9: random grids,
    not exactly uniform over all 6.7e21. ValueError if `size` (N) is neither 4 nor 9, or `count` is
    missing for 9x9, or not in 1..288 (4x4), or < 1.

        >>> grids(4)[0].tolist()
        [[1, 2, 3, 4], [3, 4, 1, 2], [2, 1, 4, 3], [4, 3, 2, 1]]
    """
    random = Random(seed)
    wanted, most = (count, math.inf) if size == 9 else (288 if count is None else count, 288)
    if wanted is None or not 1 <= wanted <= most:
        raise ValueError(f"count is {count}: choose 1 to {most} grids of size {size}")
    if size == 4:
        cover = _cover(size)
        found = sorted(_digits(z, size) for z in cover.search(cover.everything))
        found = found if count is None else random.sample(found, count)
    else:
        cover = _cover(size)
        distinct: dict[tuple[int, ...], None] = {}  # a set that keeps its order
        while len(distinct) < wanted:
            first_row = [9 * c + d for c, d in enumerate(random.sample(range(9), 9))]
            solution = next(cover.search(cover.settle(first_row), random))
            distinct[_digits(solution, size)] = None
        found = list(distinct)
    return torch.tensor(found).view(-1, size, size)


def solve(board: Tensor, limit: int = 2) -> list[Tensor]:
    """Return up to `limit` distinct solutions of one board `(N, N)`; if fewer, there are no others.

    Givens that contradict each other have none. ValueError if `board` is not one board, limit < 1.
    """
    size = _size(board)
    if board.ndim != 2:
        raise ValueError(f"board has shape {tuple(board.shape)}: pass one, ({size}, {size})")
    if limit < 1:
        raise ValueError(f"limit is {limit}: ask for at least 1 solution")
    entries = [c * size + d - 1 for c, d in enumerate(board.flatten().tolist()) if d]
    cover = _cover(size)
    found = islice(cover.search(cover.settle(entries)), limit)
    return [board.new_tensor(_digits(z, size)).view(size, size) for z in found]


def puzzles(solutions: Tensor, *, givens: int, elimination: bool = False, seed: int = 0) -> Tensor:
    """Return for each solved grid `(*B, N, N)` a puzzle that has this grid as its only solution.

    Cells are blanked in random order, where the solution stays unique, until `givens` are left or
    all were tried. With `givens=0` no given can be spared: 4 to 6 remain for 4x4, about 24 for 9x9.
    With `elimination` a cell is blanked only where elimination alone still finds its digit, the
    one left in its cell or the one place left in a row, column or block: the puzzles of the
    published data sets, which no guess is needed for.
    ValueError if one of `solutions` is not a solved grid, or `givens` is not in 0..N*N.
    """
    size = _size(solutions, "solutions")
    if not _solved(solutions).all():
        raise ValueError("solutions holds a board that is not solved: pass boards from `grids`")
    if not 0 <= givens <= size**2:
        raise ValueError(f"givens is {givens}: choose 0 (as few as possible) to {size**2}")
    random = Random(seed)
    flat = solutions.reshape(-1, size**2).tolist()
    boards = [_blank(grid, size, givens, elimination, random) for grid in flat]
    return solutions.new_tensor(boards).view(solutions.shape)


def dataset(solutions: Tensor, count: int, *, givens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return `count` puzzles and their solutions, `(count, N, N)` each.

    Draws with replacement from the solved grids `(M, N, N)`; a grid drawn again is blanked in
    another order. `givens` and errors as in `puzzles`; ValueError also if M or `count` is < 1.
    """
    if solutions.ndim != 3 or not len(solutions) or count < 1:
        got = f"solutions has shape {tuple(solutions.shape)}, count is {count}"
        raise ValueError(f"{got}: pass (M, N, N) with M >= 1, and count >= 1")
    drawn = solutions[Random(seed).choices(range(len(solutions)), k=count)]
    return puzzles(drawn, givens=givens, seed=seed), drawn


def judge(boards: Tensor, puzzles: Tensor, solutions: Tensor) -> Score:
    """Return how good answers are: four fractions, of boards (first three) and of cells (last).

    `exact`: equals the solution. `valid`: obeys all rules, whatever the givens. `givens`: keeps
    every given. `cells`: cells equal to the solution. Published code reports `valid` alone, which a
    constant solved grid passes; copying the puzzle passes `givens`; both at once mean `exact`, if
    the puzzle has one solution; `cells` tells nearly right from wrong. All are boards `(*B, N, N)`.
    ValueError if their shapes differ, or there is no board.
    """
    shapes = [tuple(x.shape) for x in (boards, puzzles, solutions)]
    if len(set(shapes)) > 1 or not boards.numel():
        raise ValueError(f"boards, puzzles, solutions have shapes {shapes}: pass equal, non-empty")
    _size(boards, "boards")
    right = boards == solutions
    kept = (boards == puzzles) | (puzzles == 0)
    fractions = right.all(-1).all(-1), _solved(boards), kept.all(-1).all(-1), right
    return Score(*(x.double().mean().item() for x in fractions))


def parse(text: str) -> Tensor:
    """Return the board `(N, N)` written as 16 or 81 characters: digits, and . or 0 for a blank.

    Whitespace and the lines drawn by `show` (| - +) are skipped. ValueError if the length is wrong,
    a character is not a cell of that size, or two givens break a rule.
    """
    cells = [(i, c) for i, c in enumerate(text, 1) if not (c.isspace() or c in "|-+")]
    size = {16: 4, 81: 9}.get(len(cells))
    if size is None:
        raise ValueError(f"text has {len(cells)} cells: write 16 (4x4) or 81 (9x9)")
    for i, c in cells:
        if c not in ".0123456789"[: size + 2]:
            raise ValueError(f"text has {c!r} at position {i}: write 1..{size}, or . or 0 if blank")
    board = torch.tensor([int(c.replace(".", "0")) for _, c in cells]).view(size, size)
    excess = (encode(board) @ rules(size)[0].T > 1).nonzero()
    if len(excess):
        kind, unit = divmod(int(excess[0]), size**2)
        where = f"{('cell', 'row', 'column', 'block')[kind]} {unit // size + 1}"
        raise ValueError(f"text has digit {unit % size + 1} twice in {where}: change one of them")
    return board


def show(board: Tensor, puzzle: Tensor | None = None) -> str:
    """Return one board `(N, N)` as text; with its puzzle, kept givens are marked *, broken ones !.

    ValueError if `board` is not one board, or `puzzle` has another shape.

        >>> print(show(parse("1... .2.. ..3. ...4")))
        1 . | . .
        . 2 | . .
        ----+----
        . . | 3 .
        . . | . 4
    """
    size = _size(board)
    puzzle = torch.zeros_like(board) if puzzle is None else puzzle
    if board.ndim != 2 or puzzle.shape != board.shape:
        shapes = f"{tuple(board.shape)} and {tuple(puzzle.shape)}"
        raise ValueError(f"board and puzzle have shapes {shapes}: pass one ({size}, {size}) each")
    k, lines = math.isqrt(size), []
    for row, givens in zip(board.tolist(), puzzle.tolist(), strict=True):
        marks = [" " if not g else "*" if g == d else "!" for d, g in zip(row, givens, strict=True)]
        cells = [f"{d or '.'}{mark}" for d, mark in zip(row, marks, strict=True)]
        lines.append("| ".join("".join(cells[i : i + k]) for i in range(0, size, k)).rstrip())
    rule = "+-".join(["--" * k] * k)[:-1]
    for i in range(size - k, 0, -k):
        lines.insert(i, rule)
    return "\n".join(lines)


def _size(board: Tensor, name: str = "board") -> int:
    """Return N; ValueError with the argument's `name` if this is no board `(*B, N, N)`."""
    size = board.shape[-1] if board.ndim > 1 else 0
    if size not in (4, 9) or board.shape[-2] != size or board.dtype != torch.int64:
        got = f"{board.dtype} {tuple(board.shape)}"
        raise ValueError(f"{name} is {got}: pass torch.int64 (*B, N, N) with N = 4 or 9")
    if board.numel() and not 0 <= board.min() <= board.max() <= size:
        got = f"{int(board.min())}..{int(board.max())}"
        raise ValueError(f"{name} has entries {got}: write digits 1..{size}, and 0 for a blank")
    return size


def _solved(board: Tensor) -> Tensor:
    """Return for each board whether A z = 1, shape `(*B,)`."""
    A = rules(_size(board))[0].to(board.device)
    return (encode(board) @ A.T == 1).all(-1)


@cache
def _cover(size: int) -> ExactCover:
    return ExactCover(rules(size)[0].bool().tolist())


def _digits(z: int, size: int) -> tuple[int, ...]:
    """Return the N*N digits of a solution: its entries ascend by cell."""
    return tuple(i % size + 1 for i in columns(z))


def _blank(grid: list[int], size: int, givens: int, elimination: bool, random: Random) -> list[int]:
    """Return one puzzle of `puzzles`, on flat digits.

    If a puzzle has one solution, it keeps it without the given z[i] if and only if no solution of
    the rest has z[i] = 0: one search with that entry excluded, over at its first solution.
    """
    cover, kept = _cover(size), [c * size + d - 1 for c, d in enumerate(grid)]
    for i in random.sample(kept, len(kept)):
        if len(kept) <= givens:
            break
        rest = [j for j in kept if j != i]
        alive = cover.settle(rest)
        if cover.forced(alive) if elimination else not any(cover.search(alive & ~(1 << i))):
            kept = rest
    cells = {i // size: i % size + 1 for i in kept}
    return [cells.get(c, 0) for c in range(size**2)]
