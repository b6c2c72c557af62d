"""A composite function f(z) + r(z), f smooth, r known by its proximal operator; and its minimiser.

z* minimises f + r, both convex, if and only if a proximal-gradient step does not move it, for one
step > 0 and then for every step:

    F(z) = z - prox(z - step grad f(z), step) = 0

That F is the residual which `implicit_root` differentiates. Its Jacobian I - P (I - step H), with
P the derivative of prox and H the Hessian of f, is only ever applied, as a vjp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backward import BackwardRecord, Method, operator_at, watched
from ..implicit import implicit_root, still
from ..linear import batched_norm
from ..operators import MatrixFree
from ..solution import OnFailure, Solution, Status
from .fista import FISTA, value_and_gradient
from .proximal import Projected


@dataclass(frozen=True)
class Composite:
    """The user's f and r, for points of the shape of `z0`; what they return is checked always."""

    objective: Callable[[Tensor], Tensor]
    prox: Callable[[Tensor, Tensor], Tensor]
    z0: Tensor

    @classmethod
    def of(
        cls,
        objective: Callable[[Tensor], Tensor],
        prox: Callable[[Tensor, Tensor], Tensor],
        z0: Tensor,
    ) -> Composite:
        """The same, with `z0` checked and detached."""
        _check_start(z0)
        return cls(objective, prox, z0.detach())

    def value(self, z: Tensor) -> Tensor:
        """f(z), `(*B)`."""
        f = self.objective(z)
        batch = tuple(z.shape[:-1])
        if not isinstance(f, Tensor) or tuple(f.shape) != batch or f.dtype != z.dtype:
            raise ValueError(
                f"objective(z) is {_kind(f)}, but z is {_kind(z)}: expected one number a sample, "
                f"of shape {batch} and the dtype of z; sum over the last dimension only, and give "
                "z0 the batch dimensions and the dtype of the data"
            )
        return f

    def proximal(self, v: Tensor, step: Tensor) -> Tensor:
        """prox(v, step), `(*B, n)`."""
        z = self.prox(v, step)
        if not isinstance(z, Tensor) or z.shape != v.shape or z.dtype != v.dtype:
            name = "projection(z)" if isinstance(self.prox, Projected) else "prox(z, step)"
            raise ValueError(
                f"{name} is {_kind(z)}, but z is {_kind(v)}: expected a point of the same shape "
                "and dtype"
            )
        return z

    def move(self, z: Tensor, step: Tensor) -> Tensor:
        """One proximal-gradient step, differentiable."""
        return self.proximal(z - step * value_and_gradient(self.value, z)[1], step)

    def found(self, solver: FISTA) -> Solution:
        """What the solver found, (z, step), in the user's batch dimensions."""
        shape = self.z0.shape
        batch = shape[:-1]
        flat = batch.numel(), shape[-1]

        def value(z: Tensor) -> Tensor:
            return self.value(z.reshape(shape)).reshape(-1)

        def prox(v: Tensor, step: Tensor) -> Tensor:
            return self.proximal(v.reshape(shape), step.reshape(*batch, 1)).reshape(flat)

        start = self.z0
        if isinstance(self.prox, Projected):  # f may not be finite outside the set
            with torch.no_grad():
                start = self.proximal(start, start.new_ones(*shape[:-1], 1))
        out = solver.solve(value, prox, start.reshape(flat))
        z, step = out.value[0].reshape(shape), out.value[1].reshape(*batch, 1)
        status, steps, residual = (v.reshape(batch) for v in (out.status, out.steps, out.residual))
        return Solution((z, step), self.judged(z, step, status), steps, residual)

    def judged(self, z: Tensor, step: Tensor, status: Tensor) -> Tensor:
        """`status`, but INVALID_INPUT where the projection is none: it moves what it returned.

        By more than 1e-4 (1 + |z|): projections that iterate are not exact.
        """
        if not isinstance(self.prox, Projected):
            return status
        with torch.no_grad():
            z = self.proximal(z, step)
            moved = batched_norm(self.proximal(z, step) - z)
        wrong = moved > 1e-4 * (1 + batched_norm(z))
        return torch.where(wrong, int(Status.INVALID_INPUT), status)

    def attached(
        self,
        z: Tensor,
        step: Tensor,
        solved: Tensor,
        method: Method,
        on_failure: OnFailure,
        order: int,
    ) -> tuple[Tensor, BackwardRecord]:
        """z, polished, with its derivative, and the record of its backward pass.

        A sample that is not `solved` stays, and its derivative is zero.
        """
        step = torch.where(solved, step, 1.0)  # it may be NaN

        def move(x: Tensor) -> Tensor:
            return torch.where(solved, self.move(x, step), z)

        root = _polished(move, z)

        def residual(x: Tensor) -> Tensor:
            return still(x - move(x))  # what is left of it at the root is rounding

        operator, record = watched(operator_at(residual, root, method), on_failure)
        return implicit_root(residual, root, operator, order), record


def _polished(move: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """z after a Newton step on F = z - move(z) and a move, if that makes F smaller.

    An error in z is one in its derivative, too. The move brings z back onto the set, exactly.
    """
    with torch.no_grad():
        r = z - move(z)
        better = move(z - MatrixFree(lambda x: x - move(x), z).solve(r).value)
        smaller = batched_norm(better - move(better)) < batched_norm(r)
        return torch.where(smaller.unsqueeze(-1), better, z)


def _check_start(z0: Tensor) -> None:
    if not isinstance(z0, Tensor) or z0.ndim == 0:
        raise ValueError(
            f"z0 is {_kind(z0)}: expected a starting point of shape (*B, n); for one unknown use "
            "z0.reshape(1)"
        )
    if z0.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"z0 is {_kind(z0)}: expected float32 or float64; use z0.to(torch.float64)"
        )


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
