"""The one place in the package where a derivative rule is written.

A layer's output z*(theta) solves F(z*, theta) = 0. Let A = dF/dz at z*, held constant. The chord
Newton step  z <- z - A^-1 F(z, theta)  leaves the value where it is, since F(z*) = 0, and makes
it depend on theta: with e = z - z*(theta + d), one step gives

    e  <-  (I - A^-1 F_z) e + O(|e|^2),        I - A^-1 F_z = O(|d|),

so e, which starts as O(|d|), is O(|d|^(k+1)) after k steps: k steps carry the first k derivatives
exactly. Nothing is differentiated but F (by autograd) and the linear map A^-1 (below): its vjp is
A^-T, its jvp is A^-1, and torch.func.vmap adds a batch dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd.function import Function

from .operators import Dense, Operator
from .solution import fill_failed, report, succeeded


def implicit_root(
    residual: Callable[[Tensor], Tensor],
    root: Tensor,
    operator: Operator | None = None,
    order: int = 1,
) -> Tensor:
    """`root`, differentiable `order` times as the solution z* of ``residual(z) = 0``.

    By the implicit function theorem dz*/dtheta = -A^-1 dF/dtheta, with A = dF/dz. For a cotangent
    v on z* that is one solve A^T u = -v and one vjp of `residual`, whatever solver found `root`
    and however many steps it took.

    Args:
        residual: F, from `(*B, n)` to `(*B, n)`; sample i of F depends on sample i of z only.
            Every tensor that it closes over gets a derivative (parameters of modules included);
            one that the samples share gets the sum over them. It must be the same function at
            every call: no dropout, no running statistics.
        root: z*, `(*B, n)`. Detached here. A sample that is not finite is passed through, with a
            zero derivative.
        operator: A at the root, as solves (see `operators`). Default: `Dense`, built from n vjps
            and an LU factorisation. Its `on_failure` says what a failed solve does.
        order: how many derivatives are exact. Each costs one evaluation of F and one solve.

    Returns:
        z*, `(*B, n)`: `root` moved by `order` chord-Newton steps, which brings a good root nearer
        (with an exact operator; a reduced one, or a point far from a root, may move it away).

    Raises:
        ValueError: if `residual(root)` and `root` differ in shape, `root` has no dimension, or
            `order` is not a positive integer.
        RuntimeError: when derivative number `order` + 1 is asked for, by any route.

    Accuracy: a derivative is exact up to O(|A^-1| |F(root)|) and the operator's own tolerance.

    Example:
        >>> x = torch.tensor([4.0], requires_grad=True)
        >>> z = implicit_root(lambda z: z * z - x, root=torch.tensor([2.0]))      # z = sqrt(x)
        >>> torch.autograd.grad(z.sum(), x)[0]                                    # 1 / (2 sqrt(x))
        tensor([0.2500])

    Source: the implicit function theorem as used for layers by Amos & Kolter, "OptNet" (ICML
    2017), eq. (6)-(8), and Bai et al., "Deep Equilibrium Models" (NeurIPS 2019), Thm. 1.
    """
    if not isinstance(order, int) or order < 1:
        raise ValueError(f"order={order!r}: expected a positive integer (1 for plain gradients)")
    if root.ndim == 0:
        raise ValueError("root is a number: expected shape (*B, n); use root.reshape(1)")
    fixed = root.detach()
    alive = _alive(fixed)
    z = _where(alive, fixed)
    r = residual(z)
    if r.shape != z.shape:
        raise ValueError(
            f"residual(root) has shape {tuple(r.shape)}, but root has shape {tuple(z.shape)}: "
            "F must have as many equations as unknowns, sample by sample"
        )
    if operator is None:
        operator = Dense.at(residual, z)
    for k in range(order):
        r = residual(z) if k else r
        # A dead sample's residual may be NaN; where() keeps it, and its gradient, out.
        z = z - _applied(_Solve, _where(alive, r), operator, False, order, *_held(operator))
    return z if alive is None else torch.where(alive, z, fixed)


def _alive(root: Tensor) -> Tensor | None:
    """Which samples are finite, `(*B, 1)`; None for all, where asking costs next to nothing."""
    cheap = root.device.type == "cpu" and not torch._C._are_functorch_transforms_active()
    if cheap and math.isfinite(root.sum().item()):  # what is not finite makes the sum so
        return None
    return root.isfinite().all(-1, keepdim=True)


def _where(alive: Tensor | None, v: Tensor) -> Tensor:
    return v if alive is None else torch.where(alive, v, 0.0)


def _applied(function: type[Function], *args: Any) -> Tensor:
    """`function.apply`, without what torch does for defaults and transforms that are not there."""
    if torch._C._are_functorch_transforms_active():
        out: Tensor = function.apply(*args)
    else:
        out = super(Function, function).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]
    return out


def _held(operator: Operator) -> tuple[Tensor, ...]:
    return tuple(t.detach() for t in operator.tensors())


class _Solve(Function):
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
        if not (torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()):
            return _solved(grads[0], ctx.operator.rebuild(*held), not ctx.transpose), *rest
        u = _Solve.apply(grads[0], ctx.operator, not ctx.transpose, None, *held)
        return _guarded(u, v, ctx.order), *rest

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        v, *held = ctx.saved_tensors
        u = _Solve.apply(tangents[0], ctx.operator, ctx.transpose, None, *held)
        return _guarded(u, v, ctx.order)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        if inputs[1].captures:
            raise RuntimeError(
                f"torch.func.vmap (or jacrev, jacfwd, hessian) over an implicit layer whose "
                f"operator is {type(inputs[1]).__name__}: it closes over tensors that vmap cannot "
                "reach; make the mapped dimension a batch dimension, or use operator=None (Dense)"
            )
        v, operator, transpose, order, *held = _batch_first(info, in_dims, inputs)
        return _Solve.apply(v, operator, transpose, order, *held), 0


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
