"""A deep equilibrium model as a module: `DEQ`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrize import ParametrizationList

from ..fixed_point import Anderson, FixedPoint, FixedPointSolver, fixed_point
from ..fixed_point.backward import Backward, BackwardRecord
from ..fixed_point.state import State
from ..solution import OnFailure, succeeded
from ..tree import mapped


class DEQ(nn.Module):
    """A layer whose output is the z with z = f(z, x): an infinitely deep, weight-tied network.

    f is any module. While a fixed point is looked for, and when it is differentiated, f is one
    and the same function of z: dropout keeps its masks, batch normalisation and the
    parametrisations of torch (spectral_norm) their statistics; in training these are updated once
    a call, at the fixed point.

    Args:
        f: module with ``f(z, *inputs)`` of the shape of z; sample i from sample i only.
        start: z0 from the inputs; default: zeros like the first input.
        solver: in training mode; default ``Anderson(rtol=1e-4)``.
        eval_solver: in evaluation mode; default: as in training.
        operator, on_failure: see `fixed_point`.

    Attributes:
        last: the `FixedPoint` of the last call, detached: `status`, `steps`, `residual`.

    Raises:
        ValueError: as `fixed_point`.

    Example:
        >>> layer = DEQ(nn.Bilinear(1, 1, 1, bias=False))       # z = w z x
        >>> z = layer(torch.ones(3, 1))
        >>> layer.last.status
        tensor([0, 0, 0])

    Source: Bai, Kolter & Koltun, "Deep Equilibrium Models" (NeurIPS 2019).
    """

    def __init__(
        self,
        f: nn.Module,
        *,
        start: Callable[..., State] | None = None,
        solver: FixedPointSolver | None = None,
        eval_solver: FixedPointSolver | None = None,
        operator: Backward | None = None,
        on_failure: OnFailure = "warn",
    ) -> None:
        super().__init__()
        self.f = f
        self.start = start
        self.solver = Anderson(rtol=1e-4) if solver is None else solver
        self.eval_solver = self.solver if eval_solver is None else eval_solver
        self.operator = operator
        self.on_failure: OnFailure = on_failure
        self.last: FixedPoint | None = None

    def forward(self, *inputs: Any, z0: State | None = None) -> Any:
        """z, like z0: for example the z of an earlier call (a warm start)."""
        return self.solve(*inputs, z0=z0).z

    def solve(self, *inputs: Any, z0: State | None = None) -> FixedPoint:
        """As `forward`, with status, steps and residuals."""
        solver = self.solver if self.training else self.eval_solver
        out = fixed_point(
            self._frozen(inputs), self._begin(inputs, z0), solver=solver, operator=self.operator,
            on_failure=self.on_failure,
        )  # fmt: skip
        if _counting(self.f):
            with torch.no_grad():
                self.f(mapped(out.z, Tensor.detach), *inputs)
        self.last = replace(out, z=mapped(out.z, Tensor.detach), backward=BackwardRecord())
        return out

    def states(self, *inputs: Any, at: Sequence[int], z0: State | None = None) -> list[Any]:
        """The states after so many steps, for losses on the way (fixed-point correction).

        Each is f of the solver's iterate, differentiable through that one evaluation (the
        phantom gradient with one term).

        Args:
            at: numbers of steps, increasing.
        """
        if not at or any(b <= a for a, b in zip([0, *at], at, strict=False)):
            raise ValueError(f"at={at!r}: expected increasing positive numbers of steps")
        f, z, done, out = self._frozen(inputs), self._begin(inputs, z0), 0, []
        for k in at:
            some = replace(self.solver, max_steps=k - done)  # type: ignore[type-var]
            with torch.no_grad():
                z, done = fixed_point(f, z, solver=some, on_failure="ignore").z, k
            out.append(f(z))
        return out

    def log(self, writer: Any, step: int, tag: str = "deq") -> None:
        """Write the statistics of the last call to a TensorBoard `SummaryWriter`."""
        if self.last is None:
            raise ValueError("log() before the first call: there is nothing to write yet")
        writer.add_scalar(f"{tag}/steps", self.last.steps.double().mean(), step)
        writer.add_scalar(f"{tag}/residual", self.last.residual.max(), step)
        writer.add_scalar(f"{tag}/failed", (~succeeded(self.last.status)).sum(), step)

    def _begin(self, inputs: tuple[Any, ...], z0: State | None) -> State:
        if z0 is not None:
            return z0
        if self.start is not None:
            return self.start(*inputs)
        if not inputs or not isinstance(inputs[0], Tensor):
            raise ValueError("the first input is no tensor to make z0 from: pass z0 or start")
        return torch.zeros_like(inputs[0])

    def _frozen(self, inputs: tuple[Any, ...]) -> Callable[[State], Any]:
        """z -> f(z, *inputs), the same function at every call."""
        counting = _counting(self.f)
        drops = any(isinstance(m, _DropoutNd) and m.training and m.p for m in self.f.modules())
        seed = int(torch.randint(2**62, ())) if drops else None
        # As they are now: the backward pass comes after they were updated.
        buffers = {k: v.clone() for k, v in self.f.named_buffers()} if counting else {}

        def f(z: State) -> Any:
            with _evaluating(counting), _seeded(seed, z):
                return functional_call(self.f, buffers, (z, *inputs))

        return f if seed is not None or counting else lambda z: self.f(z, *inputs)


def _counting(f: nn.Module) -> list[nn.Module]:
    """The modules inside f that a call in training mode changes."""
    lists = (m for m in f.modules() if isinstance(m, ParametrizationList))
    inside = [part for parts in lists for part in parts]
    norms = [m for m in f.modules() if isinstance(m, _BatchNorm)]
    return [m for m in [*inside, *norms] if m.training and any(True for _ in m.buffers())]


@contextmanager
def _evaluating(modules: list[nn.Module]) -> Iterator[None]:
    for m in modules:
        m.eval()
    try:
        yield
    finally:
        for m in modules:
            m.train()


@contextmanager
def _seeded(seed: int | None, z: State) -> Iterator[None]:
    """The same random numbers at every entry, and none of them taken from those outside."""
    if seed is None:
        yield
        return
    device = (z if isinstance(z, Tensor) else z[0]).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
