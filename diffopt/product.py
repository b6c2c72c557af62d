"""Products of matrices to the full precision of their dtype, whatever torch is set to.

With `torch.backends.cuda.matmul.allow_tf32`, or `torch.set_float32_matmul_precision("high")`, a
float32 product on a CUDA device is computed from factors of 11 bits, an error of 5e-4 that would
be taken for one of the method. The settings are global and so the user's: they are left alone.
Instead float32 is multiplied in float64 there, which no setting touches, and rounded. That is
dearer on devices with slow float64. The alternative, a sum of three products of factors split to
11 bits each, is as dear where float64 is fast, keeps two bits less, and has derivatives only if
they are written by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import device


def full(operation: Callable[..., Tensor], *tensors: Tensor, **options: Any) -> Tensor:
    """`operation` of the tensors, by way of float64 where they are float32 on a CUDA device.

    For all that multiplies matrices inside: `torch.linalg.solve_triangular`, `torch.addmm`. It is
    differentiable as `operation` is.

    Example:
        >>> full(torch.addmm, torch.ones(2, 2), torch.eye(2), torch.eye(2))
        tensor([[2., 1.],
                [1., 2.]])
    """
    if all(v.dtype == torch.float32 for v in tensors) and device.on_cuda(tensors[0]):
        return operation(*(v.double() for v in tensors), **options).float()
    return operation(*tensors, **options)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.

    Example:
        >>> product(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
        tensor([[11.]])
    """
    return full(torch.matmul, a, b) if a.dtype == torch.float32 else a @ b
