"""The solvers and adjoints: one row here, and a new one inherits every test."""

import torch

from diffopt import RK4, Bosh3, Dopri5, Dopri8, Euler, Heun, Midpoint, Tsit5
from diffopt.ode import Backsolve, Checkpointed, Discrete, Unrolled

F64 = torch.float64
FIXED = {"euler": (Euler, 1), "midpoint": (Midpoint, 2), "heun": (Heun, 2), "rk4": (RK4, 4)}
ADAPTIVE = {"bosh3": (Bosh3, 3), "dopri5": (Dopri5, 5), "tsit5": (Tsit5, 5), "dopri8": (Dopri8, 8)}
EXACT = {"discrete": Discrete(), "checkpointed": Checkpointed(3), "unrolled": Unrolled()}
TIGHT = {"rtol": 1e-11, "atol": 1e-11}
BACKSOLVE = Backsolve(Dopri8(**TIGHT))


def of_step(solver, h):
    """The adaptive method with steps of h, whatever their error."""
    return solver(rtol=1e12, atol=1e12, first_step=h, max_step=h)
