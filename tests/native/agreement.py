"""What every test here asks: the answer of the native engine is that of the torch engine."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffopt import InteriorPoint, solve_qp

from .. import cases

NATIVE, TORCH = InteriorPoint(engine="native"), InteriorPoint(engine="torch")
OUTPUTS = ("z", "lam", "nu", "mu")
needs_core = pytest.mark.skipif("native" not in cases.ENGINES, reason="the core is not built")


def solved(arguments: dict, solver: InteriorPoint, outputs=("z",), **options):
    """(solution, gradients of a fixed random function of `outputs` where converged)."""
    leaves = {
        k: v.detach().requires_grad_() if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in arguments.items()
    }
    sol = solve_qp(**leaves, solver=solver, on_failure="ignore", **options)
    good, generator = (sol.status == 0).unsqueeze(-1), torch.Generator().manual_seed(0)
    loss = torch.zeros((), dtype=torch.float64)
    for name in outputs:
        value = getattr(sol, name)
        weight = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        loss = loss + (weight * torch.where(good, value, 0.0).double()).sum()
    wanted = {k: v for k, v in leaves.items() if isinstance(v, Tensor) and v.requires_grad}
    grads = torch.autograd.grad(loss, list(wanted.values())) if wanted and outputs else ()
    return sol, dict(zip(wanted, grads, strict=False))


def agree(arguments: dict, outputs=("z",), rtol: float = 1e-8, grad_rtol: float = 1e-6, **options):
    """The native solution, once it is that of the torch engine: status, outputs, gradients."""
    sol, grads = solved(arguments, NATIVE, outputs, **options)
    truth, true_grads = solved(arguments, TORCH, outputs, **options)
    assert torch.equal(sol.status, truth.status)
    good = truth.status == 0
    for name in outputs:
        close(getattr(sol, name)[good], getattr(truth, name)[good], rtol)
    for name, grad in true_grads.items():
        close(grads[name], grad, grad_rtol)
    return sol


def close(value: Tensor, truth: Tensor, rtol: float) -> None:
    """Equal relative to the largest entry of a sample, or to one."""
    if truth.numel():
        unit = truth.abs().amax(-1, keepdim=True).clamp(min=1.0)
        torch.testing.assert_close(value / unit, truth / unit, rtol=0.0, atol=rtol)


def given(instance) -> dict[str, Tensor | None]:
    """The arguments of an instance, `Q` even if it is None."""
    return {k: v for k, v in instance.arguments().items() if v is not None or k == "Q"}


def same_bits(value: Tensor, truth: Tensor) -> bool:
    """Equal to the last bit, NaN and signs of zero included."""
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[truth.element_size()]
    return torch.equal(value.contiguous().view(bits), truth.contiguous().view(bits))
