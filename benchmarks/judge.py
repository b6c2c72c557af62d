"""QPs to race on, and the judge of the answers: a dense KKT system, solved with torch.linalg.

Given the active set of somebody's answer, the system is linear. Its solution is that of the QP if
its slacks and multipliers are not negative, which is checked, and torch differentiates it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# The solution, and the gradient of its weighted sum with respect to each leaf.
Truth = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Problem:
    """min 1/2 z'Qz + p'z with Gz <= h, Az = b, and z >= 0 if `nonneg`; no rows of G or A: None.

    p is `(B, n)`, h `(B, m)`, b `(B, e)`; Q, G, A have a batch dimension, or are shared. The
    arguments that require a gradient are the leaves.
    """

    Q: Tensor
    p: Tensor
    G: Tensor | None = None
    h: Tensor | None = None
    A: Tensor | None = None
    b: Tensor | None = None
    nonneg: bool = False

    def arguments(self) -> dict[str, Tensor | None]:
        """Q, p, G, h, A and b."""
        return {name: getattr(self, name) for name in ("Q", "p", "G", "h", "A", "b")}

    def leaves(self) -> dict[str, Tensor]:
        """The arguments that require a gradient."""
        return {k: v for k, v in self.arguments().items() if v is not None and v.requires_grad}

    def to(self, device: torch.device) -> Problem:
        """The same problem on `device`, with leaves of its own."""
        held = {k: v for k, v in self.arguments().items() if v is not None}
        there = {k: v.detach().to(device).requires_grad_(v.requires_grad) for k, v in held.items()}
        return replace(self, **there)

    def rows(self) -> tuple[Tensor, Tensor]:
        """G and h with the rows of the bounds, views with a batch dimension each."""
        if self.nonneg:
            assert self.G is None
            eye = torch.eye(self.p.shape[1]).to(self.p)
            return -self.batched(eye), torch.zeros_like(self.p)
        empty = self.p.new_zeros(len(self.p), 0, self.p.shape[1])
        return (empty, empty[..., 0]) if self.G is None else (self.batched(self.G), self.h)

    def equations(self) -> tuple[Tensor, Tensor]:
        """A and b, of no rows where there are none, with a batch dimension each."""
        empty = self.p.new_zeros(len(self.p), 0, self.p.shape[1])
        return (empty, empty[..., 0]) if self.A is None else (self.batched(self.A), self.b)

    def batched(self, matrix: Tensor) -> Tensor:
        """`matrix` with a batch dimension, a view."""
        return matrix if matrix.dim() == 3 else matrix.expand(len(self.p), -1, -1)


def random_problem(batch: int, n: int, m: int, e: int) -> Problem:
    """A feasible problem, everything batched and requiring a gradient."""
    draw = torch.Generator().manual_seed(n + m + e)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    L, G, A = normal(batch, n, n), normal(batch, m, n), normal(batch, e, n)
    x, Q, p = normal(batch, n, 1), L @ L.mT / n + 0.1 * torch.eye(n), normal(batch, n)
    h = (G @ x).squeeze(-1) + torch.rand(batch, m, generator=draw)
    rows = (G, h, A, (A @ x).squeeze(-1)) if e else (G, h)
    return Problem(*(v.requires_grad_() for v in (Q, p, *rows)))


def optnet_problem(batch: int, n: int, m: int, _: int) -> Problem:
    """The problem that the paper on OptNet is timed with: L and s uniform, Q = LL' + I/1000.

    Source: Amos & Kolter, "OptNet", ICML 2017, section 4; the data are those of the authors'
    `prof-gurobi.py` in qpth, with draws of our own.
    """
    draw = torch.Generator().manual_seed(n + m)
    L, s = torch.rand(batch, n, n, generator=draw), torch.rand(batch, m, generator=draw)
    G, x, p = (torch.randn(batch, *k, generator=draw) for k in ((m, n), (n, 1), (n,)))
    Q, h = L @ L.mT + 1e-3 * torch.eye(n), (G @ x).squeeze(-1) + s
    return Problem(*(v.requires_grad_() for v in (Q, p, G, h)))


def sudoku_layer(batch: int, n: int, _: int, e: int) -> Problem:
    """Q and A shared, z >= 0; A is learnt, and so are b and p."""
    draw = torch.Generator().manual_seed(n + e)
    A, x = torch.randn(e, n, generator=draw), torch.rand(batch, n, generator=draw)
    p, b = torch.randn(batch, n, generator=draw), x @ A.mT
    A, p, b = (v.requires_grad_() for v in (A, p, b))
    return Problem(0.1 * torch.eye(n), p, A=A, b=b, nonneg=True)


def exact(a: Problem, z: Tensor) -> Truth:
    """The solution whose active set is that of z, checked, and the gradients of its weighted sum.

    The rows of G that are not active have the equation lam = 0 instead of Gz = h.
    """
    (G, h), (A, b) = a.rows(), a.equations()
    active = (h - (G @ z.unsqueeze(-1)).squeeze(-1) < 1e-7).to(z.dtype).detach()
    N, right = torch.cat([A, G * active.unsqueeze(-1)], 1), torch.cat([b, h * active], 1)
    corner = torch.diag_embed(torch.cat([torch.zeros_like(b), active - 1], 1))
    Q = a.batched(a.Q)
    K = torch.cat([torch.cat([(Q + Q.mT) / 2, N.mT], 2), torch.cat([N, corner], 2)], 1)
    root = torch.linalg.solve(K, torch.cat([-a.p, right], 1))
    x, lam = root[:, : z.shape[1]], root[:, z.shape[1] + b.shape[1] :]
    assert violation(a, x.detach()) < 1e-8 and (lam > -1e-9).all(), "not the active set"
    return x.detach(), gradients(a, x)


def violation(a: Problem, z: Tensor) -> float:
    """The largest violation of a constraint at z."""
    (G, h), (A, b) = a.rows(), a.equations()
    inside, on = ((M @ z.unsqueeze(-1)).squeeze(-1) - v for M, v in ((G, h), (A, b)))
    return float(torch.cat([inside.clamp(min=0), on.abs()], 1).detach().max())


@functools.cache
def weights(shape: torch.Size, device: torch.device) -> Tensor:
    """Of the entries of z in the loss: fixed, different, of both signs."""
    return torch.linspace(-1, 1, shape.numel()).mul(37).sin().view(shape).to(device)


def gradients(a: Problem, z: Tensor) -> dict[str, Tensor]:
    """Of the weighted sum of z, with respect to every leaf: the backward pass."""
    leaves = a.leaves()
    grads = torch.autograd.grad((z * weights(z.shape, z.device)).sum(), list(leaves.values()))
    return dict(zip(leaves, grads, strict=True))


def errors(a: Problem, forward: Callable[[], Tensor], truth: Truth) -> dict:
    """How far a contender's answer and gradients are from the exact ones."""
    z = forward()
    apart = []
    for name, g in gradients(a, z).items():
        g, ref = ((v + v.mT) / 2 if name == "Q" else v for v in (g, truth[1][name]))
        apart.append(float((g - ref).norm() / ref.norm()))
    z = z.detach()
    return {"violation": violation(a, z), "z": float((z - truth[0]).abs().max()),
            "gradient": max(apart)}  # fmt: skip
