"""Claim: to the same error, `odeint` is 1.5 to 2.4 times as fast as torchdiffeq and torchode.

    python -m pip install -e ".[bench]"
    python benchmarks/ode.py [--smoke] [--out FOLDER]

writes ode.md, .json and .png: y(1) of a network field of one hidden layer (d, hidden; tanh) from
standard normal states, and van der Pol's oscillator over [0, 3], mu from 0.1 to 30 in one batch, by
Dormand & Prince 5(4) of torchdiffeq 0.2.5 (`odeint`, `odeint_adjoint`), torchode 1.0.1 (steps
chosen sample by sample, not differentiated) and from here (`Discrete`, `Backsolve`); float64.

Two rows for each: "same tolerance", rtol 1e-6 and atol 1e-8 for all; and "same error", the loosest
rtol of 10^(-k/4), with atol a hundredth of it, at which the worst entry of y is within 1e-6 of the
reference (Dormand & Prince 8, tolerance 1e-12). `evaluations` are those of f in the forward pass,
`f` the time of as many by themselves. `forward` is under no_grad; `both` is forward and backward of
|y|^2 to the parameters (for van der Pol: to y0), whose error is relative to the reference's.
The continuous adjoints are left out for van der Pol, whose way back is unstable for large mu:
`Backsolve` reports STEP_UNDERFLOW there, and `odeint_adjoint` raises.

Limits: one machine, to be left alone; small fields, where a solver matters; on a large one all take
as long as f does. torchdiffeq's error norm is that of the whole batch, which lets single samples be
worse than the tolerance: hence the same error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchdiffeq
import torchode
from machine import machine
from torch import Tensor, nn
from tqdm import tqdm

from diffopt import Dopri5, odeint
from diffopt.ode import Backsolve, Discrete
from problems.odes import van_der_pol

FIELDS = [(128, 2, 64), (256, 64, 128), (1024, 4, 32)]  # batch, d, hidden
ERROR = 1e-6
Solve = Callable[["Problem", float, float], Tensor]


class Problem:
    """A field that counts its evaluations, where it starts, and what gets a gradient."""

    def __init__(self, name: str, f: nn.Module, y0: Tensor, t1: float, leaves: list[Tensor]):
        self.name, self.f, self.y0, self.leaves, self.count = name, f, y0, leaves, 0
        self.reversible = isinstance(f, Network)
        self.t = torch.tensor([0.0, t1], dtype=torch.float64)
        with torch.no_grad():
            self.exact = self._reference()
        loss = self._reference().square().sum()
        self.gradient = torch.autograd.grad(loss, leaves)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.count += 1
        return self.f(t, y)

    def _reference(self) -> Tensor:
        options = {"rtol": 1e-12, "atol": 1e-12, "method": "dopri8"}
        return torchdiffeq.odeint(self.f, self.y0, self.t, **options)[-1]


class Network(nn.Module):
    """One hidden layer of tanh."""

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(d, hidden), nn.Tanh(), nn.Linear(hidden, d)).double()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.layers(y)


class VanDerPol(nn.Module):
    """The field of `problems.odes` as a module, which `odeint_adjoint` asks for."""

    def __init__(self, mu: Tensor) -> None:
        super().__init__()
        self.ode = van_der_pol(mu)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.ode.f(t, y)


def network(batch: int, d: int, hidden: int) -> Problem:
    torch.manual_seed(0)
    f = Network(d, hidden)
    y0 = torch.randn(batch, d, dtype=torch.float64)
    return Problem(f"{batch} x {d}, hidden {hidden}", f, y0, 1.0, list(f.parameters()))


def oscillators(batch: int) -> Problem:
    f = VanDerPol(torch.logspace(-1, 1.5, batch, dtype=torch.float64))
    y0 = f.ode.y0.requires_grad_()
    return Problem(f"{batch} van der Pol, mu 0.1 to 30", f, y0, 3.0, [y0])


def torchode_solve(p: Problem, rtol: float, atol: float) -> Tensor:
    term = torchode.ODETerm(p)
    controller = torchode.IntegralController(atol=atol, rtol=rtol, term=term)
    step = torchode.Dopri5(term=term)
    solver = torchode.AutoDiffAdjoint(step, controller, backprop_through_step_size_control=False)
    start, end = (v.expand(len(p.y0)) for v in p.t)
    problem = torchode.InitialValueProblem(p.y0, start, end, end.unsqueeze(1))
    return solver.solve(problem).ys[:, -1]


def ours(adjoint: object) -> Solve:
    return lambda p, rtol, atol: (
        odeint(p, p.y0, p.t, solver=Dopri5(rtol=rtol, atol=atol), adjoint=adjoint).y1
    )


def theirs(function: Callable[..., Tensor], **options: object) -> Solve:
    def solve(p: Problem, rtol: float, atol: float) -> Tensor:
        extra = {"adjoint_params": tuple(p.f.parameters())} if options else {}
        return function(p, p.y0, p.t, rtol=rtol, atol=atol, method="dopri5", **extra)[-1]

    return solve


def contenders(p: Problem) -> dict[str, Solve]:
    """Those that can solve it."""
    continuous = ("diffopt, Backsolve", "torchdiffeq, adjoint")
    return {k: v for k, v in SOLVERS.items() if p.reversible or k not in continuous}


SOLVERS: dict[str, Solve] = {
    "diffopt": ours(Discrete()),
    "diffopt, Backsolve": ours(Backsolve()),
    "torchdiffeq": theirs(torchdiffeq.odeint),
    "torchdiffeq, adjoint": theirs(torchdiffeq.odeint_adjoint, adjoint=True),
    "torchode": torchode_solve,
}


def error_of(p: Problem, solve: Solve, rtol: float, atol: float) -> float:
    with torch.no_grad():
        return float((solve(p, rtol, atol) - p.exact).abs().max())


def loosest(p: Problem, solve: Solve) -> float:
    """The loosest rtol that gives the error asked for."""
    for k in range(12, 48):
        if error_of(p, solve, 10 ** (-k / 4), 10 ** (-k / 4 - 2)) <= ERROR:
            return 10 ** (-k / 4)
    return 1e-12


def contest(p: Problem, budget: float, rule: str) -> list[dict]:
    """A row a contender, taking turns."""
    same, solvers = rule == "same tolerance", contenders(p)
    rtols = {name: 1e-6 if same else loosest(p, solve) for name, solve in solvers.items()}
    rows, took = {}, {}
    for name, solve in solvers.items():
        rows[name] = checked(p, name, solve, rtols[name]) | {"rule": rule}
        took[name] = [seconds(p, solve, rtols[name])]
    end = time.perf_counter() + budget * len(solvers)
    while min(map(len, took.values())) < 5 or time.perf_counter() < end:
        for name, solve in solvers.items():
            took[name].append(seconds(p, solve, rtols[name]))
    for name, times in took.items():
        forward, both = (statistics.median(t) * 1e3 for t in zip(*times, strict=True))
        rows[name] |= {"forward": forward, "both": both, "f": alone(p, rows[name]["evaluations"])}
    return list(rows.values())


def checked(p: Problem, name: str, solve: Solve, rtol: float) -> dict:
    """What a contender finds, against the reference."""
    p.count = 0
    error = error_of(p, solve, rtol, rtol / 100)
    count = p.count
    grads = torch.autograd.grad(solve(p, rtol, rtol / 100).square().sum(), p.leaves)
    off = [float((g - e).norm() / e.norm()) for g, e in zip(grads, p.gradient, strict=True)]
    return {"problem": p.name, "solver": name, "rtol": rtol, "evaluations": count, "error": error,
            "gradient": max(off)}  # fmt: skip


def seconds(p: Problem, solve: Solve, rtol: float) -> tuple[float, float]:
    """Of the forward pass without a graph, and of forward and backward."""
    start = time.perf_counter()
    with torch.no_grad():
        solve(p, rtol, rtol / 100)
    middle = time.perf_counter()
    torch.autograd.grad(solve(p, rtol, rtol / 100).square().sum(), p.leaves)
    return middle - start, time.perf_counter() - middle


def alone(p: Problem, count: int) -> float:
    """Milliseconds of `count` evaluations of f, from at most 100 of them."""
    took, few = [], min(count, 100)
    with torch.no_grad():
        for _ in range(9):
            start = time.perf_counter()
            for _ in range(few):
                p.f(p.t[0], p.y0)
            took.append(time.perf_counter() - start)
    return 1e3 * statistics.median(took) * count / few


def milliseconds_a_step() -> float:
    """Of 128 samples of y' = -y in the plane, f included: from solves of few and of many steps."""
    y0 = torch.randn(128, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    took = []
    for rtol in (1e-3, 1e-9):
        solver, times = Dopri5(rtol=rtol, atol=rtol / 100), []
        with torch.no_grad():
            for _ in range(60):
                start = time.perf_counter()
                sol = odeint(lambda t, y: -y, y0, torch.tensor([0.0, 1.0]), solver=solver)
                times.append(time.perf_counter() - start)
        took.append((statistics.median(times), int((sol.steps + sol.rejected).max())))
    (few, m), (many, n) = took
    return 1e3 * (many - few) / (n - m)


def table(rows: list[dict], about: dict) -> str:
    """The rows as Markdown, with the time of each over that of the first solver."""
    lines = ["# Ordinary differential equations", "",
             ", ".join(f"{k} {v}" for k, v in about.items()) + ".", "",
             "Written by `benchmarks/ode.py`, whose docstring says what is measured. Milliseconds "
             "of a whole batch; the ratio is the time over that of diffopt with `Discrete`.", "",
             "| problem | rule | solver | rtol | evaluations | f | forward | ratio | both | ratio "
             "| error | gradient error |",
             "|---|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in rows:
        first = next(q for q in rows if (q["problem"], q["rule"]) == (r["problem"], r["rule"]))
        lines.append(
            f"| {r['problem']} | {r['rule']} | {r['solver']} | {r['rtol']:.0e} "
            f"| {r['evaluations']} | {r['f']:.1f} | {r['forward']:.1f} "
            f"| {r['forward'] / first['forward']:.1f} | {r['both']:.1f} "
            f"| {r['both'] / first['both']:.1f} | {r['error']:.0e} | {r['gradient']:.0e} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict], path: Path) -> None:
    """Forward, and forward and backward, to the same error."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [r for r in rows if r["rule"] == "same error"]
    problems = list(dict.fromkeys(r["problem"] for r in rows))
    figure, axes = plt.subplots(1, len(problems), figsize=(3.2 * len(problems), 3.8), squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=True):
        here = [r for r in rows if r["problem"] == problem]
        names = [r["solver"].replace(", ", "\n") for r in here]
        colours = ["C0" if r["solver"].startswith("diffopt") else "C1" for r in here]
        ax.bar(names, [r["both"] for r in here], color=colours, alpha=0.4)
        ax.bar(names, [r["forward"] for r in here], color=colours)
        ax.set_title(problem, fontsize=9)
        ax.tick_params(axis="x", labelsize=6, rotation=30)
    axes[0][0].set_ylabel("milliseconds: forward, and with backward (pale)")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny, no claim")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds a contender")
    options = parser.parse_args(arguments)
    budget = 0.0 if options.smoke else options.budget
    problems = (
        [network(4, 2, 8)] if options.smoke else [*(network(*s) for s in FIELDS), oscillators(256)]
    )
    jobs = [(p, rule) for p in problems for rule in ("same tolerance", "same error")]
    rows = [row for p, rule in tqdm(jobs, unit="contest") for row in contest(p, budget, rule)]
    options.out.mkdir(parents=True, exist_ok=True)
    about = machine() | {"milliseconds a step of y' = -y, 128 x 2": f"{milliseconds_a_step():.2f}"}
    (options.out / "ode.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1))
    text = table(rows, about)
    (options.out / "ode.md").write_text(text)
    draw(rows, options.out / "ode.png")
    print(text)


if __name__ == "__main__":
    main()
