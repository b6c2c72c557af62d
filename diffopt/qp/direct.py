"""From arguments to answer: the short way where a compiled core settles, the long one elsewhere.

Nothing is copied, stacked or measured again, which for small problems costs more than the solve.
The derivative is that of `implicit_root`, as always, of the same conditions.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..implicit import implicit_root_of
from ..solution import Part
from ..tree import put, take
from .arguments import SHAPES, Data
from .certificates import no_proof
from .conditions import PullBack
from .cores import Lanes, Run
from .fused import Factors, as_found, core_for, run
from .interior_point import Setup
from .kkt import Blocks
from .layer import Answer, Facts, solve
from .options import Options
from .point import settle
from .problem import QP, Residuals
from .root import KKTOperator, side_by_side


def solve_data(data: Data, options: Options, warm: Blocks | None) -> Answer:
    """The answer for the problem that `data` describe, by the short way as far as it goes."""
    sizes = (data.batch.numel(), data.n, data.m, data.e, data.bounded)
    wanted = torch.is_grad_enabled() and any(v.requires_grad for v in data.given.values())
    core = core_for(options.solver, data.like.device) if _plain(options) else None
    found = run(core, data.given, sizes, options.solver, warm, keep=wanted)
    if found is None or found.settled == 0:
        return solve(_problem(data, options), options, warm)
    left = (~found.lanes.settled).nonzero().flatten() if found.settled < sizes[0] else None
    if left is not None:
        found.lanes.x[left] = 0.0  # nothing of it is used, not even as a factor of zero
    answer = _answer(data, found, options)
    return answer if left is None else _completed(data, answer, left, options, warm)


def _answer(data: Data, found: Run, options: Options) -> Answer:
    """What the core found, in the graph of the data."""
    lanes, m, n = found.lanes, data.m, data.n
    widths = n, data.e, m + n if data.bounded else m
    x = lanes.x
    if found.tape is not None:
        given = [data.given.get(name) for name in SHAPES]
        shared = tuple(v is not None and v.shape[0] == 1 != len(x) for v in given)
        versions = _versions(data)

        def rescue(samples: Tensor, v: Tensor, transpose: bool) -> tuple[Tensor, Tensor]:
            if versions != _versions(data):
                raise RuntimeError(
                    "an argument of solve_qp was changed in place after the solve: its derivative "
                    "needs the old values; clone it before the change, or call backward first"
                )
            return _by_reference(data, options, lanes, samples, v, transpose)

        known = None if found.settled == len(x) else lanes.settled
        rest = found.core, found.layout, known, rescue, options.on_failure
        operator = Factors(found.tape, *rest)
        pull_back = PullBack(found.core, found.layout.sizes, shared)
        x = implicit_root_of(x, operator, pull_back, (x, lanes.active), given)
    return Answer(Blocks(*x.split_with_sizes(widths, -1)), _facts(data, lanes))


def _versions(data: Data) -> list[int]:
    """How often each tensor was changed in place."""
    return [0 if v.is_inference() else v._version for v in data.given.values()]


def _facts(data: Data, lanes: Lanes) -> Facts:
    """What is known of settled samples besides."""
    n, m, size, device = data.n, data.m, len(lanes.x), lanes.x.device
    *residuals, error = lanes.facts.unbind(-1)
    return Facts(
        status=torch.zeros((size,), dtype=torch.int64, device=device),
        steps=lanes.steps,
        residuals=Residuals(*residuals),
        polished=lanes.polished,
        error=error,
        weak=torch.zeros((size, m + n), dtype=torch.bool, device=device),
        certificate=no_proof(size, n, m, data.e, lanes.x),
    )


def _completed(
    data: Data, answer: Answer, left: Tensor, options: Options, warm: Blocks | None
) -> Answer:
    """`answer` with the samples `left` solved the long way."""
    given = {k: v if v.shape[0] == 1 else v[left] for k, v in data.given.items()}
    part = replace(data, given=given, batch=torch.Size([len(left)]))
    start = None if warm is None else take(warm, left)
    places = Part(left.tolist(), data.batch.numel())
    rest = solve(_problem(part, options), options, start, places)
    x = Blocks(*(a.index_copy(0, left, b) for a, b in zip(answer.x, rest.x, strict=True)))
    return Answer(x, put(answer.facts, left, rest.facts))


def _problem(data: Data, options: Options) -> QP:
    qp = data.qp()
    return qp.proximal(options.proximal) if options.proximal else qp


def _plain(options: Options) -> bool:
    """Whether first derivatives of the solutions themselves, in reverse mode, are all."""
    if options.order != 1 or options.smoothing is not None or options.proximal:
        return False
    # torch.no_grad does not end the forward mode
    return not (torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0)


def _by_reference(
    data: Data, options: Options, lanes: Lanes, samples: Tensor, v: Tensor, transpose: bool
) -> tuple[Tensor, Tensor]:
    """(x, relative residual) of the reference engine, whose solves try harder."""
    constant = replace(data, given={k: v.detach() for k, v in data.given.items()})
    qp = take(constant.qp(), samples)
    setup = Setup.of(qp, options.solver)
    point = settle(qp, as_found(qp, setup, take(lanes, samples)), options.degenerate)
    operator, scaling = KKTOperator.at(point, "ignore"), setup.scaling
    at_rows = torch.where(point.t < 1, scaling.rows, 1 / scaling.y)
    unit = side_by_side(scaling.dual, scaling.equal, at_rows)  # its rows over those here
    out = operator.solve_transpose(v) if transpose else operator.solve(v * unit)
    return out.value * unit if transpose else out.value, out.residual
