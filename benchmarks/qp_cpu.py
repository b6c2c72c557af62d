"""Claim: on a CPU, the native engine of `solve_qp` is faster than every other QP layer, and exact.

    python -m pip install -e ".[bench]" && python -m pip install --no-deps qpth
    python benchmarks/qp_cpu.py [--smoke] [--only native,moreau] [--out FOLDER]

writes qp_cpu.md, .json and .png: the time of the forward pass (every argument batched and requiring
a gradient, the graph built) and of the backward pass (torch.autograd.grad of a weighted sum of z
with respect to every argument) of each contender of `peers`, over shapes of random problems and for
the layer that learns Sudoku; and the throughput against the batch size.

The problems: Q = LL'/n + I/10, rows of G and A normal, h = Gx + s with s uniform in [0, 1], b = Ax.
Sudoku: Q = I/10 and A, 40 x 64, shared by the batch, z >= 0, gradients for p, A and b.

`judge` says what is exact: from the active set of the first contender's answer, and checked.
`violation` is the largest of a constraint, `z error` the largest of an entry, and `gradient error`
the worst argument's, relative, in the Frobenius norm over the batch; of Q, the symmetric part's.

How it is timed: one process, float64; setting up a solver (layers, symbolic work) is not counted,
one call warms up; then all contenders take turns, of up to ten calls in a row if they are short,
and the median of all calls counts; one of over 2 s a call gets three turns. A contender that takes
over `LIMIT` seconds is left out: "-".

Limits: one machine, to be left alone: under load, what runs on torch's threads suffers ten times
more than the rest. Random problems, dense,
well conditioned and without degeneracy, are the easy ones for an active-set method. The same
problems are solved over and over, cold: nobody reuses an earlier answer, but moreau keeps matrices
that it has seen, which changes the Sudoku row by a tenth. Each contender has the number of threads
that it takes by itself, except QPLayer (`peers`).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import time
import warnings
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import torch
from judge import Problem, errors, exact, gradients, random_problem, sudoku_layer
from peers import CONTENDERS, Forward, absent
from tqdm import tqdm

SHAPES = [
    (1, 10, 10, 5), (1, 100, 100, 20), (128, 10, 10, 5), (1000, 10, 10, 5), (128, 50, 50, 10),
    (64, 100, 100, 20), (16, 200, 200, 40), (4096, 10, 20, 0), (1024, 50, 100, 10),
]  # fmt: skip  # batch, n, m, e
SUDOKU = (128, 64, 0, 40)
CURVES = {10: (10, 5, 16384), 50: (50, 10, 2048), 100: (100, 20, 512)}  # n: m, e, largest batch
DRAWN = ["native", "torch", "moreau", "qpth"]
LIMIT, SETUP_LIMIT, BURST = 10, 30, 0.02  # seconds
PACKAGES = [
    "torch",
    "numpy",
    "moreau",
    "proxsuite",
    "qpth",
    "cvxpylayers",
    "cvxpy",
    "diffcp",
    "scs",
]


@contextlib.contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """TimeoutError after so many seconds, at the next line of Python."""

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def burst(a: Problem, forward: Forward, count: int) -> list[tuple[float, float]]:
    """`seconds` of calls in a row, as in a training loop, after a pause in which threads of others
    fall asleep; the first of several is not counted."""
    time.sleep(0.005)
    return [seconds(a, forward) for _ in range(count + (count > 1))][count > 1 :]


def seconds(a: Problem, forward: Forward) -> tuple[float, float]:
    """Of one forward and of one backward pass."""
    start = time.perf_counter()
    z = forward()
    middle = time.perf_counter()
    gradients(a, z)
    return middle - start, time.perf_counter() - middle


def without_graph(forward: Forward, rounds: int) -> float:
    """Median seconds of the forward pass under `torch.no_grad`."""
    took = []
    with torch.no_grad():
        for _ in range(rounds):
            start = time.perf_counter()
            forward()
            took.append(time.perf_counter() - start)
    return statistics.median(took)


def enter(a: Problem, name: str) -> tuple[Forward, float]:
    """A contender, set up and warm, and the seconds that a call takes; TimeoutError."""
    with deadline(SETUP_LIMIT):
        forward = CONTENDERS[name][1](a)
    with deadline(LIMIT):
        took = sum(burst(a, forward, 1)[0])
    if took > LIMIT:  # one line of Python can take long
        raise TimeoutError
    return forward, sum(burst(a, forward, 1)[0]) if took < 2 else took


def contest(a: Problem, names: list[str], budget: float, checked: bool = True) -> dict[str, dict]:
    """Times in milliseconds and errors of each contender; `budget` seconds for each."""
    ready: dict[str, Forward] = {}
    turns, calls, out = {}, {}, {}
    for name in names:
        try:
            ready[name], call = enter(a, name)
            turns[name] = 3 if call > 2 else min(max(int(budget / call), 5), 50)
            calls[name] = min(max(int(BURST / call), 1), 10)
        except Exception as error:  # whatever a peer raises, the others go on
            out[name] = {"left out": f"{type(error).__name__}: {error}"[:200]}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ready}
    gc.collect()
    rounds = max(turns.values(), default=0)
    for i in range(rounds):
        for name, forward in ready.items():
            if (i + 1) * turns[name] // rounds > i * turns[name] // rounds:  # spread evenly
                times[name] += burst(a, forward, calls[name])
    truth = exact(a, next(iter(ready.values()))().detach()) if checked and ready else None
    for name, forward in ready.items():
        ms = [1e3 * statistics.median(t) for t in zip(*times[name], strict=True)]
        both = 1e3 * statistics.median(sum(t) for t in times[name])
        out[name] = {"forward": ms[0], "backward": ms[1], "both": both, "times": len(times[name])}
        if CONTENDERS[name][0] == "diffopt":
            out[name]["no_grad"] = 1e3 * without_graph(forward, min(turns[name], 20))
        out[name] |= errors(a, forward, truth) if truth else {}
    return {name: out[name] for name in names}


def machine() -> dict:
    """Processor, threads, versions and the day."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"processor": model, "cores": os.cpu_count(), "torch threads": torch.get_num_threads(),
            "load before": round(os.getloadavg()[0], 1), "date": str(date.today()),
            "python": platform.python_version(), **versions}  # fmt: skip


def table(result: dict) -> str:
    """The rows as Markdown, a table a shape."""
    about = ", ".join(f"{k} {v}" for k, v in result["machine"].items())
    lines = ["# QP layers on a CPU", "", f"{about}.", "", "Written by `benchmarks/qp_cpu.py`, "
             "whose docstring says what is measured. Milliseconds of a whole batch; `ratio` is "
             "forward + backward over that of the first row."]  # fmt: skip
    lines += [f"Not installed: {', '.join(result['absent'])}."] if result["absent"] else []
    for row in result["shapes"]:
        lines += ["", f"## {row['name']}", "", "| | forward | backward | both | ratio | violation "
                  "| z error | gradient error |", "|---|---|---|---|---|---|---|---|"]  # fmt: skip
        base = next((r["both"] for r in row["contenders"].values() if "both" in r), 1.0)
        for name, r in row["contenders"].items():
            if "both" not in r:
                lines.append(f"| {name} | - | - | - | - | - | - | - |")
                continue
            ms = " | ".join(f"{r[k]:.2f}" for k in ("forward", "backward", "both"))
            digits = " | ".join(f"{r[k]:.0e}" for k in ("violation", "z", "gradient"))
            lines.append(f"| {name} | {ms} | {r['both'] / base:.2f} | {digits} |")
    return "\n".join(lines) + "\n"


def draw(curves: list[dict], path: Path) -> None:
    """Problems a second, forward and backward, against the batch size, a panel for each n."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = sorted({c["n"] for c in curves})
    figure, axes = plt.subplots(1, len(sizes), figsize=(4.2 * len(sizes), 4), squeeze=False)
    for ax, n in zip(axes[0], sizes, strict=True):
        rows = [c for c in curves if c["n"] == n]
        for i, name in enumerate(rows[0]["contenders"]):
            points = [(c["batch"], c["batch"] / c["contenders"][name]["both"] * 1e3)
                      for c in rows if "both" in c["contenders"].get(name, {})]  # fmt: skip
            style = {"lw": 2.5, "zorder": 3} if name == "native" else {"lw": 1.5}
            x, y = zip(*points, strict=True) if points else ((), ())
            ax.loglog(x, y, "o-", ms=4, color=f"C{i}", label=name, **style)
        ax.set(title=f"n = {n}, {rows[0]['m']} inequalities, {rows[0]['e']} equalities",
               xlabel="batch size")  # fmt: skip
        ax.title.set_fontsize(10)
        ax.grid(True, which="major", alpha=0.3)
    axes[0][0].set_ylabel("problems a second, forward + backward")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


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
    parser.add_argument("--only", default=",".join(CONTENDERS), help="contenders, with commas")
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
    draw(result["curves"], options.out / "qp_cpu.png")
    print(table(about | result))


if __name__ == "__main__":
    main()
