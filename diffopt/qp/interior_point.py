"""The reference engine: a batched primal-dual interior-point method in torch, on any device.

    1. Equilibrate the data (`scaling`).
    2. Start on the central path of one least-squares-like solve (`start`).
    3. Measure the KKT residual of the unscaled problem; look for a certificate of infeasibility.
    4. Factorise the KKT matrix at the weights of the current slacks and multipliers (`kkt`).
    5. Predictor: the Newton step to complementarity zero.
    6. Corrector: the same factor, centred by sigma and corrected to second order.
    7. Step 0.99 of the way to the boundary, less where that would raise the mean product; go to 3.

`newton` says how points and directions are stored.

Source: Mehrotra, SIAM J. Optim. 2(4), 1992; Nocedal & Wright, Numerical Optimization (2nd ed.,
2006), Alg. 16.4.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..iterate import Measure, iterate
from ..solution import Solution, Status, check_positive
from .certificates import verdict
from .kkt import KKTFamily
from .newton import (
    Iterate,
    Ray,
    Sides,
    advance,
    falling,
    mean_product,
    newton,
    residual,
    step_length,
    weights,
)
from .problem import QP, Products, Residuals, digits
from .scaling import Scaling, equilibrate, unscale, unscale_products

# Accuracy of the directions. The predictor only says how much to centre; what the corrector leaves,
# the next step sees.
PREDICTOR_RTOL, CORRECTOR_RTOL = 1e-4, 1e-10
LOG = logging.getLogger("diffopt")
Engine = Literal["auto", "torch", "native", "cuda"]


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


class Gauge(NamedTuple):
    """The KKT residuals of a point in the user's units, which is what is promised, and in the
    equilibrated ones, whose 1 in 1 + |...| means something."""

    there: Residuals  # the user's units
    here: Residuals
    products: Products  # equilibrated

    @classmethod
    def at(cls, qp: QP, setup: Setup, x: Iterate, products: Products) -> Gauge:
        """The residuals at x, whose products with the equilibrated data are known."""
        scaled, scaling, y = setup.family.qp, setup.scaling, x.multipliers()
        payment = (setup.sides.sign * setup.sides.limit * x.y).sum((1, 2))
        here = scaled.residuals(x.z, x.nu, y, products, payment)
        point = unscale(scaling, x.z, x.nu, y)
        there = qp.residuals(
            *point, unscale_products(scaling, products), payment / scaling.objective
        )
        return cls(there, here, products)

    def error(self) -> Tensor:
        """The worst of all, `(B,)`."""
        return torch.maximum(self.there.worst(), self.here.worst())


@dataclass(frozen=True)
class InteriorPoint:
    """Settings of the interior-point method; the defaults are the documentation.

    Attributes:
        eps: absolute and relative tolerance on `Residuals`, primal, dual and gap.
        eps_polish: residual at which the active set is tried for the first time (`polish`); a
            sample for which it is not the right one goes on to `eps`.
        eps_reduced: a sample that stalls below this ends as `REDUCED_ACCURACY`.
        eps_infeasible: relative tolerance of a certificate of infeasibility.
        max_steps: limit on the steps of a sample, from each of at most three starts.
        patience: a sample ends after this many steps without a smaller residual.
        regularization: rho = delta of `kkt`, in the equilibrated space.
        refinements: most steps of iterative refinement of a linear solve.
        warm_mu: the product s y that a warm start begins with, in the equilibrated space.
        verbose: log one line a step to the logger "diffopt", at level INFO; to see them,
            ``logging.basicConfig(level=logging.INFO)``.
        dtype: in which all work is done, torch.float64 or, see `single`, torch.float32.
        engine: "torch", on any device; "native", compiled, on the CPU, in float64; "cuda", a kernel
            compiled when it is first needed, on a CUDA device, in float64, for problems whose
            factor fits the shared memory (n + e up to about 160; larger ones are left to "torch");
            or "auto", the fastest of those that can do what is asked. The answers are the same.
    """

    eps: float = 1e-8
    eps_polish: float = 1e-5
    eps_reduced: float = 1e-5
    eps_infeasible: float = 1e-8
    max_steps: int = 100
    patience: int = 25
    regularization: float = 1e-9
    refinements: int = 6
    warm_mu: float = 1e-3
    verbose: bool = False
    dtype: torch.dtype = torch.float64
    engine: Engine = "auto"

    def __post_init__(self) -> None:
        numbers = (f.name for f in fields(self) if f.name not in ("verbose", "dtype", "engine"))
        check_positive(self, *numbers)
        if self.dtype not in (torch.float64, torch.float32):
            raise ValueError(
                f"InteriorPoint(dtype={self.dtype}): expected torch.float64 or torch.float32"
            )
        if self.engine not in get_args(Engine):
            raise ValueError(
                f"InteriorPoint(engine={self.engine!r}): expected one of {get_args(Engine)}"
            )

    @classmethod
    def single(cls, **changes: Any) -> InteriorPoint:
        """Settings for a device without fast float64: all work, and the derivative, in float32.

        Answers of well-conditioned problems are exact to about 1e-6, and `residuals` says what
        was reached; digits are lost in proportion to the condition number of Q.

        Args:
            changes: attributes with other values.
        """
        settings = {
            "dtype": torch.float32, "eps": 1e-4, "eps_polish": 1e-3, "eps_reduced": 1e-2,
            "eps_infeasible": 1e-4, "regularization": 1e-4,
        }  # fmt: skip
        return cls(**{**settings, **changes})

    def solve(self, qp: QP, setup: Setup, start: Iterate, eps: float) -> Solution:
        """The `Iterate` of smallest KKT residual of each sample, without gradients.

        Args:
            qp: the problem in the user's units.
            setup: what `Setup.of(qp, self)` prepared.
            start: where to begin: `cold_start`, `warm_start`, or the end of an earlier solve.
            eps: the tolerance.

        Returns:
            `Solution` whose residual is that of `Gauge`; where a certificate of infeasibility was
            found, the value is the iterate that holds it.
        """
        family, sides = setup.family, setup.sides

        def measure(x: Iterate) -> Measure:
            gauge = Gauge.at(qp, setup, x, family.qp.products(x.z, x.nu, x.multipliers()))
            if self.verbose:
                _log(gauge, mean_product(x, sides), eps)
            ends = verdict(family.qp, sides, x, gauge.products, self.eps_infeasible)
            return Measure(gauge.error() / eps, ends, gauge.products)

        def step(x: Iterate, found: Products) -> Iterate:
            return self.step(family, sides, x, found)

        out = iterate(measure, step, start, max_steps=self.max_steps, patience=self.patience)
        return replace(out, residual=out.residual * eps)

    def judge(self, status: Tensor, residual: Tensor) -> Tensor:
        """`status` after polishing brought the KKT residual to `residual`, both `(B,)`."""
        undecided = (status == int(Status.ITERATION_LIMIT)) | (
            status == int(Status.NUMERICAL_FAILURE)
        )
        usable = undecided & (residual <= self.eps_reduced)
        status = torch.where(usable, int(Status.REDUCED_ACCURACY), status)
        return torch.where(residual <= self.eps, int(Status.CONVERGED), status)

    def step(self, family: KKTFamily, sides: Sides, x: Iterate, found: Products) -> Iterate:
        """One predictor-corrector step; `found` are the products at x."""
        rest = residual(family.qp, sides, x, found)
        kkt = family.factorize(weights(sides, x))
        mu = mean_product(x, sides)
        affine = newton(kkt, sides, x, rest, -x.s * x.y, digits(PREDICTOR_RTOL, mu.dtype))
        reach = step_length(x, affine, sides).clamp(max=1.0)
        ahead = mean_product(advance(x, affine, reach, sides), sides)
        # How much of mu the affine step removes says how much centring the next one needs; the
        # cube (Mehrotra) makes sigma nearly 0 where it removes most, nearly 1 where little.
        sigma = (ahead / mu.clamp(min=torch.finfo(mu.dtype).tiny)).clamp(0, 1) ** 3
        target = (sigma * mu)[:, None, None] - x.s * x.y - affine.ds * affine.dy
        both = newton(kkt, sides, x, rest, target, digits(CORRECTOR_RTOL, mu.dtype))
        # Close to the boundary at the start, closer once the central path is followed.
        fraction = torch.where(mu > 1e-4, 0.99, 0.999)
        length = (fraction * step_length(x, both, sides)).clamp(max=1.0)
        length = torch.minimum(length, falling(x, both, length, sides))
        return advance(x, both, length, sides)._replace(last=Ray.of(x.z, found))


def _log(gauge: Gauge, mu: Tensor, eps: float) -> None:
    """One line: the worst residuals of the batch in the user's units, and who is not done."""
    if mu.numel() == 0:
        return
    worst = [float(r.amax()) for r in gauge.there]
    running = int((gauge.error() > eps).sum())
    LOG.info(
        "primal %8.1e  dual %8.1e  gap %8.1e  mu %8.1e  unfinished %d of %d",
        *worst, float(mu.amax()), running, mu.numel(),
    )  # fmt: skip
