"""The point that is returned and differentiated, whoever found it, and the system it solves."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..qp.options import Degenerate
from ..qp.polish import WEAK, WEAK_BOUNDS
from ..solution import Status
from .degeneracy import central_tau, null_space, shortest
from .kkt import KKT
from .polish import DONE, Guess, Polished, forces, polish, slacks
from .problem import Array, Found, SparseQP
from .scaling import Scaled

EPS, EPS_REDUCED = 1e-8, 1e-5  # KKT residuals of CONVERGED and of REDUCED_ACCURACY


class Jacobian(NamedTuple):
    """The equilibrated KKT system at a point, and what leads from the user's units to it.

    For r in the user's units the solution is ``columns * kkt.solve(rows * r)``.

    Attributes:
        kkt: of the active rows that the derivative sees.
        tau: of those, in the user's units, `(m + n,)`.
        rows, columns: `(n + e + active,)`.
        basis: orthonormal directions in which the multipliers (nu, y active) are free.
    """

    kkt: KKT
    tau: Array
    rows: Array
    columns: Array
    basis: Array

    @classmethod
    def of(cls, task: Scaled, kkt: KKT) -> Jacobian:
        """The system of `kkt`."""
        rows = np.concatenate([task.dual, kkt.gathered(task.equal, task.rows)])
        columns = np.concatenate([task.z, kkt.gathered(task.nu, task.y)])
        basis = null_space(kkt)
        if basis.shape[1]:
            basis = np.linalg.qr(columns[kkt.qp.n :, None] * basis)[0]
        return cls(kkt, kkt.tau / (task.rows * task.y), rows, columns, basis)


class Point(NamedTuple):
    """A solution in the user's units.

    Attributes:
        z, nu, y: `(n,)`, `(e,)`, `(m + n,)`.
        side: +1, -1 or 0 for each row of C, as in `Guess`.
        weak: active rows with a multiplier of zero, bool `(m + n,)`.
        jacobian: of the conditions that the derivative sees; None where there is no solution.
        residuals: (primal, dual, gap).
        error: the worst residual in both units.
        polished: whether the point is that of its active set.
        status: `Status`.
        iterations: of the solver.
    """

    z: Array
    nu: Array
    y: Array
    side: Array
    weak: Array
    jacobian: Jacobian | None
    residuals: tuple[float, float, float]
    error: float
    polished: bool
    status: Status
    iterations: int


def settle(task: Scaled, solver: Callable[[SparseQP], Found], degenerate: Degenerate) -> Point:
    """The point of the solver's answer: polished, and what is not unique settled."""
    found = solver(task.qp)
    hopeless = found.status in (Status.PRIMAL_INFEASIBLE, Status.DUAL_INFEASIBLE)
    if hopeless or not np.isfinite(found.z).all():
        return failed(task, found)
    best = polish(task, found)
    status = _status(found.status, best.error)
    guess, weak, jacobian = best.guess, np.zeros(len(best.guess.y), dtype=bool), None
    if status <= Status.REDUCED_ACCURACY:
        if best.kkt is None:  # the derivative is that of the set that the answer suggests
            jacobian = Jacobian.of(task, KKT(task.qp, guess.active, np.zeros(len(guess.y))))
        else:
            guess, weak, jacobian = _resolved(task, best, best.kkt, degenerate)
    return _point(task, guess, weak, jacobian, best, status, found.iterations)


def failed(task: Scaled, found: Found) -> Point:
    """The point of a problem without an answer."""
    qp, parts = task.qp, (found.nu, found.lam, found.mu)
    nu, lam, mu = (
        np.zeros(size) if v is None else v
        for v, size in zip(parts, (qp.e, qp.m, qp.n), strict=True)
    )
    y = np.concatenate([lam, mu])
    guess = Guess(found.z, nu, y, np.zeros(len(y), dtype=np.int8))
    best = Polished(guess, task.error(found.z, nu, y), None)
    status = found.status if found.status > Status.REDUCED_ACCURACY else Status.NUMERICAL_FAILURE
    return _point(task, guess, guess.active, None, best, status, found.iterations)


def _point(
    task: Scaled,
    guess: Guess,
    weak: Array,
    jacobian: Jacobian | None,
    best: Polished,
    status: Status,
    iterations: int,
) -> Point:
    """`guess` in the user's units; an unknown at an active bound is at it to the last bit."""
    qp = task.user
    z, nu, y = task.back(*guess[:3])
    if best.kkt is not None:
        at = best.guess.side[qp.m :]
        z = np.where(at > 0, qp.ub, np.where(at < 0, qp.lb, z)).clip(qp.lb, qp.ub)
    found = qp.residuals(z, nu, y)
    done = best.kkt is not None and jacobian is not None
    return Point(z, nu, y, guess.side, weak, jacobian, found, best.error, done, status, iterations)


def _status(of_solver: Status, error: float) -> Status:
    """By the residual reached; the solver is asked only why it gave up."""
    if error <= EPS:
        return Status.CONVERGED
    if error <= EPS_REDUCED:
        return Status.REDUCED_ACCURACY
    return of_solver if of_solver > Status.REDUCED_ACCURACY else Status.ITERATION_LIMIT


def _zero(error: float) -> float:
    """What counts as zero of a relative slack or multiplier, given the residual reached."""
    return float(np.clip(WEAK * error, *WEAK_BOUNDS))


def _resolved(
    task: Scaled,
    best: Polished,
    kkt: KKT,
    degenerate: Degenerate,
) -> tuple[Guess, Array, Jacobian]:
    """The guess with all rows at a limit active and, of these, what is not unique settled."""
    qp, guess, zero = task.qp, best.guess, _zero(best.error)
    above, below = slacks(qp, guess.z)
    near = np.where(above < zero, 1, np.where(below < zero, -1, 0)).astype(np.int8)
    side = np.where(guess.side != 0, guess.side, near)
    if (side != guess.side).any():
        kkt, guess = KKT(qp, side != 0, np.zeros(len(side))), guess._replace(side=side)
    jacobian = Jacobian.of(task, kkt)
    if jacobian.basis.shape[1]:
        guess = _least_norm(task, guess, jacobian, best.error)
    weak = guess.active & ~qp.fixed & (np.abs(forces(qp, guess.z, guess.y)) < zero)
    if weak.any() and degenerate != "active":
        jacobian = Jacobian.of(task, _weighted(qp, guess, weak, degenerate))
    return guess, weak, jacobian


def _least_norm(
    task: Scaled,
    guess: Guess,
    jacobian: Jacobian,
    error: float,
) -> Guess:
    """The guess with the multipliers of least norm in the user's units, where these are as good."""
    kkt, unit = jacobian.kkt, jacobian.columns[task.qp.n :]
    side = np.where(task.qp.fixed, 0, guess.side).astype(float)
    sign = kkt.gathered(np.zeros(task.qp.e), side)
    y_active = shortest(jacobian.basis, unit * kkt.gathered(guess.nu, guess.y), sign) / unit
    nu, y = kkt.spread(y_active)
    good = task.error(guess.z, nu, y) <= max(10 * error, DONE)
    return guess._replace(nu=nu, y=y) if good else guess


def _weighted(qp: SparseQP, guess: Guess, weak: Array, degenerate: Degenerate) -> KKT:
    """The system with the weak rows inactive, or with their weights."""
    if degenerate == "inactive":
        return KKT(qp, guess.active & ~weak, np.zeros(len(weak)))
    return KKT(qp, guess.active, central_tau(qp, guess.side, weak))
