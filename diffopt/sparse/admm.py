"""ADMM without a factorisation: for random patterns, whose factors are dense.

With M = [A; G; rows of the bounds], l <= Mz <= u, weights rho of the rows and y their multipliers,

    x+ solves (Q + sigma I + M' rho M) x+ = sigma x - p + M'(rho v - y)
    v+ = the point of [l, u] nearest to w + y / rho,    w = a M x+ + (1 - a) v
    y+ = y + rho (w - v+)

and x moves to a x+ + (1 - a) x. The system is solved by conjugate gradients from the last x, to a
tolerance that falls with the residuals, so that nothing is ever factorised.

Source: Stellato et al., "OSQP" (Math. Prog. Comp. 12, 2020), Alg. 1, sec. 3.1 (the reduced
system), 3.4 (infeasibility) and 5.2 (the choice of rho).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..solution import Status, check_counts, check_positive
from .problem import Array, Found, Matrix, SparseQP, top

SIGMA, RELAX = 1e-6, 1.6
STIFF = 10.0  # rho of equations over that of inequalities
EVERY = 10  # steps between tests, and changes of rho
RATIO, LEAST, MOST = 5.0, 1e-6, 1e6  # rho changes by this factor at least, within these bounds
CG_STEPS = 500
PROOF = 1e-6  # relative, of a certificate of infeasibility


class State(NamedTuple):
    """The iterate: x `(n,)`, v and y `(rows,)`."""

    x: Array
    v: Array
    y: Array


@dataclass(frozen=True)
class ADMM:
    """The method of OSQP with conjugate gradients; the polish makes its rough answer exact.

    For strictly convex problems whose factors would be dense. Slow where they are cheap, and on
    linear programs it may not come near enough to tell what is active.

    Attributes:
        eps: absolute and relative tolerance.
        max_iter: steps.
    """

    eps: float = 1e-5
    max_iter: int = 4000

    def __post_init__(self) -> None:
        check_positive(self, "eps")
        check_counts(self, "max_iter")

    def __call__(self, qp: SparseQP) -> Found:
        """The answer for `qp`."""
        state, status, steps = self._run(_Splitting(qp.Q.tocsr(), qp.p, *qp.stacked()))
        return Found(state.x, *qp.unstacked(state.y), status, steps)

    def _run(self, task: _Splitting) -> tuple[State, Status, int]:
        rows = len(task.lower)
        state = State(np.zeros(len(task.p)), np.zeros(rows), np.zeros(rows))
        rho, gap = 0.1, 1.0
        for k in range(1, self.max_iter + 1):
            last, state = state, task.step(state, rho, 0.1 * gap)
            if k % EVERY:
                continue
            primal, dual, scales = task.residuals(state)
            gap = min(primal, dual)
            if max(primal / scales[0], dual / scales[1]) <= self.eps:
                return state, Status.CONVERGED, k
            proof = task.proof(State(*(a - b for a, b in zip(state, last, strict=True))))
            if proof is not None:
                return state, proof, k
            wanted = rho * np.sqrt((primal / scales[0]) / max(dual / scales[1], 1e-16))
            if wanted > RATIO * rho or wanted < rho / RATIO:
                rho = float(np.clip(wanted, LEAST, MOST))
        return state, Status.ITERATION_LIMIT, self.max_iter


class _Splitting:
    """The data of the iteration."""

    def __init__(self, Q: Matrix, p: Array, M: Matrix, lower: Array, upper: Array) -> None:
        self.Q, self.p, self.M, self.lower, self.upper = Q, p, M, lower, upper
        self.Mt = M.T.tocsr()
        self.stiff = np.where(lower == upper, STIFF, 1.0)
        self.diagonal = Q.diagonal() + SIGMA
        self.squares = self.Mt.multiply(self.Mt).tocsr()

    def step(self, s: State, rho: float, tolerance: float) -> State:
        """One iteration."""
        weight = rho * self.stiff

        def apply(x: Array) -> Array:
            out: Array = self.Q @ x + SIGMA * x + self.Mt @ (weight * (self.M @ x))
            return out

        rhs = SIGMA * s.x - self.p + self.Mt @ (weight * s.v - s.y)
        preconditioner = 1 / (self.diagonal + self.squares @ weight)
        x = conjugate_gradients(apply, rhs, s.x, preconditioner, tolerance)
        w = RELAX * (self.M @ x) + (1 - RELAX) * s.v
        v = (w + s.y / weight).clip(self.lower, self.upper)
        return State(RELAX * x + (1 - RELAX) * s.x, v, s.y + weight * (w - v))

    def residuals(self, s: State) -> tuple[float, float, tuple[float, float]]:
        """(primal, dual, what each is relative to)."""
        Mx, Qx, Mty = self.M @ s.x, self.Q @ s.x, self.Mt @ s.y
        scales = 1 + max(top(Mx), top(s.v)), 1 + max(top(Qx), top(Mty), top(self.p))
        return top(Mx - s.v), top(Qx + self.p + Mty), scales

    def proof(self, d: State) -> Status | None:
        """What the change of the iterate proves, if anything (OSQP, sec. 3.4)."""
        limit = np.where(d.y > 0, self.upper, self.lower)
        size = top(d.y)
        y = np.where(np.abs(d.y) <= PROOF * size, 0.0, d.y)
        paid = float(np.where(y == 0, 0.0, limit) @ y) if size > 0 else np.inf
        if paid < -PROOF * size and top(self.Mt @ y) <= PROOF * size:
            return Status.PRIMAL_INFEASIBLE
        size, Md = top(d.x), self.M @ d.x
        blocked = np.where(np.isfinite(self.upper), Md, 0.0).clip(min=0)
        blocked = blocked + np.where(np.isfinite(self.lower), -Md, 0.0).clip(min=0)
        falls = float(self.p @ d.x) < -PROOF * size
        if falls and max(top(self.Q @ d.x), top(blocked)) <= PROOF * size:
            return Status.DUAL_INFEASIBLE
        return None


def conjugate_gradients(
    apply: Callable[[Array], Array], rhs: Array, x: Array, preconditioner: Array, tolerance: float
) -> Array:
    """x with apply(x) = rhs up to `tolerance` in the infinity norm, from the given x."""
    r = rhs - apply(x)
    z = preconditioner * r
    d, rz = z, float(r @ z)
    for _ in range(CG_STEPS):
        if top(r) <= max(tolerance, 1e-12 * top(rhs)):
            break
        Ad = apply(d)
        a = rz / float(d @ Ad)
        x, r = x + a * d, r - a * Ad
        z = preconditioner * r
        rz, old = float(r @ z), rz
        d = z + (rz / old) * d
    return x
