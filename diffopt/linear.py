"""Iterative solutions of A x = v for a batch of matrices that can only be applied.

Each method is a frozen dataclass with ``solve(matvec, v) -> Solution``. Every sample `(*B)` of `v`
`(*B, n)` has its own Krylov space, stopping test and status; the residual reported is the true
one, |A x - v| / |v|, never an estimate. A matvec must act on each sample by itself. A
tolerance below what rounding in the dtype lets a solve reach is taken as that (`reachable`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from ._native import kernel
from .iterate import Measure, iterate
from .product import full, product
from .solution import Solution, Status, check_positive

Matvec = Callable[[Tensor], Tensor]
CLOSE = 10.0  # times the tolerance: near enough to be used where a sample stalls


class LinearMethod(Protocol):
    """Anything that solves A x = v given x -> A x."""

    def solve(self, matvec: Matvec, v: Tensor) -> Solution: ...


def reachable(rtol: float, dtype: torch.dtype) -> float:
    """`rtol`, or what rounding lets a linear solve in `dtype` reach: 1e-5 in float32."""
    return max(rtol, 100 * torch.finfo(dtype).eps)


def batched_norm(v: Tensor) -> Tensor:
    """Euclidean norm of each sample, `(*B, n)` to `(*B)`."""
    return torch.linalg.vector_norm(v, dim=-1)


def scaled(v: Tensor) -> tuple[Tensor, Tensor]:
    """(u, s) with v = s u, `(*B, n)` and `(*B, 1)`: the largest entry of u is 1, or all are 0.

    The squares of u neither overflow nor vanish, as those of v may: in float32 from 1e19 on, and
    below 1e-19. s is a constant; where v is not finite, it is 1.
    """
    if v.shape[-1] == 0:
        return v, v.new_ones(*v.shape[:-1], 1)
    top = v.detach().abs().amax(-1, keepdim=True)
    top = torch.where((top > 0) & (top < torch.inf), top, 1.0)
    return v / top, top


class _Guess(NamedTuple):
    x: Tensor


def _solve_by_cycles(
    matvec: Matvec,
    v: Tensor,
    cycle: Callable[[Matvec, Tensor, Tensor], Tensor],
    rtol: float,
    max_cycles: int,
    steps_per_cycle: int,
) -> Solution:
    """Repeat x <- x + cycle(A, r, goal), r = v - A x, until |r| <= goal = rtol |v|.

    Each sample is on its own, and is solved for a v of the size of 1.
    """
    batch, (unit, scale) = v.shape[:-1], scaled(v)
    flat = unit.reshape(batch.numel(), v.shape[-1])

    def apply(x: Tensor) -> Tensor:
        return matvec(x.reshape(v.shape)).reshape(flat.shape)

    size = batched_norm(flat)

    def measure(state: _Guess) -> Measure:
        r = flat - apply(state.x)
        r = torch.where(size.unsqueeze(-1) == 0, 0.0, r)  # x = 0 solves A x = 0, whatever A is
        error = torch.where(size == 0, 0.0, batched_norm(r) / (rtol * size))
        return Measure(error, carry=r)

    def step(state: _Guess, r: Tensor) -> _Guess:
        return _Guess(state.x + cycle(apply, r, rtol * size))

    out = iterate(measure, step, _Guess(torch.zeros_like(flat)), max_steps=max_cycles, patience=2)
    close = (out.status == int(Status.ITERATION_LIMIT)) & (out.residual <= CLOSE)
    status = torch.where(close, int(Status.REDUCED_ACCURACY), out.status)
    return Solution(
        out.value.x.reshape(v.shape) * scale,
        status.reshape(batch),
        (out.steps * steps_per_cycle).reshape(batch),
        (out.residual * rtol).reshape(batch),
    )


@dataclass(frozen=True)
class GMRES:
    """Restarted GMRES (Saad & Schultz 1986; Saad, Iterative Methods, 2nd ed., Alg. 6.9 and 6.11).

    Each cycle builds up to `restart` Krylov vectors by Gram-Schmidt, done twice, and minimises the
    residual over them; it is exact after n steps if `restart` >= n. Memory: `restart` vectors.
    A sample that gains nothing in two cycles ends with `ITERATION_LIMIT`, or, within ten times the
    tolerance, with `REDUCED_ACCURACY`. `steps` counts whole cycles.
    """

    rtol: float = 1e-10
    restart: int = 40
    max_cycles: int = 25

    def __post_init__(self) -> None:
        check_positive(self, *(f.name for f in fields(self)))

    def solve(self, matvec: Matvec, v: Tensor) -> Solution:
        """x with A x = v, `(*B, n)`."""
        width = min(self.restart, v.shape[-1])
        rtol = reachable(self.rtol, v.dtype)

        def cycle(apply: Matvec, r: Tensor, goal: Tensor) -> Tensor:
            return _krylov_correction(apply, r, width, goal)

        return _solve_by_cycles(matvec, v, cycle, rtol, self.max_cycles, width)


def _krylov_correction(apply: Matvec, r: Tensor, width: int, goal: Tensor) -> Tensor:
    """The d in span{r, A r, ..., A^(k-1) r} that minimises |r - A d|, for each sample.

    k is `width`, or where the sample has come to `goal`: what others need beyond is not its own.
    """
    V, H, own = _arnoldi(apply, r, width, goal)
    k = H.shape[-1]
    rhs = torch.zeros_like(H[..., 0])
    rhs[:, 0] = batched_norm(r)
    # In place of a column that is not its own one that the right-hand side does not see.
    none = torch.eye(k + 1, dtype=H.dtype, device=H.device)[:, 1:]
    mine = torch.arange(k, device=H.device) < own.unsqueeze(-1)
    H = torch.where(mine.unsqueeze(-2), H, none)
    bad = ~H.isfinite().flatten(1).all(-1)  # a NaN must not reach the LAPACK driver
    y = _least_squares(torch.where(bad[:, None, None], none, H), rhs)
    d = product(V[:, :k].mT, y.unsqueeze(-1)).squeeze(-1)
    return torch.where(bad.unsqueeze(-1), torch.nan, d)


def _arnoldi(apply: Matvec, r: Tensor, width: int, goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(V, H, k): A V_k = V_(k+1) H, the rows of V orthonormal, and which k each sample needs.

    A sample whose space is exhausted (breakdown: the answer is in V already) goes on with zeros.
    """
    beta = batched_norm(r)
    w, k = apply(_normalised(r, beta)), 0
    V = w.new_empty(*w.shape[:-1], width + 1, w.shape[-1])
    H = w.new_zeros(*w.shape[:-1], width + 1, width)
    V[:, 0] = _normalised(r, beta)
    # u'H = 0 for u = (1, ...): what is left of r is beta over |u|, the part of beta e_0 along u.
    u = w.new_ones(*w.shape[:-1], width + 1)
    own = torch.full(beta.shape, width, device=beta.device)
    while True:
        k += 1
        if (step := kernel("arnoldi_step", w)) is not None:
            parts = w.contiguous(), beta, goal, V, H, u, own
            sizes = len(w), w.shape[1], width + 1, k
            step(sizes, torch.get_num_threads(), [x.data_ptr() for x in parts])
        else:
            _extend(V, H, k, w)
            rest, column = H[:, k, k - 1], H[:, :k, k - 1]
            u[:, k] = torch.where(rest > 0, -(u[:, :k] * column).sum(-1) / rest, torch.inf)
            done = ~(beta > goal * batched_norm(u[:, : k + 1]))
            own = torch.minimum(own, torch.where(done, k, width))
        if k == width or bool((own <= k).all()):
            return V, H[:, : k + 1, :k], own
        w = apply(V[:, k])


def _extend(V: Tensor, H: Tensor, k: int, w: Tensor) -> None:
    """Write row k of V and column k - 1 of H for w = A V_(k-1)."""
    basis, scale = V[:, :k], batched_norm(w)
    for _ in range(2):  # twice is enough (Kahan-Parlett): orthogonal to rounding
        c = product(basis, w.unsqueeze(-1))
        w = w - product(basis.mT, c).squeeze(-1)
        H[:, :k, k - 1] += c.squeeze(-1)
    rest = batched_norm(w)
    rest = torch.where(rest > 1e-14 * scale, rest, 0.0)
    H[:, k, k - 1], V[:, k] = rest, _normalised(w, rest)


def _normalised(w: Tensor, length: Tensor) -> Tensor:
    length = length.unsqueeze(-1)
    return torch.where(length == 0, 0.0, w / length)


def _least_squares(H: Tensor, rhs: Tensor) -> Tensor:
    """Least-squares solution, by QR where the columns are independent in every sample."""
    Q, R = torch.linalg.qr(H)
    diagonal = R.diagonal(dim1=-2, dim2=-1).abs()
    if bool((diagonal > 1e-10 * diagonal.amax(-1, keepdim=True)).all()):
        c = product(Q.mT, rhs.unsqueeze(-1))
        return full(torch.linalg.solve_triangular, R, c, upper=True).squeeze(-1)
    return _least_norm(H, rhs)


def _least_norm(H: Tensor, rhs: Tensor) -> Tensor:
    """Minimum-norm least-squares solution through the singular values, rank cut at 1e-14."""
    U, sigma, Vh = torch.linalg.svd(H, full_matrices=False)
    c = product(U.mT, rhs.unsqueeze(-1)).squeeze(-1)
    keep = sigma > 1e-14 * sigma[:, :1]
    c = torch.where(keep, c / sigma, 0.0)
    return product(Vh.mT, c.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class Anderson:
    """Anderson acceleration of x <- x + (v - A x), with `memory` earlier residuals.

    Each step takes the affine combination of the last points whose residual is least (Walker &
    Ni 2011, type II); on a linear system it is equivalent to GMRES while it remembers all steps
    (their Thm. 2.2). Cheaper a step than GMRES, weaker on matrices far from I.
    """

    rtol: float = 1e-10
    memory: int = 8
    max_steps: int = 400

    def __post_init__(self) -> None:
        check_positive(self, *(f.name for f in fields(self)))

    def solve(self, matvec: Matvec, v: Tensor) -> Solution:
        """x with A x = v, `(*B, n)`."""

        def cycle(apply: Matvec, r: Tensor, goal: Tensor) -> Tensor:
            return _anderson_sweep(apply, r, self.memory)

        cycles = max(1, self.max_steps // self.memory)
        rtol = reachable(self.rtol, v.dtype)
        return _solve_by_cycles(matvec, v, cycle, rtol, cycles, self.memory)


def _anderson_sweep(apply: Matvec, r: Tensor, memory: int) -> Tensor:
    """`memory` accelerated steps on A d = r from d = 0."""
    d = torch.zeros_like(r)
    points, gaps = [d], [r]
    for _ in range(memory - 1):
        d = _mixed(points, gaps)
        points.append(d)
        gaps.append(r - apply(d))
    return _mixed(points, gaps)


def _mixed(points: list[Tensor], gaps: list[Tensor]) -> Tensor:
    """x + g at the affine combination of the points that minimises |g|, g the combined gap."""
    g, x = gaps[-1], points[-1]
    if len(gaps) == 1:
        return x + g
    dG = torch.stack([a - g for a in gaps[:-1]], -1)  # (B, n, j)
    dX = torch.stack([a - x for a in points[:-1]], -1)
    bad = ~(dG.isfinite().flatten(1).all(-1) & g.isfinite().all(-1))
    weight = _least_norm(torch.where(bad[:, None, None], 0.0, dG), -g).unsqueeze(-1)
    moved = x.unsqueeze(-1) + product(dX, weight) + g.unsqueeze(-1) + product(dG, weight)
    return torch.where(bad.unsqueeze(-1), torch.nan, moved.squeeze(-1))


@dataclass(frozen=True)
class Neumann:
    """`terms` terms of A^-1 v = sum_k (I - A)^k v: a truncated, hence biased, solve.

    With F = z - f(z) this is the phantom gradient of Geng et al. (NeurIPS 2021), undamped. Its
    residual is reported as it is; it fails only where the sum is not finite.
    """

    biased: ClassVar[bool] = True
    terms: int = 5

    def __post_init__(self) -> None:
        check_positive(self, *(f.name for f in fields(self)))

    def solve(self, matvec: Matvec, v: Tensor) -> Solution:
        """The truncated sum, `(*B, n)`."""
        unit, scale = scaled(v)
        x, term = unit, unit
        for _ in range(self.terms - 1):
            term = term - matvec(term)
            x = x + term
        size = batched_norm(unit)
        error = torch.where(size == 0, 0.0, batched_norm(unit - matvec(x)) / size)
        ok = error.isfinite()
        status = torch.where(ok, int(Status.CONVERGED), int(Status.NUMERICAL_FAILURE))
        return Solution(x * scale, status, torch.full_like(status, self.terms), error)
