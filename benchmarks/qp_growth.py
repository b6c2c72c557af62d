"""Claim: the native engine's time is that of its arithmetic, as n and as the batch grow.

    python benchmarks/qp_growth.py [--smoke] [--out FOLDER]

writes qp_growth.md, .json and .png: milliseconds of the forward pass (without a graph) and of
forward and backward (everything requiring a gradient) of random QPs with m = n inequalities and
e = n / 5 equations, for n = 10 to 400 at a fixed batch, and for batches of 1 to 10 000 at n = 10
and 50; and of the forward pass the rate of arithmetic, against that of torch.bmm in float64 for
matrices of the same n on the same machine and threads, which is as fast as arithmetic gets there.

The rate is that of the useful work: `arithmetic.flops` of a step times the mean number of steps.
Setting up, polishing and the check of the answer are not in it.

Limits: the number of steps is what `QPSolution.iterations` says; the estimate is of a textbook
method, so the rate is one of useful work, and no count of what the processor did. Best of the
repetitions for the rate of bmm, median for the rest; other jobs on the machine disturb both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from arithmetic import flops
from judge import gradients, random_problem
from machine import machine
from peers import engine, ours
from tqdm import tqdm

import diffopt

SIZES = [(64, n) for n in (10, 20, 30, 50, 75, 100, 150, 200, 300, 400)]  # batch, n
BATCHES = {10: 10_000, 50: 1000}  # n: the largest batch


def steps(top: int) -> list[int]:
    """1, 3, 10, 30, ... up to `top`."""
    return [b for k in range(5) for b in (10**k, 3 * 10**k) if b <= top]


def median(call: Callable[[], object], budget: float) -> float:
    """Seconds of one call, after one to warm up; `budget` seconds of calls, 3 at least."""
    call()
    took: list[float] = []
    while len(took) < 3 or (sum(took) < budget and len(took) < 100):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def ceiling(n: int, budget: float) -> float:
    """GFLOP/s of torch.bmm: the best of some batches of n x n products."""
    best = 0.0
    for batch in (8, max(8, 4_000_000 // n**2)):
        X = torch.randn(batch, n, n)
        out = torch.empty_like(X)
        took = median(lambda X=X, out=out: torch.bmm(X, X, out=out), budget / 2)
        best = max(best, 2 * batch * n**3 / took / 1e9)
    return best


def point(batch: int, n: int, name: str, budget: float, peak: float) -> dict:
    """One row of the table: `name` is the engine, `peak` the rate of bmm."""
    m, e = n, n // 5
    a = random_problem(batch, n, m, e)
    forward = ours(name)(a)
    with torch.no_grad():
        sol = diffopt.solve_qp(**a.arguments(), solver=engine(name))
        plain = median(forward, budget)
    both = median(lambda: gradients(a, forward()), budget)
    count = float(sol.iterations.double().mean())
    rate = flops(n, m, e) * count * batch / plain / 1e9
    return {"batch": batch, "n": n, "m": m, "e": e, "steps": count, "forward": 1e3 * plain,
            "both": 1e3 * both, "rate": rate, "ceiling": peak}  # fmt: skip


def table(result: dict) -> str:
    """The rows as Markdown."""
    about = ", ".join(f"{k} {v}" for k, v in result["machine"].items())
    lines = [f"# Growth of the {result['engine']} engine", "", f"{about}.", "", "Written by "
             "`benchmarks/qp_growth.py`, whose docstring says what is measured. Milliseconds of a "
             "whole batch; rates in GFLOP/s.", "",
             "| batch | n | m | e | steps | forward | forward + backward | rate | bmm | share |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in result["sizes"] + result["batches"]:
        lines.append(
            f"| {r['batch']} | {r['n']} | {r['m']} | {r['e']} | {r['steps']:.1f} "
            f"| {r['forward']:.2f} | {r['both']:.2f} | {r['rate']:.2f} | {r['ceiling']:.1f} "
            f"| {100 * r['rate'] / r['ceiling']:.1f} % |"
        )
    return "\n".join(lines) + "\n"


def draw(result: dict, path: Path) -> None:
    """Time of a problem against n and against the batch, and the rates."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4))
    rows = result["sizes"]
    n = [r["n"] for r in rows]
    for key, label in (("forward", "forward"), ("both", "forward + backward")):
        left.loglog(n, [r[key] / r["batch"] for r in rows], "o-", ms=4, label=label)
    last = rows[-1]["forward"] / rows[-1]["batch"]
    cubic = [last * (k / n[-1]) ** 3 for k in n]
    left.loglog(n, cubic, "k:", lw=1, label="n cubed")
    left.set(xlabel="n", ylabel="milliseconds a problem", title=f"batch {rows[0]['batch']}")
    for size in sorted({r["n"] for r in result["batches"]}):
        rows = [r for r in result["batches"] if r["n"] == size]
        for key, line in (("forward", "o-"), ("both", "o--")):
            middle.loglog([r["batch"] for r in rows], [r[key] / r["batch"] for r in rows], line,
                          ms=4, color=f"C{int(size > 10)}", label=f"n = {size}, {key}")  # fmt: skip
    middle.set(xlabel="batch size", ylabel="milliseconds a problem", title="growth with the batch")
    right.loglog(n, [r["ceiling"] for r in result["sizes"]], "k-", label="torch.bmm")
    right.loglog(n, [r["rate"] for r in result["sizes"]], "o-", ms=4, label="forward, useful work")
    right.set(xlabel="n", ylabel="GFLOP/s", title="rate of arithmetic, float64")
    for ax in (left, middle, right):
        ax.grid(True, which="major", alpha=0.3)
        ax.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def run(name: str, smoke: bool, budget: float) -> dict:
    """Every row."""
    sizes = [(2, 5), (2, 10)] if smoke else SIZES
    tops = {10: 3} if smoke else BATCHES
    ladders = [(b, n) for n, top in tops.items() for b in steps(top)]
    peaks = {n: ceiling(n, budget) for n in {n for _, n in sizes + ladders}}
    out: dict = {"engine": name, "sizes": [], "batches": []}
    jobs = [("sizes", s) for s in sizes] + [("batches", s) for s in ladders]
    for kind, (batch, n) in tqdm(jobs, unit="point"):
        out[kind].append(point(batch, n, name, budget, peaks[n]))
    return out


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the table, the numbers and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="tiny problems, seconds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--engine", default="native", choices=["native", "torch"])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each number")
    options = parser.parse_args(arguments)
    torch.set_default_dtype(torch.float64)
    result = run(options.engine, options.smoke, 0.1 if options.smoke else options.seconds)
    result["machine"] = machine()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "qp_growth.json").write_text(json.dumps(result, indent=1))
    (options.out / "qp_growth.md").write_text(table(result))
    draw(result, options.out / "qp_growth.png")
    print(table(result))


if __name__ == "__main__":
    main()
