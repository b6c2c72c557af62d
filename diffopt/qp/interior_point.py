"""The reference engine's settings, what it prepares for a batch, and how it measures a point.

The engine is batched torch, on any device: equilibrate the data (`scaling`), start on the central
path of one least-squares-like solve (`start`), follow it (`path`), and polish (`polish`);
`reference` puts these together.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .. import device
from ..solution import Status, check_positive
from .kkt import KKTFamily
from .newton import Iterate, Sides
from .problem import QP, Products, Residuals
from .scaling import Scaling, equilibrate, unscale, unscale_products

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
            factor fits the shared memory of a block (n + e up to about 150 where that has 227 KB,
            as on an H100, to 100 where it has 99 KB; larger ones are left to "torch"); or "auto",
            the one meant for the device that can do what is asked. The answers are the same.
        cuda_graph: of the torch engine on a CUDA device: replay a captured graph of an iteration
            in place of its hundreds of kernels one by one. Meant for small batches, and for
            problems of one shape again and again: a shape is captured when it is new, or has not
            been among the last eight, which keep their memory; that takes many iterations' time.
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
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        others = ("verbose", "dtype", "engine", "cuda_graph")
        check_positive(self, *(f.name for f in fields(self) if f.name not in others))
        if self.dtype not in (torch.float64, torch.float32):
            raise ValueError(
                f"InteriorPoint(dtype={self.dtype}): expected torch.float64 or torch.float32"
            )
        if self.engine not in get_args(Engine):
            raise ValueError(
                f"InteriorPoint(engine={self.engine!r}): expected one of {get_args(Engine)}"
            )
        if self.cuda_graph and self.verbose:
            raise ValueError(
                "InteriorPoint(cuda_graph=True, verbose=True): a graph cannot log its steps; "
                "leave one of them out"
            )

    @classmethod
    def single(cls, **changes: Any) -> InteriorPoint:
        """Settings for a device without fast float64: all work, and the derivative, in float32.

        Answers of well-conditioned problems are exact to about 1e-6, and `residuals` says what
        was reached; digits are lost in proportion to the condition number of Q. On a CUDA device
        products of matrices go by way of float64, so that no setting of TF32 has a part in them.

        Args:
            changes: attributes with other values.
        """
        settings = {
            "dtype": torch.float32, "eps": 1e-4, "eps_polish": 1e-3, "eps_reduced": 1e-2,
            "eps_infeasible": 1e-4, "regularization": 1e-4,
        }  # fmt: skip
        return cls(**{**settings, **changes})

    def check_device(self, like: Tensor) -> None:
        """Raise a `ValueError` if the settings ask for what the device of `like` cannot do."""
        if self.cuda_graph and not device.on_cuda(like):
            raise ValueError(
                f"cuda_graph=True: the arguments are on {like.device}; move them to a CUDA "
                "device, or leave cuda_graph out"
            )

    def judge(self, status: Tensor, residual: Tensor) -> Tensor:
        """`status` after polishing brought the KKT residual to `residual`, both `(B,)`."""
        undecided = (status == int(Status.ITERATION_LIMIT)) | (
            status == int(Status.NUMERICAL_FAILURE)
        )
        usable = undecided & (residual <= self.eps_reduced)
        status = torch.where(usable, int(Status.REDUCED_ACCURACY), status)
        return torch.where(residual <= self.eps, int(Status.CONVERGED), status)
