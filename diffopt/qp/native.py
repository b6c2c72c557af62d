"""The native engine: many QPs at once in the SIMD lanes of a CPU, by the compiled core.

Here addresses are taken and memory is laid out; the mathematics is that of the reference engine,
in C++ (`diffopt/_native`). What the core does not settle, the reference engine does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .._native import core, reason
from ..operators import Operator
from ..solution import OnFailure, Solution, Status
from ..tree import put, take
from .arguments import SHAPES, shapes_of
from .certificates import no_proof
from .interior_point import InteriorPoint, Setup
from .kkt import Blocks, unpack
from .polish import Guess, Polished
from .problem import QP
from .reference import Found, find_reference, search

# (samples, v, whether transposed) -> (x, relative residual)
Rescue = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]
STUCK = 1e-11  # a relative residual that refinement should get below
MOST = 2**31 - 1  # steps that the core can count
ABSENT = (0, 0, 0)  # address and strides
CPU = torch.device("cpu")  # made once: from a string it costs as much as the memory


class Layout(NamedTuple):
    """What the core has to know of a batch besides its data.

    Attributes:
        sizes: (samples, n, m, e, whether there are bounds).
        numbers: the settings.
        plan: how the core works on such a batch.
    """

    sizes: tuple[int, int, int, int, bool]
    numbers: tuple[float, ...]
    plan: tuple[bool, bool, bool]


class Lanes(NamedTuple):
    """What the core found, a sample each, in the user's units.

    Attributes:
        x: (z, nu, y), `(B, n + e + k)`.
        facts: the residuals primal, dual and gap, and the worst in both units, `(B, 4)`.
        active: +1 at an upper limit, -1 at a lower one, 0 elsewhere, int8 `(B, k)`.
        steps: `(B,)`.
        polished: whether the point is that of its active set, and good, bool `(B,)`.
        settled: polished, and no choice is left: no weakly active or dependent rows, bool `(B,)`.
    """

    x: Tensor
    facts: Tensor
    active: Tensor
    steps: Tensor
    polished: Tensor
    settled: Tensor

    @classmethod
    def empty(cls, sizes: tuple[int, int, int, int, bool]) -> Lanes:
        """Room for what the core finds."""
        size, n, m, e, bounded = sizes
        k = m + n if bounded else m
        return cls(
            room(size, n + e + k),
            room(size, 4),
            room(size, k, dtype=torch.int8),
            room(size, dtype=torch.int64),
            room(size, dtype=torch.bool),
            room(size, dtype=torch.bool),
        )


def room(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Memory for the core, whatever the default device is."""
    return torch.empty(shape, dtype=dtype, device=CPU)


class Run(NamedTuple):
    """A solve of the core.

    Attributes:
        lanes: the answers.
        settled: how many samples are.
        layout, tape: for `Factors`; no tape where it was not to be kept.
    """

    lanes: Lanes
    settled: int
    layout: Layout
    tape: Tensor | None


def unavailable(solver: InteriorPoint, device: torch.device) -> str | None:
    """Why the core cannot serve; None if it can."""
    if core is None:
        return f"the compiled core is not there ({reason})"
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


def run(
    given: Mapping[str, Tensor],
    sizes: tuple[int, int, int, int, bool],
    solver: InteriorPoint,
    warm: Blocks | None,
    keep: bool,
) -> Run:
    """The solutions.

    Args:
        given: the arguments of `solve_qp` that are present, float64, `(B|1, ...)`.
        sizes: see `Layout`.
        solver: the settings.
        warm: the solution of a similar problem.
        keep: whether a derivative may be asked for.
    """
    assert core is not None
    held = [_packed(given[k]) if k in given else None for k in SHAPES]
    slices = [ABSENT if v is None else _slice(v) for v in held]
    counts = solver.max_steps, solver.patience, solver.refinements
    numbers = (
        solver.eps, solver.eps_polish, solver.eps_infeasible, solver.regularization,
        solver.warm_mu, *(int(min(k, MOST)) for k in counts),
    )  # fmt: skip
    plan, size = core.plan(sizes, slices, numbers)
    tape = room(size // 8 + 1) if keep else None
    lanes = Lanes.empty(sizes)
    start = [v.contiguous().resolve_neg() for v in warm] if warm is not None else []
    settled = core.solve(
        sizes, slices, numbers, plan, tape.data_ptr() if tape is not None else 0,
        torch.get_num_threads(), [v.data_ptr() for v in start] or [0, 0, 0],
        [v.data_ptr() for v in lanes],
    )  # fmt: skip
    return Run(lanes, settled, Layout(sizes, numbers, plan), tape)


def _packed(v: Tensor) -> Tensor:
    """`v` with the entries of a sample next to each other, and no sign yet to be changed."""
    v = v.detach().resolve_neg() if v.is_neg() else v
    return v if v.is_contiguous() or v[0].is_contiguous() else v.detach().contiguous()


def _slice(v: Tensor) -> tuple[int, int, int]:
    return v.data_ptr(), 0 if v.shape[0] == 1 else v.stride(0), 1


def outer_products(
    x: Tensor, u: Tensor, active: Tensor, sizes: tuple[int, ...], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of the conditions where `wanted`, in the order of `SHAPES`, each of a sample.

    Args:
        x, u: the solution and the cotangent of the conditions, `(B, n + e + k)`.
        active: of `Lanes`.
        sizes: n, e, k, m.
        wanted: of which arguments.
    """
    n, e, k, m = sizes
    out: list[Tensor | None] = [
        x.new_empty(len(x), *shape) if want else None
        for shape, want in zip(shapes_of(n, m, e).values(), wanted, strict=True)
    ]
    if any(wanted):
        assert core is not None
        x, active = x.contiguous(), active.contiguous()  # what hooks on saved tensors make of them
        u, addresses = u.contiguous().resolve_neg(), [0 if v is None else v.data_ptr() for v in out]
        core.outer_products(
            (len(x), n, m, e, k > m), torch.get_num_threads(), x.data_ptr(), u.data_ptr(),
            active.data_ptr(), addresses,
        )  # fmt: skip
    return out


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
    lanes = run(given, sizes, solver, warm, keep=False).lanes
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
    scaling, on, there = setup.scaling, lanes.active != 0, unpack(lanes.x, qp)
    x = Blocks(there.z / scaling.z, there.nu / scaling.nu, there.y / scaling.y)
    guess = Guess(x, (~on).to(lanes.x.dtype), (lanes.active > 0) | ~on)
    kkt = setup.family.factorize(guess.t)
    polished = Polished(guess, lanes.facts[:, 3], lanes.polished, guess, kkt)
    status = torch.full_like(lanes.steps, int(Status.CONVERGED))
    proof = no_proof(qp.batch, qp.n, qp.m, qp.A.shape[-2], qp.p)
    return Found(setup, polished, status, lanes.steps, proof)


@dataclass(frozen=True)
class Factors(Operator):
    """The Jacobian of the conditions in `direct`, at settled points, by the factors of the core.

    `rescue` solves for the samples where refinement is stuck, which nearly dependent rows can do.
    A sample that is not `known` gets zero.
    """

    tape: Tensor
    layout: Layout
    known: Tensor | None  # bool (B,): the samples that are settled; None: all
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
        assert core is not None
        # Saved and read back by a hook, the tape may lie anywhere.
        tape = self.tape if self.tape.data_ptr() % 64 == 0 else self.tape.clone()
        v = v.contiguous().resolve_neg()
        x, error = torch.empty_like(v), v.new_empty(v.shape[0])
        worst = core.apply_inverse(
            *self.layout, tape.data_ptr(), torch.get_num_threads(), transpose,
            v.data_ptr(), x.data_ptr(), error.data_ptr(),
        )  # fmt: skip
        if self.known is not None:
            x, error = x.where(self.known[:, None], 0.0), error.where(self.known, 0.0)
        steps = torch.zeros(v.shape[:1], dtype=torch.int64, device=CPU)
        if worst <= STUCK:
            return Solution(x, steps, steps, error)
        good = error <= STUCK
        stuck = (~good & error.isfinite()).nonzero().flatten()  # nothing helps where there is NaN
        if len(stuck):
            x[stuck], error[stuck] = self.rescue(stuck, v[stuck], transpose)
        status = torch.where(error <= self.rtol, 0, int(Status.NUMERICAL_FAILURE))
        return Solution(x, status, steps, error)

    def rebuild(self, *new: Tensor) -> Operator:
        # The rest has no mapped dimension.
        return Factors(new[0], self.layout, self.known, self.rescue, self.on_failure, self.rtol)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.tape,)
