"""The short way from arguments to answer: batches that the native engine settles.

Nothing is copied, stacked or measured again, which for small problems costs more than the solve.
The derivative is that of `implicit_root`, as always: of the conditions of the active set, whose
value at the solution is zero and whose pull-back are outer products.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import Function

from ..implicit import implicit_root
from ..tree import take
from .arguments import SHAPES, Data
from .interior_point import Setup
from .kkt import Blocks
from .native import Factors, Lanes, as_found, serves, solve
from .options import Options
from .point import settle
from .root import KKTOperator, side_by_side


def solve_direct(data: Data, options: Options, warm: Blocks | None) -> tuple[Blocks, Lanes] | None:
    """((z, nu, y) in the graph of the data, and what is known besides); None: not this way."""
    if not _plain(data, options):
        return None
    batch, k = data.batch.numel(), data.m + data.n if data.bounded else data.m
    wanted = torch.is_grad_enabled() and any(v.requires_grad for v in data.given.values())
    sizes = (batch, data.n, data.m, data.e, data.bounded)
    lanes, layout, tape = solve(data.given, sizes, options.solver, warm, keep=wanted)
    if not bool(lanes.settled.all()):
        return None
    x = Blocks(lanes.z, lanes.nu, lanes.y)
    if tape is None:
        return x, lanes
    given = [data.given.get(name) for name in SHAPES]

    def conditions(root: Tensor) -> Tensor:
        return _Conditions.apply(lanes, *given)

    def rescue(samples: Tensor, v: Tensor, transpose: bool) -> tuple[Tensor, Tensor]:
        return _by_reference(data, options, lanes, samples, v, transpose)

    operator = Factors(tape, layout, rescue, options.on_failure)
    root = implicit_root(conditions, torch.cat(x, -1), operator)
    return Blocks(*root.split([data.n, data.e, k], -1)), lanes


def _plain(data: Data, options: Options) -> bool:
    """Whether first derivatives of the solutions themselves, in reverse mode, are all."""
    special = options.order != 1 or options.smoothing is not None or options.proximal
    if special or options.infeasible != "report" or not data.batch.numel():
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    return serves(options.solver, data.like.device)


def _by_reference(
    data: Data, options: Options, lanes: Lanes, samples: Tensor, v: Tensor, transpose: bool
) -> tuple[Tensor, Tensor]:
    """(x, relative residual) of the reference engine, whose solves try harder."""
    constant = replace(data, given={k: t.detach() for k, t in data.given.items()})
    qp = take(constant.qp(), samples)
    setup = Setup.of(qp, options.solver)
    point = settle(qp, as_found(qp, setup, take(lanes, samples)), options.degenerate)
    operator, scaling = KKTOperator.at(point, "ignore"), setup.scaling
    at_rows = torch.where(point.t < 1, scaling.rows, 1 / scaling.y)
    unit = side_by_side(scaling.dual, scaling.equal, at_rows)  # its rows over those here
    out = operator.solve_transpose(v) if transpose else operator.solve(v * unit)
    return out.value * unit if transpose else out.value, out.residual


class _Conditions(Function):
    """The KKT conditions of the active sets as a function of the data, at the solution:

    Qz + p + A'nu + G'lam + mu,    Az - b,    Cz - limit of active rows, -y of the others.

    All are zero there. They are linear in the data, so that the pull-back of (u_z, u_nu, u_y) needs
    the solution only.
    """

    @staticmethod
    def forward(ctx: Any, lanes: Lanes, *given: Tensor | None) -> Tensor:
        ctx.save_for_backward(lanes.z, lanes.nu, lanes.y, lanes.active)
        ctx.shared = [v is not None and v.shape[0] == 1 and len(lanes.z) > 1 for v in given]
        ctx.m = given[2].shape[-2] if given[2] is not None else 0
        return lanes.z.new_zeros(len(lanes.z), sum(v.shape[-1] for v in lanes[:3]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, nu, y, active = ctx.saved_tensors
        u_z, u_nu, u_y = grads[0].split([z.shape[-1], nu.shape[-1], y.shape[-1]], -1)
        up, low = (active > 0) * -u_y, (active < 0) * -u_y
        lam, m = y[:, : ctx.m], ctx.m
        at_rows = -(up + low)[:, :m]
        pull_back = {
            "Q": lambda shared: _outer(u_z / 2, z, z, u_z / 2, shared),
            "p": lambda shared: _sum(u_z, shared),
            "G": lambda shared: _outer(lam, u_z, at_rows, z, shared),
            "h": lambda shared: _sum(up[:, :m], shared),
            "A": lambda shared: _outer(nu, u_z, u_nu, z, shared),
            "b": lambda shared: _sum(-u_nu, shared),
            "lb": lambda shared: _sum(low[:, m:], shared),
            "ub": lambda shared: _sum(up[:, m:], shared),
            "h_lower": lambda shared: _sum(low[:, :m], shared),
        }
        asked = zip(SHAPES, ctx.shared, ctx.needs_input_grad[1:], strict=True)
        return None, *(pull_back[name](shared) if want else None for name, shared, want in asked)


def _sum(v: Tensor, shared: bool) -> Tensor:
    return v.sum(0, keepdim=True) if shared else v


def _outer(a: Tensor, b: Tensor, c: Tensor, d: Tensor, shared: bool) -> Tensor:
    """a b' + c d' of each sample, summed over the samples where they share it."""
    if shared:
        return (a.mT @ b + c.mT @ d).unsqueeze(0)
    return torch.stack([a, c], -1) @ torch.stack([b, d], -2)
