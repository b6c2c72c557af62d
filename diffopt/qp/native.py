"""The native engine: many QPs at once in the SIMD lanes of a CPU, by the compiled core.

Here addresses are taken and memory is laid out; the mathematics is that of the reference engine,
in C++ (`diffopt/_native`). What the core does not settle, the reference engine does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .._native import core
from ..operators import Operator
from ..solution import OnFailure, Solution, Status
from ..tree import put, take
from .arguments import SHAPES
from .certificates import nothing
from .interior_point import InteriorPoint, Setup
from .kkt import Blocks
from .polish import Guess, Polished
from .problem import QP
from .reference import Found, find_reference, search

# (samples, v, whether transposed) -> (x, relative residual)
Rescue = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]
STUCK = 1e-11  # a relative residual that refinement should get below
NONE = (0, 0, 0)  # of an argument that is absent: its address and its strides


class Layout(NamedTuple):
    """What the core has to know of a batch besides its data.

    Attributes:
        sizes: (samples, n, m, e, whether there are bounds).
        numbers: the settings.
        plan: how the core works on such a batch.
        tape: bytes that outlive the solve where a derivative is wanted.
    """

    sizes: tuple[int, int, int, int, bool]
    numbers: tuple[float, ...]
    plan: tuple[bool, bool, bool]
    tape: int


class Lanes(NamedTuple):
    """What the core found, a sample each, in the user's units.

    Attributes:
        z, nu, y: `(B, n)`, `(B, e)`, `(B, k)`.
        residuals: primal, dual, gap, `(B, 3)`.
        error: the worst residual in both units, `(B,)`.
        active: +1 at an upper limit, -1 at a lower one, 0 elsewhere, int8 `(B, k)`.
        steps: `(B,)`.
        polished: whether the point is that of its active set, and good, bool `(B,)`.
        settled: polished, and no choice is left: no weakly active or dependent rows, bool `(B,)`.
    """

    z: Tensor
    nu: Tensor
    y: Tensor
    residuals: Tensor
    error: Tensor
    active: Tensor
    steps: Tensor
    polished: Tensor
    settled: Tensor


def unavailable(solver: InteriorPoint, device: torch.device) -> str | None:
    """Why the core cannot serve; None if it can."""
    if core is None:
        return "it is not built: install with a C++17 compiler at hand, see diffopt.doctor()"
    if device.type != "cpu":
        return f"it runs on the CPU, but p is on {device}"
    if solver.dtype != torch.float64:
        return f"it works in float64, but dtype is {solver.dtype}"
    return "it does not log its steps, but verbose is True" if solver.verbose else None


def serves(solver: InteriorPoint, device: torch.device) -> bool:
    """Whether `solver` asks for the core, or leaves the choice and the core can do it.

    Raises:
        ValueError: if it asks for what cannot be had.
    """
    if solver.engine == "torch":
        return False
    why = unavailable(solver, device)
    if why is not None and solver.engine == "native":
        raise ValueError(f"engine='native': {why}; use engine='auto'")
    return why is None


def solve(
    given: Mapping[str, Tensor],
    sizes: tuple[int, int, int, int, bool],
    solver: InteriorPoint,
    warm: Blocks | None,
    keep: bool,
) -> tuple[Lanes, Layout, Tensor | None]:
    """The solutions, and the tape that `Factors` reads if `keep`.

    Args:
        given: the arguments of `solve_qp` that are present, float64, `(B|1, ...)`.
        sizes: see `Layout`.
        solver: the settings.
        warm: the solution of a similar problem.
        keep: whether a derivative may be asked for.
    """
    assert core is not None
    held = {k: _packed(v.detach()) for k, v in given.items()}
    slices = [_slice(held[k]) if k in held else NONE for k in SHAPES_OF_CORE]
    numbers = (
        solver.eps, solver.eps_polish, solver.eps_infeasible, solver.regularization,
        solver.warm_mu, solver.max_steps, solver.patience, solver.refinements,
    )  # fmt: skip
    plan, size = core.plan(sizes, slices, numbers)
    tape = torch.empty(size // 8 + 1, dtype=torch.float64) if keep else None
    out = _room(sizes)
    start = [v.contiguous() for v in warm] if warm is not None else []
    core.solve(
        sizes, slices, numbers, plan, tape.data_ptr() if tape is not None else 0,
        torch.get_num_threads(), [v.data_ptr() for v in start] or NONE, [v.data_ptr() for v in out],
    )  # fmt: skip
    return out, Layout(sizes, numbers, plan, size), tape


SHAPES_OF_CORE = ("Q", "p", "G", "A", "b", "h_lower", "h", "lb", "ub")


def _packed(v: Tensor) -> Tensor:
    """`v` with the entries of a sample next to each other."""
    return v if v[0].is_contiguous() else v.contiguous()


def _slice(v: Tensor) -> tuple[int, int, int]:
    return v.data_ptr(), 0 if v.shape[0] == 1 else v.stride(0), 1


def _room(sizes: tuple[int, int, int, int, bool]) -> Lanes:
    size, n, m, e, bounded = sizes
    k = m + n if bounded else m
    double, flag = torch.float64, torch.bool
    return Lanes(
        z=torch.empty(size, n, dtype=double),
        nu=torch.empty(size, e, dtype=double),
        y=torch.empty(size, k, dtype=double),
        residuals=torch.empty(size, 3, dtype=double),
        error=torch.empty(size, dtype=double),
        active=torch.empty(size, k, dtype=torch.int8),
        steps=torch.empty(size, dtype=torch.int64),
        polished=torch.empty(size, dtype=flag),
        settled=torch.empty(size, dtype=flag),
    )


def find_native(qp: QP, solver: InteriorPoint, warm: Blocks | None) -> Found:
    """As `find_reference`, most samples by the core."""
    m, bounded = qp.m, qp.bounded
    parts = {
        "Q": qp.Q, "p": qp.p, "G": qp.G, "A": qp.A, "b": qp.b,
        "h_lower": qp.lower[:, :m], "h": qp.upper[:, :m],
        "lb": qp.lower[:, m:], "ub": qp.upper[:, m:],
    }  # fmt: skip
    given = {k: v for k, v in parts.items() if v.shape[-1] and v.shape[1]}
    sizes = qp.batch, qp.n, m, qp.A.shape[-2], bounded
    lanes, _, _ = solve(given, sizes, solver, warm, keep=False)
    left = (~lanes.polished).nonzero().flatten()
    if len(left) == qp.batch:
        return find_reference(qp, solver, warm)
    setup = Setup.of(qp, solver)
    found = as_found(qp, setup, lanes)
    if len(left) == 0:
        return found
    part = take(qp, left), take(setup, left), solver, None if warm is None else take(warm, left)
    found = put(found, left, search(*part))
    return found


def as_found(qp: QP, setup: Setup, lanes: Lanes) -> Found:
    """What the core found as the reference engine would say it."""
    scaling, on = setup.scaling, lanes.active != 0
    x = Blocks(lanes.z / scaling.z, lanes.nu / scaling.nu, lanes.y / scaling.y)
    guess = Guess(x, (~on).to(lanes.z.dtype), (lanes.active > 0) | ~on)
    kkt = setup.family.factorize(guess.t)
    polished = Polished(guess, lanes.error, lanes.polished, guess, kkt)
    status = torch.full_like(lanes.steps, int(Status.CONVERGED))
    return Found(setup, polished, status, lanes.steps, nothing(qp, qp.batch))


@dataclass(frozen=True)
class Factors(Operator):
    """The Jacobian of the conditions in `direct`, at settled points, by the factors of the core.

    `rescue` solves for the samples where refinement is stuck, which nearly dependent rows can do.
    """

    tape: Tensor
    layout: Layout
    rescue: Rescue
    on_failure: OnFailure = "warn"
    rtol: float = 1e-10

    def solve(self, v: Tensor) -> Solution:
        return self._apply(v, transpose=False)

    def solve_transpose(self, v: Tensor) -> Solution:
        return self._apply(v, transpose=True)

    def _apply(self, v: Tensor, transpose: bool) -> Solution:
        if v.ndim > 2:  # a mapped dimension: a cotangent at a time
            parts = [self._apply(part, transpose) for part in v]
            fields = ("value", "status", "steps", "residual")
            return Solution(*(torch.stack([getattr(p, f) for p in parts]) for f in fields))
        steps = torch.zeros(v.shape[:1], dtype=torch.int64)
        if not bool(v.any()):
            return Solution(v, steps, steps, v.new_zeros(v.shape[:1]))
        assert core is not None
        sizes, numbers, plan, _ = self.layout
        v, x, error = v.contiguous(), torch.empty(v.shape, dtype=v.dtype), v.new_empty(v.shape[0])
        core.apply_inverse(
            sizes, [NONE] * len(SHAPES), numbers, plan, self.tape.data_ptr(),
            torch.get_num_threads(), transpose, v.data_ptr(), x.data_ptr(), error.data_ptr(),
        )  # fmt: skip
        stuck = (error > STUCK).nonzero().flatten()  # not so for NaN, which nothing helps
        if len(stuck):
            x[stuck], error[stuck] = self.rescue(stuck, v[stuck], transpose)
        status = torch.where(error <= self.rtol, 0, int(Status.NUMERICAL_FAILURE))
        return Solution(x, status, steps, error)

    def rebuild(self, *new: Tensor) -> Operator:
        return replace(self, tape=new[0])
