"""The tables. A new problem or solver is one row here and inherits every test that reads it."""

from __future__ import annotations

import torch

from diffopt import InteriorPoint, doctor
from problems.random_qp import (
    degenerate_qp,
    infeasible_qp,
    random_lp,
    random_qp,
    rescaled,
    unbounded_qp,
)

from .native.emulation import COMPILED

ENGINES = {"torch": InteriorPoint(engine="torch")}
if "engine native: live" in doctor():
    ENGINES["native"] = InteriorPoint(engine="native")
if COMPILED:  # on a CPU: see tests/native/emulation.py
    ENGINES["cuda"] = InteriorPoint(engine="cuda")

# name: instance with a unique solution and unique multipliers
QPS = {
    "one unknown": random_qp(1, 1, batch=(5,)),
    "one unknown, bounds": random_qp(1, bounds=True, batch=(5,), seed=3),
    "unconstrained": random_qp(8, batch=(5,)),
    "equality only": random_qp(9, 0, 4, batch=(5,)),
    "inequality": random_qp(10, 20, batch=(8,)),
    "inequality and equality": random_qp(10, 15, 3, batch=(8,)),
    "two-sided": random_qp(12, 18, 2, two_sided=True, batch=(8,)),
    "box": random_qp(20, bounds=True, batch=(8,)),
    "box and equality": random_qp(20, 0, 5, bounds=True, batch=(8,)),
    "everything": random_qp(15, 12, 4, two_sided=True, bounds=True, batch=(8,)),
    "semidefinite": random_qp(12, 20, 3, rank=6, batch=(8,)),
    "shared matrices": random_qp(10, 15, 3, shared=("Q", "G", "A"), batch=(8,)),
    "shared Q": random_qp(10, 15, 3, shared=("Q",), batch=(8,)),
    "no batch": random_qp(7, 9, 2),
    "two batch dimensions": random_qp(6, 8, 1, batch=(2, 3)),
    "linear program": random_lp(12, 30, 3, batch=(8,)),
    "linear program, box": random_lp(12, 10, 3, bounds=True, batch=(8,)),
    "condition 1e4": random_qp(15, 20, 3, condition=1e4, batch=(8,)),
    "condition 1e6": random_qp(15, 20, 3, condition=1e6, batch=(8,)),
    "fully active": random_qp(10, 20, 2, active=8, batch=(8,), seed=4),
}
for unit in (1e-8, 1e-4, 1e4, 1e8):  # the same problem with z, or the objective, in other units
    QPS[f"unknowns in units of {1 / unit:g}"] = rescaled(QPS["everything"], unit, 1.0)
    QPS[f"objective in units of {1 / unit:g}"] = rescaled(QPS["everything"], 1.0, unit)
LARGE_QPS = {
    "n = 50": random_qp(50, 50, 10, batch=(4,)),
    "n = 100": random_qp(100, 100, 20, batch=(2,)),
    "n = 100, condition 1e6": random_qp(100, 60, 20, condition=1e6, batch=(2,)),
    "n = 100, box": random_qp(100, 0, 10, bounds=True, batch=(2,)),
    "n = 100, linear program": random_lp(100, 200, 10, batch=(2,)),
}
# name: (instance without a solution, the status that says why)
HOPELESS = {
    "infeasible, margin 0.1": (infeasible_qp(8, 12, 2, margin=0.1, batch=(10,)), "PRIMAL"),
    "infeasible, margin 1": (infeasible_qp(8, 12, 2, margin=1.0, batch=(10,)), "PRIMAL"),
    "infeasible, margin 10": (infeasible_qp(8, 12, margin=10.0, batch=(10,)), "PRIMAL"),
    "unbounded, margin 1e-3": (unbounded_qp(8, 6, 2, margin=1e-3, batch=(10,)), "DUAL"),
    "unbounded, margin 1": (unbounded_qp(8, 6, 2, margin=1.0, batch=(10,)), "DUAL"),
    "unbounded, no constraints": (unbounded_qp(5, 0, margin=1.0, batch=(4,)), "DUAL"),
}
DEGENERATE = {
    "weak and duplicated rows": degenerate_qp(10, batch=(8,)),
}


def arguments(instance) -> dict[str, torch.Tensor]:
    """The present arguments of an instance."""
    return {k: v for k, v in instance.arguments().items() if v is not None}
