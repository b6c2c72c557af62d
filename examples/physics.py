"""Learn the laws of motion of a spring and of a double pendulum, so that energy is kept.

    python examples/physics.py                    # the whole story, a minute or two on one core

The field of an ODE is what `odeint` is given; here it is itself a derivative, by autograd, of a
scalar that is learned. Each time a plain network of about the same size learns beside it.

1. A mass on a spring, q' = p, p' = -q, seen under noise. A Hamiltonian network learns H(q, p), and

       q' = dH/dp,    p' = -dH/dq                                                           (1)

   keeps H, whatever H is. It learns from the slopes q', p' at noisy states, as published; and from
   the noisy states alone, at irregular times: `odeint` solves (1) from first states that are
   learned too, and the loss compares what it finds at the times of each motion. Then 25 new motions
   are followed for eight turns. Expect the energy of the plain networks to drift by about a tenth,
   and that of the Hamiltonian ones 10 times less, or much less. What is left to these is
   not drift: H is not quite round, and the energy swings a little in each turn.
2. The double pendulum, whose momenta nobody measures. A Lagrangian L(q, v), v = q', needs none:

       d/dt dL/dv = dL/dq,  thus  q'' = (d2L/dv2)^-1 (dL/dq - (d2L/dv dq) v).               (2)

   With the true L, (2) keeps the energy to the tolerance of the solver: expect 1e-8 or better. Then
   L is a network that learns from accelerations on 15 motions. Expect the energy of new motions,
   after 30 units of time, to be off by a per cent or two of what it takes to turn the pendulum
   upside down, and by several times that without (2). (From 100 motions the plain network learns
   almost as well: what a law saves is data.)

It prints a table, draws a picture, and ends with status 1 if a claim fails.

Sources: Greydanus, Dzamba & Yosinski, "Hamiltonian Neural Networks" (NeurIPS 2019); Cranmer et al.,
"Lagrangian Neural Networks" (2020), of whose networks these are smaller ones. To learn (1) through
a solver: Chen et al., "Symplectic Recurrent Neural Networks" (ICLR 2020).
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from diffopt import Dopri5, Dopri8, odeint
from problems.mechanics import (
    Motions,
    Swings,
    double_pendulum,
    mass_spring,
    pendulum_energy,
    pendulum_lagrangian,
    spring_energy,
)

BLACK, GREY, BLUE, ORANGE = "#222222", "#999999", "#0072B2", "#D55E00"
COLOURS = {"Plain": ORANGE, "Hamiltonian": BLUE, "Lagrangian": BLUE, "the true L": GREY}
TURN = 64  # states in one turn of a spring
UPRIGHT = 6.0  # energy between the double pendulum hanging and upside down
SHOWN = 15  # of the way of a pendulum
PUBLISHED = {
    "Plain, slopes": "1.7e-01", "Hamiltonian, slopes": "3.8e-04",
    "Plain": "8 %", "Lagrangian": "0.4 %",
}  # fmt: skip
NOTES = """
(1) The error of the energy, mean square over the way; Greydanus et al., Table 1: networks of width
    200, and twenty units of time. The drift is that from the first turn to the last, of means.
(2) At the end, a mean, in per cent of what it takes to stand upside down. Cranmer et al.: in per
    cent of the largest potential energy, after a much longer training."""


class Plan(NamedTuple):
    """How much of everything."""

    motions: int = 50  # of the spring, to learn from; half of them with slopes
    slopes: int = 1000  # steps of gradient descent
    paths: int = 200
    turns: int = 8  # to follow a spring
    swings: int = 15  # of the double pendulum: little data
    lagrangian: int = 1000
    tested: int = 20
    end: float = 30.0  # of the time to follow a double pendulum


SMOKE = Plan(
    motions=10, slopes=20, paths=3, turns=1, swings=5, lagrangian=10, tested=2, end=1.0
)  # fmt: skip


def mlp(inputs: int, outputs: int, width: int, activation: type[nn.Module]) -> nn.Sequential:
    """Two hidden layers."""
    layers = nn.Linear(inputs, width), activation(), nn.Linear(width, width), activation()
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def variable(x: Tensor) -> Tensor:
    """x, as something to differentiate by."""
    return x if x.requires_grad else x.detach().requires_grad_()


class Hamiltonian(nn.Module):
    """The field (1) of a network H."""

    def __init__(self) -> None:
        super().__init__()
        self.H = mlp(2, 1, 50, nn.Tanh)

    def forward(self, t: Tensor | None, y: Tensor) -> Tensor:
        wanted = torch.is_grad_enabled()  # a roll-out has no use for derivatives of the field
        with torch.enable_grad():
            y = variable(y)
            # sample i of H depends on sample i of y only: one gradient of the sum is all of them
            (slope,) = torch.autograd.grad(self.H(y).sum(), y, create_graph=wanted)
        return torch.stack([slope[:, 1], -slope[:, 0]], 1)


class Plain(nn.Module):
    """A network as the field of the spring."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = mlp(2, 2, 50, nn.Tanh)

    def forward(self, t: Tensor | None, y: Tensor) -> Tensor:
        return self.slope(y)


class Newton(nn.Module):
    """Accelerations as a field on states (q, v) `(B, 4)`; they are a network here."""

    def __init__(self) -> None:
        super().__init__()
        self.network = mlp(6, 2, 64, nn.Softplus)

    def acceleration(self, q: Tensor, v: Tensor) -> Tensor:
        return self.network(torch.cat([q.sin(), q.cos(), v], 1))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        q, v = y.chunk(2, 1)
        return torch.cat([v, self.acceleration(q, v)], 1)


class Lagrangian(Newton):
    """Those of (2), for L(q, v) `(B,)`."""

    def __init__(self, L: Callable[[Tensor, Tensor], Tensor]) -> None:
        nn.Module.__init__(self)
        self.L = L

    def acceleration(self, q: Tensor, v: Tensor) -> Tensor:
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            q, v = variable(q), variable(v)
            force, p = torch.autograd.grad(self.L(q, v).sum(), (q, v), create_graph=True)
            rows = [
                torch.autograd.grad(p_i.sum(), (v, q), create_graph=wanted, retain_graph=True)
                for p_i in p.unbind(1)
            ]
        mass, turning = (torch.stack(r, 1) for r in zip(*rows, strict=True))  # d2L/dv2, d2L/dv dq
        with torch.set_grad_enabled(wanted):
            return torch.linalg.solve(mass, force - (turning @ v.unsqueeze(-1)).squeeze(-1))


class LearnedL(nn.Module):
    """v^2 / 2 and a network: d2L/dv2 is invertible at first. Smooth, and periodic in q."""

    def __init__(self) -> None:
        super().__init__()
        self.network = mlp(6, 1, 64, nn.Softplus)

    def forward(self, q: Tensor, v: Tensor) -> Tensor:
        rest = self.network(torch.cat([q.sin(), q.cos(), v], 1)).squeeze(1)
        return v.square().sum(1) / 2 + rest


class Followed(NamedTuple):
    """Motions under a learned law: states `(B, T, ...)`, their true energy `(B, T)`."""

    states: Tensor
    energy: Tensor

    def error(self) -> Tensor:
        """What the energy has gained, `(B, T)`."""
        return self.energy - self.energy[:, :1]


def descend(
    loss: Callable[[], Tensor], parameters: list[Tensor], steps: int, rate: float, name: str
) -> None:
    """Adam, with a learning rate that falls to zero along a cosine."""
    adam = torch.optim.Adam(parameters, lr=rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in tqdm(range(steps), desc=name, unit="step"):
        adam.zero_grad()
        loss().backward()
        adam.step()
        decay.step()


def by_slopes(f: nn.Module, data: Motions, plan: Plan) -> None:
    """As published: the exact slopes, at noisy states of half of the motions."""
    half = plan.motions // 2
    y = data.noisy[:half].flatten(0, 1)
    q, p = data.states[:half].flatten(0, 1).unbind(1)
    slopes, name = torch.stack([p, -q], 1), f"{type(f).__name__}, slopes"
    descend(
        lambda: (f(None, y) - slopes).square().mean(), [*f.parameters()], plan.slopes, 3e-3, name
    )


def by_paths(f: nn.Module, data: Motions, plan: Plan) -> None:
    """Through `odeint`: noisy states alone; the first state of each motion is learned too."""
    y0 = nn.Parameter(data.noisy[:, 0].clone())
    solver = Dopri5(rtol=1e-2, atol=1e-2)  # less than the noise

    def loss() -> Tensor:
        return (odeint(f, y0, data.t, solver=solver).ys - data.noisy).square().mean()

    descend(loss, [*f.parameters(), y0], plan.paths, 1e-2, f"{type(f).__name__}, paths")


def by_accelerations(f: Newton, data: Swings, plan: Plan) -> Newton:
    """Batches of 256 states of all the motions; in float32, which is enough to learn."""
    q, v, a = (x.flatten(0, 1).float() for x in data)

    def loss() -> Tensor:
        i = torch.randint(len(q), (256,))
        return (f.acceleration(q[i], v[i]) - a[i]).square().mean()

    f.float()
    descend(loss, [*f.parameters()], plan.lagrangian, 1e-2, type(f).__name__)
    return f.double()


@torch.no_grad()
def followed_spring(f: nn.Module, y0: Tensor, plan: Plan) -> Followed:
    t = torch.arange(plan.turns * TURN + 1).double() * (2 * math.pi / TURN)
    ys = odeint(f, y0, t, solver=Dopri5(rtol=1e-7, atol=1e-7)).ys
    return Followed(ys, spring_energy(ys))


@torch.no_grad()
def followed_pendulum(f: nn.Module, y0: Tensor, plan: Plan, solver: Dopri5 | Dopri8) -> Followed:
    ys = odeint(f, y0, torch.linspace(0, plan.end, 301, dtype=torch.float64), solver=solver).ys
    return Followed(ys, pendulum_energy(*ys.chunk(2, -1)))


def springs(plan: Plan, seed: int) -> dict[str, Followed]:
    """Part 1."""
    data, test = mass_spring(plan.motions, seed=2 * seed), mass_spring(25, 1, seed=2 * seed + 1)
    out = {}
    for way, learn in (("slopes", by_slopes), ("paths", by_paths)):
        for law in (Plain, Hamiltonian):
            torch.manual_seed(seed)
            f = law().double()
            learn(f, data, plan)
            out[f"{law.__name__}, {way}"] = followed_spring(f, test.states[:, 0], plan)
    return out


def pendulums(plan: Plan, seed: int) -> dict[str, Followed]:
    """Part 2."""
    data = double_pendulum(plan.swings, span=plan.end / 3, seed=2 * seed)
    first = double_pendulum(plan.tested, 2, seed=2 * seed + 1)
    y0 = torch.cat([first.q[:, 0], first.v[:, 0]], 1)
    exact = Dopri8(rtol=1e-9, atol=1e-9)
    out = {"the true L": followed_pendulum(Lagrangian(pendulum_lagrangian), y0, plan, exact)}
    for name, law in (("Plain", Newton), ("Lagrangian", lambda: Lagrangian(LearnedL()))):
        torch.manual_seed(seed)
        f = by_accelerations(law(), data, plan)
        out[name] = followed_pendulum(f, y0, plan, Dopri5())
    return out


def square(f: Followed) -> float:
    """The mean squared error of a spring's energy over 20 units of time."""
    return f.error()[:, : round(20 / (2 * math.pi) * TURN) + 1].square().mean().item()


def drift(f: Followed) -> float:
    """The mean |change| of a spring's energy from the first turn to the last, of means."""
    first, last = (part.mean(1) for part in (f.energy[:, :TURN], f.energy[:, -TURN:]))
    return (last - first).abs().mean().item()


def off(f: Followed) -> Tensor:
    """The mean error of a double pendulum's energy at each time, in per cent of `UPRIGHT`."""
    return 100 / UPRIGHT * f.error().abs().mean(0)


def table(spring: dict[str, Followed], pendulum: dict[str, Followed], plan: Plan) -> str:
    """What was measured, and what is published."""
    lines = [
        f"a spring, followed for {plan.turns} turns      energy error (1)   published      drift"
    ]
    for name, f in spring.items():
        published = PUBLISHED.get(name, "")
        lines.append(f"  {name:28s}{square(f):20.1e}{published:>12s}{drift(f):11.1e}")
    title = f"a double pendulum, {plan.end:.0f} units of time"
    lines.append(f"{title:35s} energy error (2)   published")
    for name, f in pendulum.items():
        lines.append(f"  {name:28s}{off(f)[-1]:18.2g} %{PUBLISHED.get(name, ''):>12s}")
    return "\n".join(["", *lines, NOTES])


def draw(
    path: Path, spring: dict[str, Followed], pendulum: dict[str, Followed], plan: Plan
) -> None:
    """A spring in phase space, the energies, and the path of a pendulum's lower bob."""
    figure = Figure(figsize=(12, 10), dpi=100, layout="constrained")
    (orbit, energy), (bob, error) = figure.subplots(2, 2)
    turns = torch.arange(plan.turns * TURN + 1) / TURN
    for name, f in spring.items():
        colour, style = COLOURS[name.split(",")[0]], "-" if name.endswith("slopes") else "--"
        if style == "-":
            orbit.plot(*f.states[0].mT, color=colour, lw=1.2, label=name)
        energy.plot(turns, f.energy[0], color=colour, ls=style, label=name)
    orbit.plot(*spring["Hamiltonian, slopes"].states[0, 0], "o", color=BLACK, ms=8)
    orbit.set(xlabel="q", ylabel="p", aspect="equal")
    orbit.set_title("A spring, followed; learned from slopes", fontsize=15)
    energy.axhline(spring["Plain, paths"].energy[0, 0], color=BLACK, lw=1, ls=":", label="true")
    energy.set(xlabel="turns", ylabel="energy")
    energy.set_title("Its energy", fontsize=15)
    t = torch.linspace(0, plan.end, 301)
    for name, f in pendulum.items():
        q = f.states[0, t <= SHOWN, :2]
        x, y = q.sin().sum(1), -q.cos().sum(1)
        bob.plot(x, y, color=COLOURS[name], lw=3 if name == "the true L" else 1.5, label=name)
        bob.plot(x[-1], y[-1], "o", color=COLOURS[name], ms=8)
        error.semilogy(t[1:], off(f)[1:], color=COLOURS[name], lw=2, label=name)
    bob.set(xlabel="x", ylabel="y", aspect="equal")
    bob.set_title(f"The lower bob of a double pendulum, t <= {SHOWN}", fontsize=15)
    error.set(xlabel="t", ylabel="per cent")
    error.set_title(f"The error of the energy, mean of {plan.tested}", fontsize=15)
    for axes in (orbit, energy, bob, error):
        axes.legend(fontsize=11, loc="best")
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
    spring, pendulum = springs(plan, args.seed), pendulums(plan, args.seed)
    print(table(spring, pendulum, plan))
    folder = args.out or (Path("docs/img") if Path("docs/img").is_dir() else Path())
    path = folder / ("physics-smoke.png" if args.smoke else "physics.png")
    draw(path, spring, pendulum, plan)
    print(f"took {time.perf_counter() - start:.0f} s; picture: {path}")
    errors = {name: square(f) for name, f in spring.items()}
    drifts = {name: drift(f) for name, f in spring.items()}
    ends = {name: off(f)[-1].item() for name, f in pendulum.items()}
    claims = {
        "from slopes, the error of H's energy is 10 times less": args.smoke
        or errors["Hamiltonian, slopes"] < errors["Plain, slopes"] / 10,
        "the drift is 10 times less": args.smoke
        or all(
            drifts[f"Hamiltonian, {w}"] < drifts[f"Plain, {w}"] / 10 for w in ("slopes", "paths")
        ),
        "the true L keeps the energy": pendulum["the true L"].error().abs().max().item() < 1e-6,
        "a learned L is 3 times better than none": args.smoke
        or ends["Lagrangian"] < ends["Plain"] / 3,
    }
    failed = [claim for claim, holds in claims.items() if not holds]
    if failed:
        print(f"not true in this run: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # of matrices this small, threads only wait for each other
    sys.exit(main())
