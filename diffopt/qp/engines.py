"""Which engine solves: one function for all that need solutions without gradients."""

from __future__ import annotations

import torch

from ..tree import tensors
from .fused import core_for, find_fused
from .interior_point import InteriorPoint
from .kkt import Blocks
from .problem import QP
from .reference import Found


def find(qp: QP, solver: InteriorPoint, warm: Blocks | None = None) -> Found:
    """The solution of each sample of `qp`, or what is known about it: see `find_reference`."""
    core = core_for(solver, qp.p.device)
    return find_fused(None if _wrapped(qp) else core, qp, solver, warm)


def _wrapped(qp: QP) -> bool:
    """Whether torch.func stands between a tensor and its memory."""
    return any(torch._C._functorch.is_functorch_wrapped_tensor(v) for v in tensors(qp))
