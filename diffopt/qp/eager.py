"""`solve_qp` outside of `torch.compile`: arguments in, differentiable solution out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from .answer import QPSolution, as_blocks, empty, settled, shaped
from .arguments import check
from .direct import solve_direct
from .layer import solve
from .options import Options
from .relaxed import solve_closest, solve_elastic


def solve_eager(
    arguments: Mapping[str, Any], options: Options, warm_start: QPSolution | None
) -> QPSolution:
    """The solution of the QPs that `arguments` of `solve_qp` describe."""
    device = arguments["p"].device.type if isinstance(arguments["p"], Tensor) else "cpu"
    with torch.autocast(device, enabled=False):
        data = check(**arguments, dtype=options.solver.dtype)
        dtype = common_dtype(arguments)
        if warm_start is None:
            found = solve_direct(data, options, None)
            if found is not None:
                return settled(data, *found, dtype)
        qp, batch = data.qp(), data.batch
        if batch.numel() == 0:
            return empty(qp, batch, dtype, options.infeasible != "report")
        qp = qp.proximal(options.proximal) if options.proximal else qp
        warm = None if warm_start is None else as_blocks(qp, warm_start, batch)
        if options.infeasible == "report":
            return shaped(qp, solve(qp, options, warm), None, batch, dtype)
        relaxed = solve_closest if options.infeasible == "closest" else solve_elastic
        return shaped(qp, *relaxed(qp, options, warm), batch, dtype)


def common_dtype(arguments: Mapping[str, Any]) -> torch.dtype:
    """What the tensors with a dimension promote to; the default dtype if that is not real."""
    dtypes = [a.dtype for a in arguments.values() if isinstance(a, Tensor) and a.ndim]
    dtype = reduce(torch.promote_types, dtypes)
    return dtype if dtype.is_floating_point else torch.get_default_dtype()
