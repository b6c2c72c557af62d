"""Sparse QPs of four kinds, as sparse tensors: the arguments of `diffopt.solve_qp_sparse`.

    random_sparse_qp   random patterns: a factor fills in, and is nearly dense from n = 5000 on
    control_qp         a linear system steered to the origin within limits: a chain, little fill
    obstacle_qp        a membrane over an obstacle: a grid, n log n fill, many active bounds
    portfolio_qp       mean-variance with a factor model: an arrow, a few dense rows

The first is built backwards from a known answer, as in `random_qp`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .random_qp import Instance


def random_sparse_qp(
    n: int, m: int, e: int, *, entries: int = 10, diagonal: bool = False, seed: int = 0
) -> Instance:
    """A strictly convex QP with random patterns, half of whose rows of G are active.

    Args:
        n, m, e: unknowns, rows of G (upper limits), rows of A; m / 2 + e at most n / 2.
        entries: nonzeros of a row of G and A, and of Q beside its diagonal, about.
        diagonal: make Q diagonal.
        seed: of a generator of its own.
    """
    draw = torch.Generator().manual_seed(seed)
    G, A = (_random_rows(rows, n, entries, draw) for rows in (m, e))
    d = 0.1 + torch.rand(n, generator=draw, dtype=torch.float64)
    Q = _dominant(n, 0 if diagonal else entries // 2, d, draw)
    z = torch.randn(n, generator=draw, dtype=torch.float64)
    nu = torch.randn(e, generator=draw, dtype=torch.float64)
    active = torch.arange(m) < m // 2
    size = 0.1 + torch.rand(m, generator=draw, dtype=torch.float64)
    lam, slack = torch.where(active, size, 0.0), torch.where(active, 0.0, size)
    p = -(Q @ z + G.T @ lam + A.T @ nu)
    return Instance(
        Q=Q,
        p=p,
        G=G if m else None,
        h=G @ z + slack if m else None,
        A=A if e else None,
        b=A @ z if e else None,
        z=z,
        lam=lam,
        nu=nu,
        mu=torch.zeros_like(z),
    )


def control_qp(steps: int, states: int = 8, inputs: int = 4, seed: int = 0) -> Instance:
    """x_(t+1) = F x_t + B u_t from a random x_0: least sum of |x|^2 + 0.1 |u|^2 with |u| <= 0.2.

    The unknowns are (x_1, u_0), (x_2, u_1), ...; F is a rotation, so that nothing dies out itself.
    """
    draw = torch.Generator().manual_seed(seed)
    F = torch.linalg.qr(torch.randn(states, states, generator=draw, dtype=torch.float64))[0]
    B = torch.randn(states, inputs, generator=draw, dtype=torch.float64) / states**0.5
    x = torch.randn(states, generator=draw, dtype=torch.float64)
    width = states + inputs
    weight = torch.cat([torch.ones(states), torch.full((inputs,), 0.1)]).double()
    now = torch.cat([torch.eye(states, dtype=torch.float64), -B], 1)
    before = torch.cat([-F, torch.zeros(states, inputs, dtype=torch.float64)], 1)
    t = torch.arange(steps)
    A = _blocks(
        [(t, t, now), (t[1:], t[:-1], before)], (steps * states, steps * width), (states, width)
    )
    b = torch.zeros(steps * states, dtype=torch.float64)
    b[:states] = F @ x
    far = torch.full((states,), torch.inf, dtype=torch.float64)
    ub = torch.cat([far, torch.full((inputs,), 0.2, dtype=torch.float64)]).repeat(steps)
    Q = _diagonal(weight.repeat(steps))
    return Instance(Q=Q, p=torch.zeros(steps * width, dtype=torch.float64), A=A, b=b, lb=-ub, ub=ub)


def obstacle_qp(side: int, seed: int = 0) -> Instance:
    """A membrane over random bumps on a `side` x `side` grid: Q the Laplacian, z >= the bumps."""
    draw = torch.Generator().manual_seed(seed)
    n = side * side
    here = torch.arange(n).view(side, side)
    pairs = [
        (here[1:].flatten(), here[:-1].flatten()),
        (here[:, 1:].flatten(), here[:, :-1].flatten()),
    ]
    i = torch.cat([a for a, _ in pairs])
    j = torch.cat([b for _, b in pairs])
    off = -torch.ones(len(i), dtype=torch.float64)
    at = torch.cat([torch.stack([i, j]), torch.stack([j, i]), torch.arange(n).expand(2, n)], 1)
    four = torch.full((n,), 4.0, dtype=torch.float64)
    Q = _matrix(at, torch.cat([off, off, four]), (n, n))
    grid = torch.linspace(0, 1, side, dtype=torch.float64)
    floor = torch.full((side, side), -torch.inf, dtype=torch.float64)
    for x, y, height in torch.rand(6, 3, generator=draw, dtype=torch.float64).tolist():
        distance = (grid.unsqueeze(1) - x).square() + (grid - y).square()
        floor = torch.maximum(floor, height - 40 * distance)
    return Instance(Q=Q, p=torch.full((n,), 0.5 / n, dtype=torch.float64), lb=floor.flatten())


def portfolio_qp(assets: int, factors: int, seed: int = 0) -> Instance:
    """Weights w >= 0 with sum 1: least w'Dw / 2 + |F'w|^2 / 2 - returns'w, D diagonal, y = F'w.

    Half of the entries of F `(assets, factors)` are zero; the unknowns are (w, y).
    """
    draw = torch.Generator().manual_seed(seed)
    F = torch.randn(assets, factors, generator=draw, dtype=torch.float64)
    F = F * (torch.rand(F.shape, generator=draw) < 0.5)
    n = assets + factors
    risk = torch.rand(assets, generator=draw, dtype=torch.float64) * factors**0.5
    Q = _diagonal(torch.cat([risk + 0.01, torch.ones(factors, dtype=torch.float64)]))
    returns = torch.randn(assets, generator=draw, dtype=torch.float64)
    p = torch.cat([-returns, torch.zeros(factors, dtype=torch.float64)])
    k = torch.arange(factors)
    links = F.T.to_sparse().coalesce()
    total = torch.stack([torch.full((assets,), factors), torch.arange(assets)])
    at = torch.cat([links.indices(), torch.stack([k, assets + k]), total], 1)
    ones = torch.ones(factors + assets, dtype=torch.float64)
    values = torch.cat([links.values(), -ones[:factors], ones[factors:]])
    A = _matrix(at, values, (factors + 1, n))
    b = torch.cat([torch.zeros(factors), torch.ones(1)]).double()
    free = torch.full((factors,), -torch.inf, dtype=torch.float64)
    return Instance(Q=Q, p=p, A=A, b=b, lb=torch.cat([torch.zeros(assets).double(), free]))


def _random_rows(rows: int, n: int, entries: int, draw: torch.Generator) -> Tensor:
    """`(rows, n)` with `entries` entries a row, fewer where two fall together."""
    at = torch.stack(
        [
            torch.arange(rows).repeat_interleave(entries),
            torch.randint(n, (rows * entries,), generator=draw),
        ]
    )
    values = torch.randn(rows * entries, generator=draw, dtype=torch.float64) / entries**0.5
    return _matrix(at, values, (rows, n))


def _dominant(n: int, entries: int, extra: Tensor, draw: torch.Generator) -> Tensor:
    """Symmetric: `entries` off-diagonal pairs a row, the diagonal their sum and `extra`."""
    i = torch.arange(n).repeat_interleave(entries)
    j = torch.randint(n, (n * entries,), generator=draw)
    keep = i != j
    i, j = i[keep], j[keep]
    v = torch.randn(len(i), generator=draw, dtype=torch.float64) / max(entries, 1) ** 0.5
    size = torch.zeros(n, dtype=torch.float64).index_add(0, torch.cat([i, j]), v.abs().repeat(2))
    at = torch.cat([torch.stack([i, j]), torch.stack([j, i]), torch.arange(n).expand(2, n)], 1)
    return _matrix(at, torch.cat([v, v, size + extra]), (n, n))


def _diagonal(d: Tensor) -> Tensor:
    return _matrix(torch.arange(len(d)).expand(2, -1), d, (len(d),) * 2)


def _blocks(
    parts: list[tuple[Tensor, Tensor, Tensor]], shape: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """A matrix of blocks: each part puts one block at all (block row, block column) given."""
    ats, values = [], []
    for i, j, block in parts:
        r, c = block.nonzero().T
        row, column = i.unsqueeze(1) * size[0] + r, j.unsqueeze(1) * size[1] + c
        ats.append(torch.stack([row.flatten(), column.flatten()]))
        values.append(block[r, c].repeat(len(i)))
    return _matrix(torch.cat(ats, 1), torch.cat(values), shape)


def _matrix(at: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """The sparse matrix with `values` at `at` `(2, k)`; what falls together adds up."""
    return torch.sparse_coo_tensor(at, values, shape, check_invariants=True).coalesce()
