"""The interior-point method: from a start along the central path to the solution.

    1. Measure the KKT residual of the unscaled problem; look for a certificate of infeasibility.
    2. Factorise the KKT matrix at the weights of the current slacks and multipliers (`kkt`).
    3. Predictor: the Newton step to complementarity zero.
    4. Corrector: the same factor, centred by sigma and corrected to second order.
    5. Step 0.99 of the way to the boundary, less where that would raise the mean product; go to 1.

`newton` says how points and directions are stored, `unattended` how the loop goes on a GPU.

Source: Mehrotra, SIAM J. Optim. 2(4), 1992; Nocedal & Wright, Numerical Optimization (2nd ed.,
2006), Alg. 16.4.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..iterate import Measure
from ..solution import Solution
from ..unattended import Limits, run
from .certificates import suspects, verdict
from .interior_point import Gauge, InteriorPoint, Setup
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
from .problem import QP, Products, digits

# Accuracy of the directions. The predictor only says how much to centre; what the corrector leaves,
# the next step sees.
PREDICTOR_RTOL, CORRECTOR_RTOL = 1e-4, 1e-10
LOG = logging.getLogger("diffopt")


def follow(qp: QP, setup: Setup, solver: InteriorPoint, start: Iterate, eps: float) -> Solution:
    """The `Iterate` of smallest KKT residual of each sample, without gradients.

    Args:
        qp: the problem in the user's units.
        setup: what `Setup.of(qp, solver)` prepared.
        solver: the settings.
        start: where to begin: `cold_start`, `warm_start`, or the end of an earlier solve.
        eps: the tolerance.

    Returns:
        `Solution` whose residual is that of `Gauge`; where a certificate of infeasibility was
        found, the value is the iterate that holds it.
    """
    out = run(Path(qp, setup, solver, eps), start, solver.cuda_graph)
    return replace(out, residual=out.residual * eps)


@dataclass(frozen=True)
class Path:
    """The way of a batch to its solutions: a `Task` of `unattended`."""

    qp: QP
    setup: Setup
    solver: InteriorPoint
    eps: float

    @property
    def limits(self) -> Limits:
        """Those of the settings."""
        return Limits(self.solver.max_steps, self.solver.patience)

    def iterate(self, state: Any) -> Iterate:
        """The `Iterate` of a state: here the state itself."""
        return state

    def measure(self, state: Any) -> Measure:
        """The error of `Gauge`, in units of eps; the products are carried."""
        products = self.setup.family.qp.products(state.z, state.nu, state.multipliers())
        gauge = Gauge.at(self.qp, self.setup, state, products)
        if self.solver.verbose:
            _log(gauge, mean_product(state, self.setup.sides), self.eps)
        return Measure(gauge.error() / self.eps, None, products)

    def suspects(self, state: Any, found: Products) -> Tensor:
        """Samples that may hold a certificate of infeasibility."""
        ray, farkas = suspects(*self._held(state, found))
        return ray | farkas

    def verdict(self, state: Any, found: Products) -> Tensor:
        """What the certificates prove."""
        return verdict(*self._held(state, found))

    def step(self, state: Any, found: Products, attended: bool) -> Any:
        """The function `step`."""
        family = replace(self.setup.family, attended=attended)
        return step(family, self.setup.sides, state, found)

    def sound(self, state: Any) -> Tensor:
        """A factor with NaN in it leaves nothing else in z."""
        return self.iterate(state).z.isfinite().all(-1)

    def _held(self, state: Any, found: Products) -> tuple[QP, Sides, Iterate, Products, float]:
        x, tolerance = self.iterate(state), self.solver.eps_infeasible
        return self.setup.family.qp, self.setup.sides, x, found, tolerance


def step(family: KKTFamily, sides: Sides, x: Iterate, found: Products) -> Iterate:
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
