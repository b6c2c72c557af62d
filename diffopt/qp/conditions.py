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
from .arguments import SHAPES
from .native import outer_products


@dataclass(frozen=True)
class PullBack:
    """u -> u^T dF/dtheta, theta the arguments of `solve_qp` in the order of `SHAPES`.

    Attributes:
        widths: n, e and k.
        m: rows of G.
        shared: whether the samples share an argument, which then gets the sum.
    """

    widths: tuple[int, int, int]
    m: int
    shared: tuple[bool, ...]

    def __call__(
        self, u: Tensor, needed: Sequence[bool], x: Tensor, active: Tensor
    ) -> list[Tensor | None]:
        """The gradients that are `needed`, of the solution `x` and its `active` set of `Lanes`."""
        plain = not recorded()  # then the core writes all in one pass
        own = [plain and want and not s for want, s in zip(needed, self.shared, strict=True)]
        out = outer_products(x, u, active, (*self.widths, self.m), own)
        if own != list(needed):
            formulas = _formulas(list(self.widths), self.m, x, active, u)
            for i, name in enumerate(SHAPES):
                if needed[i] and not own[i]:
                    out[i] = formulas[name](self.shared[i])
        return out


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
