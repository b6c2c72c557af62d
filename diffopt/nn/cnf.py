"""A continuous normalising flow as a module: `CNF`, and the traces that it integrates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from ..ode import ODESolution, odeint
from ..ode.adjoint import Adjoint
from ..ode.methods import Solver
from ..solution import OnFailure, check_counts, check_on_failure
from ..state import State
from ..tree import mapped

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ExactTrace:
    """The trace of df/dy itself: d vector-Jacobian products for every evaluation of f, at once."""

    def probes(self, y: Tensor) -> Tensor:
        """The unit vectors, `(d, B, d)`, for y `(B, d)`."""
        d = y.shape[1]
        return torch.eye(d, dtype=y.dtype, device=y.device).unsqueeze(1).expand(d, *y.shape)


@dataclass(frozen=True)
class Hutchinson:
    """An unbiased estimate of the trace: the mean of v'(df/dy) v over random v with E[vv'] = 1.

    The v of a sample are drawn once a call and kept for the whole solve, so that f remains one
    function of t and y, and the log-density of a sample is unbiased. Its variance for a constant
    S = (df/dy + df/dy')/2 is 2 |S|^2 / samples, for random signs without the diagonal of S.

    Attributes:
        samples: v for each sample of the batch: the vector-Jacobian products for an evaluation.
        gaussian: whether v is standard normal; otherwise its entries are 1 or -1, which has the
            smaller variance.
        generator: on the device of the data; None for that of torch.

    Source: Hutchinson, "A stochastic estimator of the trace of the influence matrix for Laplacian
    smoothing splines" (Commun. Stat. 1989); in flows: Grathwohl et al., "FFJORD" (ICLR 2019).
    """

    samples: int = 1
    gaussian: bool = False
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        check_counts(self, "samples")

    def probes(self, y: Tensor) -> Tensor:
        """v over the root of their number, `(samples, B, d)`, for y `(B, d)`."""
        v = torch.empty(self.samples, *y.shape, dtype=y.dtype, device=y.device)
        if self.gaussian:
            v.normal_(generator=self.generator)
        else:
            v.bernoulli_(0.5, generator=self.generator).mul_(2).sub_(1)
        return v * self.samples**-0.5


class CNF(nn.Module):
    """A density in d dimensions: that of y(t1), if y' = f(t, y), and y(t0) is drawn from `base`.

    Along a solution the log-density changes by d log p / dt = -tr(df/dy). So

        log p(x) = log base(z) - (integral of tr(df/dy) from t0 to t1),

    where z is found from x backwards in time; solution and integral are one state, whose error
    the solver holds to its tolerance. Everything is differentiable in x, z and what f holds. As in
    torch.distributions there are `log_prob` and `sample`; the module itself is `log_prob`.

    Cost: an evaluation is one of f and d vector-Jacobian products, or as many as `Hutchinson` has
    samples, and in training the backward pass of these; a sample costs evaluations of f only.

    Args:
        f: (t, y) -> dy/dt, as for `odeint`: t `(B, 1)`, y `(B, d)`; a module, or a function. It is
            to be twice differentiable in y for a gradient that is continuous: no ReLU.
        base: a distribution with event shape `(d,)`, that remains on its device; or d, for the
            standard normal, which moves with the module, and starts with the dtype of f.
        t: (t0, t1), where the base is, and where the data are; in either order.
        trace: `ExactTrace()` (default), or `Hutchinson()`.
        solver, adjoint, on_failure: see `odeint`; the log-density of a sample that failed is NaN
            under "nan", and else what was found on the way.

    Attributes:
        last: the `ODESolution` of the last call, detached, with the batch flattened: status,
            steps, evaluations.

    Raises:
        ValueError: if an argument has the wrong shape, or is no such object; as `odeint`.
        ConvergenceError: under ``on_failure="raise"``, if a sample failed.

    Accuracy: that of `odeint`, in the log-density too.

    Example:
        y' = y takes z to e z, so that log p(0) = log(1 / sqrt(2 pi)) - 1:

        >>> flow = CNF(lambda t, y: y, 1)
        >>> flow.log_prob(torch.zeros(2, 1, dtype=torch.float64))
        tensor([-1.9189, -1.9189], dtype=torch.float64)
        >>> flow.sample(5).shape
        torch.Size([5, 1])

    Source: Chen, Rubanova, Bettencourt & Duvenaud, "Neural Ordinary Differential Equations"
    (NeurIPS 2018), Theorem 1.
    """

    def __init__(
        self,
        f: Field,
        base: Distribution | int,
        t: Sequence[float] = (0.0, 1.0),
        *,
        trace: ExactTrace | Hutchinson | None = None,
        solver: Solver | None = None,
        adjoint: Adjoint | None = None,
        on_failure: OnFailure = "warn",
    ) -> None:
        super().__init__()
        self.f = f
        self.d = _dimension(base)
        self.t = _interval(t)
        self.trace = ExactTrace() if trace is None else trace
        if not isinstance(self.trace, ExactTrace | Hutchinson):
            raise ValueError(f"trace={trace!r}: expected ExactTrace() or Hutchinson()")
        check_on_failure(on_failure)
        self.solver, self.adjoint = solver, adjoint
        self.on_failure: OnFailure = on_failure
        self.last: ODESolution | None = None
        self._given = base if isinstance(base, Distribution) else None
        held = [v for v in self.parameters() if v.is_floating_point()]
        like = held[0].detach() if held else torch.empty(())
        self.origin: Tensor
        self.register_buffer("origin", like.new_zeros(self.d), persistent=False)

    @property
    def base(self) -> Distribution:
        """The distribution at t0."""
        if self._given is not None:
            return self._given
        return Independent(Normal(self.origin, torch.ones_like(self.origin)), 1)

    def forward(self, x: Tensor) -> Tensor:
        """As `log_prob`."""
        return self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density, in nats, at x `(*B, d)`: `(*B,)`."""
        z, log_det = self.inverse(x)
        return self._base_log_prob(z) + log_det

    def sample(self, shape: int | Sequence[int] = ()) -> Tensor:
        """Draws, `(*shape, d)`, without derivatives; from draws of the base by `transform`."""
        shape = (shape,) if isinstance(shape, int) else shape
        with torch.no_grad():
            z = self.base.sample(torch.Size(shape))
            return self._solved(self.f, z.reshape(-1, self.d), *self.t).view(z.shape)

    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x = y(t1) for y(t0) = z `(*B, d)`, and log|det dx/dz| `(*B,)`."""
        return self._carried(z, "z", *self.t)

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z = y(t0) for y(t1) = x `(*B, d)`, and log|det dz/dx| `(*B,)`."""
        return self._carried(x, "x", *reversed(self.t))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "last": None}

    def _carried(self, y: Tensor, name: str, start: float, end: float) -> tuple[Tensor, Tensor]:
        """y from start to end, and the integral of the trace."""
        _check(y, name, self.d)
        flat = y.reshape(-1, self.d)
        with torch.inference_mode(False):
            probes = self.trace.probes(flat)

        def field(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            slope, trace = _with_trace(self.f, t, state[0], probes)
            return slope, trace.unsqueeze(1)

        at = flat.new_full((len(flat), 1), start)
        recorded = torch.is_grad_enabled() and _needs_graph(self.f, at, flat)
        with torch.set_grad_enabled(recorded):
            y1, log_det = self._solved(field, (flat, torch.zeros_like(at)), start, end)
        return y1.view(y.shape), log_det.view(y.shape[:-1])

    def _solved(self, field: Callable[..., Any], y: State, start: float, end: float) -> Any:
        """The state at the end of the interval."""
        first = y if isinstance(y, Tensor) else y[0]
        times = torch.tensor([start, end], dtype=torch.float64, device=first.device)
        # a trace needs autograd, which inference tensors have not
        recorded = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(recorded):
            y, times = mapped((y, times), lambda v: v.clone() if v.is_inference() else v)
            out = odeint(
                field, y, times, solver=self.solver, adjoint=self.adjoint,
                on_failure=self.on_failure,
            )  # fmt: skip
            self.last = replace(out, ys=mapped(out.ys, lambda v: v.detach()))
        return out.y1

    def _base_log_prob(self, z: Tensor) -> Tensor:
        """log base(z); NaN where z is not finite, which the base may refuse."""
        good = z.isfinite().all(-1)
        if bool(good.all()) and z.numel():
            return self.base.log_prob(z)
        out = z.new_full(good.shape, math.nan)
        if bool(good.any()):
            out[good] = self.base.log_prob(z[good])
        return out


def _with_trace(f: Field, t: Tensor, y: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """f(t, y) `(B, d)`, and the sum of v'(df/dy) v over the v of `probes` `(k, B, d)`, `(B,)`.

    Sample i of f depends on sample i of y only, so that one product serves all samples.
    """
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        y = y if recorded and y.requires_grad else y.detach().requires_grad_()
        slope = f(t, y)
        _check_slope(slope, y)
        products = None
        if slope.requires_grad:
            (products,) = torch.autograd.grad(
                slope, y, probes.to(slope.dtype), create_graph=recorded,
                is_grads_batched=True, allow_unused=True,
            )  # fmt: skip
        trace = (
            y.new_zeros(len(y)) if products is None else (products * probes).sum(2).cumsum(0)[-1]
        )
    return (slope, trace) if recorded else (slope.detach(), trace.detach())


def _needs_graph(f: Field, t: Tensor, y: Tensor) -> bool:
    """Whether y, or what f holds, asks for a gradient; the trace makes a graph of its own."""
    slope = y if y.requires_grad else f(t, y)
    _check_slope(slope, y)
    return slope.requires_grad


def _dimension(base: object) -> int:
    if isinstance(base, Distribution) and len(base.event_shape) == 1 and not base.batch_shape:
        return base.event_shape[0]
    if isinstance(base, int) and not isinstance(base, bool) and base >= 1:
        return base
    raise ValueError(
        f"base={base!r}: expected a torch.distributions.Distribution with event shape (d,) and no "
        "batch shape (see Independent), or the number of dimensions d >= 1"
    )


def _interval(t: Sequence[float]) -> tuple[float, float]:
    ends = tuple(float(v) for v in t)
    if len(ends) != 2 or ends[0] == ends[1] or not all(map(math.isfinite, ends)):
        raise ValueError(f"t={t!r}: expected two finite times, t0 != t1")
    return ends[0], ends[1]


def _check(y: object, name: str, d: int) -> None:
    if not isinstance(y, Tensor) or y.dtype not in (torch.float32, torch.float64):
        kind = f"of {y.dtype}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise ValueError(f"{name} is {kind}: expected a tensor (*B, {d}) in float32 or float64")
    if y.ndim == 0 or y.shape[-1] != d:
        raise ValueError(
            f"{name} has shape {tuple(y.shape)}: expected (*B, {d}), as the base has {d} dimensions"
        )


def _check_slope(slope: object, y: Tensor) -> None:
    if not isinstance(slope, Tensor) or slope.shape != y.shape:
        shape = tuple(slope.shape) if isinstance(slope, Tensor) else type(slope).__name__
        raise ValueError(
            f"f(t, y) is {shape}, but y has shape {tuple(y.shape)}: f must return dy/dt"
        )
