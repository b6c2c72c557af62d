"""The oracles: definitions, computed here from the arguments and never by the code under test."""

from __future__ import annotations

import torch
from torch import Tensor

INF = float("inf")


def _top(*vectors: Tensor) -> Tensor:
    """The infinity norm of each sample over all vectors."""
    batch = torch.broadcast_shapes(*(v.shape[:-1] for v in vectors))
    norms = [v.abs().amax(-1).expand(batch) for v in vectors if v.shape[-1]]
    return torch.stack([*norms, torch.zeros(batch, dtype=torch.float64)]).amax(0)


def times(M: Tensor, x: Tensor) -> Tensor:
    return (M @ x.unsqueeze(-1)).squeeze(-1)


def complete(arguments: dict) -> dict:
    """The arguments of solve_qp in float64 with absent blocks empty and absent limits infinite."""
    a = {k: v.detach().double() for k, v in arguments.items() if v is not None}
    n = a["p"].shape[-1]
    empty = torch.zeros(0, n, dtype=torch.float64)
    a.setdefault("Q", torch.zeros(n, n, dtype=torch.float64))
    for matrix, limits in (("G", ("h", "h_lower")), ("A", ("b",))):
        a.setdefault(matrix, empty)
        for name, value in zip(limits, (INF, -INF), strict=False):
            a.setdefault(name, torch.full((a[matrix].shape[-2],), value, dtype=torch.float64))
    a.setdefault("lb", torch.full((n,), -INF, dtype=torch.float64))
    a.setdefault("ub", torch.full((n,), INF, dtype=torch.float64))
    return a


def kkt_error(arguments: dict, sol) -> Tensor:
    """The worst relative violation of the KKT conditions, a sample: the definition, by hand.

    Primal violation / (1 + max(|Gz|, |Az|, |b|)), stationarity / (1 + max(|Qz|, |p|, |mu|)),
    |z'Qz + p'z + limits'multipliers| / (1 + |objective|), and any multiplier of an absent limit.
    """
    a = complete(arguments)
    z, lam, nu, mu = (v.detach().double() for v in (sol.z, sol.lam, sol.nu, sol.mu))
    Qz, Gz, Az = times(a["Q"], z), times(a["G"], z), times(a["A"], z)
    sides = [(Gz - a["h"]), (a["h_lower"] - Gz), (z - a["ub"]), (a["lb"] - z)]
    primal = _top(*(s.clamp(min=0) for s in sides), Az - a["b"])
    dual = Qz + a["p"] + times(a["G"].mT, lam) + times(a["A"].mT, nu) + mu
    gap = (z * Qz).sum(-1) + (a["p"] * z).sum(-1) + (a["b"] * nu).sum(-1)
    stray = torch.zeros_like(gap)
    for y, upper, lower in ((lam, a["h"], a["h_lower"]), (mu, a["ub"], a["lb"])):
        limit = torch.where(y > 0, upper, lower)
        present = limit.isfinite()
        gap = gap + torch.where(present & (y != 0), limit * y, 0.0).sum(-1)
        stray = torch.maximum(stray, _top(torch.where(present, 0.0, y)))
    objective = (z * Qz).sum(-1) / 2 + (a["p"] * z).sum(-1)
    errors = (
        primal / (1 + _top(Gz, Az, a["b"].expand_as(nu))),
        torch.maximum(_top(dual), stray) / (1 + _top(Qz, a["p"].expand_as(z), mu)),
        gap.abs() / (1 + objective.abs()),
    )
    return torch.stack(errors).amax(0)


def _direction(name: str, value: Tensor, generator) -> Tensor:
    """A random direction of the size of the value; for Q one that keeps it semidefinite."""
    d = torch.randn(value.shape, generator=generator, dtype=value.dtype)
    if name == "Q":
        return d @ value + value @ d.mT
    finite = value[value.isfinite()].abs()
    return d * finite.max() if len(finite) and finite.max() > 0 else d


STEPS = (1, -1, 2, -2)
CENTRAL = torch.tensor([8.0, -8.0, -1.0, 1.0], dtype=torch.float64) / 12


def directional_errors(
    function, inputs: dict, generator, eps: float = 3e-6, together: bool = False
) -> dict[str, float]:
    """For each input, the relative error of the derivative along a random direction.

    function: dict of tensors -> tuple of tensors. The truth is the central difference of a random
    linear function of all outputs, of order four: exact to about eps^4 + rounding / eps. With
    `together` the inputs are arguments of solve_qp, and all points are one batch of one call.
    """
    leaves = {k: v.detach().clone().requires_grad_() for k, v in inputs.items()}
    outputs = function(leaves)
    weights = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in outputs]
    value = sum((w * o).sum() for w, o in zip(weights, outputs, strict=True))
    grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    ways = {k: _direction(k, v, generator) for k, v in inputs.items()}
    points = [{**inputs, k: v + s * eps * ways[k]} for k, v in inputs.items() for s in STEPS]
    with torch.no_grad():
        losses = _losses(function, points, weights, together).view(len(inputs), len(STEPS))
    floor = 0.01 * abs(value.item())  # a derivative far below this is rounding
    errors = {}
    for (k, v), grad, truth in zip(inputs.items(), grads, losses @ CENTRAL / eps, strict=True):
        ours = 0.0 if grad is None else (grad[v.isfinite()] * ways[k][v.isfinite()]).sum().item()
        size = max(abs(truth.item()), abs(ours), floor)
        errors[k] = abs(ours - truth.item()) / size
    return errors


def _losses(function, points: list[dict], weights: list[Tensor], together: bool) -> Tensor:
    """The weighted sum of all outputs at each point."""
    if not together:
        values = [function(point) for point in points]
        return torch.stack(
            [sum((w * o).sum() for w, o in zip(weights, v, strict=True)) for v in values]
        )
    own = {k: 2 if k in ("Q", "G", "A") else 1 for k in points[0]}
    depth = max(v.ndim - own[k] for k, v in points[0].items())
    stacked = {}
    for k, v in points[0].items():
        missing = depth - (v.ndim - own[k])
        stacked[k] = torch.stack([point[k] for point in points]).view(-1, *[1] * missing, *v.shape)
    outputs = function(stacked)
    return sum((w * o).flatten(1).sum(-1) for w, o in zip(weights, outputs, strict=True))
