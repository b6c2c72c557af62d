"""Claim: on a CPU, the native engine of `solve_qp` is faster than every other QP layer, and exact.

    python -m pip install -e ".[bench]" && python -m pip install --no-deps qpth
    python benchmarks/qp_cpu.py [--smoke] [--only native,moreau] [--out FOLDER]

writes qp_cpu.md, .json and .png: the time of the forward pass (every argument batched and requiring
a gradient, the graph built) and of the backward pass (torch.autograd.grad of a weighted sum of z
with respect to every argument) of each contender of `peers`, over shapes of random problems and for
the layer that learns Sudoku; and the throughput against the batch size.

The problems: Q = LL'/n + I/10, rows of G and A normal, h = Gx + s with s uniform in [0, 1], b = Ax.
Sudoku: Q = I/10 and A, 40 x 64, shared by the batch, z >= 0, gradients for p, A and b.

`judge` says what is exact: from the active set of the first answer that has the right one.
`violation` is the largest of a constraint, `z error` the largest of an entry, and `gradient error`
the worst argument's, relative, in the Frobenius norm over the batch; of Q, the symmetric part's.

How it is timed: one process, float64, contenders in turns, medians, as `race` says; one that is
left out there is "-" here.

Limits: one machine, to be left alone: under load, what runs on torch's threads suffers ten times
more than the rest. Random problems, dense, well conditioned and without degeneracy, are the easy
ones for an active-set method. The same problems are solved over and over, cold: nobody reuses an
earlier answer, but moreau keeps matrices that it has seen, which changes the Sudoku row by a tenth.
Each contender has the number of threads that it takes by itself, except QPLayer (`peers`).
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from judge import random_problem, sudoku_layer
from machine import machine
from panels import panels
from peers import CONTENDERS, absent
from race import contest
from tables import cells, errors, grid, left_out
from tqdm import tqdm

SHAPES = [
    (1, 10, 10, 5), (1, 100, 100, 20), (128, 10, 10, 5), (1000, 10, 10, 5), (128, 50, 50, 10),
    (64, 100, 100, 20), (16, 200, 200, 40), (4096, 10, 20, 0), (1024, 50, 100, 10),
]  # fmt: skip  # batch, n, m, e
SUDOKU = (128, 64, 0, 40)
CURVES = {10: (10, 5, 16384), 50: (50, 10, 2048), 100: (100, 20, 512)}  # n: m, e, largest batch
NAMES = [name for name in CONTENDERS if name != "cuda"]
DRAWN = ["native", "torch", "moreau", "qpth"]


def table(result: dict) -> str:
    """The rows as Markdown, a table a shape."""
    about = ", ".join(f"{k} {v}" for k, v in result["machine"].items())
    lines = ["# QP layers on a CPU", "", f"{about}.", "", "Written by `benchmarks/qp_cpu.py`, "
             "whose docstring says what is measured. Milliseconds of a whole batch; `ratio` is "
             "forward + backward over that of the first row."]  # fmt: skip
    lines += [f"Not installed: {', '.join(result['absent'])}."] if result["absent"] else []
    heads = ["", "forward", "backward", "both", "ratio", "violation", "z error", "gradient error"]
    for row in result["shapes"]:
        found = row["contenders"]
        base = next((r["both"] for r in found.values() if "both" in r), 1.0)
        rows = [
            [name, *cells(r, ("forward", "backward", "both"), ".2f"),
             *cells(r, ["both"], ".2f", 1 / base), *errors(r)]
            for name, r in found.items()
        ]  # fmt: skip
        lines += ["", f"## {row['name']}", "", *grid(heads, rows)]
    return "\n".join([*lines, *left_out(result["shapes"]), ""])


def run(names: list[str], smoke: bool, budget: float) -> Iterator[dict]:
    """Every shape and every point of the curves; the result so far after each."""
    shapes = [(4, 5, 5, 2), (2, 5, 8, 0)] if smoke else SHAPES
    title = "batch {0}: n = {1}, {2} inequalities, {3} equalities"
    jobs = [(s, random_problem, title) for s in shapes]
    sudoku = (2, 8, 0, 3) if smoke else SUDOKU
    jobs.append((sudoku, sudoku_layer, "batch {0}: Sudoku layer, n = {1}, z >= 0, {3} equalities"))
    ladders = {5: (5, 2, 4)} if smoke else CURVES
    points = [(4**i, n, m, e) for n, (m, e, top) in ladders.items() for i in range(9)
              if 4**i <= top]  # fmt: skip
    bar = tqdm(total=len(jobs) + len(points), unit="shape")
    out: dict = {"shapes": [], "curves": []}
    for s, make, title in jobs:
        found = contest(make(*s), names, budget)
        out["shapes"].append({"name": title.format(*s), "contenders": found})
        bar.update()
        yield out
    for s in points:
        found = contest(random_problem(*s), [k for k in DRAWN if k in names], budget / 3, False)
        out["curves"].append(dict(zip("batch n m e".split(), s, strict=True)))
        out["curves"][-1]["contenders"] = found
        bar.update()
        yield out


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the table, the numbers and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="tiny problems, seconds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", default=",".join(NAMES), help="contenders, with commas")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each contender and shape")
    options = parser.parse_args(arguments)
    torch.set_default_dtype(torch.float64)  # QPLayer's backward pass allocates in the default
    warnings.simplefilter("ignore")
    names = options.only.split(",")
    missing = absent(names)
    names = [name for name in names if name not in missing]
    about = {"machine": machine(), "absent": missing}
    options.out.mkdir(parents=True, exist_ok=True)
    for result in run(names, options.smoke, 0.1 if options.smoke else options.seconds):
        (options.out / "qp_cpu.json").write_text(json.dumps(about | result, indent=1))
        (options.out / "qp_cpu.md").write_text(table(about | result))
    figure, _ = panels(result["curves"], "native")
    figure.tight_layout()
    figure.savefig(options.out / "qp_cpu.png", dpi=150)
    print(table(about | result))


if __name__ == "__main__":
    main()
