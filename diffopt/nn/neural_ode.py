"""A neural ordinary differential equation as a module: `NeuralODE`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..fixed_point import FixedPoint, FixedPointSolver
from ..fixed_point.backward import Backward
from ..ode import ODESolution, odeint
from ..ode.adjoint import Adjoint
from ..ode.methods import Solver
from ..ode.steady import TimeStepping, steady_state
from ..solution import OnFailure
from ..state import State
from ..tree import mapped


class NeuralODE(nn.Module):
    """A layer whose output is the state at the last time of y' = f(t, y), from y0 at the first.

    f is any module; it must be one function throughout a call, as for `odeint`: no dropout, and
    no batch normalisation in training mode.

    The flow of an ODE keeps the topology of its inputs: in one dimension it is increasing. With
    `augment` zeros appended to the state there is room to pass by.

    Args:
        f: ``f(t, y, *inputs)`` of the shape of y, sample i from sample i only; t comes as
            `(B, 1, ..., 1)`.
        t: times, the first that of y0: numbers, or a tensor `(T,)` or `(B, T)`; an
            `nn.Parameter` is learned.
        augment: how many zeros are appended to dimension 1 of y0: to vectors `(B, n)`, or as
            channels to images `(B, C, H, W)`.
        keep: whether what became of these is part of the output.
        solver, adjoint, on_failure: see `odeint`.

    Attributes:
        last: the `ODESolution` of the last call, detached (status, steps, evaluations).

    Raises:
        ValueError: as `odeint`, and if `augment` does not fit.

    Example:
        y' = y, exp(1) times what comes in:

        >>> layer = NeuralODE(lambda t, y: y)
        >>> layer(torch.tensor([[1.0], [2.0]])), layer.last.status
        (tensor([[2.7183], [5.4366]]), tensor([0, 0]))

    Source: Chen, Rubanova, Bettencourt & Duvenaud, "Neural Ordinary Differential Equations"
    (NeurIPS 2018); augmented: Dupont, Doucet & Teh, "Augmented Neural ODEs" (NeurIPS 2019).
    """

    t: Tensor

    def __init__(
        self,
        f: Callable[..., Any],
        t: Sequence[float] | Tensor = (0.0, 1.0),
        *,
        augment: int = 0,
        keep: bool = False,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
        on_failure: OnFailure = "warn",
    ) -> None:
        super().__init__()
        if isinstance(augment, bool) or not isinstance(augment, int) or augment < 0:
            raise ValueError(f"augment={augment!r}: expected a number of zeros, 0 for none")
        self.f = f
        times = t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64)
        if isinstance(times, nn.Parameter):
            self.t = times
        else:
            self.register_buffer("t", times, persistent=False)
        self.augment, self.keep = augment, keep
        self.solver, self.adjoint = solver, adjoint
        self.on_failure: OnFailure = on_failure
        self.last: ODESolution | None = None

    def forward(self, y0: State, *inputs: Any) -> Any:
        """The state at the last time, like y0 (with `keep`, `augment` more entries)."""
        return self.solve(y0, *inputs).y1

    def solve(self, y0: State, *inputs: Any, t: Tensor | None = None) -> ODESolution:
        """The whole `ODESolution`: states at all times, status, steps and evaluations.

        Args:
            t: times in place of the module's, `(T,)` or `(B, T)`.
        """
        out = odeint(
            lambda t, y: self.f(t, y, *inputs),
            self._begin(y0),
            self.t if t is None else t,
            solver=self.solver,
            adjoint=self.adjoint,
            on_failure=self.on_failure,
        )
        out = replace(out, ys=self._end(out.ys, dim=2))
        if not torch._C._are_functorch_transforms_active():
            ys = mapped(out.ys, lambda v: v.detach().clone())
            self.last = replace(out, ys=ys, t=out.t.detach())
        return out

    def steady(
        self,
        y0: State,
        *inputs: Any,
        solver: TimeStepping | FixedPointSolver | None = None,
        operator: Backward | None = None,
    ) -> FixedPoint:
        """Where y ends if it goes on for ever, as a `FixedPoint`; see `steady_state`.

        t is held at the last time: meant for an f without t.
        """
        begin = self._begin(y0)
        first = begin if isinstance(begin, Tensor) else begin[0]
        last = self.t.detach()[..., -1].to(first.dtype)
        t = last.reshape(-1, *[1] * (first.ndim - 1)).expand(len(first), *[1] * (first.ndim - 1))
        out = steady_state(
            lambda y: self.f(t, y, *inputs),
            begin,
            solver=solver,
            operator=operator,
            on_failure=self.on_failure,
        )
        return replace(out, z=self._end(out.z, dim=1))

    def extra_repr(self) -> str:
        """What the layer was given."""
        names = ("augment", "solver", "adjoint")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "last": None}

    def _begin(self, y0: State) -> State:
        """y0 with the zeros appended."""
        if not self.augment:
            return y0
        if not isinstance(y0, Tensor) or y0.ndim < 2:
            kind = f"tensor {tuple(y0.shape)}" if isinstance(y0, Tensor) else type(y0).__name__
            raise ValueError(
                f"y0 is a {kind}, and augment={self.augment}: expected a tensor (B, n, ...), to "
                "whose dimension 1 zeros can be appended; append them yourself to other states"
            )
        return torch.cat([y0, y0.new_zeros(len(y0), self.augment, *y0.shape[2:])], 1)

    def _end(self, y: Any, dim: int) -> Any:
        """y without what was appended."""
        if not self.augment or self.keep:
            return y
        return y.narrow(dim, 0, y.shape[dim] - self.augment)
