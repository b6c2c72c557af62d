"""The point that is returned and differentiated: values, activity and the factorised system.

It is made of the best point that an engine found, whichever engine it was: here the choices are
made that the KKT conditions leave (see `degeneracy`), and the system is factorised at them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..solution import succeeded
from ..tree import put, take
from .degeneracy import central_weights, least_norm
from .dependence import Dependence, dependence
from .interior_point import Setup
from .kkt import KKT
from .options import Degenerate
from .polish import Guess, at_limit, kkt_error, rounding, tiny, user_units
from .problem import QP, Residuals
from .reference import Found
from .scaling import Scaling


class Point(NamedTuple):
    """A solution in the user's units, and the linear system whose solution it is.

    Attributes:
        z, nu, y: `(B, n)`, `(B, e)`, `(B, k)`.
        t: activity of each row, `(B, k)`; 0 active, 1 inactive, between where weakly active.
        at_upper: the side an active row is at, bool `(B, k)`.
        weak: at a limit, with a multiplier of zero, bool `(B, k)`.
        residuals: of (z, nu, y), in the user's units.
        error: the worst residual in both units, by which it is judged.
        polished: whether the point is that of its active set, or still an interior point.
        status: `Status` codes, `(B,)`.
        scaling: the units of `kkt`.
        kkt: the equilibrated system at t, factorised.
        free: the directions in which the multipliers are not unique.
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
    status: Tensor
    scaling: Scaling
    kkt: KKT
    free: Dependence


def settle(qp: QP, found: Found, degenerate: Degenerate = "central") -> Point:
    """The point of `found`, with what is not unique settled.

    Args:
        qp: the data, finite, in the user's units, without gradients.
        found: the outcome of an engine.
        degenerate: what a weakly active row counts as in the derivative.
    """
    setup, error = found.setup, found.polished.error
    best = _without_rows_of_zeros(setup, found.polished.best)
    ok = (succeeded(found.status) & found.polished.done).unsqueeze(-1)
    zero = tiny(error)
    active = ok & at_limit(setup, best, zero)
    # An interior point has a positive multiplier wherever any valid multipliers have one.
    weak = active & ~setup.sides.fixed & (best.x.y.abs() < zero)
    best = _at_the_nearer(setup, best, weak)
    free = dependence(qp, active, setup.scaling.z)
    best, error = _least_norm(qp, setup, best, error, free, active)
    t = _activity(setup, best, active, weak, degenerate)
    changed = not torch.equal((t == 0) & ok, active)
    if free.basis.shape[-1] and changed:
        free = dependence(qp, (t == 0) & ok, setup.scaling.z)
    z, nu, y = user_units(qp, setup.scaling, best)
    return Point(
        z=z,
        nu=nu,
        y=y,
        t=t,
        at_upper=best.at_upper,
        weak=weak,
        residuals=qp.residuals(z, nu, y),
        error=error,
        polished=found.polished.done,
        status=found.status,
        scaling=setup.scaling,
        kkt=_factorised(setup, found.polished.kkt, t),
        free=free,
    )


def _without_rows_of_zeros(setup: Setup, guess: Guess) -> Guess:
    """The guess with rows of zeros inactive, without multipliers: no equation asks for them."""
    empty = setup.family.qp.empty_rows()
    if not bool(empty.any()):
        return guess
    y, t = guess.x.y, guess.t
    empty = torch.nn.functional.pad(empty, (0, y.shape[-1] - empty.shape[-1]))
    x = guess.x._replace(y=torch.where(empty, 0.0, y))
    return guess._replace(x=x, t=torch.where(empty, 1.0, t))


def _at_the_nearer(setup: Setup, guess: Guess, weak: Tensor) -> Guess:
    """The guess with the weak rows at the limit that they touch: no multiplier says which it is."""
    sides, Cz = setup.sides, setup.family.qp.rows(guess.x.z)
    gap = torch.where(sides.present, (Cz.unsqueeze(1) - sides.limit).abs(), torch.inf)
    at_upper = torch.where(weak, gap[:, 0] <= gap[:, 1], guess.at_upper)
    return guess._replace(at_upper=at_upper)


def _least_norm(
    qp: QP, setup: Setup, guess: Guess, error: Tensor, free: Dependence, active: Tensor
) -> tuple[Guess, Tensor]:
    """The guess with the multipliers of least norm, where these are as good."""
    some = (free.basis != 0).any(-1).any(-1).nonzero().flatten()
    if len(some) == 0:
        return guess, error
    qp, setup, free, old = (take(v, some) for v in (qp, setup, free, guess))
    bound = (active[some] & ~setup.sides.fixed).to(error.dtype)
    sign = torch.where(old.at_upper, bound, -bound)
    sign = torch.cat([torch.zeros_like(old.x.nu), sign], -1)
    unit = torch.cat([v.expand(len(some), -1) for v in (setup.scaling.nu, setup.scaling.y)], -1)
    y = least_norm(free, unit * torch.cat([old.x.nu, old.x.y], -1), sign) / unit
    nu, y = y.split([old.x.nu.shape[-1], old.x.y.shape[-1]], -1)
    new = old._replace(x=old.x._replace(nu=nu, y=y))
    after = kkt_error(qp, setup, new)
    good = after <= torch.maximum(10 * error[some], torch.full_like(after, rounding(after)))
    index = some[good]
    new, after = take(new, good.nonzero().flatten()), after[good]
    return put(guess, index, new), error.index_copy(0, index, after)


def _activity(
    setup: Setup, guess: Guess, active: Tensor, weak: Tensor, degenerate: Degenerate
) -> Tensor:
    """t with the weak rows as `degenerate` says."""
    t = torch.where(active & ~weak, 0.0, guess.t)
    if degenerate != "central":
        return torch.where(weak, 0.0 if degenerate == "active" else 1.0, t)
    some = weak.any(-1).nonzero().flatten()
    if len(some) == 0:
        return t
    family, at_upper = take(setup.family, some), guess.at_upper[some]
    strict = (t[some] == 0) & ~weak[some]
    return t.index_copy(0, some, central_weights(family, strict, weak[some], at_upper))


def _factorised(setup: Setup, kkt: KKT, t: Tensor) -> KKT:
    """The system at t: that of `kkt` where it is at t already."""
    other = (t != kkt.t).any(-1).nonzero().flatten()
    if len(other) == 0:
        return kkt
    again: KKT = put(kkt, other, take(setup.family, other).factorize(t[other]))
    return again
