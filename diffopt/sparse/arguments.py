"""The border of `solve_qp_sparse`: arguments as users give them, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..qp.arguments import SHAPES, check_partners, shapes_of
from .pattern import Pattern
from .problem import SparseQP, sparse

ABSENT = {"h": float("inf"), "ub": float("inf"), "h_lower": -float("inf"), "lb": -float("inf")}


@dataclass(frozen=True)
class Given:
    """The arguments in float64, absent ones filled, in the graph of what the user passed.

    Attributes:
        Q, G, A: patterns; the symmetric part of Q counts.
        p, h, b, lb, ub, h_lower: vectors.
        proximal: weight of |z|^2 / 2 in the objective.
        dtype: of the answer.
    """

    Q: Pattern
    p: Tensor
    G: Pattern
    h: Tensor
    A: Pattern
    b: Tensor
    lb: Tensor
    ub: Tensor
    h_lower: Tensor
    proximal: float
    dtype: torch.dtype

    @property
    def n(self) -> int:
        """Number of unknowns."""
        return self.p.shape[0]

    @property
    def m(self) -> int:
        """Number of rows of G."""
        return self.G.shape[0]

    @property
    def e(self) -> int:
        """Number of rows of A."""
        return self.A.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that a gradient may be asked of, by its name."""
        held = {name: getattr(self, name) for name in SHAPES}
        return {k: v.values if isinstance(v, Pattern) else v for k, v in held.items()}

    def differentiated(self) -> bool:
        """Whether a derivative may be asked of any of them, in reverse or in forward mode."""
        held = self.tensors().values()
        forward = any(forward_ad.unpack_dual(v).tangent is not None for v in held)
        return forward or (torch.is_grad_enabled() and any(v.requires_grad for v in held))

    def anchor(self) -> Tensor:
        """Zero, in the graph of all arguments, with a gradient of zero."""
        parts = (v.nan_to_num(0, 0, 0).sum() * 0 for v in self.tensors().values())
        return sum(parts, self.p.new_zeros(()))

    def valid(self) -> bool:
        """Whether what must be finite is, and no limit is NaN or on the wrong side of infinity."""
        held = self.tensors()
        finite = (v.isfinite() for k, v in held.items() if k not in ABSENT)
        upper = (held[k] > -torch.inf for k in ("h", "ub"))
        lower = (held[k] < torch.inf for k in ("h_lower", "lb"))
        return all(bool(ok.all()) for ok in (*finite, *upper, *lower))

    def problem(self) -> SparseQP:
        """The numbers, for solvers."""
        Q = self.Q.scipy()
        Q = (Q + Q.T) / 2
        if self.proximal:
            Q = Q + self.proximal * sparse().eye_array(self.n)
        vectors = {
            k: getattr(self, k).detach().numpy() for k in ("p", "h_lower", "h", "b", "lb", "ub")
        }
        Q = sparse().csc_matrix(Q)
        return SparseQP(Q=Q, G=self.G.scipy(), A=self.A.scipy(), **vectors)

    def blank(self) -> SparseQP:
        """A problem of these sizes without numbers."""
        Q, G, A = (sparse().csc_matrix(M.shape) for M in (self.Q, self.G, self.A))
        far = {k: np.full(getattr(self, k).shape, fill) for k, fill in ABSENT.items()}
        return SparseQP(Q=Q, p=np.zeros(self.n), G=G, A=A, b=np.zeros(self.e), **far)


def check(arguments: Mapping[str, Any], proximal: float) -> Given:
    """The arguments of one problem, checked and filled.

    Raises:
        ValueError: naming the argument, what it is and what was expected.
    """
    p = arguments["p"]
    if not isinstance(p, Tensor) or p.ndim != 1 or len(p) == 0:
        raise ValueError(
            f"p is {_shown(p)}: expected a dense tensor of shape (n,), n >= 1; for a problem "
            "without a linear term pass torch.zeros(n), for several problems a list of dicts"
        )
    n = len(p)
    matrices = {
        k: None if arguments[k] is None else Pattern.of(k, arguments[k]) for k in ("Q", "G", "A")
    }
    m, e = (0 if v is None else v.shape[0] for v in (matrices["G"], matrices["A"]))
    check_partners(*(arguments[k] for k in ("G", "h", "h_lower", "A", "b")))
    shapes = shapes_of(n, m, e)
    held: dict[str, Any] = {}
    for name, shape in shapes.items():
        value = matrices.get(name)
        if len(shape) == 2:
            held[name] = Pattern.empty(*shape) if value is None else _fits(name, value, shape, n)
        else:
            held[name] = _vector(name, arguments[name], shape)
    dtype = p.dtype if p.is_floating_point() else torch.get_default_dtype()
    for value in arguments.values():
        if isinstance(value, Tensor) and value.ndim and value.is_floating_point():
            dtype = torch.promote_types(dtype, value.dtype)
    return Given(**held, proximal=float(proximal), dtype=dtype)


def _fits(name: str, value: Pattern, shape: tuple[int, ...], n: int) -> Pattern:
    if value.shape != shape:
        raise ValueError(
            f"{name} has shape {value.shape}: expected {shape}, with n = {n} unknowns from p"
        )
    return value


def _vector(name: str, value: Any, shape: tuple[int, ...]) -> Tensor:
    """A vector of float64, from a tensor, a number, or nothing."""
    if value is None:
        value = ABSENT.get(name, 0.0)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return torch.full(shape, float(value), dtype=torch.float64)
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_complex():
        raise ValueError(
            f"{name} is {_shown(value)}: expected a dense real tensor of shape {shape}"
        )
    if value.device.type != "cpu":
        raise ValueError(
            f"{name} is on {value.device}: the sparse solvers run on the CPU, pass {name}.cpu(), "
            "through which gradients flow back"
        )
    if value.ndim == 0 and name != "p":
        value = value.expand(shape)
    if tuple(value.shape) != shape:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}: expected {shape}, without batch dimensions; "
            "several problems are a list of dicts"
        )
    return value.double()


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype}, {value.layout}"
    return "missing" if value is None else f"a {type(value).__name__}"


def crossed(qp: SparseQP) -> bool:
    """Whether two limits contradict each other, or a row of zeros is asked to be something else."""
    empty = qp.lengths == 0
    zeros = np.abs(qp.A).sum(axis=1) == 0 if qp.e else np.zeros(0, dtype=bool)
    wrong = (qp.lower > qp.upper).any() or (empty & ((qp.upper < 0) | (qp.lower > 0))).any()
    return bool(wrong or (np.asarray(zeros).ravel() & (qp.b != 0)).any())
