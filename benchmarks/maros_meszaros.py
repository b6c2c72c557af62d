"""Claim: `solve_qp` solves the hard dense QPs of the Maros-Meszaros set to 1e-6, and most to 1e-8.

    python benchmarks/maros_meszaros.py FOLDER [NAME ...]

FOLDER holds one .npz a problem with the arrays Q, p, G, h, A, b, lb, ub (infinite where there is
no bound) and `objective`, the optimal value. The measure is the worst of `Residuals`: primal and
dual residual and duality gap, relative, in the infinity norm, computed here in NumPy from the
returned values.

Limits: dense storage, one problem at a time, cold start, one run; the time is of the whole call.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch

import diffopt


def load(path: Path) -> tuple[dict[str, torch.Tensor], float]:
    """The arguments of `solve_qp`, and the optimal value."""
    data = np.load(path)
    names = ["Q", "p", "lb", "ub"]
    names += ["G", "h"] if len(data["h"]) else []
    names += ["A", "b"] if len(data["b"]) else []
    arguments = {name: torch.from_numpy(np.asarray(data[name], dtype=np.float64)) for name in names}
    return arguments, float(data["objective"])


def measure(a: dict[str, torch.Tensor], sol: diffopt.QPSolution) -> float:
    """The worst relative KKT residual of the returned values, from the definition."""
    Q, p, lb, ub = (a[k].numpy() for k in ("Q", "p", "lb", "ub"))
    z, lam, nu, mu = (v.numpy() for v in (sol.z, sol.lam, sol.nu, sol.mu))
    G, h, A, b = (a[k].numpy() if k in a else None for k in ("G", "h", "A", "b"))
    if G is None:
        G, h = np.zeros((0, len(p))), np.zeros(0)
    if A is None:
        A, b = np.zeros((0, len(p))), np.zeros(0)

    def top(*vectors: np.ndarray) -> float:
        return max((float(np.abs(v).max()) for v in vectors if v.size), default=0.0)

    violation = top(*(np.maximum(v, 0) for v in (G @ z - h, lb - z, z - ub)), A @ z - b)
    stationarity = top(Q @ z + p + G.T @ lam + A.T @ nu + mu)
    bounds = np.where(mu > 0, ub, lb)
    stray = top(mu[np.isinf(bounds)], np.minimum(lam, 0))  # multipliers of limits not there
    gap = abs(z @ Q @ z + p @ z + h @ lam + b @ nu + np.where(np.isinf(bounds), 0, bounds) @ mu)
    return max(
        violation / (1 + top(G @ z, A @ z, b)),
        max(stationarity, stray) / (1 + top(Q @ z, p, mu)),
        gap / (1 + abs(z @ Q @ z / 2 + p @ z)),
    )


def main(folder: str, *names: str) -> None:
    """Solve every problem of `folder`, or those named, and print one line each and the counts."""
    paths = sorted(Path(folder).glob("*.npz"))
    paths = [path for path in paths if not names or path.stem in names]
    if not paths:
        raise SystemExit(f"no problem found in {folder}")
    warnings.simplefilter("ignore", diffopt.ConvergenceWarning)
    errors = []
    print(f"{'problem':10s} {'n':>5s} {'m':>4s} {'e':>4s}  {'status':18s} {'steps':>5s} "
          f"{'residual':>9s} {'objective':>15s} {'optimal':>15s} {'time':>7s}")  # fmt: skip
    for path in paths:
        a, optimal = load(path)
        start = time.perf_counter()
        sol = diffopt.solve_qp(**a)
        took = time.perf_counter() - start
        errors.append(measure(a, sol))
        objective = float(sol.z @ a["Q"] @ sol.z / 2 + a["p"] @ sol.z)
        sizes = f"{len(a['p']):5d} {len(sol.lam):4d} {len(sol.nu):4d}"
        print(
            f"{path.stem:10s} {sizes}  {diffopt.Status(int(sol.status)).name:18s} "
            f"{int(sol.iterations):5d} {errors[-1]:9.1e} {objective:15.7e} {optimal:15.7e} "
            f"{took:6.2f}s",
            flush=True,
        )
    for tolerance in (1e-6, 1e-8, 1e-10, 1e-12):
        print(f"solved to {tolerance:.0e}: {sum(e <= tolerance for e in errors)} of {len(errors)}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
