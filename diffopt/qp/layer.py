"""One differentiable solve of a batch with one flat batch dimension."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..implicit import implicit_root
from ..solution import Part, succeeded
from ..tree import mapped
from .certificates import Certificate
from .engine import Job, Outcome
from .kkt import Blocks, pack, unpack
from .lpgd import PerturbedSolve, lagrangian_residual, sided
from .options import LPGD, Options
from .problem import QP, Residuals
from .root import KKTOperator, kkt_residual
from .smooth import central_residual


class Facts(NamedTuple):
    """What is known of each sample besides the answer, without a gradient.

    Attributes:
        status, steps, residuals, polished: as in `QPSolution`, `(B,)`.
        error: the worst residual, in the units of the user and of the engine.
        weak: weakly active limits, rows of G and then bounds, bool `(B, m + n)`.
        certificate: proofs of infeasibility.
    """

    status: Tensor
    steps: Tensor
    residuals: Residuals
    polished: Tensor
    error: Tensor
    weak: Tensor
    certificate: Certificate

    @classmethod
    def of(cls, qp: QP, outcome: Outcome) -> Facts:
        """What an engine found out about `qp`."""
        point = outcome.point
        weak = point.weak if qp.bounded else torch.nn.functional.pad(point.weak, (0, qp.n))
        polished = point.polished & succeeded(point.status)
        return cls(
            point.status,
            outcome.steps,
            point.residuals,
            polished,
            point.error,
            weak,
            outcome.certificate,
        )

    def cut(self, n: int, m: int) -> Facts:
        """The same of a QP that was solved with unknowns added behind its n."""
        z, nu, lam_upper, lam_lower, mu_upper, mu_lower = self.certificate
        proof = Certificate(z[:, :n], nu, lam_upper, lam_lower, mu_upper[:, :n], mu_lower[:, :n])
        return self._replace(weak=self.weak[:, : m + n], certificate=proof)


class Answer(NamedTuple):
    """(z, nu, y) in the graph of the data, and what is known besides."""

    x: Blocks
    facts: Facts

    def after(self, steps: Tensor) -> Answer:
        """The same, reached after `steps` `(B,)` more."""
        return self._replace(facts=self.facts._replace(steps=self.facts.steps + steps))


def solve(qp: QP, options: Options, warm: Blocks | None = None, part: Part | None = None) -> Answer:
    """The answer for `qp`, whose data are attached to the graph of the user's arguments.

    `part` says which samples of the user's batch these are, for warnings.
    """
    kappa = options.kappa() if qp.differentiated() else None
    job = Job(options.solver, options.degenerate, options.on_failure, kappa, part)
    outcome = job.run(qp, warm)
    qp = qp if job.finite else qp.without_nonfinite()
    return Answer(_attached(qp, outcome, options, part), Facts.of(qp, outcome))


def _attached(qp: QP, outcome: Outcome, options: Options, part: Part | None) -> Blocks:
    """(z, nu, y) re-attached to the graph of `qp`, failed samples treated as `on_failure` says."""
    point = outcome.point
    x = Blocks(point.z, point.nu, point.y)
    if qp.differentiated():
        x = _derived(qp, x, outcome, options, part)
    if options.on_failure != "nan":
        return x
    # Added at the end, and not put in: the gradient of a failed sample is the operator's.
    nothing = torch.where(succeeded(point.status), 0.0, torch.nan).unsqueeze(-1)
    return Blocks(*(v + nothing.to(v.dtype) for v in x))


def _derived(qp: QP, x: Blocks, outcome: Outcome, options: Options, part: Part | None) -> Blocks:
    """The values `x` with the derivative that `options` ask for."""
    point = outcome.point
    if isinstance(options.smoothing, LPGD):
        return _perturbed(qp, x, point.status, options, options.smoothing.tau)
    if outcome.center is not None:
        return _smoothed(qp, x, outcome, options)
    operator = replace(KKTOperator.at(point, options.on_failure), part=part)
    return unpack(implicit_root(kkt_residual(qp, point), pack(x), operator, options.order), qp)


def _smoothed(qp: QP, x: Blocks, outcome: Outcome, options: Options) -> Blocks:
    """The exact values with the derivatives of the central-path point."""
    at, kappa, point = outcome.center, options.kappa(), outcome.point
    assert at is not None and kappa is not None
    residual = central_residual(qp, point.scaling, at, kappa)
    operator = KKTOperator.at_center(point, at, options.on_failure)
    root = implicit_root(residual, pack(Blocks(at.z, at.nu, at.y)), operator, options.order)
    return Blocks(*(v + (r - r.detach()) for v, r in zip(x, unpack(root, qp), strict=True)))


def _perturbed(qp: QP, x: Blocks, status: Tensor, options: Options, tau: float) -> Blocks:
    """The exact values with finite-perturbation gradients."""
    at = sided(x)
    detached: QP = mapped(qp, lambda v: v.detach())
    operator = PerturbedSolve(detached, at, status, tau, options.solver, options.on_failure)
    root = implicit_root(lagrangian_residual(qp), pack(at), operator)
    return type(at)(*unpack(root, qp)).joined()
