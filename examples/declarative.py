"""Layers that are defined by what they minimise: robust pooling, and a projection on a curve.

    python examples/declarative.py               # the whole story, a minute on one core

Such a layer returns z = argmin f(z, x), and its derivative is that of the minimiser.

1. Pooling. The mean of points x_i minimises the sum of |z - x_i|^2. With a penalty that grows less
   fast, the pooled point is robust:

       pseudo-Huber   w^2 (sqrt(1 + r^2 / w^2) - 1)       pulls of a bounded size
       Welsch         w^2 / 2 (1 - exp(-r^2 / w^2))       far points do not pull at all: not convex

   300 sets of 20 points, 4 of them outliers, are seen through an unknown matrix. A matrix W and
   the width w are learned, so that the pooled W x_i is the centre of the set. Expect a test error
   (root of the mean square) of 0.5 or more with the mean, and with Welsch one near 0.035: the mean
   of the 16 good points, if somebody named them, has 0.1 sqrt(2 / 16).

2. Projection. Of an unknown ellipse one sees points x and the points z of it that are nearest:

       z = argmin |z - x|^2 / 2   subject to   |L'z|^2 = 1

   The constraint is not convex. L is learned from 200 pairs. Expect the area of the ellipse, and
   its axes, to six digits. The layer agrees with a projection by bisection to 1e-9.

It prints a table, draws a picture, and ends with status 1 if a claim fails.

Source: Gould, Hartley & Campbell, "Deep Declarative Networks" (IEEE TPAMI 2022), sec. 5.1 and 5.2,
for both layers; the numbers here are its kind of experiment, not its own.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

import diffopt
from problems import ellipses, outliers

GREY, BLUE, ORANGE, GREEN = "#888888", "#0072B2", "#D55E00", "#009E73"
COLORS = {"mean": ORANGE, "pseudo-Huber": GREEN, "Welsch": BLUE}
Penalty = Callable[[Tensor, Tensor], Tensor]


class Plan(NamedTuple):
    """How much of everything."""

    sets: int = 300
    steps: int = 150
    pairs: int = 200
    ellipse_steps: int = 60


SMOKE = Plan(sets=20, steps=16, pairs=20, ellipse_steps=16)

# (r^2, w) to the penalty
PENALTIES: dict[str, Penalty] = {
    "mean": lambda s, w: s / 2,
    "pseudo-Huber": lambda s, w: w**2 * ((1 + s / w**2).sqrt() - 1),
    "Welsch": lambda s, w: w**2 / 2 * (1 - torch.exp(-s / w**2)),
}


def objective(penalty: Penalty) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The sum of the penalties of z `(B, 2)` to the points x `(B, count, 2)`."""
    return lambda z, x, w: penalty((z.unsqueeze(1) - x).square().sum(-1), w).sum(-1)


def median(x: Tensor, w: Tensor) -> Tensor:
    """Where a pooling begins: the median of each coordinate is robust already."""
    return x.detach().median(1)[0]


class Pooling(nn.Module):
    """W x_i, pooled by a penalty of learned width."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.eye(2, dtype=torch.float64))
        self.log_width = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.pool = diffopt.ArgminLayer(objective(PENALTIES[name]), start=median)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x @ self.W.mT, self.log_width.exp())


class Ellipse(nn.Module):
    """The projection on {z : |L'z|^2 = 1}."""

    def __init__(self) -> None:
        super().__init__()
        self.L = nn.Parameter(torch.eye(2, dtype=torch.float64))
        self.layer = diffopt.ArgminLayer(
            lambda z, x: (z - x).square().sum(-1) / 2,
            equality=lambda z, x: (z @ self.L).square().sum(-1, keepdim=True) - 1,
            start=self.begin,
        )

    def begin(self, x: Tensor) -> Tensor:
        """The point of the ellipse in the direction of x."""
        x = x.detach()
        return x / (x @ self.L.detach()).norm(dim=-1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def axes(self) -> Tensor:
        """The half axes, the long one first."""
        return (1 / torch.linalg.svdvals(self.L.detach())).sort(descending=True)[0]


class Pooled(NamedTuple):
    """A run of a pooling: the loss of each step, and the errors on test sets."""

    losses: list[float]
    error: float
    width: float


def distort(sets: outliers.Sets) -> Tensor:
    """What is seen of the points: a rotation by one radian, and one axis stretched."""
    turn = torch.tensor([[0.54, -0.84], [0.84, 0.54]], dtype=torch.float64)
    return sets.points @ (turn * torch.tensor([1.5, 0.7], dtype=torch.float64))


def learn_pooling(name: str, plan: Plan, seed: int) -> Pooled:
    """W and the width, by Adam on the squared error of the centre."""
    train, test = (outliers.sets(plan.sets, seed=2 * seed + i) for i in (0, 1))
    model, x = Pooling(name), distort(train)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for step in tqdm(range(plan.steps), desc=f"learning through {name}", unit="step"):
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * (1 - step / plan.steps)  # to zero
        loss = (model(x) - train.centre).square().sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    with torch.no_grad():
        error = (model(distort(test)) - test.centre).square().sum(-1).mean().sqrt().item()
    return Pooled(losses, error, model.log_width.exp().item())


def oracle(plan: Plan, seed: int) -> float:
    """The error of the mean of the points that are no outliers."""
    test = outliers.sets(plan.sets, seed=2 * seed + 1)
    good = (~test.outlier).unsqueeze(-1)
    mean = (test.points * good).sum(1) / good.sum(1)
    return (mean - test.centre).square().sum(-1).mean().sqrt().item()


def pulls(name: str, width: float = 0.5) -> tuple[Tensor, Tensor]:
    """How far the pooled point follows one of its 20 points, by its distance."""
    x = torch.zeros(60, 20, 2, dtype=torch.float64)
    x[:, 1:] = 0.2 * outliers.sets(1, 19, share=0.0, noise=1.0).points
    x[:, 0, 0] = torch.linspace(0, 4, 60).double()
    x.requires_grad_()
    w = torch.tensor(width, dtype=torch.float64)
    z = diffopt.ArgminLayer(objective(PENALTIES[name]), start=median)(x, w)
    (slope,) = torch.autograd.grad(z[:, 0].sum(), x)
    return x[:, 0, 0].detach(), slope[:, 0, 0]


class Fitted(NamedTuple):
    """A run of the ellipse: L before each step and after the last one, and the loss of each."""

    shapes: list[Tensor]
    losses: list[float]
    axes: Tensor


TRUE_AXES = torch.tensor([1.6, 0.6], dtype=torch.float64)
TURN = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)


def pairs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points, and the nearest ones of an ellipse that is turned by TURN."""
    x = ellipses.points(count, seed)
    return x @ TURN.mT, ellipses.project(x, TRUE_AXES) @ TURN.mT


def learn_ellipse(plan: Plan, seed: int) -> Fitted:
    """L by L-BFGS on the squared error of the projections."""
    x, y = pairs(plan.pairs, seed)
    model = Ellipse()
    optimiser = torch.optim.LBFGS(
        model.parameters(), lr=0.5, max_iter=1, tolerance_grad=0, tolerance_change=0
    )
    shapes, losses = [model.L.detach().clone()], []

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = (model(x) - y).square().sum(-1).mean()
        value.backward()
        return value

    for _ in tqdm(range(plan.ellipse_steps), desc="learning an ellipse", unit="step"):
        losses.append(float(optimiser.step(loss).detach()))
        shapes.append(model.L.detach().clone())
    return Fitted(shapes, losses, model.axes())


def agreement(seed: int) -> float:
    """The largest distance of the layer, at the true ellipse, from the projection by bisection."""
    x, y = pairs(500, seed)
    model = Ellipse()
    model.L.data = TURN @ torch.diag(1 / TRUE_AXES)
    with torch.no_grad():
        return (model(x) - y).norm(dim=-1).max().item()


def huber_agreement() -> float:
    """The same of a Huber pooling in one dimension from the mean that is found by sorting."""
    x = outliers.sets(200, 21, 1).points
    layer = diffopt.ArgminLayer(
        lambda z, x, w: nn.functional.huber_loss(
            z.unsqueeze(1).expand_as(x), x, reduction="none", delta=0.3
        ).sum((-1, -2)),
        start=median,
    )
    with torch.no_grad():
        z = layer(x, torch.tensor(0.3)).squeeze(-1)
    return (z - outliers.huber_mean(x.squeeze(-1), 0.3)).abs().max().item()


def table(runs: dict[str, Pooled], best: float, fitted: Fitted, apart: float, huber: float) -> str:
    """What was learned, beside what can be known."""
    lines = ["pooling          test error    width learned"]
    lines += [f"{name:16}{run.error:10.4f}{run.width:14.2f}" for name, run in runs.items()]
    lines += [f"{'outliers named':16}{best:10.4f}   (the bound of this kind)", ""]
    a, b = fitted.axes.tolist()
    lines += [
        f"ellipse learned  half axes {a:.6f} and {b:.6f}, true 1.600000 and 0.600000",
        f"projection       {apart:.0e} from the one by bisection, at most",
        f"Huber pooling    {huber:.0e} from the one by sorting, at most",
    ]
    return "\n".join(lines)


def draw(path: Path, runs: dict[str, Pooled], fitted: Fitted, seed: int) -> None:
    """A set and its pooled points, the pulls, the losses, and the ellipse on its way."""
    figure = Figure(figsize=(12.5, 8.4), dpi=100, layout="constrained")
    axes = figure.subplots(2, 2)
    draw_set(axes[0, 0], seed)
    for name, color in COLORS.items():
        axes[0, 1].plot(*pulls(name), color=color, lw=2, label=name)
        axes[1, 0].semilogy(runs[name].losses, color=color, lw=2, label=name)
    axes[0, 1].axhline(0, color=GREY, lw=0.8)
    axes[0, 1].set(xlabel="distance of one of 20 points", ylabel="dz / dx of that point")
    axes[0, 1].set_title("who is followed")
    axes[1, 0].set(xlabel="step", ylabel="squared error of the centre, training")
    axes[1, 0].set_title("learning a matrix and a width through the pooling")
    for ax in (axes[0, 1], axes[1, 0]):
        ax.legend()
    draw_ellipse(axes[1, 1], fitted, seed)
    figure.savefig(path)


def draw_set(ax: Axes, seed: int) -> None:
    one = outliers.sets(1, seed=seed + 3)
    ax.plot(*one.points[0].T, "o", color=GREY, ms=5, label="points")
    ax.plot(*one.centre[0], "k+", ms=16, mew=2, label="true centre")
    w = torch.tensor(0.5, dtype=torch.float64)
    for name, mark in zip(COLORS, "s^D", strict=True):
        z = diffopt.ArgminLayer(objective(PENALTIES[name]), start=median)(one.points, w)
        ax.plot(*z[0], mark, color=COLORS[name], ms=9, mfc="none", mew=2, label=name)
    ax.set(aspect="equal", title="a set with 4 outliers, pooled")
    ax.legend()


def draw_ellipse(ax: Axes, fitted: Fitted, seed: int) -> None:
    """Pairs, and the curves |L'z| = 1 from the first to the last."""
    x, y = pairs(60, seed)
    for start, end in zip(x, y, strict=True):
        ax.plot(*torch.stack([start, end]).T, color=GREY, lw=0.6)
    ax.plot(*x.T, "o", color=GREY, ms=3)
    ax.plot(*y.T, "o", color="black", ms=3)
    angle = torch.linspace(0, 2 * torch.pi, 200).double()
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    last = len(fitted.shapes) - 1
    for k in [0, 1, 2, 4, last]:
        curve = torch.linalg.solve(fitted.shapes[k], circle, left=False)
        color, width = (BLUE, 2.5) if k == last else (ORANGE, 1.2)
        ax.plot(*curve.T, color=color, lw=width, alpha=1 if k in (0, last) else 0.5)
    ax.set(aspect="equal", xlim=(-2.6, 2.6), ylim=(-2.3, 2.3))
    ax.set_title("projections, and the ellipse learned from them")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the picture")
    parser.add_argument("--smoke", action="store_true", help="tiny data, a few seconds")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    plan, start = SMOKE if args.smoke else Plan(), time.perf_counter()
    runs = {name: learn_pooling(name, plan, args.seed) for name in PENALTIES}
    fitted = learn_ellipse(plan, args.seed)
    best, apart, huber = oracle(plan, args.seed), agreement(args.seed), huber_agreement()
    print(table(runs, best, fitted, apart, huber))
    folder = args.out or (Path("docs/img") if Path("docs/img").is_dir() else Path())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("declarative-smoke.png" if args.smoke else "declarative.png")
    draw(path, runs, fitted, args.seed)
    print(f"took {time.perf_counter() - start:.0f} s; picture: {path}")
    limit, digits = (0.5, 1e-2) if args.smoke else (0.1, 1e-6)
    claims = {
        "Welsch pooling is robust": runs["Welsch"].error <= limit * runs["mean"].error,
        "the ellipse is found": bool((fitted.axes - TRUE_AXES).abs().max() <= digits),
        "the projection is the nearest point": apart <= 1e-9,
        "the Huber pooling is the Huber mean": huber <= 1e-9,
    }
    failed = [claim for claim, holds in claims.items() if not holds]
    if failed:
        print(f"not true in this run: {'; '.join(failed)}", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # of matrices this small, threads only wait for each other
    sys.exit(main())
