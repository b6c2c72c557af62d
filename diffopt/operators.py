"""The Jacobian A = dF/dz at a root, known by what the derivative rule needs of it: two solves.

An operator is a constant: nothing is ever differentiated through it. It does not know which layer
it serves. Four are here; a solver that has factorised A anyway hands over its own (see `qp.kkt`).

    Dense       A is formed by vjps, one a row, and LU-factorised once       exact, n small
    MatrixFree  A is only applied; an iterative method of `linear` solves    exact to its tolerance
    Identity    A is replaced by I: the Jacobian-free gradient               one term of a series
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .linear import GMRES, LinearMethod, batched_norm, scaled
from .solution import OnFailure, Part, Solution, Status
from .tree import rebuilt, tensors


class Operator(ABC):
    """A = dF/dz at the root, one `(n, n)` matrix a sample, as `solve` and `solve_transpose`.

    A subclass is a frozen dataclass. Its tensor fields have the batch dimensions of the root
    first and must broadcast over further leading ones: that is how `torch.func.vmap` gets in.
    `on_failure` says what a failed linear solve does (see `solution.report`).
    """

    on_failure: OnFailure
    part: Part | None = None  # which samples of the user's batch they are, for warnings
    captures: ClassVar[bool] = False  # whether it depends on tensors that are not among its fields

    @property
    def name(self) -> str:
        """What the user calls it, for messages."""
        return type(self).__name__

    @abstractmethod
    def solve(self, v: Tensor) -> Solution:
        """x with A x = v, both `(*B, n)`; the residual is relative to |v|."""

    @abstractmethod
    def solve_transpose(self, v: Tensor) -> Solution:
        """x with A^T x = v, both `(*B, n)`; the residual is relative to |v|."""

    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that define A, in the order that `rebuild` takes them."""
        return tuple(tensors(self))

    def rebuild(self, *new: Tensor) -> Operator:
        """The same operator over other tensors."""
        rebuilt_self: Operator = rebuilt(self, iter(new))
        return rebuilt_self


@dataclass(frozen=True)
class Dense(Operator):
    """A as a matrix, factorised once: `Dense.at(residual, root)` or `Dense.of(matrix)`.

    A solve counts as failed if its residual |A x - v| exceeds `rtol` |v|, as it does where A is
    singular. Cost: n vjps and n^3 for the factor, n^2 a solve.

    Example:
        >>> Dense.of(torch.tensor([[2.0, 0.0], [1.0, 4.0]])).solve(torch.tensor([2.0, 5.0])).value
        tensor([1., 1.])
    """

    matrix: Tensor
    factor: Tensor
    pivots: Tensor
    rtol: float = 1e-6
    on_failure: OnFailure = "warn"

    @classmethod
    def of(cls, matrix: Tensor, on_failure: OnFailure = "warn") -> Dense:
        """The operator of `matrix`, `(*B, n, n)`."""
        factor, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        return cls(matrix, factor, pivots, on_failure=on_failure)

    @classmethod
    def at(
        cls, residual: Callable[[Tensor], Tensor], root: Tensor, on_failure: OnFailure = "warn"
    ) -> Dense:
        """The Jacobian of `residual` at `root` `(*B, n)`, whose samples must be independent.

        Row j of every sample comes from one vjp with the j-th unit vector in all samples at once.
        """
        with torch.no_grad():
            pullback = torch.func.vjp(residual, root)[1]
            n = root.shape[-1]
            unit = torch.eye(n, dtype=root.dtype, device=root.device)
            seeds = unit.view(n, *[1] * (root.ndim - 1), n).expand(n, *root.shape)
            rows = torch.func.vmap(pullback)(seeds)[0]  # (n, *B, n)
            return cls.of(rows.movedim(0, -2), on_failure)

    def solve(self, v: Tensor) -> Solution:
        return self._solve(v, adjoint=False)

    def solve_transpose(self, v: Tensor) -> Solution:
        return self._solve(v, adjoint=True)

    def _solve(self, v: Tensor, adjoint: bool) -> Solution:
        v, scale = scaled(v)
        x = torch.linalg.lu_solve(self.factor, self.pivots, v.unsqueeze(-1), adjoint=adjoint)
        x = x.squeeze(-1)
        matrix = self.matrix.mT if adjoint else self.matrix
        size = batched_norm(v)
        # By linearity the answer to zero is zero, also where A is singular or NaN: a sample that
        # carries no gradient must not be able to poison the others through 0 * NaN.
        x = torch.where(size.unsqueeze(-1) == 0, 0.0, x)
        error = batched_norm((matrix @ x.unsqueeze(-1)).squeeze(-1) - v) / size
        error = torch.where(size == 0, 0.0, error)
        ok = error <= self.rtol  # False for NaN
        status = torch.where(ok, int(Status.CONVERGED), int(Status.NUMERICAL_FAILURE))
        return Solution(x * scale, status, torch.ones_like(status), error)


@dataclass(frozen=True)
class MatrixFree(Operator):
    """A applied through vjps and jvps of `residual` at `root`, solved by an iterative method.

    Args:
        residual: F, `(*B, n)` to `(*B, n)`, sample by sample.
        root: z*, `(*B, n)`.
        method: a method of `linear`: `GMRES()` (exact, default), `Anderson()` (exact, little
            memory), `Neumann(k)` (k terms of the series: the phantom gradient).

    The tensors that `residual` closes over cannot be listed, so `torch.func` reaches them in its
    first-order grad, vjp and jvp only: vmap (and with it jacrev, jacfwd and hessian) and nested
    transforms raise. `torch.autograd` to any order, and `Dense` under all transforms, work.
    """

    captures: ClassVar[bool] = True
    residual: Callable[[Tensor], Tensor]
    root: Tensor
    method: LinearMethod = GMRES()
    on_failure: OnFailure = "warn"

    @property
    def name(self) -> str:
        return f"MatrixFree with {type(self.method).__name__}"

    def solve(self, v: Tensor) -> Solution:
        # A x as the derivative of the linear map u -> A^T u: a forward-mode A x would mix its
        # tangents with those of an outer forward mode in what `residual` closes over.
        forward = torch.func.vjp(self._transposed(), torch.zeros_like(self.root))[1]
        return self.method.solve(lambda x: forward(x)[0].detach(), v)

    def solve_transpose(self, v: Tensor) -> Solution:
        if torch._C._are_functorch_transforms_active():
            transposed = self._transposed()
            return self.method.solve(lambda x: transposed(x).detach(), v)
        with torch.enable_grad():  # half the overhead of torch.func
            root = self.root.detach().requires_grad_()
            image = self.residual(root)
        if not image.requires_grad:  # A = 0
            return self.method.solve(torch.zeros_like, v)
        return self.method.solve(lambda x: _pulled(image, root, x), v)

    def _transposed(self) -> Callable[[Tensor], Tensor]:
        """u -> A^T u."""
        pullback = torch.func.vjp(self.residual, self.root)[1]
        return lambda u: pullback(u)[0]


def _pulled(image: Tensor, at: Tensor, u: Tensor) -> Tensor:
    """u' (d image / d at), zero where there is no dependence."""
    (out,) = torch.autograd.grad(image, at, u, retain_graph=True, materialize_grads=True)
    return out


@dataclass(frozen=True)
class Identity(Operator):
    """A replaced by I: the Jacobian-free gradient of Fung et al., "JFB" (AAAI 2022).

    Biased: for F = z - f(z) it keeps the first term of (I - f')^-1 = I + f' + f'^2 + ..., which
    is a descent direction if f is contractive enough. It never fails.
    """

    biased: ClassVar[bool] = True
    on_failure: OnFailure = "warn"

    def solve(self, v: Tensor) -> Solution:
        status = torch.zeros(v.shape[:-1], dtype=torch.int64, device=v.device)
        return Solution(v.clone(), status, status, v.new_full(v.shape[:-1], torch.nan))

    def solve_transpose(self, v: Tensor) -> Solution:
        return self.solve(v)
