"""The reference engine: a batched primal-dual interior-point method in torch, on any device.

    1. Equilibrate the data (`scaling`).
    2. Start on the central path of one least-squares-like solve.
    3. Measure the KKT residual of the unscaled problem; look for a certificate of infeasibility.
    4. Factorise the KKT matrix at the weights of the current slacks and multipliers (`kkt`).
    5. Predictor: the Newton step to complementarity zero.
    6. Corrector: the same factor, centred by sigma and corrected to second order.
    7. Step 0.99 of the way to the boundary; go to 3.

Both limits of a row of C share one row of the KKT matrix. Slack and multiplier of each side are
s, y >= 0 of shape `(B, 2, k)`, side 0 the upper limit and side 1 the lower one:

    side 0:  C z + s_0 = upper        side 1:  -C z + s_1 = -lower        y = y_0 - y_1

Absent sides are masked (s = 1, y = 0). A row with lower == upper has no interior: it is an
equality row of the KKT matrix (t = 0), its multiplier of any sign is kept in y_0.

Source: Mehrotra, SIAM J. Optim. 2(4), 1992; Nocedal & Wright, Numerical Optimization (2nd ed.,
2006), Alg. 16.4. Start: the retraction of PIQP 0.6 (Schwan et al., CDC 2023, and its sources).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..iterate import Measure, iterate
from ..solution import Solution, Status
from .certificates import verdict
from .kkt import KKT, Blocks, KKTFamily
from .problem import QP, matvec
from .scaling import Scaling, equilibrate


DIRECTION_RTOL = 1e-10  # a Newton direction needs no more; the next step sees what is left


class Iterate(NamedTuple):
    """A point of the method, in the equilibrated space."""

    z: Tensor  # (B, n)
    nu: Tensor  # (B, e)
    s: Tensor  # (B, 2, k)
    y: Tensor  # (B, 2, k)

    def multipliers(self) -> Tensor:
        """y = y_0 - y_1, `(B, k)`."""
        return self.y[:, 0] - self.y[:, 1]


class Sides(NamedTuple):
    """The limits as two stacked one-sided constraints, `(B|1, 2, k)`, and `fixed` rows `(B|1, k)`."""

    limit: Tensor  # finite; 0 on absent sides
    present: Tensor  # bool: finite and not fixed
    fixed: Tensor  # bool: lower == upper
    sign: Tensor  # (2, 1): +1, -1

    @classmethod
    def of(cls, qp: QP) -> Sides:
        limit = torch.stack(torch.broadcast_tensors(qp.upper, qp.lower), 1)
        fixed = (qp.upper == qp.lower) & qp.upper.isfinite()
        present = limit.isfinite() & ~fixed.unsqueeze(1)
        limit = torch.where(limit.isfinite(), limit, 0.0)
        return cls(limit, present, fixed, limit.new_tensor([[1.0], [-1.0]]))


class Setup(NamedTuple):
    """What is prepared once for a batch: the equilibrated problem in its three aspects."""

    scaling: Scaling
    sides: Sides
    family: KKTFamily

    @classmethod
    def of(cls, qp: QP, solver: InteriorPoint) -> Setup:
        scaled, scaling = equilibrate(qp)
        family = KKTFamily.of(scaled, solver.regularization, solver.refinements)
        return cls(scaling, Sides.of(scaled), family)


class Newton(NamedTuple):
    """A direction of the method."""

    dz: Tensor
    dnu: Tensor
    ds: Tensor
    dy: Tensor


@dataclass(frozen=True)
class InteriorPoint:
    """Settings of the interior-point method; the defaults are the documentation.

    Attributes:
        eps: absolute and relative tolerance on `Residuals`, primal, dual and gap.
        eps_reduced: a sample that stalls below this ends as `REDUCED_ACCURACY`.
        eps_infeasible: relative tolerance of a certificate of infeasibility.
        max_steps: limit on the steps of a sample.
        patience: a sample ends after this many steps without a smaller residual.
        regularization: rho = delta of `kkt`, in the equilibrated space.
        refinements: most steps of iterative refinement of a linear solve.
    """

    eps: float = 1e-8
    eps_reduced: float = 1e-5
    eps_infeasible: float = 1e-8
    max_steps: int = 100
    patience: int = 25
    regularization: float = 1e-9
    refinements: int = 6

    def solve(self, qp: QP, setup: Setup) -> Solution:
        """The `Iterate` of smallest KKT residual of each sample, without gradients.

        Args:
            qp: the problem in the user's units, in which the residual is measured.
            setup: what `Setup.of(qp, self)` prepared.

        Returns:
            `Solution` whose residual is the worst of `Residuals`.
        """
        scaled, scaling = setup.family.qp, setup.scaling

        def measure(x: Iterate) -> Measure:
            y = x.multipliers()
            error = qp.residuals(*unscale(scaling, x.z, x.nu, y)).worst() / self.eps
            return Measure(error, verdict(scaled, x.z, x.nu, y, self.eps_infeasible))

        def step(x: Iterate, _: None) -> Iterate:
            return self.step(setup.family, setup.sides, x)

        out = iterate(
            measure,
            step,
            self.start(setup.family, setup.sides),
            max_steps=self.max_steps,
            patience=self.patience,
            reduced=self.eps_reduced / self.eps,
        )
        return replace(out, residual=out.residual * self.eps)

    def judge(self, status: Tensor, residual: Tensor) -> Tensor:
        """`status` after polishing brought the KKT residual to `residual`, both `(B,)`."""
        undecided = (status == int(Status.ITERATION_LIMIT)) | (
            status == int(Status.NUMERICAL_FAILURE)
        )
        usable = undecided & (residual <= self.eps_reduced)
        status = torch.where(usable, int(Status.REDUCED_ACCURACY), status)
        return torch.where(residual <= self.eps, int(Status.CONVERGED), status)

    def start(self, family: KKTFamily, sides: Sides) -> Iterate:
        """A point on the central path, from the solve with every weight one.

        Minimising 1/2 z'Qz + p'z + 1/2 |violations|^2 over Az = b gives multipliers v = C z - u of
        either sign, one a side. The retraction y = (v + sqrt(v^2 + 4 mu)) / 2, s = y - v has
        s y = mu and s - y = -v: the point of the central path with the same primal residual.
        """
        qp = family.qp
        count = sides.present.sum(1).to(qp.p.dtype)
        t = torch.where(sides.fixed, 0.0, 1 / (1 + count)).expand(qp.batch, -1)
        center = (sides.limit * sides.present).sum(1) * t + sides.limit[:, 0] * sides.fixed
        r = Blocks(-qp.p, qp.b, center)
        r = Blocks(*(v.expand(qp.batch, -1) for v in r))
        x, _ = family.factorize(t).solve(r)
        v = sides.sign * (qp.rows(x.z).unsqueeze(1) - sides.limit)
        mu = _start_mu(v, sides.present)
        root = (v * v + 4 * mu).sqrt()
        # Of y and s = y - v, the smaller is mu over the larger: no cancellation.
        y = torch.where(v > 0, (v + root) / 2, 2 * mu / (root - v))
        s = torch.where(v > 0, 2 * mu / (root + v), (root - v) / 2)
        s, y = torch.where(sides.present, s, 1.0), torch.where(sides.present, y, 0.0)
        y[:, 0] = torch.where(sides.fixed, x.y, y[:, 0])
        return Iterate(x.z, x.nu, s, y)

    def step(self, family: KKTFamily, sides: Sides, x: Iterate) -> Iterate:
        """One predictor-corrector step."""
        residual = _residual(family.qp, sides, x)
        kkt = family.factorize(weights(sides, x))
        mu = _mu(x, sides.present)
        affine = _newton(kkt, sides, x, residual, -x.s * x.y)
        reach = _step_length(x, affine, sides.present).clamp(max=1.0)
        ahead = _mu(_advance(x, affine, reach, sides.present), sides.present)
        # How much of mu the affine step removes says how much centring the next one needs; the
        # cube (Mehrotra) makes sigma nearly 0 where it removes most, nearly 1 where little.
        sigma = (ahead / mu.clamp(min=1e-300)).clamp(0, 1) ** 3
        target = (sigma * mu)[:, None, None] - x.s * x.y - affine.ds * affine.dy
        both = _newton(kkt, sides, x, residual, torch.where(sides.present, target, 0.0))
        # Close to the boundary at the start, closer once the central path is followed.
        fraction = torch.where(mu > 1e-4, 0.99, 0.999)
        length = (fraction * _step_length(x, both, sides.present)).clamp(max=1.0)
        return _advance(x, both, length, sides.present)


def unscale(scaling: Scaling, z: Tensor, nu: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(z, nu, y) in the units of the user's problem."""
    return scaling.d * z, scaling.e_A * nu / scaling.c, scaling.e_C * y / scaling.c


def weights(sides: Sides, x: Iterate) -> Tensor:
    """t of the KKT matrix: (1 - t) / t is the sum of y / s over the sides of a row."""
    ratio = torch.where(sides.present, x.y / x.s, 0.0).sum(1)
    return torch.where(sides.fixed, 0.0, 1 / (1 + ratio))


class _Residual(NamedTuple):
    dual: Tensor  # (B, n)
    primal: Tensor  # (B, e)
    sides: Tensor  # (B, 2, k): sign (limit - C z) - s
    fixed: Tensor  # (B, k): limit - C z on fixed rows


def _residual(qp: QP, sides: Sides, x: Iterate) -> _Residual:
    """What is left of the linear KKT equations at x."""
    rest = sides.limit - qp.rows(x.z).unsqueeze(1)
    return _Residual(
        -qp.stationarity(x.z, x.nu, x.multipliers()),
        qp.b - matvec(qp.A, x.z),
        torch.where(sides.present, sides.sign * rest - x.s, 0.0),
        torch.where(sides.fixed, rest[:, 0], 0.0),
    )


def _newton(kkt: KKT, sides: Sides, x: Iterate, r: _Residual, target: Tensor) -> Newton:
    """The direction with  sign C dz + ds = r.sides  and  s dy + y ds = target.

    Eliminating ds gives  dy = (y/s) sign C dz - q,  q = (y r.sides - target) / s, a side; summed
    with the signs, and times t (the sum of y/s is (1 - t)/t), the row of the KKT matrix.
    """
    q = torch.where(sides.present, (x.y * r.sides - target) / x.s, 0.0)
    row = torch.where(sides.fixed, r.fixed, kkt.t * (sides.sign * q).sum(1))
    d, _ = kkt.solve(Blocks(r.dual, r.primal, row), rtol=DIRECTION_RTOL)
    ds, dy = _split(kkt.qp.rows(d.z), d.y, sides, x, r, target, q)
    return Newton(d.z, d.nu, ds, dy)


def _split(
    Cdz: Tensor, dy_row: Tensor, sides: Sides, x: Iterate, r: _Residual, target: Tensor, q: Tensor
) -> tuple[Tensor, Tensor]:
    """(ds, dy) of the two sides of each row from the dy of the row.

    On a side far from its limit (s > y) ds follows from C dz and dy from ds; on one near it
    (y >= s) the other way round, so that nothing is divided by what is nearly zero. What the sum
    over the sides lacks of the refined dy of the row goes to the near side.
    """
    move = sides.sign * Cdz.unsqueeze(1)
    dy = x.y / x.s * move - q
    near = sides.present & (x.y >= x.s)
    lack = dy_row.unsqueeze(1) - (sides.sign * dy).sum(1, keepdim=True)
    heavier = near & (x.y * x.s.flip(1) >= x.y.flip(1) * x.s)
    dy = torch.where(heavier, dy + sides.sign * lack, dy)
    ds = torch.where(near, (target - x.s * dy) / x.y, r.sides - move)
    ds = torch.where(sides.present, ds, 0.0)
    dy = torch.where(sides.present, dy, 0.0)
    fixed = torch.stack([sides.fixed, torch.zeros_like(sides.fixed)], 1)
    return ds, torch.where(fixed, dy_row.unsqueeze(1), dy)


def _mu(x: Iterate, present: Tensor) -> Tensor:
    """Mean complementarity product over the present sides, `(B)`; 0 if there are none."""
    total = torch.where(present, x.s * x.y, 0.0).sum((1, 2))
    return total / present.sum((1, 2)).clamp(min=1)


def _start_mu(v: Tensor, present: Tensor) -> Tensor:
    """The mean product after shifting s = -v and y = v to be nonnegative, `(B, 1, 1)`."""
    v = torch.where(present, v, 0.0)
    if v.shape[-1] == 0:
        return v.new_ones(v.shape[0], 1, 1)
    s_shift, y_shift = v.amax((1, 2), True).clamp(min=0), (-v).amax((1, 2), True).clamp(min=0)
    products = torch.where(present, (s_shift - v) * (v + y_shift), 0.0)
    return (products.sum((1, 2), True) / present.sum((1, 2), True).clamp(min=1)).clamp(min=1e-10)


def _step_length(x: Iterate, d: Newton, present: Tensor) -> Tensor:
    """The largest step that keeps s and y nonnegative, `(B)`; infinite if every step does."""
    if present.shape[-1] == 0:
        return torch.full_like(x.z[:, 0], torch.inf)
    short = torch.full_like(x.s, torch.inf)
    for value, move in ((x.s, d.ds), (x.y, d.dy)):
        blocking = present & (move < 0)
        short = torch.minimum(short, torch.where(blocking, -value / move, torch.inf))
    return short.amin((1, 2))


def _advance(x: Iterate, d: Newton, length: Tensor, present: Tensor) -> Iterate:
    """x + length d, with s and y of the present sides kept from rounding to zero."""
    row, side = length[:, None], length[:, None, None]
    s, y = x.s + side * d.ds, x.y + side * d.dy
    s, y = (torch.where(present, v.clamp(min=1e-30), v) for v in (s, y))
    return Iterate(x.z + row * d.dz, x.nu + row * d.dnu, s, y)
