"""Which engine solves: one function for all that need solutions without gradients."""

from __future__ import annotations

import torch

from ..tree import tensors
from .interior_point import InteriorPoint
from .kkt import Blocks
from .native import find_native, serves
from .problem import QP
from .reference import Found, find_reference


def find(qp: QP, solver: InteriorPoint, warm: Blocks | None = None) -> Found:
    """The solution of each sample of `qp`, or what is known about it: see `find_reference`."""
    if serves(solver, qp.p.device) and not _wrapped(qp):
        return find_native(qp, solver, warm)
    return find_reference(qp, solver, warm)


def _wrapped(qp: QP) -> bool:
    """Whether torch.func stands between a tensor and its memory."""
    return any(torch._C._functorch.is_functorch_wrapped_tensor(v) for v in tensors(qp))
