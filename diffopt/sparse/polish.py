"""From anybody's answer to the exact solution: one sparse linear system on the active limits.

As `qp.polish`, with sparse matrices: the answer says which limits are active, the KKT conditions
of that set are linear, and where the set was wrong the signs of their solution say how (the
primal-dual active set rule, Hintermueller, Ito & Kunisch, SIAM J. Optim. 13, 2003, Alg. 2.1).
A solution is kept only if its KKT residual is smaller. So the answer, and the system that the
derivative is taken with, do not depend on the solver, once it has come near.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .kkt import KKT
from .problem import Array, Found, SparseQP
from .scaling import Scaled

ROUNDS = 15  # guesses of the active set
DONE = 1e-11  # a KKT residual that no other guess would improve
TOUCHING = 1e-6  # a relative slack that counts as none where multipliers are not known


class Guess(NamedTuple):
    """A point with an opinion on which limits are active.

    Attributes:
        z, nu, y: `(n,)`, `(e,)`, `(m + n,)`.
        side: +1 at the upper limit, -1 at the lower, 0 inactive, `(m + n,)`.
    """

    z: Array
    nu: Array
    y: Array
    side: Array

    @property
    def active(self) -> Array:
        """Rows at a limit, bool."""
        return self.side != 0


class Polished(NamedTuple):
    """The best point known.

    Attributes:
        guess: the point.
        error: its KKT residual.
        kkt: the system whose solution it is; None where no guess improved on the answer.
    """

    guess: Guess
    error: float
    kkt: KKT | None


def polish(task: Scaled, found: Found) -> Polished:
    """The point of the active set that `found` suggests, or `found` itself; both equilibrated."""
    qp, guess = task.qp, start(task.qp, found)
    best = Polished(guess, task.error(guess.z, guess.nu, guess.y), None)
    seen: set[bytes] = set()
    for _ in range(ROUNDS):
        key = guess.side.tobytes()
        if key in seen:
            break
        seen.add(key)
        kkt = KKT(qp, guess.active, np.zeros(len(guess.y)))
        solved = _solve(kkt, guess)
        trial = _clip(qp, solved)
        error = task.error(trial.z, trial.nu, trial.y)
        if error < max(best.error, DONE):
            best = Polished(trial, error, kkt)
        if error <= DONE or not np.isfinite(error):
            break
        guess = solved._replace(side=sides(qp, solved.z, solved.nu, solved.y))
    return best


def start(qp: SparseQP, found: Found) -> Guess:
    """The guess of a solver's answer."""
    nu = np.zeros(qp.e) if found.nu is None else found.nu
    if found.lam is None or found.mu is None:
        y = np.zeros(qp.m + qp.n)
        above, below = slacks(qp, found.z)
        side = np.where(above < TOUCHING, 1, np.where(below < TOUCHING, -1, 0))
        return Guess(found.z, nu, y, _settled(qp, side))
    y = np.concatenate([found.lam, found.mu])
    return Guess(found.z, nu, y, sides(qp, found.z, nu, y))


def sides(qp: SparseQP, z: Array, nu: Array, y: Array) -> Array:
    """The side at which each row is active next: where multiplier plus violation is positive."""
    force = forces(qp, z, y)
    above, below = slacks(qp, z)
    side = np.where(force > above, 1, np.where(-force > below, -1, 0))
    return _settled(qp, side)


def slacks(qp: SparseQP, z: Array) -> tuple[Array, Array]:
    """Relative distances from the upper and the lower limits, infinite for a row of zeros."""
    Cz, unit = qp.rows(z), qp.lengths * (1 + np.abs(z).max())
    with np.errstate(divide="ignore", invalid="ignore"):
        above, below = (qp.upper - Cz) / unit, (Cz - qp.lower) / unit
    empty = qp.lengths == 0
    return np.where(empty, np.inf, above), np.where(empty, np.inf, below)


def forces(qp: SparseQP, z: Array, y: Array) -> Array:
    """Multipliers relative to the gradient of the objective, `(m + n,)`."""
    size: Array = 1 + np.abs(qp.Q @ z + qp.p).max()
    return y * qp.lengths / size


def limits(qp: SparseQP, side: Array) -> Array:
    """The limit of the side that each row is at; 0 for an inactive one."""
    return np.where(side > 0, qp.upper, np.where(side < 0, qp.lower, 0.0))


def _settled(qp: SparseQP, side: Array) -> Array:
    """`side` with rows of equal limits active and rows of zeros inactive."""
    return np.where(qp.lengths == 0, 0, np.where(qp.fixed, 1, side)).astype(np.int8)


def _solve(kkt: KKT, guess: Guess) -> Guess:
    """The solution of the linear conditions, by two refined Newton steps from the guess."""
    qp, n = kkt.qp, kkt.qp.n
    limit = limits(qp, guess.side)
    x = np.concatenate([guess.z, kkt.gathered(guess.nu, guess.y)])
    for _ in range(2):
        z, (nu, y) = x[:n], kkt.spread(x[n:])
        apart = kkt.gathered(qp.A @ z - qp.b, qp.rows(z) - limit)
        step, _ = kkt.solve(np.concatenate([qp.gradient(z, nu, y), apart]))
        x = x - step
    nu, y = kkt.spread(x[n:])
    return Guess(x[:n], nu, y, guess.side)


def _clip(qp: SparseQP, guess: Guess) -> Guess:
    """Multipliers of the sign of their side, and bounded unknowns within, and at, their bounds."""
    signed = np.where(guess.side > 0, guess.y.clip(min=0), guess.y.clip(max=0))
    y = np.where(guess.side == 0, 0.0, np.where(qp.fixed, guess.y, signed))
    at = guess.side[qp.m :]
    z = np.where(at > 0, qp.ub, np.where(at < 0, qp.lb, guess.z)).clip(qp.lb, qp.ub)
    return guess._replace(z=z, y=y)
