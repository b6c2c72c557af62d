"""From an interior point to the exact solution: one linear system on the active limits.

An interior point near a solution shows which limits are active: those with y > s. Given that set
the KKT conditions are linear, with t = 0 on active and t = 1 on inactive rows (see `kkt`), and
one solve with refinement leaves rounding only. Where the set was wrong, the signs say how: a row
is active next if its multiplier plus its violation is positive (the primal-dual active set rule,
Hintermueller, Ito & Kunisch, SIAM J. Optim. 13, 2003, Alg. 2.1). Nothing is believed: a sample's
polished point is kept only if its KKT residual is smaller than that of the interior point, or
both are rounding.

The factor of the accepted set is what the derivative needs, so the backward pass factors nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .interior_point import Setup
from .kkt import KKT, Blocks
from .newton import Iterate, Sides, weights
from .problem import QP, Residuals, matvec
from .scaling import Scaling, unscale

ROUNDS = 3  # guesses of the active set
NEAR = 1e-4  # above this residual an interior point says nothing of the active set
ROUNDING = 1e-12  # a residual below this is as good as any
# A row is weakly active if its slack and its multiplier (equilibrated) are below this many times
# the residual, within the bounds.
WEAK, WEAK_BOUNDS = 1e4, (1e-11, 1e-7)


class Point(NamedTuple):
    """A solution in the user's units, and the linear system whose solution it is.

    Attributes:
        z, nu, y: `(B, n)`, `(B, e)`, `(B, k)`.
        t: activity of each row, `(B, k)`; 0 active, 1 inactive, between where weakly active.
        at_upper: the side an active row is at, bool `(B, k)`.
        weak: slack and multiplier both (nearly) zero, bool `(B, k)`.
        residuals: of (z, nu, y), in the user's units.
        error: the worst residual in both units, by which it is judged.
        polished: whether the point is that of its active set, or still the interior point.
        kkt: the system at t, factorised.
    """

    z: Tensor
    nu: Tensor
    y: Tensor
    t: Tensor
    at_upper: Tensor
    weak: Tensor
    residuals: Residuals
    error: Tensor
    polished: Tensor
    kkt: KKT


class _Guess(NamedTuple):
    x: Blocks  # equilibrated
    t: Tensor
    at_upper: Tensor


def polished(qp: QP, setup: Setup, x: Iterate) -> Point:
    """The point of the active set that `x` suggests, or `x` itself, sample by sample.

    Args:
        qp: the problem in the user's units, for the verdict.
        setup: the equilibrated problem that `x` belongs to.
        x: the interior point.
    """
    sides, family = setup.sides, setup.family
    central = weights(sides, x)
    best, kkt = _interior(sides, x, central), None
    best_error = _error(qp, setup, best)
    guess = best._replace(t=torch.where(central < 0.5, 0.0, 1.0))
    left, near = torch.ones_like(best_error, dtype=torch.bool), best_error < NEAR
    for _ in range(ROUNDS):
        kkt = family.factorize(guess.t)
        solved = guess._replace(x=_solve(kkt, sides, guess, left & near))
        trial = _clip(sides, solved)
        error = _error(qp, setup, trial)
        better = left & (error < best_error.clamp(min=ROUNDING))
        best, best_error = _select(better, trial, best), torch.where(better, error, best_error)
        left = left & ~better
        if not bool(left.any()):
            break
        guess = _select(left, _next_guess(family.qp, sides, solved), guess)
    return _finish(qp, setup, best, best_error, ~left, central, kkt)


def _interior(sides: Sides, x: Iterate, t: Tensor) -> _Guess:
    ratio = torch.where(sides.present, x.y / x.s, 0.0)
    at_upper = (ratio[:, 0] >= ratio[:, 1]) | sides.fixed
    return _Guess(Blocks(x.z, x.nu, x.multipliers()), t, at_upper)


def active_conditions(qp: QP, x: Blocks, limit: Tensor, on: Tensor, off: Tensor) -> Blocks:
    """The KKT conditions as equations, with a weight `on` active and one `off` inactive rows:

    Qz + p + A'nu + C'y,    Az - b,    on (Cz - limit) - off y.
    """
    return Blocks(
        qp.stationarity(x.z, x.nu, x.y),
        matvec(qp.A, x.z) - qp.b,
        on * (qp.rows(x.z) - limit) - off * x.y,
    )


def _solve(kkt: KKT, sides: Sides, guess: _Guess, wanted: Tensor) -> Blocks:
    """The solution of the linear conditions, by one refined Newton step from guess.x."""
    limit = torch.where(guess.at_upper, sides.limit[:, 0], sides.limit[:, 1])
    rest = active_conditions(kkt.qp, guess.x, limit, 1 - guess.t, guess.t)
    # Dependent rows leave rounding that no solve removes; where no effort is wanted, none is made.
    atol = torch.where(wanted, ROUNDING / 10, torch.inf)
    return guess.x.minus(kkt.solve_hard(rest, atol=atol)[0])


def _clip(sides: Sides, guess: _Guess) -> _Guess:
    """Inactive multipliers zero, active ones of the sign of their side."""
    y = guess.x.y
    signed = torch.where(guess.at_upper, y.clamp(min=0), y.clamp(max=0))
    y = torch.where(guess.t == 1, 0.0, torch.where(sides.fixed, y, signed))
    return guess._replace(x=guess.x._replace(y=y))


def _next_guess(qp: QP, sides: Sides, guess: _Guess) -> _Guess:
    """Active next is the side whose multiplier plus violation is positive."""
    Cz, y = qp.rows(guess.x.z), guess.x.y
    push = sides.sign * (y.unsqueeze(1) + Cz.unsqueeze(1) - sides.limit)
    push = torch.where(sides.present, push, -torch.inf)
    active = (push.amax(1) > 0) | sides.fixed
    at_upper = (push[:, 0] >= push[:, 1]) | sides.fixed
    return _Guess(guess.x, torch.where(active, 0.0, 1.0), at_upper)


def _user_units(qp: QP, scaling: Scaling, guess: _Guess) -> tuple[Tensor, Tensor, Tensor]:
    """(z, nu, y) unscaled; an unknown at an active bound is at it to the last bit."""
    z, nu, y = unscale(scaling, *guess.x)
    if qp.bounded:
        lb, ub = qp.lower[..., qp.m :], qp.upper[..., qp.m :]
        active = guess.t[..., qp.m :] == 0
        z = torch.where(active, torch.where(guess.at_upper[..., qp.m :], ub, lb), z)
        z = torch.minimum(torch.maximum(z, lb), ub)
    return z, nu, y


def _error(qp: QP, setup: Setup, guess: _Guess) -> Tensor:
    """The worst KKT residual in both units, `(B)`; NaN counts as infinite."""
    there = qp.residuals(*_user_units(qp, setup.scaling, guess)).worst()
    error = torch.maximum(there, setup.family.qp.residuals(*guess.x).worst())
    return torch.where(error.isnan(), torch.inf, error)


def _select(mask: Tensor, new: _Guess, old: _Guess) -> _Guess:
    row = mask.unsqueeze(-1)
    t, at_upper = torch.where(row, new.t, old.t), torch.where(row, new.at_upper, old.at_upper)
    return _Guess(new.x.where(mask, old.x), t, at_upper)


def _finish(
    qp: QP,
    setup: Setup,
    best: _Guess,
    error: Tensor,
    done: Tensor,
    central: Tensor,
    kkt: KKT | None,
) -> Point:
    """Weakly active rows get the weight of the central path; factor again only if t changed."""
    weak = _weakly_active(setup, best, error)
    t = torch.where(weak, central, best.t)
    if kkt is None or not torch.equal(t, kkt.t):
        kkt = setup.family.factorize(t)
    z, nu, y = _user_units(qp, setup.scaling, best)
    return Point(z, nu, y, t, best.at_upper, weak, qp.residuals(z, nu, y), error, done, kkt)


def _weakly_active(setup: Setup, guess: _Guess, error: Tensor) -> Tensor:
    """Rows at a limit with no multiplier, `(B, k)`: both zero as far as the accuracy shows."""
    sides = setup.sides
    zero = (WEAK * error).clamp(*WEAK_BOUNDS).unsqueeze(-1)
    gap = (setup.family.qp.rows(guess.x.z).unsqueeze(1) - sides.limit).abs()
    at_limit = (sides.present & (gap < zero.unsqueeze(1))).any(1)
    return at_limit & (guess.x.y.abs() < zero)
