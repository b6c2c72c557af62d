"""Learn a hidden convex set from projections on it: the layer is one QP.

    python examples/polytope.py                     # the whole story, 70 seconds on one core
    python examples/polytope.py --layer gradient    # once more, by another road to the same layer

Somebody knows a polygon with 5 to 7 facets, and answers a point p with its projection y on it. From
1000 such pairs the layer

    y* = argmin  1/2 |p - y|^2   subject to   G y <= h                                        (1)

learns (G, h), by Adam on the squared error of y*. Rows have any scale, so they are kept of length
one, and h > 0 says that 0 is known to be inside. A row that is active for no p gets no gradient,
and two rows can share one facet while another facet has none: there are local minima. Three ways
are compared, each on ten polygons, each from random rows:

1. As many rows as facets, and nothing else. Expect most of the polygons to be wrong.
2. 16 rows. Spare ones end outside, or on a facet that has a row already. Expect 9 or 10 right.
3. As many rows as facets, and a few times on the way one of them is moved, if that lowers the
   error: any row to any of 16 places where the fit is bad. A pair names such a place: the set is
   in the half-plane with y on its edge and p - y as its normal. Expect all right. (This uses more
   than gradients: if y is inside a facet, not at a corner, that edge is the facet.)

The judge is the area of the points in just one of the two sets, the learned and the true; right is
at most 2 % of the true area. The claim is 8 of 10 for ways 2 and 3. Then 20 rows learn the unit
disc from p / max(1, |p|) in the third way: expect 1.3 to 1.7 %. The regular 20-gon around the disc
has 0.8 %, but the loss asks for small errors of y*, not for a small area.

With `--layer gradient` one polygon is learned in the first way twice, from the same batches: by (1)
as a QP, and by its dual, whose only constraint is lam >= 0, as the fixed point of a projected
gradient step. It is the same layer: expect the same (G, h) up to rounding, much more slowly, as
the dual of nearly parallel rows is badly conditioned.

It prints a table, draws a picture and an animation, and ends with status 1 if a claim fails.

Sources: Amos' thesis, "Differentiable Optimization-Based Modeling for Machine Learning" (2019),
the chapter on cvxpy layers, for learning polyhedral constraints; Kolter, Duvenaud & Johnson, "Deep
Implicit Layers" (NeurIPS 2020 tutorial), chapter 5, for the disc. Both show pictures, no numbers.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm import tqdm

import diffopt
from problems import polytopes
from problems.polytopes import Polytope

GREY, BLUE, ORANGE, GREEN, SKY = "#888888", "#0072B2", "#D55E00", "#009E73", "#CFE3F1"
SIZE = 2.1  # what is drawn: |x|, |y| <= SIZE
Layer = Callable[[Tensor, Tensor, Tensor], Tensor]
Projection = Callable[[Tensor, Polytope], Tensor]


class Plan(NamedTuple):
    """How much of everything."""

    polygons: int = 10
    pairs: int = 1000
    batch: int = 256
    steps: int = 300
    frames: int = 36


SMOKE = Plan(polygons=1, pairs=300, batch=50, steps=60, frames=3)
TWICE = Plan(batch=64, steps=150)


class Way(NamedTuple):
    """How many rows are learned, None for those of the hidden set, and how often one is moved."""

    rows: int | None = None
    moves: int = 0


WAYS = {"k rows": Way(), "16 rows": Way(rows=16), "k rows, moved": Way(moves=5)}
DISC = Way(rows=20, moves=10)


class Task(NamedTuple):
    """Pairs (p, y), `(N, 2)` each, to learn from and for the test, and what the judge knows."""

    truth: Polytope
    p: Tensor
    y: Tensor
    test_p: Tensor
    test_y: Tensor


class Run(NamedTuple):
    """What was learned: the polytope before and after each step, and how good the last one is."""

    outline: Tensor  # the true polygon
    frames: list[Polytope]
    error: float  # mean of |y* - y|^2, test points
    difference: float  # area, relative to the true one


def by_qp(p: Tensor, G: Tensor, h: Tensor) -> Tensor:
    """The layer (1) as a QP."""
    return diffopt.solve_qp(torch.eye(2, dtype=p.dtype), -p, G=G, h=h).z


def by_gradient(p: Tensor, G: Tensor, h: Tensor) -> Tensor:
    """The same from the dual of (1), y* = p - G'lam with the multipliers lam of the rows:

    lam = argmin  1/2 |G'lam|^2 - lam'(G p - h)   subject to   lam >= 0
    """
    violation = (G @ p.unsqueeze(-1)).squeeze(-1) - h

    def dual(lam: Tensor) -> Tensor:
        pull = (lam.unsqueeze(-2) @ G).squeeze(-2)
        return 0.5 * pull.square().sum(-1) - (lam * violation).sum(-1)

    lam = diffopt.projected_gradient(dual, torch.relu, torch.zeros_like(violation)).z
    return p - (lam.unsqueeze(-2) @ G).squeeze(-2)


LAYERS: dict[str, Layer] = {"qp": by_qp, "gradient": by_gradient}


class LearnedPolytope(nn.Module):
    """{y : G y <= h} with 0 inside, to be learned through a layer."""

    def __init__(self, rows: int, layer: Layer, generator: torch.Generator) -> None:
        super().__init__()
        first = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
        self.normals = nn.Parameter(first)
        self.log_h = nn.Parameter(0.3 * torch.randn(rows, generator=generator, dtype=torch.float64))
        self.layer = layer

    def polytope(self) -> Polytope:
        return Polytope(normalize(self.normals), self.log_h.exp())

    def forward(self, p: Tensor) -> Tensor:
        return self.layer(p, *self.polytope())

    @torch.no_grad()
    def move_a_row(self, p: Tensor, y: Tensor, generator: torch.Generator) -> None:
        """Try every row at 16 places where the fit is bad, and keep the best trial, if it helps."""
        G, h = self.polytope()
        errors = (self(p) - y).square().sum(-1)
        outside = (p - y).norm(dim=-1) > 1e-6  # the other pairs name no half-plane
        pairs = torch.multinomial((errors + 1e-12) * outside, 16, generator=generator)
        g = normalize(p[pairs] - y[pairs])
        offset = (g * y[pairs]).sum(-1)
        row = torch.eye(len(h), dtype=torch.bool).unsqueeze(1)  # (row, place, entry)
        G = torch.where(row.unsqueeze(-1), g.unsqueeze(1), G)
        h = torch.where(row, offset.unsqueeze(1), h)
        trials = self.layer(p, G.unsqueeze(2), h.unsqueeze(2))  # (row, place, pair, 2)
        after = (trials - y).square().sum(-1).mean(-1)
        i, j = divmod(int(after.argmin()), len(pairs))
        if after[i, j] < errors.mean():
            self.normals[i], self.log_h[i] = g[j], offset[j].log()


def hide(truth: Polytope, plan: Plan, seed: int, project: Projection = polytopes.project) -> Task:
    """Pairs of points far enough out for every facet to be active for some."""
    p, q = (polytopes.points(plan.pairs, seed=2 * seed + i) for i in (0, 1))
    return Task(truth, p, project(p, truth), q, project(q, truth))


def hide_polygon(plan: Plan, seed: int) -> Task:
    return hide(polytopes.random_polytope(5 + seed % 3, seed=seed), plan, seed)


def hide_disc(plan: Plan, seed: int) -> Task:
    """The unit disc; the judge takes a 500-gon for it, which is larger by 1e-5."""
    return hide(polytopes.regular(500), plan, seed, lambda p, _: polytopes.project_disc(p))


def learn(task: Task, way: Way, layer: Layer, plan: Plan, seed: int) -> Run:
    """Adam with a learning rate that falls to zero; moves come in the first two thirds."""
    generator = torch.Generator().manual_seed(seed)
    model = LearnedPolytope(way.rows or len(task.truth.h), layer, generator)
    adam = torch.optim.Adam(model.parameters(), lr=0.05)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(adam, plan.steps)
    moving = {round(2 / 3 * plan.steps * (i + 1) / way.moves) for i in range(way.moves)}
    frames = [detached(model.polytope())]
    for step in tqdm(range(1, plan.steps + 1), desc="steps", delay=5, leave=False):
        batch = torch.randint(plan.pairs, (plan.batch,), generator=generator)
        p, y = task.p[batch], task.y[batch]
        adam.zero_grad()
        (model(p) - y).square().sum(-1).mean().backward()
        adam.step()
        rate.step()
        if step in moving:
            model.move_a_row(p, y, generator)
        frames.append(detached(model.polytope()))
    with torch.no_grad():
        error = float((model(task.test_p) - task.test_y).square().sum(-1).mean())
    outline = polytopes.vertices(task.truth)
    return Run(outline, frames, error, difference(frames[-1], task.truth))


def difference(found: Polytope, truth: Polytope) -> float:
    """The area of the points in just one of them, relative to that of the truth."""
    area = polytopes.area(polytopes.vertices(truth))
    return polytopes.symmetric_difference(found, truth) / area


def detached(polytope: Polytope) -> Polytope:
    return Polytope(*(x.detach().clone() for x in polytope))


def table(runs: dict[str, list[Run]], disc: Run, task: Task) -> str:
    """What was measured, and what is published."""
    rows = [
        f"{i:6}{len(row[0].outline):6}    " + "".join(map(cell, row))
        for i, row in enumerate(zip(*runs.values(), strict=True))
    ]
    counts = [f"{sum(map(right, of))} of {len(of)}" for of in runs.values()]
    regular, p, y = polytopes.regular(20), task.test_p, task.test_y
    error = float((polytopes.project(p, regular) - y).square().sum(-1).mean())
    around = Run(disc.outline, [regular], error, difference(regular, task.truth))
    return f"""
hidden polygon     area that differs, squared error of test projections
       facets   {"".join(f"{name:>20}" for name in runs)}
{chr(10).join(rows)}
right (2 %)     {"".join(f"{count:>20}" for count in counts)}
published                    pictures (1)

unit disc, 20 rows
  learned       {cell(disc)}
  regular       {cell(around)}
  published                  pictures (1)

(1) Thesis: two runs, one of them ends in a local minimum. Tutorial: a 20-gon near the disc."""


def cell(run: Run) -> str:
    return f"{100 * run.difference:9.2f} %{run.error:9.0e}"


def right(run: Run, limit: float = 0.02) -> bool:
    return run.difference <= limit


def draw_run(ax: Axes, run: Run, step: int) -> None:
    """The true set in blue, the learned one in orange, and the lines of its rows in grey."""
    ax.clear()
    G, h = run.frames[step]
    foot, along = h.unsqueeze(1) * G, 9 * torch.stack([-G[:, 1], G[:, 0]], 1)
    lines = torch.stack([foot - along, foot + along], 1)
    ax.add_collection(LineCollection(lines.tolist(), colors=GREY, linewidths=0.5, alpha=0.6))
    ax.fill(*run.outline.T, facecolor=SKY, edgecolor=BLUE, lw=1.2)
    window = 2 * SIZE * torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    ax.fill(*polytopes.clip(window, run.frames[step]).T, fill=False, edgecolor=ORANGE, lw=2.2)
    ax.set(xlim=(-SIZE, SIZE), ylim=(-SIZE, SIZE), xticks=[], yticks=[], aspect="equal")


def draw(path: Path, shown: dict[str, Run], runs: dict[str, list[Run]], task: Task) -> None:
    """On the left frames of the runs shown, on the right the pairs, and all runs judged."""
    figure = Figure(figsize=(13, 7.4), dpi=100, layout="constrained")
    left, right_side = figure.subfigures(1, 2, width_ratios=[1.75, 1])
    last = len(shown["k rows"].frames) - 1
    steps = [0, last // 20, last // 6, last // 2, last]
    axes = left.subplots(len(shown), len(steps))
    for (name, run), line in zip(shown.items(), axes, strict=True):
        for ax, step in zip(line, steps, strict=True):
            draw_run(ax, run, step)
        line[0].set_ylabel(name, fontsize=12)
    for ax, step in zip(axes[0], steps, strict=True):
        ax.set_title(f"step {step}", fontsize=12)
    top, bottom = right_side.subplots(2, 1, height_ratios=[1.2, 1])
    draw_pairs(top, task)
    draw_judgement(bottom, runs)
    figure.savefig(path)


def draw_pairs(ax: Axes, task: Task) -> None:
    """Some of the pairs, which are all that is known."""
    for p, y in list(zip(task.p, task.y, strict=True))[:150]:
        ax.plot(*torch.stack([p, y]).T, "-", color=GREY, lw=0.7)
    ax.plot(*task.p[:150].T, "o", color=GREY, ms=3, label="p")
    ax.plot(*task.y[:150].T, "o", color=BLUE, ms=4, label="its projection y")
    ax.set(xlim=(-4, 4), ylim=(-3.2, 3.2), xticks=[], yticks=[], aspect="equal")
    ax.set_title("what is known", fontsize=12)
    ax.legend(loc="lower right")


def draw_judgement(ax: Axes, runs: dict[str, list[Run]]) -> None:
    """The area that differs, one mark a run."""
    for (name, of), color, mark in zip(runs.items(), (ORANGE, BLUE, GREEN), "sov", strict=True):
        percent = [min(100.0, max(1e-6, 100 * run.difference)) for run in of]
        ax.semilogy(percent, mark, color=color, ms=7, label=name)
    ax.axhline(2, color=GREY, lw=1)
    ax.set(ylim=(5e-7, 1e5), xticks=range(len(runs["k rows"])))
    ax.set_title("area that differs (%); right is below the line", fontsize=12)
    ax.set_xlabel("hidden polygon", fontsize=12)
    ax.legend(ncols=3, loc="upper center")


def animate(path: Path, shown: dict[str, Run], frames: int) -> None:
    """The runs shown, side by side, slower at the beginning and at rest at the end."""
    figure = Figure(figsize=(2.2 * len(shown), 2.6), dpi=80)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.02, top=0.8, wspace=0.04)
    axes = figure.subplots(1, len(shown))
    last = len(shown["k rows"].frames) - 1
    steps = (last * torch.linspace(0, 1, frames) ** 2).round().int().tolist()
    steps += [last] * (frames // 6)

    def show(step: int) -> list[Axes]:
        for ax, (name, run) in zip(axes, shown.items(), strict=True):
            draw_run(ax, run, step)
            ax.set_title(name, fontsize=11)
        figure.suptitle(f"step {step}", fontsize=11)
        return []

    FuncAnimation(figure, show, steps, init_func=list).save(path, PillowWriter(fps=8))


def tell(plan: Plan, args: argparse.Namespace) -> dict[str, bool]:
    """The story through the QP, told and drawn; what it claims, and whether that is so."""
    start = time.perf_counter()
    seeds = range(args.seed, args.seed + plan.polygons)
    tasks = [hide_polygon(plan, seed) for seed in seeds]
    disc_task = hide_disc(plan, args.seed)
    runs: dict[str, list[Run]] = {name: [] for name in WAYS}
    jobs = [(name, i) for i in range(plan.polygons) for name in WAYS]
    for name, i in tqdm(jobs, desc="learning", unit="run"):
        runs[name].append(learn(tasks[i], WAYS[name], by_qp, plan, seeds[i]))
    disc = learn(disc_task, DISC, by_qp, plan, args.seed)
    print(table(runs, disc, disc_task))
    worst = max(range(plan.polygons), key=lambda i: runs["k rows"][i].difference)
    shown = {name: of[worst] for name, of in runs.items()} | {"20 rows, disc": disc}
    folder = args.out or (Path("docs/img") if Path("docs/img").is_dir() else Path())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("polytope-smoke.png" if args.smoke else "polytope.png")
    say("drawing")
    draw(path, shown, runs, tasks[worst])
    animate(path.with_suffix(".gif"), shown, plan.frames)
    print(f"took {time.perf_counter() - start:.0f} s; pictures: {path}, {path.stem}.gif")
    limit = 0.1 if args.smoke else 0.02
    good = {name: sum(right(run, limit) for run in of) for name, of in runs.items()}
    return {
        "16 rows: 8 of 10 right": good["16 rows"] >= 0.8 * plan.polygons,
        "k rows, moved: 8 of 10 right": good["k rows, moved"] >= 0.8 * plan.polygons,
        "the disc": right(disc, limit),
    }


def compare(plan: Plan, seed: int) -> dict[str, bool]:
    """One polygon in the first way through both layers; what is claimed, and whether it is so."""
    task, last = hide_polygon(plan, seed), []
    print("layer      area that differs   squared error   ms a step")
    for name, layer in LAYERS.items():
        start = time.perf_counter()
        run = learn(task, WAYS["k rows"], layer, plan, seed)
        took = 1e3 * (time.perf_counter() - start) / plan.steps
        print(f"{name:10}{100 * run.difference:16.2f} %{run.error:16.1e}{took:12.0f}", flush=True)
        last.append(torch.column_stack(run.frames[-1]))
    apart = float((last[0] - last[1]).abs().max())
    print(f"largest difference between the (G, h) learned: {apart:.0e}")
    return {"both layers learn the same": apart <= 1e-6}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layer", choices=LAYERS, default="qp", help="what solves (1)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--smoke", action="store_true", help="tiny data, a few seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the first polygon")
    args = parser.parse_args(argv)
    if args.layer == "gradient":
        claims = compare(TWICE._replace(steps=10) if args.smoke else TWICE, args.seed)
    else:
        claims = tell(SMOKE if args.smoke else Plan(), args)
    failed = [claim for claim, holds in claims.items() if not holds]
    if failed:
        say(f"not true in this run: {'; '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # of matrices this small, threads only wait for each other
    sys.exit(main())
