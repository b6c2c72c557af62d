"""The reference engine: stages, each for the samples that the one before left unsettled.

1. With a warm start: the active set of the previous solution, tried as it is.
2. The interior-point method to `eps_polish`; the active set that it shows.
3. The interior-point method on to `eps`, where that set was not the right one; its set.
4. The homogeneous embedding, where the method stalled: a solution, or a proof of none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..solution import Solution, Status, proved
from ..tree import put, take
from .certificates import Certificate, certificate
from .homogeneous import solve_homogeneous
from .interior_point import InteriorPoint, Setup
from .kkt import Blocks
from .newton import Iterate
from .path import follow
from .polish import Guess, Polished, at_limit, polish, tiny
from .problem import QP, digits
from .start import cold_start, warm_start

SETTLED = 1e-10  # a point of an active set with a larger residual may be that of a wrong set


class Trial(NamedTuple):
    """What is known of each sample so far.

    Attributes:
        x: the end of the last interior-point run, or what holds the certificate.
        polished: the best point.
        status: `Status` of the last run.
        steps: of all runs.
    """

    x: Iterate
    polished: Polished
    status: Tensor
    steps: Tensor


class Found(NamedTuple):
    """The outcome: the last trial, judged, with the proofs of infeasibility."""

    setup: Setup
    polished: Polished
    status: Tensor
    steps: Tensor
    certificate: Certificate


def find_reference(qp: QP, solver: InteriorPoint, warm: Blocks | None = None) -> Found:
    """The solution of each sample of `qp`, or what is known about it, without gradients.

    Args:
        qp: finite data in the user's units.
        solver: the settings.
        warm: solution of a similar problem in the user's units; a sample that is not finite
            starts cold.
    """
    return search(qp, Setup.of(qp, solver), solver, warm)


def search(qp: QP, setup: Setup, solver: InteriorPoint, warm: Blocks | None) -> Found:
    """`find_reference`, with the equilibrated problem at hand."""
    trial = _first(qp, setup, solver, warm)
    for unsettled, run in ((_stopped_early, _to_the_end), (_unsolved, _embedded)):
        left = unsettled(trial, solver).nonzero().flatten()
        if len(left):
            own = _for(solver, left, qp)
            part = take(qp, left), take(setup, left), own, take(trial, left)
            trial = put(trial, left, run(*part))
    status = solver.judge(trial.status, trial.polished.error)
    proof = certificate(qp, setup.family.qp, setup.scaling, setup.sides, trial.x, status)
    return Found(setup, trial.polished, status, trial.steps, proof)


def _first(qp: QP, setup: Setup, solver: InteriorPoint, warm: Blocks | None) -> Trial:
    """Stages 1 and 2; without limits there is one active set, and nothing to iterate."""
    family, sides = setup.family, setup.sides
    if warm is not None:
        return _guessed(qp, setup, solver, *_warm(setup, solver, warm))
    begin = cold_start(family, sides)
    if sides.limit.shape[-1]:
        return _run(qp, setup, solver, begin)
    return _guessed(qp, setup, solver, begin, Guess.of(sides, begin))


def _warm(setup: Setup, solver: InteriorPoint, warm: Blocks) -> tuple[Iterate, Guess]:
    """(where to begin, the active set to try first) from the solution of a similar problem."""
    scaling, family, sides = setup.scaling, setup.family, setup.sides
    x = Blocks(warm.z / scaling.z, warm.nu / scaling.nu, warm.y / scaling.y)
    known = torch.cat(x, -1).isfinite().all(-1)
    x = x.where(known, Blocks(*(torch.zeros_like(v) for v in x)))
    begin = warm_start(family, sides, x, solver.warm_mu)
    cold = (~known).nonzero().flatten()
    if len(cold):
        part = take(setup, cold)
        begin = put(begin, cold, cold_start(part.family, part.sides))
    return begin, Guess.again(family.qp, sides, x)


def _guessed(qp: QP, setup: Setup, solver: InteriorPoint, begin: Iterate, guess: Guess) -> Trial:
    """The active set of `guess` as it is, and from `begin` where it is not the right one."""
    tried = polish(qp, setup, guess, trust=True)
    status = torch.full_like(tried.done, int(Status.CONVERGED), dtype=torch.int64)
    trial = Trial(begin, tried, status, torch.zeros_like(status))
    left = (~_settled(tried.error) | _undecided(setup, tried)).nonzero().flatten()
    if len(left):
        part = take(qp, left), take(setup, left), _for(solver, left, qp), take(begin, left)
        trial = put(trial, left, _run(*part))
    return trial


def _for(solver: InteriorPoint, left: Tensor, qp: QP) -> InteriorPoint:
    """`solver` for the samples that are left: if these are not all, no graph fits them."""
    return replace(solver, cuda_graph=solver.cuda_graph and len(left) == qp.batch)


def _undecided(setup: Setup, tried: Polished) -> Tensor:
    """Samples with a row at its limit and a multiplier of zero, `(B,)`.

    Whether it has one in all valid multipliers, only an interior point shows.
    """
    zero = tiny(tried.error)
    weak = at_limit(setup, tried.best, zero) & (tried.best.x.y.abs() < zero)
    return (weak & ~setup.sides.fixed).any(-1)


def _run(qp: QP, setup: Setup, solver: InteriorPoint, begin: Iterate) -> Trial:
    found = follow(qp, setup, solver, begin, max(solver.eps, solver.eps_polish))
    polished = polish(qp, setup, Guess.of(setup.sides, found.value))
    return Trial(found.value, polished, found.status, found.steps)


def _stopped_early(trial: Trial, solver: InteriorPoint) -> Tensor:
    reached = trial.status == int(Status.CONVERGED)
    return reached & ~_settled(trial.polished.error)


def _to_the_end(qp: QP, setup: Setup, solver: InteriorPoint, trial: Trial) -> Trial:
    return _better(trial, qp, setup, follow(qp, setup, solver, trial.x, solver.eps))


def _settled(error: Tensor) -> Tensor:
    return error <= digits(SETTLED, error.dtype)


def _unsolved(trial: Trial, solver: InteriorPoint) -> Tensor:
    return ~proved(trial.status) & ~(trial.polished.error <= solver.eps)


def _embedded(qp: QP, setup: Setup, solver: InteriorPoint, trial: Trial) -> Trial:
    return _better(trial, qp, setup, solve_homogeneous(qp, setup, solver))


def _better(trial: Trial, qp: QP, setup: Setup, found: Solution) -> Trial:
    """`trial` after one more run, whose polished point counts where it is better."""
    guess = Guess.of(setup.sides, found.value)
    polished = polish(qp, setup, guess)
    steps = trial.steps + found.steps
    new = Trial(found.value, polished, found.status, steps)
    good = (proved(found.status) | (polished.error <= trial.polished.error)).nonzero().flatten()
    out = trial._replace(steps=steps)
    return put(out, good, take(new, good)) if len(good) else out
