"""Claim: structure pays, with the same answers.

    python benchmarks/structure.py [--smoke] [--engine torch|native]

Each row times the same problems twice through `solve_qp`, in one process: as a user states them,
with their structure, and written so that the structure is hidden and the general path is taken.
The answers, multipliers included, agree to 1e-9, and the worst relative KKT residual of both,
computed here from the definition, is 1e-10 at most; or the run fails.

    bounds               bounds of a diagonal Q          against the same bounds as rows of G
    bounds, budget       those and one row of A          against the same bounds as rows of G
    portfolio            diagonal Q, few rows, bounds    against Q with an entry of 1e-14 beside it
    few rows             Q, G, A shared, rows < n        against a copy of Q, G, A for each sample
    many rows            the same, rows > n              against the same copies
    equalities           Q, A shared, no inequalities    against the same copies

Limits: forward only, float64, random problems; CPU time of one thread, the median of interleaved
runs, so that other jobs hardly count. The times hold all of `solve_qp`, of which the linear algebra
is a part, and the general path pays for its copies and rows outside of it too. For a batch of one
there is nothing to share, and the overhead of Python hides the rest: ratios are near 1.

Ratios of the general path's time to that of the structure, of the torch engine (one machine, torch
2.13; repeated runs differ by a quarter). The native engine gains from bounds only and from shared
matrices, and has no special way for few rows of G:

                     n = 20   n = 20   n = 50  n = 100
                     of 128  of 1024   of 128   of 128
    bounds              1.1      1.5      1.7      3.8
    bounds, budget      1.2      1.2      1.6      3.8
    portfolio           1.1      1.4      1.3      2.4
    few rows            1.3      2.2      2.4      4.2
    many rows           1.3      1.7      1.9      2.6
    equalities          1.7      4.2      3.2      9.2
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import diffopt

Problem = dict[str, Tensor]
INF = float("inf")


def problem(n: int, m: int, e: int, batch: int, diagonal: bool = False) -> Problem:
    """Shared Q, G, A; p, h, b of each sample such that z_0, drawn at random, is feasible."""
    draw = torch.Generator().manual_seed(n + m + e)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    X, z = normal(n, n), normal(batch, n)
    Q = torch.diag(torch.linspace(0.1, 1, n, dtype=torch.float64)) if diagonal else X @ X.mT / n
    a = {"Q": Q if diagonal else Q + 0.1 * torch.eye(n, dtype=torch.float64), "p": normal(batch, n)}
    if m:
        G = normal(m, n) / n**0.5
        a |= {"G": G, "h": z @ G.mT + 0.1}
    if e:
        A = normal(e, n) / n**0.5
        a |= {"A": A, "b": z @ A.mT}
    return a


def boxed(a: Problem) -> Problem:
    """`a` between bounds that are active for about half of the unknowns."""
    z = -a["p"]
    return a | {"lb": z.clamp(max=-0.5), "ub": z.clamp(min=0.5)} | _feasible(a, z)


def _feasible(a: Problem, z: Tensor) -> Problem:
    """Limits that hold at z."""
    out = {"b": z @ a["A"].mT} if "A" in a else {}
    return out | ({"h": z @ a["G"].mT + 0.1} if "G" in a else {})


def bounds_as_rows(a: Problem) -> Problem:
    """The same problem with h_lower <= I z <= h for the bounds."""
    rest = {k: v for k, v in a.items() if k not in ("lb", "ub")}
    eye = torch.eye(a["p"].shape[-1], dtype=torch.float64)
    return rest | {"G": eye, "h": a["ub"], "h_lower": a["lb"]}


def hardly_dense(a: Problem) -> Problem:
    """The same problem, but for one entry of Q beside the diagonal, too small to matter."""
    Q = a["Q"].clone()
    Q[0, 1] = Q[1, 0] = 1e-14
    return a | {"Q": Q}


def copied(a: Problem) -> Problem:
    """The same problem with a copy of the shared matrices for each sample."""
    batch = len(a["p"])
    copies = {k: a[k].expand(batch, -1, -1).clone() for k in ("Q", "G", "A") if k in a}
    return a | copies


def kkt_error(a: Problem, sol: diffopt.QPSolution) -> float:
    """The worst relative violation of the KKT conditions, by the definition."""
    Q, p, z = a["Q"], a["p"], sol.z
    empty, none = p.new_zeros(0, p.shape[-1]), p.new_zeros(len(p), 0)
    G, A, b = a.get("G", empty), a.get("A", empty), a.get("b", none)
    Qz, Gz, Az = ((M @ z.unsqueeze(-1)).squeeze(-1) for M in (Q, G, A))
    dual = Qz + p + sol.mu
    for M, y in ((G, sol.lam), (A, sol.nu)):
        dual = dual + (M.mT @ y.unsqueeze(-1)).squeeze(-1)
    h, lower = a.get("h", none), a.get("h_lower", torch.full_like(Gz, -INF))
    ub, lb = a.get("ub", torch.full_like(z, INF)), a.get("lb", torch.full_like(z, -INF))
    primal = [(Gz - h).clamp(min=0), (lower - Gz).clamp(min=0), (z - ub).clamp(min=0)]
    primal += [(lb - z).clamp(min=0), Az - b]
    gap = (z * (Qz + p)).sum(-1) + (b * sol.nu).sum(-1)
    for y, up, low in ((sol.lam, h, lower), (sol.mu, ub, lb)):
        gap = gap + torch.where(y == 0, 0.0, torch.where(y > 0, up, low) * y).sum(-1)
    objective = (z * (Qz / 2 + p)).sum(-1)

    def top(*vectors: Tensor) -> Tensor:
        return torch.cat(vectors, -1).abs().amax(-1)

    errors = (
        top(*primal) / (1 + top(Gz, Az, b, z[:, :1])),
        top(dual) / (1 + top(Qz, p, sol.mu)),
        gap.abs() / (1 + objective.abs()),
    )
    return float(torch.stack(errors).amax())


def check(pair: tuple[Problem, Problem], solver: diffopt.InteriorPoint) -> float:
    """The largest KKT residual of both solutions, which must be the same solution."""
    ours, theirs = (diffopt.solve_qp(**a, solver=solver) for a in pair)
    assert (ours.status == 0).all() and (theirs.status == 0).all()
    rows = theirs.lam if ours.lam.shape == theirs.lam.shape else theirs.lam * 0
    mu = theirs.mu if ours.lam.shape == theirs.lam.shape else theirs.lam  # bounds as rows of G
    others = (theirs.z, rows[:, : ours.lam.shape[-1]], theirs.nu, mu)
    for a, b in zip((ours.z, ours.lam, ours.nu, ours.mu), others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    error = max(kkt_error(a, sol) for a, sol in zip(pair, (ours, theirs), strict=True))
    assert error <= 1e-10, error
    return error


def timed(pair: tuple[Problem, Problem], solver: diffopt.InteriorPoint, rounds: int) -> list[float]:
    """Median CPU milliseconds of each of the two, run in turn after a warm-up by `check`."""
    took: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for a, times in zip(pair, took, strict=True):
            start = time.process_time()
            diffopt.solve_qp(**a, solver=solver)
            times.append(1e3 * (time.process_time() - start))
    return [statistics.median(times) for times in took]


# name: (problem of size n and batch, how its structure is hidden)
CASES: dict[str, tuple[Callable[[int, int], Problem], Callable[[Problem], Problem]]] = {
    "bounds": (lambda n, B: boxed(problem(n, 0, 0, B, True)), bounds_as_rows),
    "bounds, budget": (lambda n, B: boxed(problem(n, 0, 1, B, True)), bounds_as_rows),
    "portfolio": (lambda n, B: boxed(problem(n, n // 10, 1, B, True)), hardly_dense),
    "few rows": (lambda n, B: problem(n, n // 4, n // 10, B), copied),
    "many rows": (lambda n, B: problem(n, n + n // 2, 0, B), copied),
    "equalities": (lambda n, B: problem(n, 0, n // 4, B), copied),
}


def main(arguments: list[str] | None = None) -> None:
    """Print one line a case and size: milliseconds with and without the structure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, one round")
    parser.add_argument("--engine", default="torch", choices=["torch", "native"])
    options = parser.parse_args(arguments)
    smoke, solver = options.smoke, diffopt.InteriorPoint(engine=options.engine)
    torch.set_num_threads(1)
    sizes = [(10, 1), (10, 4)] if smoke else [(20, 128), (20, 1024), (50, 128), (100, 128)]
    print(f"{'':16s} {'n':>4s} {'batch':>5s} {'with':>9s} {'without':>9s} {'ratio':>6s} "
          f"{'residual':>9s}")  # fmt: skip
    for name, (make, hide) in CASES.items():
        for n, batch in sizes:
            a = make(n, batch)
            pair = (a, hide(a))
            error = check(pair, solver)
            ours, theirs = timed(pair, solver, 1 if smoke else 7)
            print(f"{name:16s} {n:4d} {batch:5d} {ours:6.1f} ms {theirs:6.1f} ms "
                  f"{theirs / ours:6.2f} {error:9.1e}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
