"""Learn to denoise signals with a QP layer: by one number, by 29 900, and by a network.

    python examples/denoise.py                    # the whole story, two minutes on one core

A piecewise constant signal of 100 samples, 1 to 9 pieces of height 10 to 99, is seen as y, under
normal noise of standard deviation 10. All filters here are built on one layer,

    z* = argmin_z  1/2 |y - z|^2 + sum_i w_i |(D z)_i|,                                       (1)

differentiable in y, D and w. It is solved through its dual, a QP with bounds: z = y - D'u where

    u = argmin_u  1/2 u'(D D')u - (D y)'u   subject to  -w <= u <= w.                         (2)

1. Total variation: D takes differences of neighbours, and w is one number, the best of a grid.
2. OptNet: all of the QP is learned by gradient, starting there. z = R x, where x is (1) of W y,
   with D, W and R learned: sharpen, filter, smooth. (W and R are what helps; D alone does not.)
3. D takes differences, but their weights depend on the signal: a small convolutional network reads
   y and says what each jump costs. It learns that from the error of z* alone. Expect weights that
   drop where the jumps are, and a squared error about a third below that of total variation.

It prints a table of squared errors on signals held out, draws a picture, and ends with status 1
if a claim fails.

Source: Amos & Kolter, "OptNet" (ICML 2017), the experiment on signal denoising. For the dual of
total variation: Chambolle, "An Algorithm for Total Variation Minimization and Applications"
(Journal of Mathematical Imaging and Vision, 2004).
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from diffopt import solve_qp
from problems.signals import Signals, differences, oracle, piecewise_constant

N = 100  # samples of a signal
CENTRE, SPREAD = 54.5, 26.0  # mean and standard deviation of the heights
BLACK, GREY, BLUE, ORANGE = "#222222", "#999999", "#0072B2", "#D55E00"
PUBLISHED = {"network alone": 29.8, "total variation": 16.5, "OptNet": 14.4}
NOTES = """
(1) OptNet, on 9000 signals of this kind for training and 1000 for testing; 53.3 for one that
    starts from a random D. (2) The mean of y over each true piece: no filter, but a mark."""


class Plan(NamedTuple):
    """How many signals; and epochs, a filter that learns by gradient."""

    train: int = 9000
    tune: int = 1000  # of those, for the one number
    test: int = 1000
    batch: int = 150
    alone: int = 40
    optnet: int = 10
    adaptive: int = 6


SMOKE = Plan(train=160, tune=60, test=60, batch=20, alone=1, optnet=1, adaptive=3)


def prox(y: Tensor, D: Tensor, w: Tensor | float) -> Tensor:
    """The layer (1) for y `(*B, n)`, D `(m, n)` of rank m, and w a number or `(*B, m)`."""
    u = solve_qp(D @ D.mT, -y @ D.mT, lb=-w, ub=w).z
    return y - u @ D


class OptNet(nn.Module):
    """argmin_z 1/2 |R^-1 z - W y|^2 + lam |D R^-1 z|_1, first total variation of weight `lam`.

    With z = R x it is the layer (1); its Hessian in z is (R R')^-1. Heights are from their centre.
    """

    def __init__(self, lam: float) -> None:
        super().__init__()
        self.lam = lam
        self.D = nn.Parameter(differences(N))
        self.W = nn.Parameter(torch.eye(N, dtype=torch.float64))
        self.R = nn.Parameter(torch.eye(N, dtype=torch.float64))

    def forward(self, y: Tensor) -> Tensor:
        return CENTRE + prox((y - CENTRE) @ self.W.mT, self.D, self.lam) @ self.R.mT


class Adaptive(nn.Module):
    """Total variation with the weights exp(network(y)), first all `lam`.

    The weight of a difference depends on the 62 samples around it.
    """

    def __init__(self, lam: float, channels: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, step in ((1, 1), (channels, 2), (channels, 4), (channels, 8)):
            pad = {"padding": 2 * step, "padding_mode": "replicate"}
            layers += [nn.Conv1d(inputs, channels, 5, dilation=step, **pad), nn.ReLU()]
        last = nn.Conv1d(channels, 1, 2)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, math.log(lam))
        self.network = nn.Sequential(*layers, last).double()

    def weights(self, y: Tensor) -> Tensor:
        """w `(B, n - 1)` for y `(B, n)`."""
        return self.network((y[:, None] - CENTRE) / SPREAD)[:, 0].exp()

    def forward(self, y: Tensor) -> Tensor:
        return prox(y, differences(N), self.weights(y))


class Alone(nn.Module):
    """A fully connected network, and no QP."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(N, 200), nn.ReLU(), nn.Linear(200, N)).double()

    def forward(self, y: Tensor) -> Tensor:
        return CENTRE + SPREAD * self.network((y - CENTRE) / SPREAD)


def learn(model: nn.Module, data: Signals, batch: int, epochs: int, rate: float) -> None:
    """Adam on the squared error; the learning rate falls to zero in the second half."""
    batches = torch.cat([torch.randperm(len(data.noisy)) for _ in range(epochs)]).split(batch)
    adam = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.99))
    decay = torch.optim.lr_scheduler.LambdaLR(adam, lambda k: min(1, 2 * (1 - k / len(batches))))
    for chosen in tqdm(batches, desc=f"learning, {type(model).__name__}", unit="step"):
        loss = (model(data.noisy[chosen]) - data.clean[chosen]).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        decay.step()


def error(denoise: Callable[[Tensor], Tensor], data: Signals) -> float:
    """The mean squared error of a filter."""
    with torch.no_grad():
        z = torch.cat([denoise(y) for y in data.noisy.split(250)])
    return (z - data.clean).square().mean().item()


def tune(data: Signals) -> float:
    """The best weight of total variation for these signals, of a grid."""
    grid = tqdm(range(9, 34, 2), desc="tuning total variation", unit="weight")
    errors = {lam: error(partial(prox, D=differences(N), w=lam), data) for lam in grid}
    return min(errors, key=errors.__getitem__)


def table(errors: dict[str, float], lam: float) -> str:
    """What was measured, and what is published."""
    names = {"total variation": f"total variation, best weight of a grid: {lam}"}
    lines = ["mean squared error on signals held out            this run   published (1)"]
    for name, value in errors.items():
        published = f"{PUBLISHED[name]:11.1f}" if name in PUBLISHED else ""
        lines.append(f"  {names.get(name, name):46s}{value:10.2f}{published}")
    return "\n".join(["", *lines, NOTES])


def draw(path: Path, lam: float, adaptive: Adaptive, data: Signals, errors: dict) -> None:
    """A signal and two filters, above the weights of its differences."""
    i = int((data.piece[:, -1] == 5).int().argmax())  # the first with six pieces
    y, jumps = data.noisy[i : i + 1], data.piece[i].diff().nonzero().flatten()
    with torch.no_grad():
        flat, z, w = prox(y, differences(N), lam)[0], adaptive(y)[0], adaptive.weights(y)[0]
    figure = Figure(figsize=(12, 8), dpi=100, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.6, 1])
    top.plot(y[0], ".", color=GREY, ms=8, label="noisy signal")
    top.step(range(N), data.clean[i], color=BLACK, lw=1.5, where="mid", label="truth")
    lines = ("total variation", flat, ORANGE), ("weights by a network", z, BLUE)
    for name, signal, colour in lines:
        label = f"{name}: error {errors[name]:.1f}"
        top.step(range(N), signal, color=colour, lw=2, where="mid", label=label)
    title = f"One of {len(data.clean)} signals held out, and the mean squared error over all"
    top.set_title(title, fontsize=15)
    figure.legend(fontsize=12, loc="outside lower center", ncols=4)
    bottom.bar([k + 0.5 for k in range(N - 1)], w.tolist(), width=1, color=BLUE, alpha=0.6)
    bottom.axhline(lam, color=ORANGE, lw=2)
    for place in jumps.tolist():
        bottom.axvline(place + 0.5, color=BLACK, lw=1.5, ls=":")
    bottom.set_title("The weight of each difference; dotted: the true jumps", fontsize=15)
    bottom.set(yscale="log", xlim=(-0.5, N - 0.5), ylim=(1, 100), xlabel="sample")
    bottom.set(yticks=[1, 3, 10, 30], yticklabels=[1, 3, 10, 30])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the picture")
    parser.add_argument("--smoke", action="store_true", help="tiny data, a few seconds")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    plan = SMOKE if args.smoke else Plan()
    torch.manual_seed(args.seed)
    start = time.perf_counter()
    train = piecewise_constant(plan.train, N, seed=2 * args.seed)
    test = piecewise_constant(plan.test, N, seed=2 * args.seed + 1)
    lam = tune(Signals(*(x[: plan.tune] for x in train)))
    alone, optnet, adaptive = Alone(), OptNet(lam), Adaptive(lam)
    learn(alone, train, plan.batch, plan.alone, rate=1e-2)
    learn(optnet, train, plan.batch, plan.optnet, rate=1e-3)
    learn(adaptive, train, plan.batch, plan.adaptive, rate=1e-2)
    errors = {
        "noisy signals": error(lambda y: y, test),
        "network alone": error(alone, test),
        "total variation": error(partial(prox, D=differences(N), w=lam), test),
        "OptNet": error(optnet, test),
        "weights by a network": error(adaptive, test),
        "told the jumps (2)": (oracle(test) - test.clean).square().mean().item(),
    }
    print(table(errors, lam))
    folder = args.out or (Path("docs/img") if Path("docs/img").is_dir() else Path())
    path = folder / ("denoise-smoke.png" if args.smoke else "denoise.png")
    draw(path, lam, adaptive, test, errors)
    print(f"took {time.perf_counter() - start:.0f} s; picture: {path}")
    best = errors["total variation"]
    claims = {
        "weights by a network beat total variation": errors["weights by a network"] < best,
        "they do by a quarter": args.smoke or errors["weights by a network"] < 0.75 * best,
        "OptNet beats total variation": args.smoke or errors["OptNet"] < best,
    }
    failed = [claim for claim, holds in claims.items() if not holds]
    if failed:
        print(f"not true in this run: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # of matrices this small, threads only wait for each other
    sys.exit(main())
