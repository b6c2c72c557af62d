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
from torch.nn.utils.parametrize import ParametrizationList

from ..fixed_point import Anderson, FixedPoint, FixedPointSolver, fixed_point
from ..fixed_point.backward import Backward
from ..solution import OnFailure, succeeded
from ..state import State
from ..tree import mapped


class DEQ(nn.Module):
    """A layer whose output is the z with z = f(z, x): an infinitely deep, weight-tied network.

    f is any module. While a fixed point is looked for, and when it is differentiated, f is one
    and the same function of z: in training it draws the same random numbers at each evaluation
    (dropout keeps its masks), and batch normalisation and the parametrisations of torch
    (spectral_norm) keep their statistics, which are updated once a call, at the fixed points. The
    backward pass comes before parameters and buffers change, or raises.

    Args:
        f: module with ``f(z, *inputs)`` of the shape of z; sample i from sample i only.
        start: z0 from the inputs; default: zeros like the first input.
        solver: in training mode; default ``Anderson(rtol=1e-4)``.
        eval_solver: in evaluation mode; default: as in training.
        operator, on_failure: see `fixed_point`.

    Attributes:
        last: the `FixedPoint` of the last call, detached (status, steps, residual, backward).

    Raises:
        ValueError: as `fixed_point`.
        RuntimeError: in the backward pass, if a parameter or buffer of f was changed.

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
        return self._solve(inputs, z0, ())[0]

    def _solve(
        self, inputs: tuple[Any, ...], z0: State | None, at: Sequence[int]
    ) -> tuple[FixedPoint, list[Any]]:
        """The fixed point, and f of the iterates after `at` steps."""
        solver = self.solver if self.training else self.eval_solver
        counting = _counting(self.f)
        f, start = self._frozen(inputs, counting), self._begin(inputs, z0)
        way = [f(_after(k, f, start, solver)) for k in at]
        out = fixed_point(
            f, start, solver=solver, operator=self.operator, on_failure=self.on_failure
        )
        if counting:
            self._count(out, inputs)
        if not torch._C._are_functorch_transforms_active():
            z = mapped(out.z, lambda v: v.detach().clone())
            self.last = replace(out, z=z)
        return out, way

    def _count(self, out: FixedPoint, inputs: tuple[Any, ...]) -> None:
        """Update the statistics of f, from the samples that have a fixed point."""
        good = succeeded(out.status).nonzero().flatten()
        size = len(out.status)
        if len(good) == 0 or len(good) == 1 != size:
            return

        def own(v: Any) -> Any:
            return v[good] if isinstance(v, Tensor) and v.ndim and len(v) == size else v

        with torch.no_grad():
            self.f(mapped(out.z, lambda v: v.detach()[good]), *map(own, inputs))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "last": None}

    def states(self, *inputs: Any, at: Sequence[int], z0: State | None = None) -> list[Any]:
        """As `forward`, with states on the way for losses of their own (fixed-point correction).

        Each is f of the best iterate after so many steps of the same solve, with the same random
        numbers and statistics, and is differentiable through that one evaluation (the phantom
        gradient with one term). Each costs so many steps more.

        Args:
            at: numbers of steps, increasing.

        Returns:
            The states after `at` steps, and then z, the fixed point.

        Raises:
            ValueError: if `at` does not increase; otherwise as `forward`.

        Source: Bai, Geng, Savani & Kolter, "Deep Equilibrium Optical Flow Estimation" (CVPR 2022).
        """
        if not at or any(b <= a for a, b in zip([0, *at], at, strict=False)):
            raise ValueError(f"at={at!r}: expected increasing positive numbers of steps")
        out, way = self._solve(inputs, z0, at)
        return [*way, out.z]

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
        x = inputs[0]
        return torch.zeros_like(
            x, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32
        )

    def _frozen(self, inputs: tuple[Any, ...], counting: set[nn.Module]) -> Callable[[State], Any]:
        """z -> f(z, *inputs), the same function at every call, also of the backward pass."""
        modes = {m: m.training and m not in counting for m in self.f.modules()}
        seed = int(torch.randint(2**62, ())) if any(modes.values()) else None
        # As they are now: the statistics will have been updated when the backward pass comes.
        buffers = {k: v.clone() for k, v in self.f.named_buffers()} if counting else {}
        held = [*self.f.parameters(), *([] if counting else self.f.buffers())]
        versions = _versions(held)

        def f(z: State) -> Any:
            if versions != _versions(held):
                raise RuntimeError(
                    "a parameter or buffer of f was changed in place during the solve, or between "
                    "it and its backward pass: call backward before the optimiser's step, and in "
                    "place of modules that count evaluations use torch.nn.utils.parametrizations"
                )
            with _in_modes(modes), _seeded(seed, z):
                return (
                    functional_call(self.f, buffers, (z, *inputs))
                    if buffers
                    else self.f(z, *inputs)
                )

        return f


def _after(steps: int, f: Callable[[State], Any], start: State, solver: FixedPointSolver) -> State:
    """The best iterate of the first `steps` steps."""
    some: FixedPointSolver = replace(solver, max_steps=steps)  # type: ignore[type-var]
    with torch.no_grad():
        return fixed_point(f, start, solver=some, on_failure="ignore").z


def _counting(f: nn.Module) -> set[nn.Module]:
    """The modules inside f that a call in training mode changes."""
    lists = (m for m in f.modules() if isinstance(m, ParametrizationList))
    inside = [part for parts in lists for part in parts]
    norms = [m for m in f.modules() if isinstance(m, _BatchNorm)]
    return {m for m in [*inside, *norms] if m.training and any(True for _ in m.buffers())}


def _versions(held: list[Tensor]) -> list[int]:
    """How often each tensor was changed in place."""
    return [0 if v.is_inference() else v._version for v in held]


@contextmanager
def _in_modes(modes: dict[nn.Module, bool]) -> Iterator[None]:
    """Each module in training mode or not, and afterwards as it was."""
    before = {m: m.training for m, mode in modes.items() if m.training != mode}
    for m in before:
        m.training = modes[m]
    try:
        yield
    finally:
        for m, mode in before.items():
            m.training = mode


@contextmanager
def _seeded(seed: int | None, z: State) -> Iterator[None]:
    """The same random numbers at every entry, and none of them taken from those outside."""
    if seed is None:
        yield
        return
    device = (z if isinstance(z, Tensor) else z[0]).device
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)  # a thousandth of what torch.manual_seed takes
        if on_cuda:
            torch.cuda.manual_seed(seed)
        yield
