"""From an interior point to the exact solution: one linear system on the active limits.

An interior point near a solution shows which limits are active: those with y > s. Given that set
the KKT conditions are linear, with t = 0 on active and t = 1 on inactive rows (see `kkt`), and
one solve with refinement leaves rounding only. Where the set was wrong, the signs say how: a row
is active next if its multiplier plus its violation is positive (the primal-dual active set rule,
Hintermueller, Ito & Kunisch, SIAM J. Optim. 13, 2003, Alg. 2.1). Nothing is believed: a sample's
polished point is kept only if its KKT residual is smaller than that of the point before, or both
are rounding.

The factor of the accepted set is what the derivative needs, so the backward pass factors nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..tree import put, take
from .interior_point import Setup
from .kkt import KKT, Blocks
from .newton import Iterate, Sides, weights
from .problem import QP, digits, matvec
from .scaling import Scaling, unscale

ROUNDS = 3  # guesses of the active set
NEAR = 1e-4  # above this residual an interior point says nothing of the active set
# A row is at its limit, and a multiplier zero, if the slack and the multiplier (equilibrated) are
# below this many times the residual, within the bounds.
WEAK, WEAK_BOUNDS = 1e4, (1e-11, 1e-7)


def rounding(like: Tensor) -> float:
    """A residual that is as good as any: 1e-12 in float64, 5e-6 in float32."""
    return digits(1e-12, like.dtype)


class Guess(NamedTuple):
    """A point of the equilibrated problem with an opinion on which limits are active.

    Attributes:
        x: (z, nu, y).
        t: 0 active, 1 inactive, between at an interior point, `(B, k)`.
        at_upper: the side an active row is at, bool `(B, k)`.
    """

    x: Blocks
    t: Tensor
    at_upper: Tensor

    @classmethod
    def of(cls, sides: Sides, x: Iterate) -> Guess:
        """The guess of an interior point, with its own weights as t."""
        ratio = torch.where(sides.present, x.y / x.s, 0.0)
        at_upper = (ratio[:, 0] >= ratio[:, 1]) | sides.fixed
        return cls(Blocks(x.z, x.nu, x.multipliers()), weights(sides, x), at_upper)

    @classmethod
    def again(cls, qp: QP, sides: Sides, x: Blocks) -> Guess:
        """The guess of a solution x: active where it has a multiplier, or the limits are equal."""
        gap = torch.where(sides.present, (qp.rows(x.z).unsqueeze(1) - sides.limit).abs(), torch.inf)
        at_upper = torch.where(x.y == 0, gap[:, 0] <= gap[:, 1], x.y > 0) | sides.fixed
        own = torch.where(at_upper, sides.present[:, 0], sides.present[:, 1])
        active = ((x.y != 0) & own) | sides.fixed
        return cls(x, 1 - active.to(x.y.dtype), at_upper)

    def limit(self, sides: Sides) -> Tensor:
        """The limit of the side that each row is at, `(B, k)`; 0 for an absent one."""
        return torch.where(self.at_upper, sides.limit[:, 0], sides.limit[:, 1])


class Polished(NamedTuple):
    """The best point known of each sample.

    Attributes:
        best: the point.
        error: its KKT residual, the worst in the user's units and the equilibrated ones, `(B,)`.
        done: whether it solves the linear conditions of its active set, bool `(B,)`.
        guess: the next guess where not done.
        kkt: the factorised system of the last guess: that of `best` where done.
    """

    best: Guess
    error: Tensor
    done: Tensor
    guess: Guess
    kkt: KKT


def polish(qp: QP, setup: Setup, start: Guess, trust: bool = False) -> Polished:
    """The point of the active set that `start` suggests, or `start` itself, sample by sample.

    Args:
        qp: the problem in the user's units, for the verdict.
        setup: the equilibrated problem that `start` belongs to.
        start: usually the guess of an interior point.
        trust: try samples whose residual is above `NEAR` too.
    """
    first = start._replace(t=torch.where(start.t < 0.5, 0.0, 1.0).to(start.t.dtype))
    error = kkt_error(qp, setup, start)
    near = digits(NEAR, error.dtype)
    out = _round(qp, setup, start, error, first, trust)
    for _ in range(ROUNDS - 1):
        left = (~out.done & (trust | (out.error < near))).nonzero().flatten()
        if not len(left):
            break
        held = take(out, left)
        again = _round(take(qp, left), take(setup, left), held.best, held.error, held.guess, trust)
        out = put(out, left, again)
    return out


def _round(
    qp: QP, setup: Setup, best: Guess, best_error: Tensor, guess: Guess, trust: bool
) -> Polished:
    """One guess of the active set tried."""
    sides, family = setup.sides, setup.family
    kkt = family.factorize(guess.t)
    wanted = best_error < (torch.inf if trust else digits(NEAR, best_error.dtype))
    solved = guess._replace(x=_solve(kkt, sides, guess, wanted))
    trial = _clip(sides, solved)
    error = kkt_error(qp, setup, trial)
    better = error < best_error.clamp(min=rounding(error))
    return Polished(
        _select(better, trial, best),
        torch.where(better, error, best_error),
        better,
        _select(better, guess, _next_guess(family.qp, sides, solved)),
        kkt,
    )


def at_limit(setup: Setup, guess: Guess, zero: Tensor) -> Tensor:
    """Rows at a limit up to `zero` `(B, 1)`, whatever their multiplier, `(B, k)`.

    A row of zeros is at none: it binds nothing.
    """
    sides, qp = setup.sides, setup.family.qp
    gap = (qp.rows(guess.x.z).unsqueeze(1) - sides.limit).abs()
    near = (sides.present & (gap < zero.unsqueeze(1))).any(1)
    nonzero = ~qp.empty_rows()
    if qp.bounded:
        nonzero = torch.cat([nonzero, nonzero.new_ones(len(nonzero), qp.n)], -1)
    return (near | (guess.t == 0)) & nonzero


def tiny(error: Tensor) -> Tensor:
    """What counts as zero of a slack or a multiplier, given the residual reached, `(B, 1)`."""
    bounds = (digits(v, error.dtype) for v in WEAK_BOUNDS)
    return (WEAK * error).clamp(*bounds).unsqueeze(-1)


def active_conditions(qp: QP, x: Blocks, limit: Tensor, on: Tensor, off: Tensor) -> Blocks:
    """The KKT conditions as equations, with a weight `on` active and one `off` inactive rows:

    Qz + p + A'nu + C'y,    Az - b,    on (Cz - limit) - off y.
    """
    return Blocks(
        qp.stationarity(x.z, x.nu, x.y),
        matvec(qp.A, x.z) - qp.b,
        on * (qp.rows(x.z) - limit) - off * x.y,
    )


def _solve(kkt: KKT, sides: Sides, guess: Guess, wanted: Tensor) -> Blocks:
    """The solution of the linear conditions, by one refined Newton step from guess.x."""
    rest = active_conditions(kkt.qp, guess.x, guess.limit(sides), 1 - guess.t, guess.t)
    # Dependent rows leave rounding that no solve removes; where no effort is wanted, none is made.
    atol = torch.where(wanted, rounding(guess.t) / 10, torch.inf)
    return guess.x.minus(kkt.solve_hard(rest, atol=atol)[0])


def _clip(sides: Sides, guess: Guess) -> Guess:
    """Inactive multipliers zero, active ones of the sign of their side."""
    y = guess.x.y
    signed = torch.where(guess.at_upper, y.clamp(min=0), y.clamp(max=0))
    y = torch.where(guess.t == 1, 0.0, torch.where(sides.fixed, y, signed))
    return guess._replace(x=guess.x._replace(y=y))


def _next_guess(qp: QP, sides: Sides, guess: Guess) -> Guess:
    """Active next is the side whose multiplier plus violation is positive."""
    Cz, y = qp.rows(guess.x.z), guess.x.y
    push = sides.sign * (y.unsqueeze(1) + Cz.unsqueeze(1) - sides.limit)
    push = torch.where(sides.present, push, -torch.inf)
    active = (push.amax(1) > 0) | sides.fixed
    at_upper = (push[:, 0] >= push[:, 1]) | sides.fixed
    return Guess(guess.x, 1 - active.to(guess.t.dtype), at_upper)


def user_units(qp: QP, scaling: Scaling, guess: Guess) -> tuple[Tensor, Tensor, Tensor]:
    """(z, nu, y) unscaled; an unknown at an active bound is at it to the last bit."""
    z, nu, y = unscale(scaling, *guess.x)
    if qp.bounded:
        lb, ub = qp.lower[..., qp.m :], qp.upper[..., qp.m :]
        active = guess.t[..., qp.m :] == 0
        z = torch.where(active, torch.where(guess.at_upper[..., qp.m :], ub, lb), z)
        z = torch.minimum(torch.maximum(z, lb), ub)
    return z, nu, y


def kkt_error(qp: QP, setup: Setup, guess: Guess) -> Tensor:
    """The worst KKT residual in both units, `(B,)`; NaN counts as infinite."""
    there = qp.residuals(*user_units(qp, setup.scaling, guess)).worst()
    error = torch.maximum(there, setup.family.qp.residuals(*guess.x).worst())
    return torch.where(error.isnan(), torch.inf, error)


def _select(mask: Tensor, new: Guess, old: Guess) -> Guess:
    row = mask.unsqueeze(-1)
    t, at_upper = torch.where(row, new.t, old.t), torch.where(row, new.at_upper, old.at_upper)
    return Guess(new.x.where(mask, old.x), t, at_upper)
