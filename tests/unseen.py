"""To test without a CUDA device what is done on one: the belief in it, what would wait there."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from diffopt import device
from diffopt.tree import mapped

# Operators for which the host waits for the device, whatever their arguments.
WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique", "_unique2",
    "unique_dim", "unique_consecutive", "_linalg_check_errors", "_linalg_svd", "linalg_pinv",
    "_linalg_eigh", "linalg_lstsq", "linalg_lu_factor", "lift_fresh", "histc", "bincount",
}  # fmt: skip
# Those that multiply, with TF32 in float32 on a CUDA device where the user has allowed it.
MULTIPLIES = {
    "mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "addr", "matmul",
    "linalg_solve_triangular", "triangular_solve", "linalg_pinv", "_addmm_activation",
}  # fmt: skip


class Watch(TorchDispatchMode):
    """`waits`: the operators called that wait on a CUDA device; `rounded`: products in float32."""

    def __init__(self):
        super().__init__()
        self.waits, self.rounded = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func._schema.name.split("::")[1]
        if _waits(func, name, args, kwargs):
            self.waits.append(name)
        held = [a for a in args if isinstance(a, torch.Tensor)]
        if name in MULTIPLIES and any(a.dtype == torch.float32 for a in held):
            self.rounded.append(name)
        return func(*args, **kwargs)


def _waits(func, name, args, kwargs):
    if name in WAITS:
        return True
    if name in ("index", "index_put", "index_put_", "_unsafe_index"):
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if name == "_to_copy":  # from one device to another
        return kwargs.get("device") is not None and not kwargs.get("non_blocking", False)
    return False


def believe(monkeypatch, full: int = 10**9):
    """All is done as on a CUDA device; batches below `full` are not compacted; nothing captured."""
    monkeypatch.setattr(device, "on_cuda", lambda v: True)
    monkeypatch.setattr(device, "capture", lambda work, like: work)
    monkeypatch.setattr("diffopt.unattended.FULL", full)


def without_numbers(part):
    """`part` on the device "meta": a look at any number raises."""
    return mapped(part, lambda v: v.to("meta"))
