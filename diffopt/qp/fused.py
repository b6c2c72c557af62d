"""Solves by a compiled core: which one, and what it leaves to the reference engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..operators import Operator
from ..solution import OnFailure, Solution, Status
from ..tree import put, take
from . import cuda, native
from .certificates import no_proof
from .cores import MOST, Core, Lanes, Layout, Run, Sizes
from .interior_point import InteriorPoint, Setup
from .kkt import Blocks, unpack
from .polish import Guess, Polished
from .problem import QP
from .reference import Found, find_reference, search

# (samples, v, whether transposed) -> (x, relative residual)
Rescue = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]
STUCK = 1e-11  # a relative residual that refinement should get below
NATIVE = native.Native()


def core_for(solver: InteriorPoint, device: torch.device) -> Core | None:
    """The core that `solver` asks for, or the one for `device` where it leaves the choice.

    Raises:
        ValueError: if it asks for what cannot be had.
    """
    if solver.engine in ("auto", "native"):
        why = native.unavailable(solver, device)
        if why is None:
            return NATIVE
        _insist(solver, "native", why)
    if solver.engine in ("auto", "cuda"):
        why = cuda.unavailable(solver, device)
        if why is None:
            return cuda.Kernels(device)
        _insist(solver, "cuda", why)
    return None


def _insist(solver: InteriorPoint, engine: str, why: str) -> None:
    if solver.engine == engine:
        raise ValueError(f"engine={engine!r}: {why}; use engine='auto'")


def run(
    core: Core | None,
    given: Mapping[str, Tensor],
    sizes: Sizes,
    solver: InteriorPoint,
    warm: Blocks | None,
    keep: bool,
) -> Run | None:
    """The solutions by `core`, if it can: see `Core.solve`."""
    if core is None or not core.fits(sizes):
        return None
    counts = solver.max_steps, solver.patience, solver.refinements
    numbers = (
        solver.eps, solver.eps_polish, solver.eps_infeasible, solver.regularization,
        solver.warm_mu, *(int(min(k, MOST)) for k in counts),
    )  # fmt: skip
    return core.solve(given, sizes, numbers, warm, keep)


def find_fused(core: Core | None, qp: QP, solver: InteriorPoint, warm: Blocks | None) -> Found:
    """As `find_reference`, most samples by `core`."""
    m, bounded = qp.m, qp.bounded
    parts = {
        "Q": qp.Q, "p": qp.p, "G": qp.G, "A": qp.A, "b": qp.b,
        "h_lower": qp.lower[:, :m], "h": qp.upper[:, :m],
        "lb": qp.lower[:, m:], "ub": qp.upper[:, m:],
    }  # fmt: skip
    given = {k: v for k, v in parts.items() if v.shape[-1] and v.shape[1]}
    sizes = qp.batch, qp.n, m, qp.A.shape[-2], bounded
    known = run(core, given, sizes, solver, warm, keep=False)
    if known is None:
        return find_reference(qp, solver, warm)
    left = (~known.lanes.polished).nonzero().flatten()
    if len(left) == qp.batch:
        return find_reference(qp, solver, warm)
    setup = Setup.of(qp, solver)
    found = as_found(qp, setup, known.lanes)
    if len(left) == 0:
        return found
    part = take(qp, left), take(setup, left), solver, None if warm is None else take(warm, left)
    return put(found, left, search(*part))


def as_found(qp: QP, setup: Setup, lanes: Lanes) -> Found:
    """What a core found as the reference engine would say it."""
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
    """The Jacobian of the conditions in `direct`, at settled points, by the factors of a core.

    `rescue` solves for the samples where refinement is stuck, which nearly dependent rows can do.
    A sample that is not `known` gets zero.
    """

    tape: Tensor
    core: Core
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
        v = v.contiguous().resolve_neg()
        x, error, worst = self.core.apply_inverse(self.layout, self.tape, v, transpose)
        if self.known is not None:
            x, error = x.where(self.known[:, None], 0.0), error.where(self.known, 0.0)
        steps = torch.zeros(v.shape[:1], dtype=torch.int64, device=v.device)
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
        rest = self.core, self.layout, self.known, self.rescue, self.on_failure, self.rtol
        return Factors(new[0], *rest)

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.tape,)
