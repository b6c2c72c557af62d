"""`solve_qp` inside `torch.compile`: one custom operator, so that nothing breaks the graph.

The operator runs the eager solve, and its backward operator the eager derivative from the
solution found (a warm start of zero steps). First derivatives in reverse mode only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor

from ..solution import OnFailure
from .answer import QPSolution
from .arguments import SHAPES
from .certificates import Certificate
from .eager import common_dtype, solve_eager
from .interior_point import InteriorPoint
from .options import LPGD, Degenerate, Infeasible, Options
from .problem import Residuals
from .relaxed import Shifts

SETTINGS = tuple(f.name for f in fields(InteriorPoint) if f.name not in ("dtype", "engine"))
WARM = ("z", "lam", "nu", "mu", "status")
# The outputs of the operator, flat, with the sizes of their last dimension, () for none; the
# first six are differentiable.
OUTPUTS = {
    "z": ("n",), "lam": ("m",), "nu": ("e",), "mu": ("n",), "shift_G": ("m",), "shift_A": ("e",),
    "status": (), "iterations": (), "polished": (), "weakly_active": ("m", "n"),
    "primal": (), "dual": (), "gap": (),
    "ray": ("n",), "proof_nu": ("e",), "lam_upper": ("m",), "lam_lower": ("m",),
    "mu_upper": ("n",), "mu_lower": ("n",),
}  # fmt: skip
SMOOTH = 6
OPTION_TYPES = "float[] settings, bool single, float[] numbers, str names"


def solve_compiled(
    arguments: Mapping[str, Any], options: Options, warm_start: QPSolution | None
) -> QPSolution:
    """The solution as `solve_eager` gives it, through the operator."""
    if options.order != 1:
        raise ValueError(
            f"order={options.order} under torch.compile: only first derivatives are available; "
            "call solve_qp outside of the compiled function for more"
        )
    tensors = [_tensor(arguments[name], arguments["p"]) for name in SHAPES]
    warm = [None if warm_start is None else getattr(warm_start, name) for name in WARM]
    out = torch.ops.diffopt.solve_qp(*tensors, *warm, *_encoded(options))
    return _solution(out, options.infeasible != "report")


def _tensor(value: Any, p: Tensor) -> Tensor | None:
    """A number as a tensor without dimensions."""
    if value is None or isinstance(value, Tensor):
        return value
    return torch.full((), float(value), dtype=torch.float64, device=p.device)


def _encoded(options: Options) -> tuple[Any, ...]:
    """The options in types that an operator takes."""
    solver, smoothing = options.solver, options.smoothing
    tau = smoothing.tau if isinstance(smoothing, LPGD) else 0.0
    return (
        [float(getattr(solver, name)) for name in SETTINGS],
        solver.dtype == torch.float32,
        [options.price(), options.kappa() or 0.0, float(tau), float(options.proximal)],
        f"{options.degenerate} {options.infeasible} {options.on_failure} {solver.engine}",
    )


def _decoded(
    settings: Sequence[float], single: bool, numbers: Sequence[float], names: str
) -> Options:
    """The inverse of `_encoded`."""
    types: dict[str, Any] = {f.name: type(f.default) for f in fields(InteriorPoint)}
    held: dict[str, Any] = {k: types[k](v) for k, v in zip(SETTINGS, settings, strict=True)}
    degenerate, infeasible, on_failure, engine = names.split()
    held |= {"dtype": torch.float32 if single else torch.float64, "engine": engine}
    solver = InteriorPoint(**held)
    price, kappa, tau, proximal = numbers
    return Options(
        solver=solver,
        degenerate=cast(Degenerate, degenerate),
        infeasible=cast(Infeasible, infeasible),
        penalty=price if infeasible == "elastic" else None,
        smoothing=LPGD(tau) if tau else kappa or None,
        proximal=proximal,
        on_failure=cast(OnFailure, on_failure),
    )


def _schema(extra: str, outputs: str) -> str:
    given = ", ".join(f"Tensor{'' if k == 'p' else '?'} {k}" for k in SHAPES)
    warm = ", ".join(f"Tensor? warm_{k}" for k in WARM)
    return f"({given}, {warm}, {extra}{OPTION_TYPES}) -> {outputs}"


def _flat(sol: QPSolution) -> list[Tensor]:
    """The outputs in the order of `OUTPUTS`."""
    none = sol.lam.new_zeros(sol.lam.shape), sol.nu.new_zeros(sol.nu.shape)
    shifts = none if sol.shifts is None else sol.shifts
    facts = sol.status, sol.iterations, sol.polished
    shared = sol.weakly_active, *sol.certificate  # perhaps one zero for all: an operator's are own
    weak, *proof = (v.clone(memory_format=torch.contiguous_format) for v in shared)
    return [sol.z, sol.lam, sol.nu, sol.mu, *shifts, *facts, weak, *sol.residuals, *proof]


def _solution(out: Sequence[Tensor], relaxed: bool) -> QPSolution:
    """The inverse of `_flat`."""
    z, lam, nu, mu, shift_G, shift_A, status, iterations, polished, weak, *rest = out
    return QPSolution(
        z=z,
        lam=lam,
        nu=nu,
        mu=mu,
        status=status,
        iterations=iterations,
        residuals=Residuals(*rest[:3]),
        weakly_active=weak,
        polished=polished,
        certificate=Certificate(*rest[3:]),
        shifts=Shifts(shift_G, shift_A) if relaxed else None,
    )


def _warm_start(warm: Sequence[Tensor | None]) -> QPSolution | None:
    """As much of a solution as a warm start reads."""
    if warm[0] is None:
        return None
    z, lam, nu, mu, status = cast(Sequence[Tensor], warm)
    none = Residuals(status, status, status), status, status, Certificate(*[status] * 6)
    return QPSolution(z, lam, nu, mu, status, status, *none)


def _split(values: Sequence[Any]) -> tuple[dict[str, Any], Sequence[Any], Sequence[Any]]:
    """(arguments, warm start, the rest) of the operator's inputs."""
    n, w = len(SHAPES), len(SHAPES) + len(WARM)
    return dict(zip(SHAPES, values[:n], strict=True)), values[n:w], values[w:]


@torch.library.custom_op(
    "diffopt::solve_qp",
    mutates_args=(),
    schema=_schema("", f"({', '.join(['Tensor'] * len(OUTPUTS))})"),
)
def _solve_op(*values: Any) -> tuple[Tensor, ...]:
    arguments, warm, rest = _split(values)
    with torch.no_grad():
        sol = solve_eager(arguments, _decoded(*rest), _warm_start(warm))
    return tuple(v.clone(memory_format=torch.contiguous_format) for v in _flat(sol))


@_solve_op.register_fake
def _(*values: Any) -> tuple[Tensor, ...]:
    arguments, _, _ = _split(values)
    given = {k: v for k, v in arguments.items() if v is not None}
    rows = {k: len(SHAPES[k]) for k in given}
    batch = torch.broadcast_shapes(*(v.shape[: max(v.ndim - rows[k], 0)] for k, v in given.items()))
    sizes = {"n": given["p"].shape[-1]}
    for name, matrix in (("m", "G"), ("e", "A")):
        sizes[name] = given[matrix].shape[-2] if matrix in given else 0
    p, dtype = given["p"], common_dtype(arguments)
    integers = dict.fromkeys(("status", "iterations"), torch.int64)
    flags = dict.fromkeys(("polished", "weakly_active"), torch.bool)
    double = dict.fromkeys(("primal", "dual", "gap"), torch.float64)
    kinds = integers | flags | double

    def empty(name: str, dims: tuple[str, ...]) -> Tensor:
        last = [sum(sizes[d] for d in dims)] if dims else []
        return p.new_empty([*batch, *last], dtype=kinds.get(name, dtype))

    return tuple(empty(name, dims) for name, dims in OUTPUTS.items())


@torch.library.custom_op(
    "diffopt::solve_qp_backward",
    mutates_args=(),
    schema=_schema("Tensor[] grads, bool[] wanted, ", "Tensor[]"),
)
def _backward_op(*values: Any) -> list[Tensor]:
    """The gradients of the wanted arguments, in their order."""
    arguments, warm, (grads, wanted, *rest) = _split(values)
    held = {k: v if v is None else v.detach() for k, v in arguments.items()}
    names = [k for k, want in zip(held, wanted, strict=True) if want]
    warm_start, options = _warm_start(warm), _decoded(*rest)

    def outputs(*leaves: Tensor) -> tuple[Tensor, ...]:
        given = held | dict(zip(names, leaves, strict=True))
        return tuple(_flat(solve_eager(given, options, warm_start))[:SMOOTH])

    # torch.autograd is switched off inside an operator; torch.func is not.
    pullback = torch.func.vjp(outputs, *(held[k] for k in names))[1]
    return [g.clone(memory_format=torch.contiguous_format) for g in pullback(tuple(grads))]


@_backward_op.register_fake
def _(*values: Any) -> list[Tensor]:
    arguments, _, (_, wanted, *_) = _split(values)
    pairs = zip(arguments.values(), wanted, strict=True)
    return [torch.empty_like(v) for v, want in pairs if want]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    arguments, _, ctx.options = _split(inputs)
    ctx.present = [v is not None for v in arguments.values()]
    z, lam, nu, mu, *_ = output
    status = output[list(OUTPUTS).index("status")]
    ctx.save_for_backward(*(v for v in arguments.values() if v is not None), z, lam, nu, mu, status)
    ctx.mark_non_differentiable(*output[SMOOTH:])


def _backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    saved = list(ctx.saved_tensors)
    held = [saved.pop(0) if present else None for present in ctx.present]
    wanted = [bool(w) for w in ctx.needs_input_grad[: len(held)]]
    found = iter(
        torch.ops.diffopt.solve_qp_backward(
            *held, *saved, list(grads[:SMOOTH]), wanted, *ctx.options
        )
    )
    rest = [None] * (len(WARM) + len(ctx.options))
    return (*(next(found) if want else None for want in wanted), *rest)


_solve_op.register_autograd(_backward, setup_context=_setup_context)
