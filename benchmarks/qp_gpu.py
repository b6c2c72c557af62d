"""Claim: on a GPU, `solve_qp` answers in milliseconds, twenty times faster than qpth, and exactly.

    python -m pip install -e ".[bench]" && python -m pip install --no-deps qpth
    python benchmarks/qp_gpu.py [--smoke] [--only cuda,qpth] [--device cpu] [--out FOLDER]

writes qp_gpu.md, .json and .png: what `qp_cpu` measures, of the same problems and of larger batches
with all arguments on a GPU, for the engines of diffopt, qpth there, and moreau with and without its
CUDA backend (`peers`). Engine native is on the CPU: its time holds the way there and back. Without
a GPU, or with `--device cpu`, the tensors stay on the CPU, and shapes whose Q has over `MOST`
entries are left out.

Besides, of each contender:

    ratio          time of the forward pass over that of the first row that has one
    launches       of one forward pass: kernels on a GPU, operations of torch on a CPU (`launches`)
    steps          of the interior point, the mean over the batch, of diffopt's engines
    % of the rate  useful work (`arithmetic.flops` times the steps of each sample) over the time of
                   the forward pass, as a share of the device's rate: that of a float64 product of
                   two matrices of `SQUARE` rows, measured first; not of the Sudoku layer, whose Q
                   is diagonal

Two more tables: which of diffopt's two engines for the device is faster, n by n; and the goals of
`targets`, which are those of one H100 or H200, and judged on a GPU only. The problem that the paper
on OptNet is timed with, 0.18 s on its GPU, is a shape of its own.

How it is timed: one process, float64, contenders in turns, medians, as `race` says; on a GPU by
pairs of events (`Stopwatch`). What is left out is "-", and the last section says why.

Limits: those of `qp_cpu`. A pass is timed from a device that has nothing to do, so nothing hides
behind the work before it, as it can in a training loop. The count of launches says nothing about
copies and allocations. qpth gets no equations where there are none, and no bounds but as rows.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from arithmetic import flops, matrix_rate
from judge import Problem, optnet_problem, random_problem, sudoku_layer
from launches import launches
from machine import machine
from panels import draw, panels
from peers import Forward, absent, answer, engine
from qp_cpu import SHAPES, SUDOKU
from race import contest
from tables import cells, errors, grid, left_out
from targets import PAPER, TARGETS, targets
from tqdm import tqdm

Shape = tuple[int, int, int, int]  # batch, n, m, e

LARGE = [(batch, n, n, 0) for n in (10, 32, 64) for batch in (4096, 16384)]
OPTNET = (128, 100, 100, 0)
CURVES = {10: 16384, 32: 16384, 64: 16384}  # n = m: the largest batch
CROSSOVER = [(128, n, n, 0) for n in (16, 32, 64, 96, 128, 160, 192, 256)]
TINY = [(4, 5, 5, 2), (2, 5, 8, 0)]
NAMES = ["cuda", "native", "torch", "qpth", "moreau", "moreau_ipm"]
DRAWN = ["cuda", "native", "torch", "qpth", "moreau"]
RIVALS = {"cuda": ("cuda", "torch"), "cpu": ("native", "torch")}  # diffopt's, for a device
MOST = 2_000_000  # entries of Q: what a CPU does in seconds
SQUARE = {"cuda": 4096, "cpu": 1500}  # rows: enough for the full rate, a fraction of a second


class Job(NamedTuple):
    """A problem to race on: how to make it, what to call it, and milliseconds to reach, if any."""

    make: Callable[..., Problem]
    shape: Shape
    title: str
    goal: float | None


def jobs(smoke: bool) -> list[Job]:
    """Every problem of the first tables."""
    shapes = TINY if smoke else dict.fromkeys([*SHAPES, *TARGETS, *LARGE])
    sudoku, paper = ((2, 8, 0, 3), (2, 5, 5, 0)) if smoke else (SUDOKU, OPTNET)
    title = "batch {0}: n = {1}, {2} inequalities, {3} equalities"
    return [
        *(Job(random_problem, s, title, TARGETS.get(s)) for s in shapes),
        Job(sudoku_layer, sudoku, "batch {0}: Sudoku layer, n = {1}, z >= 0, {3} equalities", None),
        Job(optnet_problem, paper, "batch {0}: OptNet's paper, n = {1}, {2} inequalities", PAPER),
    ]


def points(smoke: bool) -> list[Shape]:
    """Every point of the curves."""
    ladders = {5: 1} if smoke else CURVES
    return [(4**i, n, n, 0) for n, top in ladders.items() for i in range(9) if 4**i <= top]


def fits(s: Shape, device: torch.device) -> bool:
    """Whether the device has the time for it."""
    return device.type == "cuda" or s[0] * s[1] ** 2 <= MOST


def census(a: Problem, name: str, forward: Forward) -> dict:
    """Launches of a forward pass, and of an engine of diffopt the steps and the useful work."""
    count = launches(forward, a.p.device)
    out: dict = {} if count is None else {"launches": count}
    if name in ("cuda", "native", "torch"):
        with torch.no_grad():
            steps = answer(a, engine(name)).iterations.double()
        out["steps"] = float(steps.mean())
        if not a.nonneg:  # flops are those of dense matrices
            n, m, e = a.p.shape[1], a.rows()[0].shape[1], a.equations()[0].shape[1]
            out["flops"] = float(steps.sum()) * flops(n, m, e)
    return out


def measured(a: Problem, names: list[str], budget: float, rate: float) -> dict[str, dict]:
    """The contest, with the census and the share of the device's rate."""
    found = contest(a, names, budget, also=lambda name, forward: census(a, name, forward))
    for r in found.values():
        if "flops" in r:
            r["share"] = r["flops"] / (r["forward"] / 1e3) / rate
    return found


def run(names: list[str], device: torch.device, smoke: bool, budget: float) -> Iterator[dict]:
    """Every table and every point of the curves; the result so far after each."""
    rate = matrix_rate(device, 100 if smoke else SQUARE[device.type])
    todo = [job for job in jobs(smoke) if fits(job.shape, device)]
    crossover = [s for s in (TINY[:1] if smoke else CROSSOVER) if fits(s, device)]
    ladder = [s for s in points(smoke) if fits(s, device)]
    rivals, drawn = ([k for k in few if k in names] for few in (RIVALS[device.type], DRAWN))
    bar = tqdm(total=len(todo) + len(crossover) + len(ladder), unit="shape")
    out: dict = {"rate": rate, "shapes": [], "crossover": [], "curves": []}

    def with_row(kind: str, s: Shape, found: dict, **about: object) -> dict:
        sizes = dict(zip("batch n m e".split(), s, strict=True))
        out[kind].append(about | sizes | {"contenders": found})
        bar.update()
        return out

    for make, s, title, goal in todo:
        found = measured(make(*s).to(device), names, budget, rate)
        yield with_row("shapes", s, found, name=title.format(*s), goal=goal)
    for s in crossover:
        found = contest(random_problem(*s).to(device), rivals, budget / 3)
        yield with_row("crossover", s, found)
    for s in ladder:
        found = contest(random_problem(*s).to(device), drawn, budget / 3, checked=False)
        yield with_row("curves", s, found)


def table(result: dict) -> str:
    """Everything as Markdown."""
    about = ", ".join(f"{k} {v}" for k, v in result["machine"].items())
    gpu = "GPU" in result["machine"]
    engines = RIVALS["cuda" if gpu else "cpu"]
    lines = [f"# QP layers on {result['device']}", "", f"{about}.", "", "Written by "
             "`benchmarks/qp_gpu.py`, whose docstring says what is measured. Milliseconds of a "
             "whole batch; the device multiplies float64 matrices at "
             f"{result['rate'] / 1e12:.3g} TFLOP/s."]  # fmt: skip
    lines += [f"Not installed: {', '.join(result['absent'])}."] if result["absent"] else []
    for row in result["shapes"]:
        lines += ["", f"## {row['name']}", "", *shape(row, "launches" if gpu else "operations")]
    lines += targets(result, engines, gpu) + rivalry(result, engines)
    return "\n".join([*lines, *left_out(result["shapes"]), ""])


def shape(row: dict, unit: str) -> list[str]:
    """The table of one shape."""
    heads = ["", "forward", "backward", "both", "ratio", unit, "steps", "% of the rate"]
    found = row["contenders"]
    base = next((r["forward"] for r in found.values() if "forward" in r), 1.0)
    rows = [
        [name, *cells(r, ("forward", "backward", "both"), ".2f"),
         *cells(r, ["forward"], ".2f", 1 / base), *cells(r, ["launches"], ".0f"),
         *cells(r, ["steps"], ".1f"), *cells(r, ["share"], ".2g", 100), *errors(r)]
        for name, r in found.items()
    ]  # fmt: skip
    return grid([*heads, "violation", "z error", "gradient error"], rows)


def rivalry(result: dict, engines: tuple[str, ...]) -> list[str]:
    """Which of diffopt's two engines for the device is faster, and by how much."""
    one, two = engines
    rows = []
    for c in result["crossover"]:
        pair = [c["contenders"].get(name, {}) for name in engines]
        times = [r["forward"] for r in pair if "forward" in r]
        ratio = [f"{times[1] / times[0]:.2f}"] if len(times) == 2 else []
        shown = [cell for r in pair for cell in cells(r, ["forward"], ".2f")]
        rows.append([str(c["batch"]), str(c["n"]), *shown, *ratio])
    heads = ["batch", "n = m", one, two, f"{two} / {one}"]
    return ["", f"## {one} or {two}: the forward pass", "", *grid(heads, rows)]


def picture(result: dict, path: Path) -> None:
    """The throughput against the batch size, and the forward pass of the rivals against n."""
    bold = RIVALS["cuda" if "GPU" in result["machine"] else "cpu"][0]
    figure, axes = panels(result["curves"], bold, more=1)
    ax, rows = axes[-1], result["crossover"]
    draw(ax, rows, "n", lambda c, r: r["forward"], bold)
    sizes = [c["n"] for c in rows]
    ax.set_xticks(sizes, [str(n) for n in sizes])
    ax.set_xticks([], minor=True)
    ax.set(xlabel="n, and as many inequalities", ylabel="milliseconds, forward")
    ax.set_title(f"batch {rows[-1]['batch']}", fontsize=10)
    figure.suptitle(result["device"], fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the tables, the numbers and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="tiny problems, seconds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", default=",".join(NAMES), help="contenders, with commas")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each contender and shape")
    parser.add_argument("--device", choices=["cuda", "cpu"], help="cuda where there is one")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device; leave it out to use the CPU")
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("ignore")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    about = machine(device)
    names = options.only.split(",")
    missing = absent(names)
    names = [name for name in names if name not in missing]
    head = {"device": about.get("GPU", f"CPU tensors, {about['processor']}"), "machine": about,
            "absent": missing}  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    for result in run(names, device, options.smoke, 0.1 if options.smoke else options.seconds):
        (options.out / "qp_gpu.json").write_text(json.dumps(head | result, indent=1))
        (options.out / "qp_gpu.md").write_text(table(head | result))
    picture(head | result, options.out / "qp_gpu.png")
    print(table(head | result))


if __name__ == "__main__":
    main()
