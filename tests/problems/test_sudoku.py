"""The oracles are the game's own: sets of digits per unit, and `solve` counting all solutions."""

import doctest

import pytest
import torch
from torch import Tensor

from problems import sudoku

SIZES = {4: 288, 9: 30}  # how many grids the properties are checked on
GRIDS = {size: sudoku.grids(size, count, seed=1) for size, count in SIZES.items()}
PUZZLES = {  # name: (puzzles, solutions)
    "4x4 minimal": (sudoku.puzzles(GRIDS[4], givens=0), GRIDS[4]),
    "4x4 with 8 givens": (sudoku.puzzles(GRIDS[4], givens=8), GRIDS[4]),
    "4x4 data set": sudoku.dataset(GRIDS[4], 500, givens=5, seed=2),
    "9x9 minimal": (sudoku.puzzles(GRIDS[9][:10], givens=0), GRIDS[9][:10]),
    "9x9 with 36 givens": (sudoku.puzzles(GRIDS[9], givens=36), GRIDS[9]),
}
CLUES_17 = "000000010400000000020000000000050407008000300001090000300400200050100000000806000"
SOLVED_17 = "693784512487512936125963874932651487568247391741398625319475268856129743274836159"


def is_grid(board: Tensor) -> bool:
    """Every row, column and block holds each digit; written without `sudoku.rules` on purpose."""
    size = len(board)
    k = {4: 2, 9: 3}[size]
    corners = [(r, c) for r in range(0, size, k) for c in range(0, size, k)]
    blocks = [board[r : r + k, c : c + k].flatten() for r, c in corners]
    units = [*board, *board.T, *blocks]
    return all(set(unit.tolist()) == set(range(1, size + 1)) for unit in units)


def swapped(board: Tensor, a: int, b: int) -> Tensor:
    """The board with digits a and b exchanged: still a solved grid, but another one."""
    return torch.where(board == a, b, torch.where(board == b, a, board))


@pytest.mark.parametrize("size", SIZES)
class TestGrids:
    def test_are_distinct_solved_grids(self, size: int) -> None:
        found = GRIDS[size]
        assert found.dtype == torch.int64
        assert found.shape == (SIZES[size], size, size)
        assert len(found.unique(dim=0)) == SIZES[size]
        assert all(is_grid(board) for board in found)

    def test_depend_on_the_seed_alone(self, size: int) -> None:
        assert sudoku.grids(size, 5, seed=1).equal(sudoku.grids(size, 5, seed=1))
        assert not sudoku.grids(size, 5, seed=1).equal(sudoku.grids(size, 5, seed=2))

    def test_count_below_one_is_refused(self, size: int) -> None:
        with pytest.raises(ValueError, match=f"count is 0: .* grids of size {size}"):
            sudoku.grids(size, 0)


def test_all_grids_4x4_come_in_lexicographic_order() -> None:
    rows = sudoku.grids(4).flatten(1).tolist()
    assert len(rows) == 288
    assert rows == sorted(rows)


def test_grids_9x9_need_a_count_and_4x4_have_only_288() -> None:
    with pytest.raises(ValueError, match="count is None: choose 1 to inf grids of size 9"):
        sudoku.grids(9)
    with pytest.raises(ValueError, match="count is 289: choose 1 to 288"):
        sudoku.grids(4, 289)


@pytest.mark.parametrize(("size", "rank"), [(4, 40), (9, 249)])
def test_rules_have_the_known_rank_and_hold_for_every_grid(size: int, rank: int) -> None:
    A, b = sudoku.rules(size)
    assert A.shape == (4 * size**2, size**3)
    assert torch.linalg.matrix_rank(A) == rank
    assert (A.sum(0) == 4).all() and (A.sum(1) == size).all()
    assert (sudoku.encode(GRIDS[size]) @ A.T == b).all()


def test_rules_4x4_are_all_there_are() -> None:
    """The affine hull of the 288 grids has 64 - 40 dimensions, so no further equality holds."""
    z = sudoku.encode(GRIDS[4])
    assert torch.linalg.matrix_rank(z - z[0]) == 24


@pytest.mark.parametrize(("row", "unit"), [(1, "cell"), (17, "row"), (33, "column"), (49, "block")])
def test_rules_come_in_the_documented_order(row: int, unit: str) -> None:
    r, c, d = sudoku.rules(4)[0][row].view(4, 4, 4).nonzero().T.tolist()
    expected = {
        "cell": ([0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 2, 3]),
        "row": ([0, 0, 0, 0], [0, 1, 2, 3], [1, 1, 1, 1]),
        "column": ([0, 1, 2, 3], [0, 0, 0, 0], [1, 1, 1, 1]),
        "block": ([0, 0, 1, 1], [0, 1, 0, 1], [1, 1, 1, 1]),
    }
    assert (r, c, d) == expected[unit]


def test_other_sizes_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="size is 6: choose 4 or 9"):
        sudoku.rules(6)
    with pytest.raises(ValueError, match=r"z has shape \(2, 65\): .* must be 64 or 729"):
        sudoku.decode(torch.zeros(2, 65))
    with pytest.raises(ValueError, match=r"board is torch.float32 \(4, 4\): pass torch.int64"):
        sudoku.encode(torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"board has entries 0..5: write digits 1..4"):
        sudoku.encode(torch.eye(4, dtype=torch.int64) * 5)


@pytest.mark.parametrize("size", SIZES)
def test_decode_inverts_encode_for_any_batch(size: int) -> None:
    boards = GRIDS[size][:24].view(2, 3, 4, size, size)
    z = sudoku.encode(boards, torch.float32)
    assert z.dtype == torch.float32
    assert z.shape == (2, 3, 4, size**3)
    noise = torch.rand(z.shape, generator=torch.Generator().manual_seed(0))
    assert sudoku.decode(z - 0.5 * noise).equal(boards)


def test_encode_places_digits_and_leaves_blanks_zero() -> None:
    board = torch.zeros(4, 4, dtype=torch.int64)
    board[2, 1] = 3
    assert sudoku.encode(board).nonzero().flatten().tolist() == [(2 * 4 + 1) * 4 + 2]


def test_solve_finds_the_one_solution_of_17_clues() -> None:
    (found,) = sudoku.solve(sudoku.parse(CLUES_17))
    assert found.equal(sudoku.parse(SOLVED_17))


def test_solve_lists_all_grids_or_stops_at_the_limit() -> None:
    blank = torch.zeros(4, 4, dtype=torch.int64)
    found = torch.stack(sudoku.solve(blank, limit=300)).unique(dim=0)
    assert found.equal(sudoku.grids(4))
    assert len(sudoku.solve(torch.zeros(9, 9, dtype=torch.int64), limit=7)) == 7


def test_solve_agrees_with_the_table_of_all_grids() -> None:
    generator = torch.Generator().manual_seed(0)
    digits = torch.randint(1, 5, (200, 4, 4), generator=generator)
    boards = digits * (torch.rand(200, 4, 4, generator=generator) < 0.2)  # 0 to 288 solutions
    agree = ((boards[:, None] == GRIDS[4]) | (boards[:, None] == 0)).flatten(2).all(-1)
    assert [len(sudoku.solve(b, limit=300)) for b in boards] == agree.sum(1).tolist()
    assert agree.sum(1).unique().numel() > 5


@pytest.mark.parametrize("entries", [[(0, 0, 1), (0, 3, 1)], [(0, 0, 1), (1, 1, 1)]])
def test_solve_returns_nothing_for_contradicting_givens(entries: list[tuple[int, ...]]) -> None:
    board = torch.zeros(4, 4, dtype=torch.int64)
    for r, c, digit in entries:
        board[r, c] = digit
    assert sudoku.solve(board) == []


def test_solve_proves_that_consistent_givens_have_no_solution() -> None:
    """Norvig's board: no rule is broken yet, and a search that branches on cells alone is lost."""
    board = ".....5.8....6.1.43..........1.5........1.6...3.......553.....61........4........."
    assert sudoku.solve(sudoku.parse(board)) == []


def test_solve_refuses_batches_and_limits_below_one() -> None:
    with pytest.raises(ValueError, match=r"board has shape \(288, 4, 4\): pass one, \(4, 4\)"):
        sudoku.solve(GRIDS[4])
    with pytest.raises(ValueError, match="limit is 0: ask for at least 1"):
        sudoku.solve(GRIDS[4][0], limit=0)


@pytest.mark.parametrize("name", PUZZLES)
def test_puzzles_have_their_grid_as_only_solution(name: str) -> None:
    for puzzle, solution in zip(*PUZZLES[name], strict=True):
        found = sudoku.solve(puzzle)
        assert len(found) == 1 and found[0].equal(solution)


@pytest.mark.parametrize("name", ["4x4 minimal", "9x9 minimal"])
def test_minimal_puzzles_can_spare_no_given(name: str) -> None:
    for puzzle in PUZZLES[name][0][:4]:
        for r, c in puzzle.nonzero().tolist():
            fewer = puzzle.clone()
            fewer[r, c] = 0
            assert len(sudoku.solve(fewer)) == 2


def test_puzzles_leave_the_givens_asked_for() -> None:
    counts = {name: (puzzles > 0).sum((1, 2)) for name, (puzzles, _) in PUZZLES.items()}
    assert (counts["4x4 with 8 givens"] == 8).all()
    assert (counts["9x9 with 36 givens"] == 36).all()
    assert 4 <= counts["4x4 minimal"].min() and counts["4x4 minimal"].max() <= 6
    assert 17 <= counts["9x9 minimal"].min() and counts["9x9 minimal"].max() <= 35
    assert sudoku.puzzles(GRIDS[4], givens=16).equal(GRIDS[4])


def test_puzzles_and_data_depend_on_the_seed_alone() -> None:
    for make in (
        lambda seed: sudoku.puzzles(GRIDS[4][:20], givens=0, seed=seed),
        lambda seed: sudoku.dataset(GRIDS[4], 20, givens=5, seed=seed)[1],
    ):
        assert make(3).equal(make(3))
        assert not make(3).equal(make(4))


def test_puzzles_refuse_what_is_not_solved() -> None:
    with pytest.raises(ValueError, match="solutions holds a board that is not solved"):
        sudoku.puzzles(torch.ones(1, 4, 4, dtype=torch.int64), givens=0)
    with pytest.raises(ValueError, match=r"givens is 17: choose 0 .* to 16"):
        sudoku.puzzles(GRIDS[4], givens=17)
    with pytest.raises(ValueError, match=r"shape \(4, 4\), count is 1: pass \(M, N, N\)"):
        sudoku.dataset(GRIDS[4][0], 1, givens=0)


SOLUTION = sudoku.parse("1234 3412 2143 4321")
PUZZLE = sudoku.parse("1... .4.. ..4. ...1")
ONE_WRONG = sudoku.parse("1234 3412 2143 4321")
ONE_WRONG[0, 1] = 4  # not a given
JUDGED = {  # name: (board, score)
    "right": (SOLUTION, (1, 1, 1, 1)),
    "the puzzle itself": (PUZZLE, (0, 0, 1, 4 / 16)),
    "one cell wrong": (ONE_WRONG, (0, 0, 1, 15 / 16)),
    "valid, breaks givens": (swapped(SOLUTION, 1, 2), (0, 1, 0, 8 / 16)),
    "valid, keeps givens": (swapped(SOLUTION, 2, 3), (0, 1, 1, 8 / 16)),  # PUZZLE has two solutions
}


@pytest.mark.parametrize("name", JUDGED)
def test_judge_tells_four_kinds_of_right(name: str) -> None:
    board, score = JUDGED[name]
    assert sudoku.judge(board, PUZZLE, SOLUTION) == score


def test_judge_averages_over_the_batch() -> None:
    boards = torch.stack([board for board, _ in JUDGED.values()])
    score = sudoku.judge(boards, PUZZLE.expand(5, 4, 4), SOLUTION.expand(5, 4, 4))
    assert score == pytest.approx((1 / 5, 3 / 5, 4 / 5, (16 + 4 + 15 + 8 + 8) / 80))


def test_judge_refuses_different_shapes_and_nothing() -> None:
    with pytest.raises(ValueError, match=r"shapes \[\(4, 4\), \(4, 4\), \(288, 4, 4\)\]"):
        sudoku.judge(SOLUTION, PUZZLE, GRIDS[4])
    with pytest.raises(ValueError, match="pass equal, non-empty"):
        sudoku.judge(GRIDS[4][:0], GRIDS[4][:0], GRIDS[4][:0])


@pytest.mark.parametrize("name", PUZZLES)
def test_parse_reads_what_show_writes(name: str) -> None:
    for board in PUZZLES[name][0][:10]:
        assert sudoku.parse(sudoku.show(board)).equal(board)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1234", r"text has 4 cells: write 16 \(4x4\) or 81 \(9x9\)"),
        ("1... .5.. ..3. ...4", r"text has '5' at position 7: write 1\.\.4, or \. or 0 if blank"),
        (CLUES_17.replace("8", "x"), r"text has 'x' at position 39: write 1\.\.9"),
        ("1..1 .... .... ....", "text has digit 1 twice in row 1: change one of them"),
        ("..3. .... ..3. ....", "text has digit 3 twice in column 3"),
        (".... .... ..2. ...2", "text has digit 2 twice in block 4"),
    ],
)
def test_parse_names_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sudoku.parse(text)


def test_show_marks_kept_and_broken_givens() -> None:
    text = sudoku.show(swapped(SOLUTION, 1, 2), PUZZLE)
    assert text.splitlines() == ["2!1 | 3 4", "3 4*| 2 1", "----+----", "1 2 | 4*3", "4 3 | 1 2!"]
    with pytest.raises(ValueError, match=r"shapes \(4, 4\) and \(9, 9\)"):
        sudoku.show(SOLUTION, sudoku.parse(SOLVED_17))


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(sudoku).failed == 0


def test_elimination_alone_solves_the_puzzles_that_promise_it() -> None:
    """Filling in forced digits, one at a time, from the definition: no guess is ever needed."""
    solutions = sudoku.grids(9, 3, seed=4)
    for puzzle, solution in zip(
        sudoku.puzzles(solutions, givens=36, elimination=True, seed=1), solutions, strict=True
    ):
        assert int((puzzle > 0).sum()) == 36
        A, _ = sudoku.rules(9)
        possible = torch.ones(729, dtype=torch.bool)
        chosen = sudoku.encode(puzzle).bool()
        for _ in range(81):
            covered = A[:, chosen].sum(1) > 0
            possible &= ~(A[covered].sum(0) > 0) | chosen
            left = A * possible
            single = left[(left.sum(1) == 1) & ~covered].sum(0) > 0
            chosen = chosen | single
        assert torch.equal(sudoku.decode(chosen.double()), solution)
