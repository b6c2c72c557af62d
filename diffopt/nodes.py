"""The nodes that an implicit layer puts into the autograd graph: see `implicit` for the rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd.function import Function

from .operators import Operator
from .solution import fill_failed, report, succeeded


def applied(function: type[Function], *args: Any) -> Tensor:
    """`function.apply`, without what torch does for defaults and transforms that are not there."""
    if torch._C._are_functorch_transforms_active():
        out: Tensor = function.apply(*args)
    else:
        out = super(Function, function).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]
    return out


def recorded() -> bool:
    """Whether what happens is differentiated or mapped."""
    return torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()


class Solve(Function):
    """v -> A^-1 v (or A^-T v), linear in v with A constant.

    The operator's tensors are arguments, not captured, so that torch.func can unwrap them. The
    result of a differentiation is good for `order` - 1 more: `_Guard` counts, and is tied to v,
    because a second derivative can reach theta through the graph of v = F(z, theta) without
    crossing this node again. `order` None means no limit (the solves inside a derivative).
    """

    @staticmethod
    def forward(
        v: Tensor, operator: Operator, transpose: bool, order: int | None, *held: Tensor
    ) -> Tensor:
        if v.device.type == "cpu" and not bool(v.any()):  # as F is at a polished root
            return torch.zeros_like(v)
        u = _solved(v, operator.rebuild(*held), transpose)
        return u.clone() if u is v else u  # torch does not save what is returned

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        v, ctx.operator, ctx.transpose, ctx.order, *held = inputs
        ctx.save_for_backward(v, *held)
        ctx.save_for_forward(v, *held)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        v, *held = ctx.saved_tensors
        rest = None, None, None, *[None] * len(held)
        if not recorded():
            return _solved(grads[0], ctx.operator.rebuild(*held), not ctx.transpose), *rest
        u = Solve.apply(grads[0], ctx.operator, not ctx.transpose, None, *held)
        return _guarded(u, v, ctx.order), *rest

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        v, *held = ctx.saved_tensors
        u = Solve.apply(tangents[0], ctx.operator, ctx.transpose, None, *held)
        return _guarded(u, v, ctx.order)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        if inputs[1].captures:
            raise RuntimeError(
                "torch.func.vmap (or jacrev, jacfwd, hessian) over an implicit layer whose "
                f"operator is {inputs[1].name}: it closes over tensors that vmap cannot reach; "
                "make the mapped dimension a batch dimension, or use a factor of the Jacobian: "
                "operator=Direct() of a fixed point, and in implicit_root use operator=None (Dense)"
            )
        v, operator, transpose, order, *held = _batch_first(info, in_dims, inputs)
        return Solve.apply(v, operator, transpose, order, *held), 0


class Step(Function):
    """The step -A^-1 F = 0 in the graph of theta: `Solve` of F in one node."""

    @staticmethod
    def forward(
        ctx: Any,
        operator: Operator,
        pull_back: Callable[..., Sequence[Tensor | None]],
        count: tuple[int, int],
        root: Tensor,
        *tensors: Tensor | None,
    ) -> Tensor:
        ctx.operator, ctx.pull_back, ctx.count = operator, pull_back, count
        step = torch.zeros_like(root)
        ctx.save_for_backward(step, *tensors[: sum(count)])
        return step

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        step, *saved = ctx.saved_tensors
        held, facts = saved[: ctx.count[0]], saved[ctx.count[0] :]
        if recorded():
            u = Solve.apply(grads[0], ctx.operator, True, None, *held)
            u = _guarded(u, step, 1)  # the step leads to theta
        else:
            u = _solved(grads[0], ctx.operator.rebuild(*held), True)
        rest = [None] * (4 + len(saved))
        return *rest, *ctx.pull_back(-u, ctx.needs_input_grad[len(rest) :], *facts)


def _solved(v: Tensor, A: Operator, transpose: bool) -> Tensor:
    """A^-1 v or A^-T v, failed samples reported and filled as `A.on_failure` says."""
    solution = A.solve_transpose(v) if transpose else A.solve(v)
    value: Tensor = solution.value
    if bool(succeeded(solution.status).all()):
        return value
    kind = "transposed linear" if transpose else "linear"
    what = f"implicit derivative: the {kind} solve"
    report(solution.status, solution.residual, A.on_failure, what, A.part)
    return fill_failed(value, solution.status, float("nan") if A.on_failure == "nan" else 0.0)


def _guarded(u: Tensor, v: Tensor, order: int | None) -> Tensor:
    return u if order is None else _Guard.apply(u, v, order - 1)


class _Guard(Function):
    """u, tied to v; differentiable `left` times, then an error instead of a wrong number."""

    @staticmethod
    def forward(u: Tensor, v: Tensor, left: int) -> Tensor:
        return u.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, v, ctx.left = inputs
        ctx.save_for_backward(v)
        ctx.save_for_forward(v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[1]:  # of no theta: u is linear in its cotangent, exactly
            return grads[0], None, None
        return _Guard._next(ctx, grads[0]), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return _Guard._next(ctx, tangents[0])

    @staticmethod
    def _next(ctx: Any, du: Tensor) -> Tensor:
        if ctx.left == 0:
            raise RuntimeError(
                "this implicit layer was built for fewer derivatives than were asked for (double "
                "backward, hessian, or a jvp by double backward), and a further one would be "
                "wrong: pass order=2 (or higher) to the function that made the layer, for example "
                "solve_qp(..., order=2) or implicit_root(..., order=2)"
            )
        return _Guard.apply(du, ctx.saved_tensors[0], ctx.left - 1)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        return _Guard.apply(*_batch_first(info, in_dims, inputs)), 0


def _batch_first(info: Any, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> list[Any]:
    """The inputs with the mapped dimension first, of size one for a tensor that is not mapped.

    The first input is expanded, so that the output is mapped in every case.
    """

    def first(x: Any, d: int | None) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.unsqueeze(0) if d is None else x.movedim(d, 0)

    moved = [first(x, d) for x, d in zip(inputs, in_dims, strict=True)]
    moved[0] = moved[0].expand(info.batch_size, *moved[0].shape[1:])
    return moved
