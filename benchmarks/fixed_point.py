"""Claim: to the same tolerance, `fixed_point` is two to ten times as fast as torchdeq.

    python -m pip install -e ".[bench]"
    python benchmarks/fixed_point.py [--smoke] [--out FOLDER]

writes fixed_point.md, .json and .png: the fixed point of f(z) = tanh(W z + x), d unknowns a sample,
entries of W normal with standard deviation 0.8 / sqrt(d), of x 0.3, to |f(z) - z| <= 1e-5 |f(z)|
for every sample, by Anderson with five differences and by Broyden, each from torchdeq 0.1.0 and
from here; forward alone, under no_grad; and forward and backward to all of W and x, the backward
pass exact to the same tolerance (torchdeq: `ift=True` with the same solver; here: GMRES).

`evaluations` are those of f in the forward pass, and `f` the time of as many by themselves, so that
forward - f is what the solver costs (where f is large there is little to gain); `residual` is the
largest of |f(z) - z| / |f(z)| of what came out; `gradient error` is relative to that of
backpropagation through 300 steps, in float64. `memory` is the number of bytes that the graph of the
forward pass has saved, in multiples of z.

Limits: one machine, to be left alone. An easy f, a contraction, of two kernels; torchdeq's Anderson
has six points, which is five differences, and stops where its slowest sample does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import machine
from torch import Tensor
from torchdeq import get_deq
from tqdm import tqdm

from diffopt import Anderson, Broyden, fixed_point
from diffopt.linear import GMRES

SHAPES = [(128, 256), (512, 64), (32, 2048)]  # batch, d
RTOL, STEPS = 1e-5, 200
OURS = {"anderson": Anderson(rtol=RTOL, atol=0.0), "broyden": Broyden(rtol=RTOL, atol=0.0)}


class Layer:
    """f(z) = tanh(W z + x), which counts its evaluations."""

    def __init__(self, batch: int, d: int, dtype: torch.dtype) -> None:
        g = torch.Generator().manual_seed(0)
        W = 0.8 * torch.randn(d, d, generator=g, dtype=torch.float64) / d**0.5
        x = 0.3 * torch.randn(batch, d, generator=g, dtype=torch.float64)
        self.leaves = [v.to(dtype).requires_grad_() for v in (W, x)]
        self.z0 = torch.zeros(batch, d, dtype=dtype)
        self.count = 0

    def __call__(self, z: Tensor) -> Tensor:
        self.count += 1
        W, x = self.leaves
        return torch.tanh(torch.addmm(x, z, W.T))


def solvers() -> dict[str, Callable[[Layer], Tensor]]:
    """Each contender: layer -> z, in the graph if one is recorded."""

    def ours(name: str) -> Callable[[Layer], Tensor]:
        backward = GMRES(rtol=RTOL)
        return lambda f: fixed_point(f, f.z0, solver=OURS[name], operator=backward).z

    def theirs(name: str) -> Callable[[Layer], Tensor]:
        deq = get_deq(
            f_solver=name, b_solver=name, f_max_iter=STEPS, b_max_iter=STEPS, f_tol=RTOL,
            b_tol=RTOL, f_stop_mode="rel", b_stop_mode="rel", ift=True,
        )  # fmt: skip
        deq.train()
        return lambda f: deq(f, f.z0)[0][-1]

    return {f"{who} {name}": make(name) for name in OURS
            for who, make in (("diffopt", ours), ("torchdeq", theirs))}  # fmt: skip


def reference(batch: int, d: int) -> list[Tensor]:
    """The gradients by backpropagation through many steps."""
    f = Layer(batch, d, torch.float64)
    with torch.no_grad():
        z = f.z0
        for _ in range(300):
            z = f(z)
    for _ in range(300):
        z = f(z)
    return list(torch.autograd.grad(z.square().sum(), f.leaves))


def saved_bytes(f: Layer, solve: Callable[[Layer], Tensor]) -> int:
    """What the graph of a solve holds on to, parameters left out."""
    held: dict[int, int] = {}

    def pack(v: Tensor) -> Tensor:
        held[v.untyped_storage().data_ptr()] = v.untyped_storage().nbytes()
        return v

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
        solve(f)
    for leaf in f.leaves:
        held.pop(leaf.untyped_storage().data_ptr(), None)
    return sum(held.values())


def contest(batch: int, d: int, dtype: torch.dtype, budget: float) -> list[dict]:
    """A row a contender, taking turns."""
    f, runs, exact = Layer(batch, d, dtype), solvers(), reference(batch, d)
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    rows = {name: checked(f, name, solve, exact) for name, solve in runs.items()}
    end = time.perf_counter() + budget * len(runs)
    while min(map(len, took.values())) < 3 or time.perf_counter() < end:
        for name, solve in runs.items():
            took[name].append(seconds(f, solve))
    for name, times in took.items():
        forward, both = (statistics.median(t) * 1e3 for t in zip(*times, strict=True))
        rows[name] |= {"forward": forward, "both": both, "f": alone(f, rows[name]["evaluations"])}
    return list(rows.values())


def checked(f: Layer, name: str, solve: Callable[[Layer], Tensor], exact: list[Tensor]) -> dict:
    """What a contender finds, measured by the definition."""
    f.count = 0
    with torch.no_grad():
        z = solve(f)
    count = f.count
    with torch.no_grad():
        image = f(z)
        residual = ((image - z).norm(dim=1) / image.norm(dim=1)).max()
    grads = torch.autograd.grad(solve(f).square().sum(), f.leaves)
    error = max(float((g - e).norm() / e.norm()) for g, e in zip(grads, exact, strict=True))
    memory = saved_bytes(f, solve) / (f.z0.numel() * f.z0.element_size())
    batch, d = f.z0.shape
    return {"batch": batch, "d": d, "dtype": str(f.z0.dtype)[6:], "solver": name,
            "evaluations": count, "residual": float(residual), "gradient": error,
            "memory": memory}  # fmt: skip


def seconds(f: Layer, solve: Callable[[Layer], Tensor]) -> tuple[float, float]:
    """Of the forward pass without a graph, and of forward and backward."""
    start = time.perf_counter()
    with torch.no_grad():
        solve(f)
    middle = time.perf_counter()
    z = solve(f)
    torch.autograd.grad(z, f.leaves, 2 * z.detach())
    return middle - start, time.perf_counter() - middle


def alone(f: Layer, count: int) -> float:
    """Milliseconds of `count` evaluations of f."""
    took = []
    with torch.no_grad():
        for _ in range(5):
            z, start = f.z0, time.perf_counter()
            for _ in range(count):
                z = f(z)
            took.append(time.perf_counter() - start)
    return 1e3 * statistics.median(took)


def table(rows: list[dict], about: dict) -> str:
    """The rows as Markdown, each with the ratio of torchdeq's time to its own."""
    lines = ["# Fixed points", "", ", ".join(f"{k} {v}" for k, v in about.items()) + ".", "",
             "Written by `benchmarks/fixed_point.py`, whose docstring says what is measured. "
             "Milliseconds of a whole batch; the ratio is torchdeq's time over diffopt's.", "",
             "| batch x d | dtype | solver | evaluations | f | forward | ratio | both | ratio "
             "| residual | gradient error | memory |",
             "|---|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in rows:
        lines.append(
            f"| {r['batch']} x {r['d']} | {r['dtype']} | {r['solver']} | {r['evaluations']} "
            f"| {r['f']:.1f} | {r['forward']:.1f} | {ratio(rows, r, 'forward')} | {r['both']:.1f} "
            f"| {ratio(rows, r, 'both')} | {r['residual']:.0e} | {r['gradient']:.0e} "
            f"| {r['memory']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def ratio(rows: list[dict], row: dict, key: str) -> str:
    """Of torchdeq's time to that of `row`, where `row` is ours."""
    who, name = row["solver"].split()
    if who != "diffopt":
        return ""
    same = [r for r in rows if r["solver"] == f"torchdeq {name}"
            and all(r[k] == row[k] for k in ("batch", "d", "dtype"))]  # fmt: skip
    return f"{same[0][key] / row[key]:.1f}"


def draw(rows: list[dict], path: Path) -> None:
    """What f takes, and what the solver takes besides."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = sorted({(r["batch"], r["d"], r["dtype"]) for r in rows}, key=lambda g: (g[2], g[1]))
    figure, axes = plt.subplots(1, len(groups), figsize=(2.6 * len(groups), 3.6), squeeze=False)
    for ax, group in zip(axes[0], groups, strict=True):
        here = [r for r in rows if (r["batch"], r["d"], r["dtype"]) == group]
        names = [r["solver"].replace(" ", "\n") for r in here]
        ax.bar(names, [r["f"] for r in here], color="0.6", label="f")
        rest = [max(r["forward"] - r["f"], 0) for r in here]
        colours = ["C0" if r["solver"].startswith("diffopt") else "C1" for r in here]
        ax.bar(names, rest, bottom=[r["f"] for r in here], color=colours)
        ax.set_title("{} x {}, {}".format(*group), fontsize=9)
        ax.tick_params(axis="x", labelsize=6)
    axes[0][0].set_ylabel("milliseconds forward (grey: f)")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny, no claim")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds a contender")
    options = parser.parse_args(arguments)
    shapes, budget = ([(4, 8)], 0.0) if options.smoke else (SHAPES, options.budget)
    jobs = [(*shape, dtype) for shape in shapes for dtype in (torch.float32, torch.float64)]
    rows = [row for job in tqdm(jobs, unit="shape") for row in contest(*job, budget)]
    options.out.mkdir(parents=True, exist_ok=True)
    about = machine()
    (options.out / "fixed_point.json").write_text(
        json.dumps({"machine": about, "rows": rows}, indent=1)
    )
    text = table(rows, about)
    (options.out / "fixed_point.md").write_text(text)
    draw(rows, options.out / "fixed_point.png")
    print(text)


if __name__ == "__main__":
    main()
