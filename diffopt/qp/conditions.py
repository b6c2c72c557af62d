"""The pull-back of the KKT conditions of settled samples to the data.

With w = (z, nu, lam, mu) the solution, held fixed, and the limits of the active set:

    F = (Qz + p + A'nu + G'lam + mu,   Az - b,   Cz - limit of active rows and -y of the others)

All of it is zero. It is linear in the data, so that the vjp at u = (u_z, u_nu, u_y) needs the
solution only: the outer products of OptNet (Amos & Kolter, ICML 2017, eq. (8)).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..nodes import recorded
from .arguments import SHAPES, shapes_of
from .cores import Core, Sizes


@dataclass(frozen=True)
class PullBack:
    """u -> u^T dF/dtheta, theta the arguments of `solve_qp` in the order of `SHAPES`.

    Attributes:
        core: what writes the gradients of samples of their own in one pass.
        sizes: of the batch.
        shared: whether the samples share an argument, which then gets the sum.
    """

    core: Core
    sizes: Sizes
    shared: tuple[bool, ...]

    def __call__(
        self, u: Tensor, needed: Sequence[bool], x: Tensor, active: Tensor
    ) -> list[Tensor | None]:
        """The gradients that are `needed`, of the solution `x` and its `active` set of `Lanes`."""
        _, n, m, e, bounded = self.sizes
        plain = not recorded()
        own = [plain and want and not s for want, s in zip(needed, self.shared, strict=True)]
        out: list[Tensor | None] = [None] * len(SHAPES)
        if any(own):
            out = self._written(u, own, x, active)
        if any(want and v is None for want, v in zip(needed, out, strict=True)):
            widths = [n, e, m + n if bounded else m]
            formulas = _formulas(widths, m, x, active, u)
            for i, name in enumerate(SHAPES):
                if needed[i] and out[i] is None:
                    out[i] = formulas[name](self.shared[i])
        return out

    def _written(
        self, u: Tensor, wanted: Sequence[bool], x: Tensor, active: Tensor
    ) -> list[Tensor | None]:
        """What is `wanted` by the core; nothing if that fails."""
        size, n, m, e, bounded = len(x), *self.sizes[1:]
        out: list[Tensor | None] = [
            x.new_empty(size, *shape) if want else None
            for shape, want in zip(shapes_of(n, m, e).values(), wanted, strict=True)
        ]
        x, active = x.contiguous(), active.contiguous()  # what hooks on saved tensors make of them
        u = u.contiguous().resolve_neg()
        done = self.core.outer_products((size, n, m, e, bounded), x, u, active, out)
        return out if done else [None for _ in out]


def _formulas(
    widths: list[int], m: int, x: Tensor, active: Tensor, u: Tensor
) -> dict[str, Callable[[bool], Tensor]]:
    """The gradient of each argument, given whether the samples share it."""
    (z, nu, y), (u_z, u_nu, u_y) = x.split(widths, -1), u.split(widths, -1)
    up, low = (active > 0) * -u_y, (active < 0) * -u_y
    lam, at_rows = y[..., :m], -(up + low)[..., :m]
    return {
        "Q": lambda shared: _outer(u_z / 2, z, z, u_z / 2, shared),
        "p": lambda shared: _sum(u_z, shared),
        "G": lambda shared: _outer(lam, u_z, at_rows, z, shared),
        "h": lambda shared: _sum(up[..., :m], shared),
        "A": lambda shared: _outer(nu, u_z, u_nu, z, shared),
        "b": lambda shared: _sum(-u_nu, shared),
        "lb": lambda shared: _sum(low[..., m:], shared),
        "ub": lambda shared: _sum(up[..., m:], shared),
        "h_lower": lambda shared: _sum(low[..., :m], shared),
    }


def _sum(v: Tensor, shared: bool) -> Tensor:
    return v.sum(0, keepdim=True) if shared else v


def _outer(a: Tensor, b: Tensor, c: Tensor, d: Tensor, shared: bool) -> Tensor:
    """a b' + c d' of each sample, summed over the samples where they share it."""
    if shared:
        return (a.mT @ b + c.mT @ d).unsqueeze(0)
    return torch.stack([a, c], -1) @ torch.stack([b, d], -2)
