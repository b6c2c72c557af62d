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
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .nodes import Solve, Step, applied
from .operators import Dense, Operator


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
    check_order(order)
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
        z = z - applied(Solve, _where(alive, r), operator, False, order, *_held(operator))
    return z if alive is None else torch.where(alive, z, fixed)


def implicit_root_of(
    root: Tensor,
    operator: Operator,
    pull_back: Callable[..., Sequence[Tensor | None]],
    facts: Sequence[Tensor],
    data: Sequence[Tensor | None],
) -> Tensor:
    """As `implicit_root` with order 1, where F(z*) = 0 to the last bit and the vjp of F is known.

    One node in the graph instead of those of F and of the solve, which is most of what the
    derivative of a small problem costs.

    Args:
        root: z*, `(*B, n)`, finite. Detached here.
        operator: A at the root.
        pull_back: (u, needed, *facts) -> u^T dF/dtheta for each theta of `data`, None where it is
            not `needed`; differentiable in u.
        facts: tensors that `pull_back` reads, constants; saved as autograd saves tensors.
        data: theta, None where absent.
    """
    held, root = _held(operator), root.detach()
    count = len(held), len(facts)
    step: Tensor = Step.apply(operator, pull_back, count, root, *held, *facts, *data)
    return root + step


def check_order(order: object) -> None:
    """Raise a `ValueError` unless `order` is a number of derivatives."""
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise ValueError(f"order={order!r}: expected a positive integer (1 for plain gradients)")


def still(r: Tensor) -> Tensor:
    """Zero, with the derivative of r; of an entry that is not finite without one.

    As a residual it keeps the root where it is: the Newton step has nothing to solve.
    """
    zero = r - r.detach()
    return zero if _all_finite(r) else zero.nan_to_num(0.0)  # which keeps a copy


def _alive(root: Tensor) -> Tensor | None:
    """Which samples are finite, `(*B, 1)`; None for all, where asking costs next to nothing."""
    return None if _all_finite(root) else root.isfinite().all(-1, keepdim=True)


def _all_finite(v: Tensor) -> bool:
    """Whether v is known to be finite; asked only where that costs next to nothing."""
    if v.device.type != "cpu" or torch._C._are_functorch_transforms_active():
        return False
    return math.isfinite(v.detach().sum().item())  # what is not finite makes the sum so


def _where(alive: Tensor | None, v: Tensor) -> Tensor:
    return v if alive is None else torch.where(alive, v, 0.0)


def _held(operator: Operator) -> tuple[Tensor, ...]:
    return tuple(t.detach() for t in operator.tensors())
