"""The table of solvers, and problems as sparse tensors beside dense ones."""

from __future__ import annotations

import torch

from diffopt import ADMM, OSQP, PIQP, Clarabel, solve_qp, solve_qp_sparse

from .. import cases

SOLVERS = {"Clarabel": Clarabel(), "PIQP": PIQP(), "OSQP": OSQP(), "ADMM": ADMM()}
MATRICES = ("Q", "G", "A")
OUTPUTS = ("z", "lam", "nu", "mu")


def single(instance, place: int = 0) -> dict[str, torch.Tensor]:
    """The present arguments of one sample of a batched instance, dense."""
    a = cases.arguments(instance)
    own = {k: 2 if k in MATRICES else 1 for k in a}
    batch = torch.broadcast_shapes(*(v.shape[: v.ndim - own[k]] for k, v in a.items()))
    out = {}
    for k, v in a.items():
        tail = v.shape[v.ndim - own[k] :]
        out[k] = v.expand(*batch, *tail).reshape(batch.numel(), *tail)[place].clone()
    return out


def sparse(arguments: dict) -> dict[str, torch.Tensor]:
    """The same with sparse matrices, all of them leaves that require a gradient."""
    return {
        k: (v.to_sparse() if k in MATRICES else v.clone()).requires_grad_()
        for k, v in arguments.items()
    }


def solve_sparse(arguments: dict, **options):
    return solve_qp_sparse(
        arguments.get("Q"), **{k: v for k, v in arguments.items() if k != "Q"}, **options
    )


def solve_dense(arguments: dict, **options):
    return solve_qp(
        arguments.get("Q"), **{k: v for k, v in arguments.items() if k != "Q"}, **options
    )


def weighted(sol) -> torch.Tensor:
    """A random linear function of all outputs."""
    x = torch.cat([getattr(sol, key) for key in OUTPUTS])
    return x @ torch.randn(len(x), generator=torch.Generator().manual_seed(1), dtype=x.dtype)


def dense(grad: torch.Tensor) -> torch.Tensor:
    return grad if grad.layout == torch.strided else grad.to_dense()


def close(ours: torch.Tensor, truth: torch.Tensor, tolerance: float = 1e-7) -> None:
    """Equal to `tolerance` of the largest entry, or of one if that is larger."""
    assert ours.shape == truth.shape
    size = max(1.0, float(truth.detach().abs().max())) if truth.numel() else 1.0
    torch.testing.assert_close(ours, truth, rtol=0, atol=tolerance * size)
