"""Augmented ODE-nets: what a flow cannot do, it can with room to pass by.

    python examples/augmented.py                  # the whole story, two minutes on one core

The output y(1) of y' = f(t, y), y(0) = x, is a continuous and invertible function of x: nothing is
torn, nothing passes through anything. With a few zeros appended to x it can pass by.

1. Two numbers, -1 -> 1 and 1 -> -1. In one dimension the two paths had to cross: the best an
   ODE-net can do is 0 for both, an error of 1. With one zero appended, expect almost no error.
2. Points of a disc and of a ring around it, to be told apart by a linear function of y(1): labels
   -1 and 1, smooth L1 loss. 500 points with |x| <= 0.5, 1500 with 1 <= |x| <= 1.5; f has two
   hidden layers of 32 units and knows the time. A flow of the plane cannot take the disc out of the
   ring. It can stretch it and squeeze it through a gap between the few points that it is shown,
   which is slow to learn and dear to solve. With five zeros appended, expect a lower loss and fewer
   evaluations of f. A residual network of five blocks is not a flow, and has no such trouble.

It prints a table, draws a picture, and ends with status 1 if a claim fails.

Source: Dupont, Doucet & Teh, "Augmented Neural ODEs" (NeurIPS 2019), whose settings these are; the
losses and evaluations of these experiments are shown there in figures only.
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
from torch.nn.functional import mse_loss, smooth_l1_loss
from tqdm import tqdm

from diffopt import Dopri5, NeuralODE
from problems.curves import crossing, increasing_bound
from problems.spheres import Spheres, concentric

GREY, BLUE, ORANGE = "#999999", "#0072B2", "#D55E00"
LOOSE = Dopri5(rtol=1e-3, atol=1e-3)
EXTRA = 5  # zeros appended in part 2
NOTES = """
published (1): without zeros both numbers end at 0, and on disc and ring evaluations grow with
  training; with zeros the loss is lower, and evaluations are fewer. Test accuracy of images,
  without and with zeros (2): MNIST 95.6 and 97.3 %, CIFAR10 51.7 and 52.4 %.
(1) Dupont, Doucet & Teh, "Augmented Neural ODEs" (NeurIPS 2019), in figures. (2) An ablation of it
    for the NeurIPS 2019 reproducibility challenge."""


class Plan(NamedTuple):
    """How much of everything."""

    toy: int = 300  # steps for the two numbers
    epochs: int = 30
    inner: int = 500
    outer: int = 1500


SMOKE = Plan(toy=5, epochs=1, inner=80, outer=240)


class Fit(NamedTuple):
    """A trained network: the loss and the evaluations of f a point at each step, the test set."""

    model: nn.Module
    losses: list[float]
    evaluations: list[float]
    loss: float = 0.0
    right: float = 0.0


class Dynamics(nn.Module):
    """f(t, y), a network on (y, t)."""

    def __init__(self, dimension: int, hidden: int = 32) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dimension + 1, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, dimension),
        )

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat([y, t], 1))


class ODENet(nn.Module):
    """A linear function of y(1); all entries of the state are kept for it."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.flow = NeuralODE(Dynamics(2 + extra), augment=extra, keep=True, solver=LOOSE)
        self.head = nn.Linear(2 + extra, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flow(x))


class Residual(nn.Module):
    """Five blocks x + mlp(x), and a linear function of what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)
            )
            for _ in range(5)
        )
        self.head = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def swap(extra: int, steps: int) -> Fit:
    """Part 1: a flow of the line, or of more dimensions, that is to swap -1 and 1."""
    points = crossing()
    model = NeuralODE(Dynamics(1 + extra).double(), augment=extra, solver=LOOSE)
    adam, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in tqdm(range(steps), desc=f"-1 and 1, {extra} zeros", unit="step", leave=False):
        loss = mse_loss(model(points.x), points.y)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return Fit(model, losses, [])


def fit(name: str, model: nn.Module, train: Spheres, test: Spheres, epochs: int) -> Fit:
    """Part 2: Adam on batches of 64, the flow to a tolerance of 1e-3."""
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = [i for _ in range(epochs) for i in torch.randperm(len(train.points)).split(64)]
    losses, evaluations = [], []
    for i in tqdm(batches, desc=name, unit="step", leave=False):
        loss = smooth_l1_loss(model(train.points[i]), train.labels[i])
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
        if isinstance(model, ODENet):
            evaluations.append(_evaluations(model))
    with torch.no_grad():
        out = model(test.points)
    if isinstance(model, ODENet):
        evaluations.append(_evaluations(model))  # on the test set
    right = (out.sign() == test.labels).double().mean().item()
    return Fit(model, losses, evaluations, smooth_l1_loss(out, test.labels).item(), right)


def _evaluations(model: ODENet) -> float:
    assert model.flow.last is not None
    return model.flow.last.evaluations.double().mean().item()


def train_all(plan: Plan, seed: int) -> tuple[dict[str, Fit], dict[str, Fit]]:
    """Both parts."""
    toys = {f"zeros appended: {k}": swap(k, plan.toy) for k in (0, 1)}
    train, test = (concentric(plan.inner, plan.outer, seed=2 * seed + k) for k in (0, 1))
    models: dict[str, Callable[[], nn.Module]] = {
        "ODE-net": lambda: ODENet(0),
        f"ODE-net, {EXTRA} zeros appended": lambda: ODENet(EXTRA),
        "residual network": Residual,
    }
    return toys, {k: fit(k, make(), train, test, plan.epochs) for k, make in models.items()}


def table(toys: dict[str, Fit], fits: dict[str, Fit]) -> str:
    """What was measured, and what is published."""
    lines = ["", "-1 -> 1 and 1 -> -1                     squared error"]
    lines += [f"  ODE-net, {name:30s}{f.losses[-1]:12.5f}" for name, f in toys.items()]
    lines.append(f"  {'best increasing function':39s}{increasing_bound(crossing()):12.5f}")
    lines += ["", "disc and ring, held out         parameters      loss    right   evaluations"]
    for name, f in fits.items():
        size = sum(p.numel() for p in f.model.parameters())
        nfe = f"{f.evaluations[-1]:14.1f}" if f.evaluations else ""
        lines.append(f"  {name:30s}{size:10d}{f.loss:10.4f}{f.right:9.1%}{nfe}")
    return "\n".join([*lines, NOTES])


def draw(path: Path, toys: dict[str, Fit], fits: dict[str, Fit], test: Spheres) -> None:
    """Above: loss, evaluations, the two numbers. Below: the points on their way."""
    figure = Figure(figsize=(15, 10), dpi=100, layout="constrained")
    (loss, nfe, toy), (plane, wide, score) = figure.subplots(2, 3)
    for (name, f), color in zip(fits.items(), (ORANGE, BLUE, GREY), strict=True):
        loss.semilogy(smooth(f.losses), color=color, lw=2, label=name)
        if f.evaluations:
            nfe.plot(f.evaluations[:-1], color=color, lw=1.5, label=name)
    loss.set_title("loss, mean of 32 batches", fontsize=15)
    nfe.set_title("evaluations of f, a point", fontsize=15)
    nfe.set_ylim(0, None)
    for axes in (loss, nfe):
        axes.set_xlabel("step of training", fontsize=12)
        axes.legend(fontsize=11)
    _draw_toy(toy, toys)
    plain, augmented, _ = fits.values()
    _draw_paths(plane, plain.model, test, "ODE-net: the plane cannot be torn")
    _draw_paths(wide, augmented.model, test, f"with {EXTRA} zeros: the disc is lifted out")
    _draw_scores(score, plain.model, augmented.model, test)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def smooth(values: list[float], width: int = 32) -> Tensor:
    """Means over `width` neighbours (over all, if there are fewer)."""
    return torch.tensor(values).unfold(0, min(width, len(values)), 1).mean(1)


def solved(model: nn.Module, x: Tensor, times: int = 41) -> Tensor:
    """The states of a flow at equal distances in time, `(B, times, n)`."""
    flow = model.flow if isinstance(model, ODENet) else model
    assert isinstance(flow, NeuralODE)
    with torch.no_grad():
        return flow.solve(x, t=torch.linspace(0, 1, times)).ys


def _draw_toy(axes: Axes, toys: dict[str, Fit]) -> None:
    t = torch.linspace(0, 1, 41)
    for (name, f), color in zip(toys.items(), (ORANGE, BLUE), strict=True):
        for k, y in enumerate(solved(f.model, crossing().x).squeeze(2)):
            label = f"{name}, error {f.losses[-1]:.3f}" if k == 0 else None
            axes.plot(t, y, color=color, lw=2, label=label)
    axes.plot([0, 0], [-1, 1], "o", color=GREY, ms=8)
    axes.plot([1, 1], [-1, 1], "*", color=GREY, ms=14)
    axes.set_title("-1 and 1 are to change places", fontsize=15)
    axes.set_xlabel("t", fontsize=12)
    axes.set_ylabel("first entry of y(t)", fontsize=12)
    axes.set_ylim(-1.2, 1.6)
    axes.legend(fontsize=11, loc="upper center")


def _draw_paths(axes: Axes, model: nn.Module, test: Spheres, title: str) -> None:
    """Paths of 240 points; of more than two dimensions the head's direction and the widest other.

    The line is where the linear function is zero.
    """
    assert isinstance(model, ODENet)
    x, label = test.points[:240], test.labels[:240, 0]
    ys, w, b = solved(model, x), model.head.weight[0].detach(), model.head.bias.item()
    axis = w / w.norm()
    along = ys @ axis
    other = ys - along.unsqueeze(2) * axis
    widest = torch.linalg.svd(other[:, -1] - other[:, -1].mean(0)).Vh[0]
    across = other @ widest
    for value, color in ((1, ORANGE), (-1, BLUE)):
        own = label == value
        axes.plot(along[own].T, across[own].T, color=color, lw=0.6, alpha=0.35)
        axes.plot(along[own, -1], across[own, -1], ".", color=color, ms=7)
    axes.axvline(-b / w.norm().item(), color=GREY, lw=2, ls="--")
    axes.set_title(title, fontsize=15)
    axes.set_xlabel("along the linear function (dashed: its zero)", fontsize=12)
    axes.set_ylabel("across it", fontsize=12)


def _draw_scores(axes: Axes, plain: nn.Module, augmented: nn.Module, test: Spheres) -> None:
    """How far the linear function is from right, sorted over the test set."""
    for model, color, name in ((plain, ORANGE, "none"), (augmented, BLUE, str(EXTRA))):
        with torch.no_grad():
            error = (model(test.points) - test.labels).abs().flatten().sort(descending=True).values
        share = torch.arange(1, len(error) + 1) / len(error)
        axes.loglog(100 * share, error, color=color, lw=2, label=f"zeros appended: {name}")
    axes.axhline(1, color=GREY, lw=2, ls="--")
    axes.set_title("worst points of the test set", fontsize=15)
    axes.set_xlabel("share of the points (%) with an error of at least", fontsize=12)
    axes.set_ylabel("error (dashed: misclassified)", fontsize=12)
    axes.set_ylim(1e-3, None)
    axes.legend(fontsize=11)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the picture")
    parser.add_argument("--smoke", action="store_true", help="a few steps of all, some seconds")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    plan = SMOKE if args.smoke else Plan()
    torch.manual_seed(args.seed)
    start = time.perf_counter()
    toys, fits = train_all(plan, args.seed)
    print(table(toys, fits))
    folder = args.out or (Path("docs/img") if Path("docs/img").is_dir() else Path())
    path = folder / ("augmented-smoke.png" if args.smoke else "augmented.png")
    draw(path, toys, fits, concentric(plan.inner, plan.outer, seed=2 * args.seed + 1))
    print(f"it took {time.perf_counter() - start:.0f} s; picture: {path}")
    failed = [claim for claim, holds in claims(toys, fits, args.smoke).items() if not holds]
    if failed:
        print(f"not true in this run: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def claims(toys: dict[str, Fit], fits: dict[str, Fit], smoke: bool) -> dict[str, bool]:
    """What holds; in a smoke run only what holds of every flow."""
    line, plane = toys.values()
    plain, augmented, _ = fits.values()
    always = {"a flow of the line cannot swap two numbers": min(line.losses) >= 0.99}
    if smoke:
        return always
    return always | {
        "one of the plane can": plane.losses[-1] < 0.01,
        "augmented: a lower loss": augmented.loss < plain.loss / 2,
        "augmented: fewer evaluations": augmented.evaluations[-1] < plain.evaluations[-1],
        "augmented: all but 1 % right": augmented.right > 0.99,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)  # of matrices this small, threads only wait for each other
    sys.exit(main())
