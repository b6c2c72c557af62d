"""The arguments that every function of this package takes, checked."""

from __future__ import annotations

import torch
from torch import Tensor

from ..solution import check_on_failure
from ..state import Form, State
from .adjoint import Adjoint
from .methods import Solver
from .step import plain


def check_options(solver: object, adjoint: object, on_failure: str) -> None:
    """Raise a `ValueError` unless they are what they should be."""
    check_on_failure(on_failure)
    if not isinstance(solver, Solver):
        raise ValueError(f"solver={solver!r}: expected a solver object, for example Dopri5()")
    if not isinstance(adjoint, Adjoint):
        raise ValueError(
            f"adjoint={adjoint!r}: expected an adjoint object, for example Discrete() "
            "(of diffopt.ode)"
        )


def packed(form: Form, y0: State) -> Tensor:
    """y0 as the solvers take it, `(B, n)`."""
    y = plain(form.pack(y0))
    if y.shape[1] == 0:
        shapes = [tuple(s) for s in form.shapes]
        raise ValueError(f"y0 has shape {shapes} a sample: expected at least one number")
    return y


def times_of(t: object, y: Tensor) -> Tensor:
    """t as `(B, T)` in float64."""
    if not isinstance(t, Tensor) or t.ndim not in (1, 2) or not t.is_floating_point():
        kind = f"shape {tuple(t.shape)} and {t.dtype}" if isinstance(t, Tensor) else f"{t!r}"
        raise ValueError(f"t is {kind}: expected a tensor of times, (T,) or (B, T), float")
    if t.shape[-1] == 0 or (t.ndim == 2 and len(t) != len(y)):
        raise ValueError(
            f"t has shape {tuple(t.shape)}, and y0 has {len(y)} samples: expected (T,) or "
            f"({len(y)}, T) with T >= 1, the first time being that of y0"
        )
    times = t.to(y.device, torch.float64)
    steps = times.detach().diff()
    forward = steps[..., :1].sign()  # of every sample
    if not bool(times.isfinite().all() & (steps * forward > 0).all()):
        ok = times.detach().isfinite()[..., 1:] & (steps * forward > 0)
        at = int((~ok).nonzero()[0, -1]) if ok.numel() and not bool(ok.all()) else 0
        raise ValueError(
            f"t has {times[..., at : at + 2].tolist()} at {at}: expected finite times, strictly "
            "increasing or decreasing"
        )
    return times.expand(len(y), -1)
