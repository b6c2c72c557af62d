"""The Sudoku example as its user meets it: boards given by hand, bad boards, and the smoke run."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "sudoku.py"
NINE = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
FOUR = "1... ..3. .2.. ..4."


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("sudoku_example", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(text):
    """The digits of each row of a printed board, marks and separators dropped."""
    digits = ["".join(c for c in line if c.isdigit()) for line in text.splitlines()]
    return [line for line in digits if len(line) in (4, 9)]


def test_a_9x9_board_is_solved_by_the_recovered_rules(example, capsys):
    assert example.main(["--puzzle", NINE]) == 0
    out = capsys.readouterr().out
    assert "solved by one QP with the 249 rules recovered" in out
    assert rows(out)[:3] == ["534678912", "672195348", "198342567"]
    assert rows(out)[-1] == "345286179"


def test_a_4x4_board_is_solved(example, capsys):
    assert example.main(["--puzzle", FOUR]) == 0
    out = capsys.readouterr().out
    assert "with the 40 rules recovered" in out and len(rows(out)) == 4
    assert all(sorted(row) == list("1234") for row in rows(out))


BAD = {
    "wrong length": ("123", "has 3 cells: write 16"),
    "wrong character": ("1" + "x" + "." * 14, "'x' at position 2"),
    "a digit too large": ("5" + "." * 15, "'5' at position 1"),
    "contradicting givens": ("11" + "." * 14, "digit 1 twice in row 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_board_gets_one_clear_line_and_status_2(name, example, capsys):
    board, message = BAD[name]
    assert example.main(["--puzzle", board]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and not out


@pytest.mark.parametrize(
    ("board", "message"),
    [("12.. ..3. .... ....", "no solution"), ("1...............", "several solutions")],
)
def test_a_board_without_one_solution_says_so(board, message, example, capsys):
    assert example.main(["--puzzle", board]) == 1
    assert message in capsys.readouterr().err


def test_the_smoke_run_tells_the_story_and_draws_it(example, capsys, tmp_path):
    assert example.main(["--smoke", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "independent rules (truth: 249)                     249" in out
    (picture,) = tmp_path.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000
