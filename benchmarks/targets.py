"""What is asked of one H100 or H200, and whether a run got there."""

from __future__ import annotations

import math

from tables import cells, grid

# batch, n, m, e of a random problem: milliseconds of a forward pass in float64, the graph built
TARGETS = {(4096, 10, 10, 0): 0.5, (128, 50, 50, 0): 1.0, (128, 100, 100, 0): 5.0}
TIMES_QPTH = 20  # the least ratio of qpth's time to ours
EXACT = 1e-8  # the largest error of z with which a time counts
PAPER = 180.0  # milliseconds in "OptNet", on its GPU, of the problem of `judge.optnet_problem`


def targets(result: dict, engines: tuple[str, ...], gpu: bool) -> list[str]:
    """A section with a line for each shape that has a goal, judged on a GPU.

    The time is that of the first of `engines` that answered; with a z that is not exact, or that
    the judge knew nothing about, it does not count: "wrong".
    """
    said = "and judged" if gpu else "so not judged"
    ours = ["problem", "engine", "forward", "goal", "verdict"]
    heads = [*ours, "qpth", "times faster", "goal", "verdict"]
    lines = [line(row, engines, gpu) for row in result["shapes"] if row["goal"]]
    return ["", "## Goals", "", "Milliseconds of the forward pass; of one H100 or H200, "
            f"{said} on {result['device']}.", "", *grid(heads, lines)]  # fmt: skip


def line(row: dict, engines: tuple[str, ...], gpu: bool) -> list[str]:
    """The cells of one shape; the rest is "-" where no engine answered."""
    found, goal = row["contenders"], f"{row['goal']:g}"
    name = next((k for k in engines if "forward" in found.get(k, {})), None)
    if name is None:
        return [row["name"], "-", "-", goal]
    ms, qpth = found[name]["forward"], found.get("qpth", {})
    right = found[name].get("z", math.inf) <= EXACT
    times = {"faster": qpth["forward"] / ms} if "forward" in qpth else {}
    return [
        row["name"], name, f"{ms:.2f}", goal, verdict(gpu, right, ms <= row["goal"]),
        *cells(qpth, ["forward"], ".2f"), *cells(times, ["faster"], ".1f"), f"{TIMES_QPTH}",
        verdict(gpu and bool(times), right, times.get("faster", 0.0) >= TIMES_QPTH),
    ]  # fmt: skip


def verdict(judged: bool, right: bool, met: bool) -> str:
    """Of a goal."""
    if not judged:
        return "-"
    return ("met" if met else "missed") if right else "wrong"
