"""Claim: a sparse QP of 10,000 unknowns is solved and differentiated in seconds.

    python benchmarks/qp_sparse.py [--smoke] [--out FOLDER] [--limit SECONDS]

writes qp_sparse.md, .json and .png: seconds of `solve_qp_sparse` on five kinds of problems of 100
to 10,000 unknowns (`problems/sparse_qp.py`), by default and with each solver, split into

    solver      the solver itself, its set-up included
    ours        all the rest of the forward pass: checks, equilibration, polish (by default the
                whole forward pass is counted under "solver")
    backward    gradients of all arguments, matrices on their patterns

and the dense `solve_qp`, forward and backward, where n <= 1000. The problems: random patterns of
ten entries a row (0.1 % at n = 10,000), with a diagonal Q and with such a Q, n / 2 rows of G and
n / 10 of A; control (a chain of n / 12 steps); obstacle (a grid); portfolio (n / 200 factors).

Every answer is judged here from the definition: the worst relative KKT residual is 1e-9 at most, or
the run fails; and of the gradients of one random linear function of z, lam, nu and mu the largest
difference between two solvers, relative to the largest entry, is 1e-6 at most.

Limits: one thread; each time is one run after a warm-up on a small problem, or the best of three
below a second. A size whose time, by the growth seen before it, would pass `--limit` is left out
("-"): a direct factor of random patterns is dense. Control, obstacle and portfolio are strictly
convex with a unique active set, and easy for that; degenerate ones are in the tests.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from machine import machine
from torch import Tensor
from tqdm import tqdm

import diffopt
from problems.random_qp import Instance
from problems.sparse_qp import control_qp, obstacle_qp, portfolio_qp, random_sparse_qp

KINDS: dict[str, Callable[[int], Instance]] = {
    "random, diagonal Q": lambda n: random_sparse_qp(n, n // 2, n // 10, diagonal=True),
    "random": lambda n: random_sparse_qp(n, n // 2, n // 10),
    "control": lambda n: control_qp(n // 12),
    "obstacle": lambda n: obstacle_qp(round(n**0.5)),
    "portfolio": lambda n: portfolio_qp(n - max(n // 200, 4), max(n // 200, 4)),
}
SOLVERS: dict[str, Callable[[Any], Any] | None] = {
    "default": None,
    "Clarabel": diffopt.Clarabel(),
    "PIQP": diffopt.PIQP(),
    "OSQP": diffopt.OSQP(),
    "ADMM": diffopt.ADMM(),
}
PACKAGES = ("clarabel", "piqp", "osqp", "qdldl", "scipy")
SIZES = (100, 300, 1000, 3000, 10_000)
INF = float("inf")


class Clocked:
    """A solver that notes how long it took."""

    def __init__(self, solver: Callable[[Any], Any]) -> None:
        self.solver, self.seconds = solver, 0.0

    def __call__(self, qp: Any) -> Any:
        start = time.perf_counter()
        found = self.solver(qp)
        self.seconds = time.perf_counter() - start
        return found


def kkt_error(a: dict[str, Tensor], sol: diffopt.QPSolution) -> float:
    """The worst relative KKT residual, from the definition."""
    z, lam, nu, mu = (v.detach() for v in (sol.z, sol.lam, sol.nu, sol.mu))
    none = torch.zeros(0, len(z))
    Q, G, A = (a.get(k, none) for k in "QGA")
    Qz, Gz, Az, b = Q @ z, G @ z, A @ z, a.get("b", torch.zeros(0))
    limits = [(Gz, a.get("h_lower"), a.get("h"), lam), (z, a.get("lb"), a.get("ub"), mu)]
    primal, gap, stray = [Az - b], z @ Qz + a["p"] @ z + b @ nu, torch.zeros(1)
    for x, low, up, y in limits:
        low = torch.full_like(x, -INF) if low is None else low
        up = torch.full_like(x, INF) if up is None else up
        primal += [(x - up).clamp(min=0), (low - x).clamp(min=0)]
        limit = torch.where(y > 0, up, low)
        stray = torch.cat([stray, torch.where(limit.isinf(), y, 0.0)])
        gap = gap + torch.where(limit.isinf(), 0.0, limit) @ y
    dual = Qz + a["p"] + G.T @ lam + A.T @ nu + mu

    def top(*vectors: Tensor) -> Tensor:
        return torch.cat(vectors).abs().amax()

    errors = (
        top(*primal) / (1 + top(Gz, Az, b, torch.zeros(1))),
        top(dual, stray) / (1 + top(Qz, a["p"], mu)),
        gap.abs() / (1 + (z @ Qz / 2 + a["p"] @ z).abs()),
    )
    return float(torch.stack(errors).amax())


def loss(sol: diffopt.QPSolution) -> Tensor:
    """A random linear function of the answer."""
    x = torch.cat([sol.z, sol.lam, sol.nu, sol.mu])
    return x @ torch.randn(len(x), generator=torch.Generator().manual_seed(0))


def once(a: dict[str, Tensor], solver: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """One run: (a row of the table, the gradients)."""
    leaves = {k: v.clone().requires_grad_() for k, v in a.items()}
    clock = Clocked(solver or diffopt.Clarabel())
    start = time.perf_counter()
    sol = diffopt.solve_qp_sparse(**leaves, solver=solver and clock)
    middle = time.perf_counter()
    loss(sol).backward()
    end = time.perf_counter()
    error = kkt_error(a, sol)
    assert sol.status == 0 and error <= 1e-9, (sol, error)
    inside = clock.seconds if solver else middle - start
    row = {"solver": inside, "ours": middle - start - inside,
           "backward": end - middle, "residual": error, "steps": int(sol.iterations)}  # fmt: skip
    return row, {k: v.grad for k, v in leaves.items()}


def dense(a: dict[str, Tensor]) -> dict[str, Any]:
    """The same by the dense `solve_qp`."""
    leaves = {k: (v.to_dense() if v.is_sparse else v.clone()) for k, v in a.items()}
    leaves = {k: v.requires_grad_() for k, v in leaves.items()}
    start = time.perf_counter()
    sol = diffopt.solve_qp(**leaves)
    middle = time.perf_counter()
    loss(sol).backward()
    row = {"solver": middle - start, "ours": 0.0, "backward": time.perf_counter() - middle}
    return row | {"residual": kkt_error(a, sol), "steps": int(sol.iterations)}


def best(run: Callable[[], tuple[dict[str, Any], Any]]) -> tuple[dict[str, Any], Any]:
    """The fastest of three runs, of one if it takes more than a second."""
    row, rest = run()
    for _ in range(2 if total(row) < 1 else 0):
        again, _ = run()
        row = min(row, again, key=total)
    return row, rest


def total(row: dict[str, Any]) -> float:
    return float(row["solver"] + row["ours"] + row["backward"])


def values(grad: Tensor) -> Tensor:
    return grad.coalesce().values() if grad.is_sparse else grad


def agreement(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of two sets of gradients, relative to the largest entry of each."""
    pairs = ((values(one[k]), values(other[k])) for k in one)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs)


def run(sizes: tuple[int, ...], limit: float) -> list[dict[str, Any]]:
    """Every row of the table."""
    rows: list[dict[str, Any]] = []
    took: dict[tuple[str, str], list[float]] = {}
    jobs = [(kind, n) for kind in KINDS for n in sizes]
    for kind, n in tqdm(jobs, unit="problem"):
        instance = KINDS[kind](n)
        a = {k: v for k, v in instance.arguments().items() if v is not None}
        unknowns, truth = len(a["p"]), None
        for name, solver in SOLVERS.items():
            past = took.setdefault((kind, name), [])
            growth = past[-1] / past[-2] if len(past) > 1 else 3.0
            if past and 1.3 * past[-1] * max(growth, 3.0) > limit:
                past.append(INF)
                continue
            row, grads = best(lambda a=a, solver=solver: once(a, solver))
            past.append(total(row))
            truth = grads if truth is None else truth
            apart = agreement(grads, truth)
            assert apart <= 1e-6, (kind, n, name, apart)
            rows.append({"kind": kind, "n": unknowns, "name": name, "apart": apart, **row})
        if n <= 1000:
            row, _ = best(lambda a=a: (dense(a), None))
            rows.append({"kind": kind, "n": unknowns, "name": "solve_qp", "apart": 0.0, **row})
    return rows


def table(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    about = ", ".join(f"{k} {v}" for k, v in result["machine"].items())
    lines = ["# Sparse QPs", "", f"{about}.", "", "Written by `benchmarks/qp_sparse.py`, whose "
             "docstring says what is measured. Seconds, one thread.", "",
             "| problem | n | by | steps | solver | ours | backward | residual | gradients apart |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in result["rows"]:
        others = r["name"] in SOLVERS
        split = others and r["name"] != "default"
        lines.append(
            f"| {r['kind']} | {r['n']} | {r['name']} | {r['steps']} | {r['solver']:.3f} | "
            f"{format(r['ours'], '.3f') if split else '-'} | {r['backward']:.3f} | "
            f"{r['residual']:.0e} | {format(r['apart'], '.0e') if others else '-'} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Forward and backward seconds against n, a panel a kind."""
    figure, axes = plt.subplots(1, len(KINDS), figsize=(16, 3.6), sharey=True)
    names = [*SOLVERS, "solve_qp"]
    for ax, kind in zip(axes, KINDS, strict=True):
        for i, name in enumerate(names):
            own = [r for r in rows if r["kind"] == kind and r["name"] == name]
            n = [r["n"] for r in own]
            color = "0.6" if name == "solve_qp" else f"C{i}"
            ax.loglog(n, [r["solver"] + r["ours"] for r in own], "o-", ms=4, c=color, label=name)
            ax.loglog(n, [r["backward"] for r in own], ":", c=color)
        ax.set(title=kind, xlabel="n")
        ax.grid(True, which="major", alpha=0.3)
    axes[0].set_ylabel("seconds (dotted: backward)")
    axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the table, the numbers and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="tiny problems, seconds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of one run")
    options = parser.parse_args(arguments)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    for solver in SOLVERS.values():  # imports
        diffopt.solve_qp_sparse(torch.eye(2).to_sparse(), torch.zeros(2), lb=0.0, solver=solver)
    rows = run((48, 96) if options.smoke else SIZES, options.limit)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    result = {"rows": rows, "machine": machine() | versions}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "qp_sparse.json").write_text(json.dumps(result, indent=1))
    (options.out / "qp_sparse.md").write_text(table(result))
    draw(rows, options.out / "qp_sparse.png")
    print(table(result))


if __name__ == "__main__":
    main()
