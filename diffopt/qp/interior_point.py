"""The reference engine: a batched primal-dual interior-point method in torch, on any device.

    1. Equilibrate the data (`scaling`).
    2. Start on the central path of one least-squares-like solve.
    3. Measure the KKT residual of the unscaled problem; look for a certificate of infeasibility.
    4. Factorise the KKT matrix at the weights of the current slacks and multipliers (`kkt`).
    5. Predictor: the Newton step to complementarity zero.
    6. Corrector: the same factor, centred by sigma and corrected to second order.
    7. Step 0.99 of the way to the boundary; go to 3.

`newton` says how points and directions are stored.

Source: Mehrotra, SIAM J. Optim. 2(4), 1992; Nocedal & Wright, Numerical Optimization (2nd ed.,
2006), Alg. 16.4. Start: the retraction of PIQP 0.6 (Schwan et al., CDC 2023, and its sources).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..iterate import Measure, iterate
from ..solution import Solution, Status, check_positive
from .certificates import verdict
from .kkt import Blocks, KKTFamily
from .newton import (
    Iterate,
    Ray,
    Sides,
    advance,
    mean_product,
    newton,
    residual,
    step_length,
    weights,
)
from .problem import QP, Products
from .scaling import Scaling, equilibrate, unscale, unscale_products

# Accuracy of the directions. The predictor only says how much to centre; what the corrector leaves,
# the next step sees.
PREDICTOR_RTOL, CORRECTOR_RTOL = 1e-4, 1e-10


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

    def __post_init__(self) -> None:
        check_positive(self, *(f.name for f in fields(self)))

    def solve(self, qp: QP, setup: Setup) -> Solution:
        """The `Iterate` of smallest KKT residual of each sample, without gradients.

        Args:
            qp: the problem in the user's units. The residual is measured in these, which is what
                is promised, and in the equilibrated ones, whose 1 in 1 + |...| means something.
            setup: what `Setup.of(qp, self)` prepared.

        Returns:
            `Solution` whose residual is the worst of `Residuals`.
        """
        scaled, scaling = setup.family.qp, setup.scaling

        def measure(x: Iterate) -> Measure:
            y = x.multipliers()
            found = scaled.products(x.z, x.nu, y)
            point = unscale(scaling, x.z, x.nu, y)
            payment = (setup.sides.sign * setup.sides.limit * x.y).sum((1, 2))
            here = scaled.residuals(x.z, x.nu, y, found, payment).worst()
            point, found_there = unscale(scaling, x.z, x.nu, y), unscale_products(scaling, found)
            there = qp.residuals(*point, found_there, payment / scaling.objective).worst()
            error = torch.maximum(here, there) / self.eps
            ends = verdict(scaled, setup.sides, x, found, self.eps_infeasible)
            return Measure(error, ends, found)

        def step(x: Iterate, found: Products) -> Iterate:
            return self.step(setup.family, setup.sides, x, found)

        out = iterate(
            measure,
            step,
            self.start(setup.family, setup.sides),
            max_steps=self.max_steps,
            patience=self.patience,
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
        none = torch.zeros_like(x.z), torch.zeros_like(x.z), torch.zeros_like(x.nu)
        return Iterate(x.z, x.nu, s, y, Ray(*none, torch.zeros_like(x.y)))

    def step(self, family: KKTFamily, sides: Sides, x: Iterate, found: Products) -> Iterate:
        """One predictor-corrector step; `found` are the products at x."""
        rest = residual(family.qp, sides, x, found)
        kkt = family.factorize(weights(sides, x))
        mu = mean_product(x, sides)
        affine = newton(kkt, sides, x, rest, -x.s * x.y, PREDICTOR_RTOL)
        reach = step_length(x, affine, sides).clamp(max=1.0)
        ahead = mean_product(advance(x, affine, reach, sides), sides)
        # How much of mu the affine step removes says how much centring the next one needs; the
        # cube (Mehrotra) makes sigma nearly 0 where it removes most, nearly 1 where little.
        sigma = (ahead / mu.clamp(min=1e-300)).clamp(0, 1) ** 3
        target = (sigma * mu)[:, None, None] - x.s * x.y - affine.ds * affine.dy
        both = newton(kkt, sides, x, rest, target, CORRECTOR_RTOL)
        # Close to the boundary at the start, closer once the central path is followed.
        fraction = torch.where(mu > 1e-4, 0.99, 0.999)
        length = (fraction * step_length(x, both, sides)).clamp(max=1.0)
        return advance(x, both, length, sides)._replace(last=Ray.of(x.z, found))


def _start_mu(v: Tensor, present: Tensor) -> Tensor:
    """The mean product after shifting s = -v and y = v to be nonnegative, `(B, 1, 1)`."""
    v = torch.where(present, v, 0.0)
    if v.shape[-1] == 0:
        return v.new_ones(v.shape[0], 1, 1)
    s_shift, y_shift = v.amax((1, 2), True).clamp(min=0), (-v).amax((1, 2), True).clamp(min=0)
    products = torch.where(present, (s_shift - v) * (v + y_shift), 0.0)
    return (products.sum((1, 2), True) / present.sum((1, 2), True).clamp(min=1)).clamp(min=1e-10)
