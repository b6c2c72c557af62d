"""`solve_qp` outside of `torch.compile`: arguments in, differentiable solution out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from .answer import QPSolution, as_blocks, empty, shaped
from .arguments import check
from .direct import solve_data
from .options import Options
from .relaxed import solve_closest, solve_elastic


def solve_eager(
    arguments: Mapping[str, Any], options: Options, warm_start: QPSolution | None
) -> QPSolution:
    """The solution of the QPs that `arguments` of `solve_qp` describe."""
    device = arguments["p"].device.type if isinstance(arguments["p"], Tensor) else "cpu"
    if torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return solve_eager(arguments, options, warm_start)
    data, dtype = check(**arguments, dtype=options.solver.dtype), common_dtype(arguments)
    options.solver.check_device(data.like)
    if data.batch.numel() == 0:
        return empty(data.qp(), data.batch, dtype, options.infeasible != "report")
    warm = None if warm_start is None else as_blocks(data, warm_start)
    if options.infeasible == "report":
        return shaped(data, solve_data(data, options, warm), None, dtype)
    relaxed = solve_closest if options.infeasible == "closest" else solve_elastic
    qp = data.qp().proximal(options.proximal)
    return shaped(data, *relaxed(qp, options, warm), dtype)


def common_dtype(arguments: Mapping[str, Any]) -> torch.dtype:
    """What the tensors with a dimension promote to; the default dtype if that is not real."""
    dtypes = [a.dtype for a in arguments.values() if isinstance(a, Tensor) and a.ndim]
    dtype = reduce(torch.promote_types, dtypes)
    return dtype if dtype.is_floating_point else torch.get_default_dtype()
