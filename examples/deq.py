"""Deep equilibrium models: find a fixed point, differentiate it, learn digits with it.

    python examples/deq.py                        # the whole story, 75 seconds on one core

A deep equilibrium model (DEQ) has one layer f, and its output is the z with z = f(z, x): what
infinitely many copies of f would give. It costs what its solver costs, and the memory of one f.

1. The fixed point of z = tanh(W z + x), W symmetric of norm 0.97, 32 samples of 100 unknowns. Four
   solvers, by |f(z) - z| against products with W (one an evaluation of f, one a product with f').
   Expect Picard to gain a factor of 0.96 a step, and the others to need 3 to 11 times fewer
   products. What autograd saves for the implicit gradient is the same after 10 and after 320
   iterations; for the unrolled loop it grows with them, 23-fold, and the gradient tends to the
   implicit one.
2. 8x8 digits with f(z, x) = tanh(W z + U x + u). |W| <= 0.9 by construction, so that a fixed point
   exists, is unique, and is found fast. The gradient is exact (GMRES), five terms of the Neumann
   series, or Jacobian-free (one term); or exact, with a penalty on the Jacobian as part of the
   loss. Expect at least 97 % of the test digits right with the exact gradient.
3. The same digits with f a residual block of two convolutions, normalised (GroupNorm) so that
   states stay of one size; nothing forces f to be a contraction, but it starts as one, nearly.
   Expect at least 98 %.

Beside 2 and 3 stands the explicit network with the very same parameters, f(f(0, x), x): twice f
in place of infinitely many. On digits this easy depth does not pay: expect the same accuracy.

It prints a table, draws a picture, and ends with status 1 if a claim fails. --seed changes weights
and the order of the data; the split into 1347 and 450 digits stays.

Sources: Bai, Kolter & Koltun, "Deep Equilibrium Models" (NeurIPS 2019); Geng et al., "On Training
Implicit Models" (NeurIPS 2021), the phantom gradient; Fung et al., "JFB: Jacobian-Free
Backpropagation for Implicit Networks" (AAAI 2022); Bai, Koltun & Kolter, "Stabilizing Equilibrium
Models by Jacobian Regularization" (ICML 2021); the block of part 3 is a smaller one of that in
Kolter, Duvenaud & Johnson, "Deep Implicit Layers" (NeurIPS 2020 tutorial), chapter 4.
"""

import argparse
import sys
import time
from collections.abc import Callable
from math import isfinite, nan
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from diffopt import (
    DEQ,
    Anderson,
    Broyden,
    NewtonKrylov,
    Picard,
    fixed_point,
    jacobian_penalty,
    spectral_radius,
)
from diffopt.linear import GMRES, Neumann
from diffopt.operators import Identity
from problems import digits

BLACK, BLUE, ORANGE = "#222222", "#0072B2", "#D55E00"  # told apart by the colour-blind, too
GREEN = "#009E73"
EXACT = GMRES(rtol=1e-3, restart=10)  # exact enough: a batch of 128 is noisier than that
NOTES = """
(1) A support vector machine in scikit-learn's documentation, "Recognizing hand-written digits":
    trained on the first half of the images, tested on the second, which is harder.
No DEQ is published for these digits; on CIFAR-10 a multiscale DEQ has 95.0 % (TorchDEQ's zoo)."""


class Plan(NamedTuple):
    """How much of everything."""

    atol: float = 1e-12  # the solvers of part 1 end there
    iterations: tuple[int, ...] = (10, 20, 40, 80, 160, 320)
    train: int = 1347
    dense: int = 25  # epochs of part 2
    conv: int = 12  # epochs of part 3


SMOKE = Plan(atol=1e-6, iterations=(10, 40), train=128, dense=1, conv=1)


class Curve(NamedTuple):
    """A solver at work: products with W, and the largest |f(z) - z| of all samples after them."""

    products: Tensor
    residual: Tensor


class Memory(NamedTuple):
    """Bytes that autograd saves, and the relative error of the unrolled gradient."""

    iterations: int
    implicit: int
    unrolled: int
    error: float


class Fitted(NamedTuple):
    """A trained network: which share of the test set is right, and at what price."""

    parameters: int
    accuracy: float
    seconds: float  # of CPU time, to train it
    evaluations: float = 2.0  # of f, mean over the test set
    radius: float = nan  # spectral radius of f', median over 100 test digits


class Products(TorchDispatchMode):
    """Counts the products of matrices."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


def tanh_layer(seed: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """(W, f) of part 1; W needs a gradient."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(100, 100, generator=generator, dtype=torch.float64)
    W = W + W.T
    W = (0.97 / torch.linalg.matrix_norm(W, 2) * W).requires_grad_()
    # Small x: near z = 0 the slope of tanh is 1, and f' nearly W.
    x = 0.05 * torch.randn(32, 100, generator=generator, dtype=torch.float64)
    return W, lambda z: torch.tanh(z @ W + x)


def residual_curves(f: Callable[[Tensor], Tensor], atol: float) -> dict[str, Curve]:
    """The four solvers from zero."""
    options = {"rtol": 0.0, "atol": atol, "max_steps": 1500, "history": True}
    solvers = {
        "Picard": Picard(**options),
        "Anderson": Anderson(**options),
        "Broyden": Broyden(**options),
        "Newton-Krylov": NewtonKrylov(krylov=15, forcing=1e-2, **options),
    }
    curves = {}
    for name, solver in solvers.items():
        with torch.no_grad(), Products() as products:
            found = fixed_point(f, torch.zeros(32, 100, dtype=torch.float64), solver=solver)
        error = found.history.amax(1)
        # One product for the first residual; then equally many a step.
        at = torch.linspace(1, products.count, len(error))
        curves[name] = Curve(at, atol * error)
    return curves


def memory(W: Tensor, f: Callable[[Tensor], Tensor], plan: Plan) -> list[Memory]:
    """What the two kinds of gradient need, against the number of Picard iterations."""
    zero = torch.zeros(32, 100, dtype=torch.float64)

    def unrolled(k: int) -> Tensor:
        z = zero
        for _ in range(k):
            z = f(z)
        return z

    def implicit(k: int) -> Tensor:
        solver = Picard(rtol=0, atol=1e-300, max_steps=k)  # never there: k iterations
        return fixed_point(f, zero, solver=solver, on_failure="ignore").z

    exact = gradient(fixed_point(f, zero, solver=Anderson(rtol=1e-14, atol=1e-14)).z, W)
    rows = []
    for k in plan.iterations:
        error = (gradient(unrolled(k), W) - exact).norm() / exact.norm()
        rows.append(Memory(k, saved(implicit, k), saved(unrolled, k), float(error)))
    return rows


def gradient(z: Tensor, W: Tensor) -> Tensor:
    return torch.autograd.grad(z.square().sum(), W)[0]


def saved(layer: Callable[[int], Tensor], k: int) -> int:
    """Bytes of all that autograd saves in layer(k), what is saved twice counted once."""
    storages = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        z = layer(k)  # alive while it is counted
    assert z.requires_grad
    return sum(storages.values())


class Bounded(nn.Module):
    """W, made smaller if its norm is above 0.9."""

    def forward(self, W: Tensor) -> Tensor:
        return W * (0.9 / torch.linalg.matrix_norm(W, 2)).clamp(max=1)


class Dense(nn.Module):
    """f(z, x) = tanh(W z + x), a contraction."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.W = nn.Linear(width, width, bias=False)
        nn.init.orthogonal_(self.W.weight, gain=0.5)
        parametrize.register_parametrization(self.W, "weight", Bounded())

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.W(z) + x)


class Conv(nn.Module):
    """f(z, x) = relu(x + norm2(conv2(relu(norm1(conv1 z)))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)
        )
        self.norm1, self.norm2 = (nn.GroupNorm(4, channels) for _ in range(2))
        # What z adds to x is 0.3 of what x is: f starts as a contraction, or nearly.
        nn.init.constant_(self.norm2.weight, 0.3)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(z)))
        return torch.relu(x + self.norm2(self.conv2(y)))


class Twice(nn.Module):
    """The explicit network f(f(0, x), x)."""

    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.f(torch.zeros_like(x), x), x)


class Classifier(nn.Module):
    """Images to the logits of ten digits; explicit if there is no operator."""

    def __init__(self, kind: str, operator: Any) -> None:
        super().__init__()
        if kind == "dense":
            self.stem = nn.Sequential(nn.Flatten(), nn.Linear(64, 80))
            self.f, self.head = Dense(80), nn.Linear(80, 10)
        else:
            self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16))
            self.f = Conv(16)
            self.head = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(256, 10))
        solver = Anderson(rtol=1e-3, max_steps=40)
        explicit = operator is None
        self.layer = Twice(self.f) if explicit else DEQ(self.f, solver=solver, operator=operator)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(logits, z, x), x what the stem makes of the image."""
        x = self.stem(2 * pixels.unsqueeze(1) - 1)
        z = self.layer(x)
        return self.head(z), z, x


def fit(
    kind: str, operator: Any, plan: Plan, seed: int, epochs: int, penalty: float = 0.0
) -> Fitted:
    """Train on noisy images, judge on the test set."""
    train, test = digits.split()
    torch.manual_seed(seed)
    network = Classifier(kind, operator)
    batches = plan.train // 128
    adam = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(adam, 1e-2, total_steps=epochs * batches)
    start = time.process_time()
    for _ in tqdm(range(epochs), desc=f"{kind}, {operator}", unit="epoch", leave=False):
        for i in torch.randperm(plan.train)[: 128 * batches].split(128):
            with parametrize.cached():  # W once a step, not once an evaluation
                noise = 0.1 * torch.randn(128, 8, 8)
                logits, z, x = network(train.pixels[i] + noise)
                loss = cross_entropy(logits, train.digits[i], label_smoothing=0.1)
                if penalty:
                    J = jacobian_penalty(lambda v, x=x: network.f(v, x), z)
                    loss = loss + penalty * J.mean()
                adam.zero_grad()
                loss.backward()
            adam.step()
            rate.step()
    return judged(network.eval(), test, time.process_time() - start)


def judged(network: Classifier, test: digits.Images, seconds: float) -> Fitted:
    """What the network has become."""

    def right(logits: Tensor) -> float:
        return float((logits.argmax(1) == test.digits).double().mean())

    with torch.no_grad():
        logits, z, x = network(test.pixels)
    out = Fitted(sum(p.numel() for p in network.parameters()), right(logits), seconds)
    if isinstance(network.layer, Twice):
        return out
    radius = float(spectral_radius(lambda v: network.f(v, x[:100]), z[:100], steps=30).median())
    evaluations = float(network.layer.last.steps.double().mean()) + 1
    return out._replace(evaluations=evaluations, radius=radius)


def train_all(plan: Plan, seed: int) -> tuple[dict[str, Fitted], dict[str, Fitted]]:
    """Parts 2 and 3."""
    dense = {
        "explicit, f twice": fit("dense", None, plan, seed, plan.dense),
        "DEQ, exact gradient": fit("dense", EXACT, plan, seed, plan.dense),
        "DEQ, exact, penalty": fit("dense", EXACT, plan, seed, plan.dense, penalty=1.0),
        "DEQ, Neumann(5)": fit("dense", Neumann(5), plan, seed, plan.dense),
        "DEQ, Jacobian-free": fit("dense", Identity(), plan, seed, plan.dense),
    }
    conv = {
        "explicit, f twice": fit("conv", None, plan, seed, plan.conv),
        "DEQ, exact gradient": fit("conv", EXACT, plan, seed, plan.conv),
    }
    return dense, conv


def table(
    curves: dict[str, Curve], sizes: list[Memory], dense: dict[str, Fitted],
    conv: dict[str, Fitted], atol: float,
) -> str:  # fmt: skip
    """What was measured, and what is published."""
    lines = [
        "",
        "z = tanh(W z + x)            products to |f(z) - z| of   1e-2   1e-4  " + f"{atol:.0e}",
    ]
    for name, curve in curves.items():
        counts = "".join(f"{after(curve, tol):7.0f}" for tol in (1e-2, 1e-4, atol))
        lines.append(f"  {name:52s}{counts}")
    lines += ["", "iterations      kB saved: implicit   unrolled   error of the unrolled gradient"]
    for m in sizes:
        lines.append(
            f"  {m.iterations:4d}{m.implicit / 1e3:28.0f}{m.unrolled / 1e3:11.0f}{m.error:20.1e}"
        )
    lines += ["", "digits               parameters   right   CPU s   evaluations   radius of f'"]
    for title, rows in {"tanh(W z + U x + u)": dense, "convolutions": conv}.items():
        lines.append(title)
        for name, r in rows.items():
            lines.append(
                f"  {name:19s}{r.parameters:10d}{r.accuracy:9.1%}{r.seconds:8.1f}"
                + f"{r.evaluations:14.1f}"
                + (f"{r.radius:15.2f}" if isfinite(r.radius) else "")
            )
    lines.append(f"published: support vector machine{'97 % (1)':>16s}")
    return "\n".join([*lines, NOTES])


def after(curve: Curve, tol: float) -> float:
    """Products until the residual is at most tol."""
    return float(curve.products[curve.residual <= tol][0])


def draw(
    path: Path, curves: dict[str, Curve], sizes: list[Memory], dense: dict[str, Fitted],
    conv: dict[str, Fitted],
) -> None:  # fmt: skip
    """Three panels: the solvers, the memory, what the ways to learn digits cost."""
    figure = Figure(figsize=(15, 5), dpi=100, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for (name, curve), color in zip(curves.items(), (BLACK, BLUE, ORANGE, GREEN), strict=True):
        marker = "o" if name.startswith("Newton") else ""  # few steps, many products each
        left.semilogy(curve.products, curve.residual, marker=marker, color=color, label=name)
    left.set_title("z = tanh(W z + x): four solvers", fontsize=15)
    left.set_xlabel("products with W", fontsize=12)
    left.set_ylabel("|f(z) - z|, worst of 32 samples", fontsize=12)
    left.legend(fontsize=12)
    k = [m.iterations for m in sizes]
    middle.loglog(k, [m.unrolled / 1e3 for m in sizes], "o-", color=ORANGE, label="unrolled")
    middle.loglog(k, [m.implicit / 1e3 for m in sizes], "o-", color=BLUE, label="implicit")
    middle.set_title("the same: memory of the gradient", fontsize=15)
    middle.set_xlabel("iterations", fontsize=12)
    middle.set_ylabel("saved by autograd (kB)", fontsize=12)
    middle.set_xticks(k, [str(i) for i in k])
    middle.set_ylim(20, None)
    middle.minorticks_off()
    middle.legend(fontsize=12)
    bars = [*dense.items(), *conv.items()]
    for title, rows, color, top in (("tanh", dense, BLUE, 0), ("conv", conv, ORANGE, len(dense))):
        seconds = [r.seconds for r in rows.values()]
        bar = right.barh(range(top, top + len(rows)), seconds, color=color, label=title)
        right.bar_label(bar, [f" {r.accuracy:.1%}" for r in rows.values()], fontsize=12)
    right.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=12)
    right.invert_yaxis()
    right.margins(x=0.2)
    right.set_title("digits: test accuracy and time", fontsize=15)
    right.set_xlabel("CPU seconds to train", fontsize=12)
    right.legend(fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the picture")
    parser.add_argument("--smoke", action="store_true", help="a few steps of all, some seconds")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    plan = SMOKE if args.smoke else Plan()
    start = time.perf_counter()
    W, f = tanh_layer(args.seed)
    curves, sizes = residual_curves(f, plan.atol), memory(W, f, plan)
    dense, conv = train_all(plan, args.seed)
    print(table(curves, sizes, dense, conv, plan.atol))
    folder = args.out or (Path("docs/img") if Path("docs/img").is_dir() else Path())
    path = folder / ("deq-smoke.png" if args.smoke else "deq.png")
    draw(path, curves, sizes, dense, conv)
    print(f"it took {time.perf_counter() - start:.0f} s; picture: {path}")
    picard, *others = (after(curve, plan.atol) for curve in curves.values())
    claims = {
        "every solver needs half of Picard's products or less": max(others) <= picard / 2,
        "the implicit graph does not grow": len({m.implicit for m in sizes}) == 1,
        "the unrolled graph grows": sizes[-1].unrolled > 3 * sizes[0].unrolled,
        "the unrolled gradient tends to the implicit one": sizes[-1].error < sizes[0].error / 2
        and (args.smoke or sizes[-1].error < 1e-4),
        "the explicit networks have as many parameters": all(
            len({r.parameters for r in rows.values()}) == 1 for rows in (dense, conv)
        ),
        "97 % right with tanh": args.smoke or dense["DEQ, exact gradient"].accuracy >= 0.97,
        "98 % right with convolutions": args.smoke or conv["DEQ, exact gradient"].accuracy >= 0.98,
    }
    failed = [claim for claim, holds in claims.items() if not holds]
    if failed:
        print(f"not true in this run: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # of matrices this small, threads only wait for each other
    sys.exit(main())
