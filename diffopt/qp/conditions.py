"""The KKT conditions of settled samples as a function of the data.

With w = (z, nu, lam, mu) the solution, held fixed, and the limits of the active set:

    F = (Qz + p + A'nu + G'lam + mu,   Az - b,   Cz - limit of active rows and -y of the others)

All of it is zero. It is linear in the data, so that the pull-back of (u_z, u_nu, u_y) needs the
solution only: the outer products of OptNet (Amos & Kolter, ICML 2017, eq. (8)).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from .arguments import SHAPES
from .native import Lanes, outer_products


def conditions_of(widths: list[int], lanes: Lanes, *given: Tensor | None) -> Tensor:
    """F `(B, n + e + k)`, in the graph of the data.

    Args:
        widths: n, e and k.
        lanes: the solution.
        given: the arguments of `solve_qp` in the order of `SHAPES`, None where absent.
    """
    out: Tensor = _Conditions.apply(widths, lanes, *given)
    return out


class _Conditions(Function):
    @staticmethod
    def forward(ctx: Any, widths: list[int], lanes: Lanes, *given: Tensor | None) -> Tensor:
        ctx.save_for_backward(lanes.x, lanes.active)
        ctx.widths, size = widths, len(lanes.x)
        ctx.shared = [v is not None and v.shape[0] == 1 != size for v in given]
        ctx.m = given[2].shape[-2] if given[2] is not None else 0
        return torch.zeros_like(lanes.x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, active), u = ctx.saved_tensors, grads[0]
        wanted = ctx.needs_input_grad[2:]
        # Where nothing is recorded or mapped, the core writes all in one pass.
        plain = not (torch.is_grad_enabled() or torch._C._are_functorch_transforms_active())
        own = [plain and want and not s for want, s in zip(wanted, ctx.shared, strict=True)]
        out = outer_products(x, u, active, (*ctx.widths, ctx.m), own)
        if own != list(wanted):
            formulas = _pull_back(ctx.widths, ctx.m, x, active, u)
            for i, name in enumerate(SHAPES):
                if wanted[i] and not own[i]:
                    out[i] = formulas[name](ctx.shared[i])
        return None, None, *out


def _pull_back(
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
