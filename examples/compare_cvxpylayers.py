"""One convex layer by four routes: cvxpylayers as it is, with our solver in it, and our own.

    python -m pip install -e ".[compare]"
    python examples/compare_cvxpylayers.py        # about four minutes on two cores

Six problems written in CVXPY (`problems/convex.py`), at most 50 unknowns each, in batches of 128:

* `ConvexLayer(problem, parameters, variables)`: ours. The arguments are those of `CvxpyLayer`.
* `CvxpyLayer(..., solver=DiffoptSolver())`: cvxpylayers with our solver in it.
* `CvxpyLayer(..., solver="MOREAU")`: its fastest route on a CPU, a batched solver in Rust.
* `CvxpyLayer(...)`: what it does by default, diffcp on SCS, an instance at a time.

Expect `ConvexLayer` to be at least ten times as fast as the default, forward and backward together,
and twice as fast as MOREAU. Everything is checked: of diffopt and the default variables to 1e-6 and
the gradient of a random function of them to 1e-4 of its size; of MOREAU to 1e-5 and 1e-3, as it
differentiates a smoothed problem and cvxpylayers does not hand it all tolerances.

The times are those of default settings, except for the check itself: SCS is set to 1e-10 for it,
with dense instead of iterative derivatives. As timed, it stops at 1e-4; the table has the errors of
both. One process, float64, one thread for torch and for us, while peers take those they want.
Set-up is not counted; all routes take turns, of which the first call is not counted either, and the
median is reported. The ratio is what survives another machine.

With MOREAU, cvxpylayers 1.2 on CVXPY 1.9 answers as if the rows of x >= 0 were not there. CVXPY
hands them over as bounds of their own kind, which cvxpylayers leaves out. So its problems have
2 x >= 0, and the table says what comes of x >= 0.

The first two problems are linear programs. Their solution is a vertex, where as many residuals and
coefficients are zero as there are unknowns. While these stay zero it moves smoothly with A and b,
so there is a gradient, and it is the one compared.

Source: Agrawal et al., "Differentiable Convex Optimization Layers" (NeurIPS 2019).
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cvxpylayers.torch import CvxpyLayer
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from diffopt import ConvexLayer
from diffopt.convex.cvxpylayers import DiffoptSolver
from problems import convex
from problems.convex import Parametrised

COLOURS = {
    "ConvexLayer": "#0072B2",
    "DiffoptSolver": "#56B4E9",
    "MOREAU": "#E69F00",
    "default": "#999999",
}
LABELS = {
    "ConvexLayer": "diffopt.ConvexLayer",
    "DiffoptSolver": "cvxpylayers, solver=DiffoptSolver()",
    "MOREAU": 'cvxpylayers, solver="MOREAU"',
    "default": "cvxpylayers, its default (DIFFCP)",
}
EXACT = {"eps": 1e-10, "max_iters": 100_000, "mode": "dense"}  # of the default, for the check
BOUNDS = {"ConvexLayer": (0.0, 0.0), "DiffoptSolver": (1e-6, 1e-4), "MOREAU": (1e-5, 1e-3),
          "default": (1e-6, 1e-4)}  # fmt: skip
Problems = dict[str, Callable[[float], Parametrised]]  # of the scale of x >= 0
PROBLEMS: Problems = {
    "l1 regression, n = 2, m = 3": lambda scale: convex.l1_regression(2, 3, scale),
    "l1 regression, n = 20, m = 30": lambda scale: convex.l1_regression(20, 30, scale),
    "portfolio, n = 50": lambda scale: convex.portfolio(50, scale=scale),
    "QP, n = 50, 50 rows, 10 equations": lambda _: convex.quadratic(50, 50, 10),
    "control, 6 states, 2 controls, T = 5": lambda _: convex.control_step(5, 6, 2),
    "simplex, n = 50": lambda scale: convex.simplex(50, scale),
}
SMOKE: Problems = {
    "l1 regression, n = 2, m = 3": lambda scale: convex.l1_regression(2, 3, scale),
    "portfolio, n = 5": lambda scale: convex.portfolio(5, 2, scale),
    "QP, n = 6, 6 rows, 2 equations": lambda _: convex.quadratic(6, 6, 2),
    "control, 2 states, 1 control, T = 3": lambda _: convex.control_step(3, 2, 1),
    "simplex, n = 5": lambda scale: convex.simplex(5, scale),
}


class Answer(NamedTuple):
    """Variables, gradients, and what they took, in seconds."""

    variables: list[Tensor]
    gradients: list[Tensor]
    forward: float
    backward: float


class Row(NamedTuple):
    """One route of one problem; errors against ours, of variables and of gradients."""

    forward: float
    backward: float
    off: tuple[float, float]  # at the settings timed
    error: tuple[float, float]  # at those of the check

    @property
    def total(self) -> float:
        return self.forward + self.backward


def layer(route: str, task: Parametrised, settings: dict[str, Any] | None = None) -> Any:
    """The layer of that route."""
    what = task.problem, task.parameters, task.variables
    if route == "ConvexLayer":
        return ConvexLayer(*what)
    solver = {"DiffoptSolver": DiffoptSolver(), "MOREAU": "MOREAU", "default": None}[route]
    return CvxpyLayer(*what, solver=solver, solver_args=settings)


def call(solve: Any, values: tuple[Tensor, ...]) -> Answer:
    """One forward and one backward pass, of a random linear function of the variables."""
    leaves = [v.clone().requires_grad_() for v in values]
    start = time.perf_counter()
    found = solve(*leaves)
    middle = time.perf_counter()
    draw = torch.Generator().manual_seed(0)
    loss = sum((torch.randn(v.shape, generator=draw, dtype=v.dtype) * v).sum() for v in found)
    before = time.perf_counter()
    gradients = torch.autograd.grad(loss, leaves)
    end = time.perf_counter()
    return Answer([v.detach() for v in found], list(gradients), middle - start, end - before)


def difference(a: Answer, b: Answer) -> tuple[float, float]:
    """Of variables, absolute, the largest entry; of gradients, relative, the worst parameter."""
    z = max((x - y).abs().max().item() for x, y in zip(a.variables, b.variables, strict=True))
    g = [((x - y).norm() / y.norm()).item() for x, y in zip(a.gradients, b.gradients, strict=True)]
    return z, max(g)


def race(
    make: Callable[[float], Parametrised], batch: int, turns: int, bar: tqdm
) -> dict[str, Row]:
    """All routes on one problem, in turns."""
    values = make(1.0).instances(batch)
    tasks = {name: make(2.0 if name == "MOREAU" else 1.0) for name in LABELS}
    solvers = {name: layer(name, task) for name, task in tasks.items()}
    first = {name: call(solve, values) for name, solve in solvers.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in LABELS}
    order = list(LABELS)
    for _ in range(turns):
        order = order[1:] + order[:1]  # nobody always comes after the slowest
        for name, solve in ((name, solvers[name]) for name in order):
            time.sleep(0.005)  # threads of others fall asleep
            warm = call(solve, values)
            for _ in range(5 if warm.forward < 0.3 else 1):
                answer = call(solve, values)
                times[name].append((answer.forward, answer.backward))
        bar.update()
    rows = {}
    for name, seconds in times.items():
        exact = first[name]
        if name == "default":
            exact = call(layer(name, tasks[name], EXACT), values)
        forward, backward = (statistics.median(t) for t in zip(*seconds, strict=True))
        off, error = (difference(a, first["ConvexLayer"]) for a in (first[name], exact))
        rows[name] = Row(forward, backward, off, error)
    bar.update()
    return rows


def as_written(make: Callable[[float], Parametrised], batch: int) -> float:
    """How far MOREAU's answer is off if what may be written as x >= 0 is."""
    task = make(1.0)
    values = task.instances(batch)
    found, truth = (layer(route, task)(*values)[0] for route in ("MOREAU", "ConvexLayer"))
    return (found - truth).abs().max().item()


def table(results: dict[str, dict[str, Row]], wrong: dict[str, float], batch: int) -> str:
    """What was measured."""
    lines = [f"batch {batch}; milliseconds; errors: variables / gradients"]
    for problem, rows in results.items():
        lines += ["", f"{problem:40s}{'forward':>9s}{'backward':>10s}{'ratio':>7s}"
                  f"{'as timed':>16s}{'for the check':>16s}"]  # fmt: skip
        base = rows["ConvexLayer"].total
        for name, row in rows.items():
            ms = f"{1e3 * row.forward:9.1f}{1e3 * row.backward:10.1f}{row.total / base:7.1f}"
            errors = [f"{z:.0e} / {g:.0e}" for z, g in (row.off, row.error)]
            lines.append(f"  {LABELS[name]:38s}{ms}" + "".join(f"{e:>16s}" for e in errors))
        if wrong[problem] > 1e-3:
            said = f'"MOREAU" as written, x >= 0 and not 2 x >= 0: wrong by {wrong[problem]:.1f}'
            lines.append(f"  {said}")
    return "\n".join(lines)


def draw(path: Path, results: dict[str, dict[str, Row]], batch: int) -> None:
    """A group of bars for each problem, on a logarithmic scale, the ratios beside them."""
    figure = Figure(figsize=(12, 1.2 + 1.35 * len(results)), dpi=100, layout="constrained")
    ax = figure.subplots()
    for i, rows in enumerate(results.values()):
        base = rows["ConvexLayer"].total
        for k, (name, row) in enumerate(rows.items()):
            y, label = i + 0.2 * (k - 1.5), None if i else LABELS[name]
            ax.barh(y, 1e3 * row.total, height=0.18, color=COLOURS[name], label=label)
            said = f" {1e3 * row.total:.0f} ms" if k == 0 else f" {row.total / base:.1f} times"
            ax.text(1e3 * row.total, y, said, va="center", fontsize=11)
    ax.set(xscale="log", yticks=range(len(results)))
    ax.set_yticklabels([name.replace(", ", "\n", 1) for name in results], fontsize=12)
    ax.set_xlim(right=1.6 * ax.get_xlim()[1])
    ax.invert_yaxis()
    ax.set_xlabel("milliseconds, forward + backward", fontsize=12)
    ax.set_title(f"The same layer, {batch} instances at once", fontsize=15)
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*ax.get_legend_handles_labels(), fontsize=12, loc="outside lower center", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the picture")
    parser.add_argument("--smoke", action="store_true", help="tiny problems, a few seconds")
    args = parser.parse_args(argv)
    problems, batch, turns = (SMOKE, 4, 1) if args.smoke else (PROBLEMS, 128, 5)
    results: dict[str, dict[str, Row]] = {}
    with warnings.catch_warnings(), tqdm(total=len(problems) * (turns + 1), unit="turn") as bar:
        warnings.simplefilter("ignore")  # of the peers
        for name, make in problems.items():
            bar.set_description(name.partition(",")[0])
            results[name] = race(make, batch, turns, bar)
        wrong = {name: as_written(make, batch) for name, make in problems.items()}
    print(table(results, wrong, batch))
    folder = args.out or (Path("docs/img") if Path("docs/img").is_dir() else Path())
    path = folder / f"compare_cvxpylayers{'-smoke' if args.smoke else ''}.png"
    draw(path, results, batch)
    ratio = {
        name: min(rows[name].total / rows["ConvexLayer"].total for rows in results.values())
        for name in LABELS
    }
    apart = [
        f"{name} on {problem}: {row.error[0]:.0e}, {row.error[1]:.0e}"
        for problem, rows in results.items()
        for name, row in rows.items()
        if not all(e <= bound for e, bound in zip(row.error, BOUNDS[name], strict=True))
    ]
    least = ", ".join(f"{ratio[name]:.1f} to {name}" for name in ("default", "MOREAU"))
    print(f"least ratio {least}; picture: {path}")
    claims = {
        f"all answers agree ({'; '.join(apart)})": not apart,
        "ten times as fast as the default": args.smoke or ratio["default"] >= 10,
        "twice as fast as MOREAU": args.smoke or ratio["MOREAU"] >= 2,
    }
    failed = [claim for claim, holds in claims.items() if not holds]
    if failed:
        print(f"not true in this run: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # of matrices this small, threads only wait for each other
    sys.exit(main())
