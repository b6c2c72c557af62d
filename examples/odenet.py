"""ODE-nets: a residual network in continuous time, what it can fit, and what it costs.

    python examples/odenet.py                     # the whole story, two minutes on one core

An ODE-net takes its input as y(0) and returns y(1), where y' = f(t, y) and f is a small network.

1. Ten points of y = x^3 + 0.1 x, by full-batch gradient descent (1000 steps of 0.01, weights first
   of standard deviation 1): a residual network of three blocks x + mlp(x), each mlp with 20 tanh
   units, and an ODE-net whose f has 20 tanh units on (y, t). Both fit: expect errors below 3 % of
   the mean square of y. Then 100 inputs are followed through time: no two paths ever cross, as two
   solutions of an ODE cannot meet.
2. Ten points of y = x^2, with the same settings. In one dimension paths that do not cross keep
   their order, so an ODE-net is an increasing function, and no better than the best increasing
   function: isotonic regression, with a mean squared error of 1.311. Expect the ODE-net above
   that number, and far below it the residual network, which is no flow, and the ODE-net with one
   zero appended to y, whose paths have room to pass by each other.
3. What it costs. Evaluations of f against training; evaluations against the error for six solvers,
   on the field that was learned in part 1; and the most memory that is alive at a time, forward
   and backward, against the number of steps: the exact derivative keeps all of them, or every n-th
   (n the square root of their number, and memory grows as that), and the continuous adjoint none.

It prints a table, draws two pictures, and ends with status 1 if a claim fails.

Sources: Chen, Rubanova, Bettencourt & Duvenaud, "Neural Ordinary Differential Equations" (NeurIPS
2018), and Duvenaud's chapter on it in "Deep Implicit Layers" (NeurIPS 2020 tutorial), whose
settings part 1 has; Dupont, Doucet & Teh, "Augmented Neural ODEs" (NeurIPS 2019) for part 2. They
show it in pictures, without numbers: 1.311 is the mark.
"""

import argparse
import sys
import time
import weakref
from collections.abc import Callable
from math import isqrt
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from tqdm import tqdm

from diffopt import (
    RK4,
    Backsolve,
    Bosh3,
    Checkpointed,
    Discrete,
    Dopri5,
    Dopri8,
    Euler,
    NeuralODE,
    Tsit5,
    odeint,
)
from problems.curves import Points, cubic, increasing_bound, parabola

BLACK, GREY, BLUE, ORANGE = "#222222", "#999999", "#0072B2", "#D55E00"
GREEN, PURPLE = "#009E73", "#CC79A7"  # told apart by the colour-blind, too
LOOSE = Dopri5(rtol=1e-3, atol=1e-3)  # enough to train with
UNIT = torch.tensor([0.0, 1.0])
FINE = torch.linspace(-3, 3, 100, dtype=torch.float64).unsqueeze(1)


class Plan(NamedTuple):
    """How much of everything."""

    steps: int = 1000  # of gradient descent
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10)
    counts: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256)  # of fixed steps
    depths: tuple[int, ...] = (4, 9, 16, 36, 81, 144, 256)  # steps, for the memory


SMOKE = Plan(3, (1e-2, 1e-4), (8, 16), (4, 16))


class Fit(NamedTuple):
    """A trained network, its loss at each step, and evaluations of f a point (of an ODE-net)."""

    model: nn.Module
    losses: list[float]
    evaluations: list[float]


class Cost(NamedTuple):
    """Evaluations of f, mean over the points, and the largest error."""

    evaluations: float
    error: float


class MLP(nn.Sequential):
    """One hidden layer of 20 tanh units; all weights and biases normal."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, 20), nn.Tanh(), nn.Linear(20, outputs))
        self.double()
        for p in self.parameters():
            nn.init.normal_(p)


class Residual(nn.Module):
    """Three blocks x + mlp(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MLP(1, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


class Dynamics(nn.Module):
    """f(t, y) = mlp(y, t)."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.mlp = MLP(dimension + 1, dimension)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.mlp(torch.cat([y, t], 1))


def ode_net(augment: int = 0) -> NeuralODE:
    return NeuralODE(Dynamics(1 + augment), augment=augment, solver=LOOSE)


def fit(name: str, model: nn.Module, points: Points, steps: int) -> Fit:
    """Gradient descent on the mean squared error."""
    descent = torch.optim.SGD(model.parameters(), lr=0.01)
    losses, evaluations = [], []
    for _ in tqdm(range(steps), desc=name, unit="step", leave=False):
        loss = (model(points.x) - points.y).square().mean()
        descent.zero_grad()
        loss.backward()
        descent.step()
        losses.append(loss.item())
        if isinstance(model, NeuralODE) and model.last is not None:
            evaluations.append(model.last.evaluations.double().mean().item())
    return Fit(model, losses, evaluations)


def paths(layer: NeuralODE, times: int = 200) -> Tensor:
    """y(t) `(100, times)` from each of the fine inputs, to ten digits."""
    t = torch.linspace(0, 1, times, dtype=torch.float64)
    with torch.no_grad():
        return odeint(layer.f, FINE, t, solver=Dopri8(rtol=1e-10, atol=1e-12)).ys.squeeze(2)


def work_precision(f: nn.Module, plan: Plan) -> dict[str, list[Cost]]:
    """Six solvers on the learned field, against a solution to 13 digits."""
    with torch.no_grad():
        truth = odeint(f, FINE, UNIT, solver=Dopri8(rtol=1e-13, atol=1e-13)).y1

        def cost(solver: Any) -> Cost:
            out = odeint(f, FINE, UNIT, solver=solver)
            return Cost(out.evaluations.double().mean().item(), (out.y1 - truth).abs().max().item())

        fixed = {k.__name__: [cost(k(1 / n)) for n in plan.counts] for k in (Euler, RK4)}
        adaptive = {
            k.__name__: [cost(k(rtol=tol, atol=tol)) for tol in plan.tolerances]
            for k in (Bosh3, Dopri5, Tsit5, Dopri8)
        }
    return fixed | adaptive


class Alive(TorchDispatchMode):
    """Counts the bytes that tensors made inside keep alive, and the most at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most = 0, 0
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(t.untyped_storage()) for t in tree_leaves(args) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and id(t.untyped_storage()) not in before:
                self.count(t.untyped_storage())
        return out

    def count(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known[storage] = None
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self.free, storage.nbytes())

    def free(self, size: int) -> None:
        self.now -= size


def peak(run: Callable[[], Tensor]) -> int:
    """The most bytes alive in run() and the backward pass of its sum."""
    with Alive() as alive:
        run().sum().backward()
    return alive.most


def memory(f: nn.Module, plan: Plan) -> dict[str, list[int]]:
    """Peak bytes against the number of RK4 steps; a state is 100 numbers, 800 bytes."""
    adjoints: dict[str, Callable[[int], Any]] = {
        "Discrete()": lambda n: Discrete(),
        "Checkpointed(sqrt(steps))": lambda n: Checkpointed(isqrt(n)),
        "Backsolve()": lambda n: Backsolve(LOOSE),
    }

    def alive(n: int, adjoint: Any) -> int:
        return peak(lambda: odeint(f, FINE, UNIT, solver=RK4(1 / n), adjoint=adjoint).y1)

    return {name: [alive(n, make(n)) for n in plan.depths] for name, make in adjoints.items()}


def table(
    fits: dict[str, Fit], bound: float, work: dict[str, list[Cost]], sizes: dict[str, list[int]],
    plan: Plan,
) -> str:  # fmt: skip
    """What was measured."""
    lines = ["", "mean squared error           x^3 + 0.1 x        x^2   parameters   evaluations"]
    for name, columns in {
        "residual network": ("cubic, residual", "parabola, residual"),
        "ODE-net": ("cubic, ODE", "parabola, ODE"),
        "ODE-net, augmented by 1": ("", "parabola, augmented"),
    }.items():
        row = [fits[c] if c else None for c in columns]
        model = next(r for r in row if r)
        errors = "".join(f"{r.losses[-1]:13.4f}" if r else " " * 13 for r in row)
        size = sum(p.numel() for p in model.model.parameters())
        nfe = f"{mean(model.evaluations):14.1f}" if model.evaluations else ""
        lines.append(f"  {name:25s}{errors}{size:13d}{nfe}")
    lines.append(f"  {'best increasing function':25s}{0:13.4f}{bound:13.4f}")
    lines.append("  (evaluations of f a point, mean over the training)")
    lines += ["", "evaluations of f, for an error of     1e-2    1e-4    1e-6"]
    for name, costs in work.items():
        counts = "".join(f"{cheapest(costs, e):>8}" for e in (1e-2, 1e-4, 1e-6))
        lines.append(f"  {name:33s}{counts}")
    lines += ["", f"kB alive, {'RK4 steps:':22s}" + "".join(f"{n:8d}" for n in plan.depths)]
    for name, row in sizes.items():
        lines.append(f"  {name:30s}" + "".join(f"{b / 1e3:8.0f}" for b in row))
    return "\n".join(lines)


def cheapest(costs: list[Cost], error: float) -> str:
    """The fewest evaluations that were seen to reach an error."""
    enough = [c.evaluations for c in costs if c.error <= error]
    return f"{min(enough):.0f}" if enough else "-"


def draw(path: Path, fits: dict[str, Fit], ys: Tensor, bound: float) -> None:
    """The fits, and the paths between them."""
    figure = Figure(figsize=(15, 5), dpi=100, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _curves(left, cubic(), {
        "residual network": (fits["cubic, residual"], ORANGE),
        "ODE-net": (fits["cubic, ODE"], BLUE),
    })  # fmt: skip
    left.set_title("y = x³ + 0.1 x: both fit", fontsize=15)
    left.set_ylim(-12, 12)
    t = torch.linspace(0, 1, ys.shape[1])
    for x, y in zip(FINE.flatten().tolist(), ys, strict=True):
        middle.plot(t, y, color=BLUE if abs(x) <= 2 else GREY, lw=0.8)
    middle.set_title("100 inputs on their way: no two cross", fontsize=15)
    middle.set_xlabel("t (grey: inputs outside the data)", fontsize=12)
    middle.set_ylabel("y(t)", fontsize=12)
    _curves(right, parabola(), {
        "residual network": (fits["parabola, residual"], ORANGE),
        "ODE-net": (fits["parabola, ODE"], BLUE),
        "ODE-net, augmented": (fits["parabola, augmented"], GREEN),
    })  # fmt: skip
    right.set_title(f"y = x²: increasing functions have {bound:.2f}", fontsize=15)
    right.set_ylim(-4, 9)
    figure.savefig(path)


def _curves(axes: Axes, points: Points, fits: dict[str, tuple[Fit, str]]) -> None:
    for name, (fitted, color) in fits.items():
        with torch.no_grad():
            y = fitted.model(FINE)
        axes.plot(FINE, y, color=color, lw=2, label=f"{name}: error {fitted.losses[-1]:.3f}")
    axes.plot(points.x, points.y, "o", color=BLACK, ms=6, label="data")
    axes.set_xlabel("x", fontsize=12)
    axes.legend(fontsize=11)


def draw_cost(
    path: Path, fits: dict[str, Fit], work: dict[str, list[Cost]], sizes: dict[str, list[int]],
    plan: Plan,
) -> None:  # fmt: skip
    """Evaluations against training, error against evaluations, memory against steps."""
    figure = Figure(figsize=(15, 5), dpi=100, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for name, label, color in (
        ("cubic, ODE", "x³ + 0.1 x", BLUE),
        ("parabola, ODE", "x²", GREY),
        ("parabola, augmented", "x², augmented", GREEN),
    ):
        left.plot(fits[name].evaluations, color=color, lw=2, label=label)
    left.set_title("evaluations of f, a point", fontsize=15)
    left.set_xlabel("step of training", fontsize=12)
    left.set_ylim(0, None)
    left.legend(fontsize=11)
    colors = (GREY, PURPLE, BLACK, BLUE, GREEN, ORANGE)
    for (name, costs), color in zip(work.items(), colors, strict=True):
        e, n = [c.error for c in costs], [c.evaluations for c in costs]
        middle.loglog(n, e, "o-", ms=4, color=color, label=name)
    middle.set_title("the price of precision", fontsize=15)
    middle.set_xlabel("evaluations of f, a point", fontsize=12)
    middle.set_ylabel("largest error of y(1)", fontsize=12)
    middle.legend(fontsize=11)
    for (name, row), color in zip(sizes.items(), (ORANGE, GREEN, BLUE), strict=True):
        right.loglog(plan.depths, [b / 1e3 for b in row], "o-", color=color, label=name)
    right.set_title("memory, forward and backward", fontsize=15)
    right.set_xlabel("steps of RK4", fontsize=12)
    right.set_ylabel("alive at a time (kB)", fontsize=12)
    right.set_xticks(plan.depths, [str(n) for n in plan.depths])
    right.minorticks_off()
    right.legend(fontsize=11)
    figure.savefig(path)


def train_all(steps: int, seed: int) -> dict[str, Fit]:
    """The networks of parts 1 and 2; alike ones start alike."""
    models: dict[str, tuple[Callable[[], nn.Module], Points]] = {
        "cubic, residual": (Residual, cubic()),
        "cubic, ODE": (ode_net, cubic()),
        "parabola, residual": (Residual, parabola()),
        "parabola, ODE": (ode_net, parabola()),
        "parabola, augmented": (lambda: ode_net(augment=1), parabola()),
    }
    fits = {}
    for name, (make, points) in models.items():
        torch.manual_seed(seed)
        fits[name] = fit(name, make(), points, steps)
    return fits


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the pictures")
    parser.add_argument("--smoke", action="store_true", help="a few steps of all, some seconds")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    plan = SMOKE if args.smoke else Plan()
    start = time.perf_counter()
    fits, bound = train_all(plan.steps, args.seed), increasing_bound(parabola())
    learned = fits["cubic, ODE"].model
    ys = paths(learned)
    work, sizes = work_precision(learned.f, plan), memory(learned.f, plan)
    print(table(fits, bound, work, sizes, plan))
    folder = args.out or (Path("docs/img") if Path("docs/img").is_dir() else Path())
    folder.mkdir(parents=True, exist_ok=True)
    ending = "-smoke.png" if args.smoke else ".png"
    draw(folder / f"odenet{ending}", fits, ys, bound)
    draw_cost(folder / f"odenet-cost{ending}", fits, work, sizes, plan)
    print(f"it took {time.perf_counter() - start:.0f} s; pictures: {folder}/odenet*{ending}")
    judged = topology(fits, bound, ys) | ({} if args.smoke else claims(fits, bound, work, sizes))
    failed = [claim for claim, holds in judged.items() if not holds]
    if failed:
        print(f"not true in this run: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def topology(fits: dict[str, Fit], bound: float, ys: Tensor) -> dict[str, bool]:
    """What holds of every ODE-net, trained or not."""
    return {
        "paths never cross": bool((ys.diff(dim=0) > 0).all()),
        "no ODE-net is better than isotonic regression": min(fits["parabola, ODE"].losses) >= bound,
    }


def claims(
    fits: dict[str, Fit], bound: float, work: dict[str, list[Cost]], sizes: dict[str, list[int]],
) -> dict[str, bool]:  # fmt: skip
    """What holds of those that were trained, and of what they cost."""
    losses = {name: f.losses[-1] for name, f in fits.items()}
    spread = cubic().y.square().mean().item()
    orders = {k: (work[k][-2].error / work[k][-1].error) for k in ("Euler", "RK4")}
    exact, sparse, continuous = sizes.values()
    return {
        "x^3: a residual network and an ODE-net fit": all(
            losses[f"cubic, {k}"] < 0.03 * spread for k in ("residual", "ODE")
        ),
        "x^2: a residual network beats isotonic regression": losses["parabola, residual"]
        < bound / 5,
        "x^2: an augmented ODE-net does": losses["parabola, augmented"] < bound / 5,
        "Euler has order 1": 1.8 < orders["Euler"] < 2.2,
        "RK4 has order 4": 14 < orders["RK4"] < 18,
        "all steps kept: memory grows with them": exact[-1] > 10 * exact[0],
        "every n-th kept: it grows with n": sparse[-1] < exact[-1] / 5,
        "the continuous adjoint: it does not grow": continuous[-1] < 1.1 * continuous[0],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)  # of matrices this small, threads only wait for each other
    sys.exit(main())
