"""Arithmetic of batched vectors that the formulas share."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linear import batched_norm, scaled


def length(v: Tensor) -> Tensor:
    """Euclidean norm of each sample, `(*B, n)` to `(*B, 1)`, safe for huge and tiny entries.

    Differentiable where it is not zero. The scale is a constant: it cancels.
    """
    unit, scale = scaled(v)
    return scale * batched_norm(unit).unsqueeze(-1)


def times(M: Tensor, v: Tensor) -> Tensor:
    """M v for `(*B, m, n)` and `(*B, n)`; a shared M is one product, not a copy a sample."""
    return (v.unsqueeze(-2) @ M.mT).squeeze(-2)


def within(z: Tensor, lower: Tensor | float, upper: Tensor | float) -> Tensor:
    """z, which is between the limits up to rounding, moved there; its derivative stays."""
    fixed = z.detach()
    return z + (torch.where(fixed < lower, lower, torch.where(fixed > upper, upper, fixed)) - fixed)
