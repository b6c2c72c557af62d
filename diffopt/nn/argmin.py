"""The minimiser of a smooth problem as a module: `ArgminLayer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..argmin import ArgminSolution, argmin

OPTIONS = ("solver", "order", "degenerate", "on_failure")


class ArgminLayer(nn.Module):
    """A layer whose output minimises a smooth function under smooth constraints; see `argmin`.

        minimise f(z, *x)    subject to    c(z, *x) <= 0,   e(z, *x) = 0,   lb <= z <= ub

    The functions take z, `(*B, n)`, and the inputs of the call. One that is a module has its
    parameters learned with those of the layer; so has an lb or ub that is an `nn.Parameter`.

    The generic layer of the "Deep Implicit Layers" tutorial, ``OptLayer(variables, parameters,
    objective, inequalities, equalities)``, whose functions are of one sample, is
    ``ArgminLayer(torch.vmap(objective), torch.vmap(inequality), torch.vmap(equality), n=n)``, with
    several inequalities joined by torch.cat. It takes the parameters, a batch of each, at the call.

    Args:
        objective: (z, *inputs) -> `(*B)`.
        inequality: (z, *inputs) -> `(*B, m)`, or None.
        equality: (z, *inputs) -> `(*B, e)`, or None.
        lb, ub: numbers, or tensors that broadcast to `(*B, n)`.
        n: number of unknowns; a call begins at zeros, one sample for each of the first input.
        start: in place of n: (*inputs) -> z0, `(*B, n)`.
        options: further keyword arguments of `argmin` (solver, order, ...).

    Raises:
        ValueError: if there is no option of a name given, both or none of n and start are given,
            or a call without inputs has no z0; otherwise as `argmin`.

    Example:
        The point of the unit ball nearest to each input:

        >>> nearest = ArgminLayer(
        ...     lambda z, x: (z - x).square().sum(-1),
        ...     lambda z, x: z.square().sum(-1, True) - 1, n=2)
        >>> nearest(torch.tensor([[3.0, 4.0], [0.25, 0.5]]))
        tensor([[0.6000, 0.8000],
                [0.2500, 0.5000]])
    """

    lb: Tensor | float | None
    ub: Tensor | float | None

    def __init__(
        self,
        objective: Callable[..., Tensor],
        inequality: Callable[..., Tensor] | None = None,
        equality: Callable[..., Tensor] | None = None,
        *,
        lb: Tensor | float | None = None,
        ub: Tensor | float | None = None,
        n: int | None = None,
        start: Callable[..., Tensor] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        for name in options:
            if name not in OPTIONS:
                raise ValueError(f"{name!r} is no option of argmin: expected one of {OPTIONS}")
        if (n is None) == (start is None):
            raise ValueError(
                "give n, the number of unknowns, or start, which makes z0: one of them"
            )
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise ValueError(f"n={n!r}: expected a positive whole number")
        self.objective, self.inequality, self.equality = objective, inequality, equality
        self.n, self.start, self.options = n, start, options
        for name, value in (("lb", lb), ("ub", ub)):
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, *inputs: Any, z0: Tensor | None = None) -> Tensor:
        """The minimiser z, `(*B, n)`, found from z0, `(*B, n)`."""
        return self.solve(*inputs, z0=z0).z

    def solve(
        self, *inputs: Any, z0: Tensor | None = None, warm_start: ArgminSolution | None = None
    ) -> ArgminSolution:
        """The whole `ArgminSolution`: multipliers, status and residuals too."""
        inequality, equality = self.inequality, self.equality
        return argmin(
            _bound(self.objective, inputs),
            self._begin(inputs) if z0 is None else z0,
            inequality=None if inequality is None else _bound(inequality, inputs),
            equality=None if equality is None else _bound(equality, inputs),
            lb=self.lb,
            ub=self.ub,
            warm_start=warm_start,
            **self.options,
        )

    def _begin(self, inputs: tuple[Any, ...]) -> Tensor:
        if self.start is not None:
            return self.start(*inputs)
        if not inputs or not isinstance(inputs[0], Tensor) or inputs[0].ndim == 0:
            raise ValueError("the first input is no batch to make z0 for: pass z0 or start")
        x = inputs[0]
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return torch.zeros(len(x), self.n or 0, dtype=dtype, device=x.device)

    def extra_repr(self) -> str:
        """The unknowns, bounds and options given."""
        given = {"n": self.n, "lb": self.lb, "ub": self.ub}
        shown = {k: _shown(v) for k, v in given.items() if v is not None} | self.options
        return ", ".join(f"{name}={value}" for name, value in shown.items())


def _bound(f: Callable[..., Tensor], inputs: tuple[Any, ...]) -> Callable[[Tensor], Tensor]:
    return lambda z: f(z, *inputs)


def _shown(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"{value:g}"
