"""How good an answer is: `table` of a solved batch, `check_kkt` of anybody's answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from ..solution import Status
from .arguments import check, complete
from .problem import QP, Residuals


class Diagnosed(Protocol):
    """What `table` reads of a `QPSolution`; the shapes are given there."""

    @property
    def status(self) -> Tensor: ...
    @property
    def iterations(self) -> Tensor: ...
    @property
    def residuals(self) -> Residuals: ...
    @property
    def weakly_active(self) -> Tensor: ...
    @property
    def polished(self) -> Tensor: ...
    @property
    def shifts(self) -> tuple[Tensor, ...] | None: ...


def table(solution: Diagnosed) -> str:
    """How a solved batch fared, as text: counts by status, and the worst and median sample.

    Args:
        solution: a `QPSolution` of any batch shape, empty too. Samples are named by their place in
            the flattened batch.

    Returns:
        A few lines: samples of each status; the worst value (NaN is the worst of all), its sample
        and the median (NaN left out; the lower one of two) of the residuals and iterations; how
        many samples are polished, how many have a weakly active limit, and how many were shifted
        (under ``infeasible="closest"`` or "elastic").

    Example:
        >>> p = torch.tensor([[-2.0], [-0.25], [0.0]])
        >>> print(table(solve_qp(torch.eye(1), p, lb=0.0, ub=1.0)))  # doctest: +ELLIPSIS
        samples          3
          CONVERGED      3
        polished         3
        weakly active    1
                         worst    sample    median
        primal         ...
        dual           ...
        gap            ...
        iterations     ...
    """
    names = [_name(code) for code in solution.status.flatten().tolist()]
    weak = solution.weakly_active.any(-1)
    counts = [
        ("samples", len(names)),
        *((f"  {name}", names.count(name)) for name in sorted(set(names), key=names.index)),
        ("polished", int(solution.polished.sum())),
        ("weakly active", int(weak.sum())),
    ]
    if solution.shifts is not None:
        moved = (torch.cat(list(solution.shifts), -1) != 0).any(-1)
        counts.append(("shifted", int(moved.sum())))
    measures = {**solution.residuals._asdict(), "iterations": solution.iterations}
    width = max(len(name) for name, _ in counts) + 2
    lines = [f"{name:<{width}}{count:>5}" for name, count in counts]
    lines.append(f"{'':<{width}}{'worst':>9}{'sample':>10}{'median':>10}")
    lines += [f"{name:<{width}}{_extremes(value)}" for name, value in measures.items()]
    return "\n".join(lines)


def _name(code: int) -> str:
    return Status(code).name if code in list(Status) else f"status {code}"


def _extremes(value: Tensor) -> str:
    """The largest entry, where it is, and the median, in columns; dashes where there is none."""
    flat = value.detach().flatten().cpu()
    if not len(flat):
        return f"{'-':>9}{'-':>10}{'-':>10}"
    form = ".1e" if flat.is_floating_point() else ".0f"
    sample = int(flat.argmax())  # NaN counts as the largest
    median = float(flat.double().nanmedian())
    return f"{float(flat[sample]):>9{form}}{sample:>10}{median:>10{form}}"


@torch.no_grad()
def check_kkt(
    problem: Mapping[str, Any],
    z: Tensor,
    lam: Tensor | None = None,
    nu: Tensor | None = None,
    mu: Tensor | None = None,
) -> Residuals:
    """How far an answer to `solve_qp(**problem)`, whoever computed it, is from the KKT conditions.

    They are sufficient for a minimiser only if Q is positive semidefinite, which is not checked.

    Args:
        problem: arguments of `solve_qp`, in the shapes given there.
        z: the minimiser, `(*B, n)`. Batch dimensions broadcast with each other and with the
            problem's, so that many candidates for one problem can be checked together.
        lam: multipliers of the rows of G, `(*B, m)`: positive at h, negative at h_lower.
        nu: multipliers of the rows of A, `(*B, e)`.
        mu: multipliers of the bounds, `(*B, n)`: positive at ub, negative at lb.

    Returns:
        `Residuals` (primal, dual, gap), each of the batch shape, relative, float64, on the device
        of p, without gradient. NaN in the problem or in the answer gives NaN.

    Raises:
        ValueError: if multipliers are missing of a block that the problem has, or a shape, an
            argument or a device does not fit, naming it.

    Example:
        The point of z_0 + z_1 = 1 nearest to (1, 0), by hand, and a point beside it:

        >>> problem = {"Q": torch.eye(2), "p": torch.tensor([-1.0, 0.0]),
        ...            "A": torch.ones(1, 2), "b": 1.0}
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.5]])
        >>> residuals = check_kkt(problem, z, nu=torch.zeros(1))
        >>> residuals.primal.tolist(), residuals.dual.tolist()
        ([0.0, 0.2], [0.0, 0.25])
    """
    arguments = complete(problem)
    if arguments["lb"] is None and arguments["ub"] is None:
        arguments["lb"] = -float("inf")  # makes room for mu, whose entries then have no limit
        mu = torch.zeros_like(z) if mu is None and isinstance(z, Tensor) else mu
    data = check(**arguments)
    qp, batch = data.qp(), data.batch
    sizes = {"z": qp.n, "lam": qp.m, "nu": qp.A.shape[-2], "mu": qp.n}
    given = zip(sizes, (z, lam, nu, mu), strict=True)
    point = {k: _candidate(k, value, sizes[k], qp) for k, value in given}
    joint = _joint(batch, point)
    if joint != batch:  # more candidates than problems: p carries their batch dimensions in
        arguments["p"] = arguments["p"].expand(*joint, qp.n)
        qp = check(**arguments).qp()
    x = {k: v.expand(*joint, -1).reshape(joint.numel(), sizes[k]) for k, v in point.items()}
    residuals = qp.residuals(x["z"], x["nu"], torch.cat([x["lam"], x["mu"]], -1))
    return Residuals(*(r.expand(joint.numel()).view(joint) for r in residuals))


def _candidate(name: str, value: Tensor | None, size: int, qp: QP) -> Tensor:
    """One part of the answer in float64, checked to end in `size` entries; empty if it may be."""
    if value is None:
        if size == 0:
            return qp.p.new_zeros(0)
        block = {"lam": "G", "nu": "A", "mu": "lb or ub", "z": "p"}[name]
        raise ValueError(
            f"{name} is missing: the problem has {block}, so give {name} of shape (*B, {size})"
        )
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name} is a {type(value).__name__}: expected a torch.Tensor (torch.as_tensor makes "
            "one of an array)"
        )
    if value.device != qp.p.device:
        raise ValueError(f"{name} is on {value.device}, but p on {qp.p.device}: move it there")
    if value.ndim == 0 or value.shape[-1] != size:
        raise ValueError(f"{name} has shape {tuple(value.shape)}: expected (*B, {size})")
    return value.double()


def _joint(batch: torch.Size, point: Mapping[str, Tensor]) -> torch.Size:
    """The batch shape of a problem and an answer together."""
    try:
        return torch.broadcast_shapes(batch, *(v.shape[:-1] for v in point.values()))
    except RuntimeError:
        shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in point.items())
        raise ValueError(
            f"the batch dimensions of the answer ({shapes}) and of the problem {tuple(batch)} do "
            "not broadcast together"
        ) from None
