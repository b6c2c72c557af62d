"""Random QPs built backwards from a known answer, and random ones that have none.

A feasible instance is made by choosing z, the multipliers and the slacks first and deriving the
data from the KKT conditions: the limits from z and the slacks, p from stationarity. So the answer
is exact to rounding, whatever the size or the conditioning, and no solver is needed to know it.

    minimise 1/2 z'Qz + p'z    subject to    h_lower <= Gz <= h,   Az = b,   lb <= z <= ub
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Instance:
    """The arguments of `diffopt.solve_qp`, and the answer where there is one.

    Data have the shapes of `solve_qp`; an absent block is None. `z` `(*B, n)`, `lam` `(*B, m)`,
    `nu` `(*B, e)`, `mu` `(*B, n)` follow its sign convention, Qz + p + G'lam + A'nu + mu = 0, and
    are None for an instance without a solution.
    """

    Q: Tensor | None
    p: Tensor
    G: Tensor | None = None
    h: Tensor | None = None
    A: Tensor | None = None
    b: Tensor | None = None
    lb: Tensor | None = None
    ub: Tensor | None = None
    h_lower: Tensor | None = None
    z: Tensor | None = None
    lam: Tensor | None = None
    nu: Tensor | None = None
    mu: Tensor | None = None

    def arguments(self) -> dict[str, Tensor | None]:
        """The keyword arguments of `solve_qp`."""
        names = ("Q", "p", "G", "h", "A", "b", "lb", "ub", "h_lower")
        return {name: getattr(self, name) for name in names}

    def block(self, name: str) -> Tensor:
        """The block `name`, which must be present."""
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(f"this instance has no {name}")
        return value


def random_qp(
    n: int,
    m: int = 0,
    e: int = 0,
    *,
    batch: tuple[int, ...] = (),
    rank: int | None = None,
    condition: float = 10.0,
    diagonal: bool = False,
    two_sided: bool = False,
    bounds: bool = False,
    active: int | None = None,
    shared: tuple[str, ...] = (),
    seed: int = 0,
) -> Instance:
    """A QP with a unique, strictly complementary solution and unique multipliers.

    Args:
        n: unknowns.
        m: rows of G. Of its limits and the bounds, `active` are active, with multipliers of
            magnitude 0.1 to 1.1; the slack of the others is 0.1 to 1.1.
        e: rows of A, at most n.
        batch: leading batch dimensions.
        rank: rank of Q, by default n. An active set of at least n - rank - e rows is needed for
            the solution to be unique; 0 gives a linear program with Q = None.
        condition: ratio of the largest eigenvalue of Q, 1, to the smallest nonzero one.
        diagonal: make Q diagonal, its eigenvalues in random order.
        two_sided: give G lower limits too; about half of the active rows are at the lower one.
        bounds: give every unknown a lower bound, an upper bound, both or none, at random.
        active: number of active limits, by default half of what e, m, n allow, and never fewer
            than the rank of Q asks for.
        shared: names among "Q", "G", "A" that all samples share (no batch dimensions).
        seed: of a generator of its own.

    Raises:
        ValueError: if the counts do not admit a unique solution.
    """
    draw = _Draw(seed, batch, shared)
    rank = n if rank is None else rank
    active = _active_count(n, m, e, rank, bounds, active)
    Q = draw.spectrum(n, rank, condition, diagonal) if rank else None
    G, A = draw.rows("G", m, n), draw.rows("A", e, n)
    z, nu = draw.normal(n), draw.normal(e)
    k = m + (n if bounds else 0)
    y, lower, upper = draw.limits(k, active, _side_kinds(draw, m, n, two_sided, bounds))
    Cz = torch.cat([_times(G, z), z], -1) if bounds else _times(G, z)
    lower, upper, lam, mu = Cz - lower, Cz + upper, y[..., :m], y[..., m:]
    mu = mu if bounds else torch.zeros_like(z)
    p = -(_times(G.mT, lam) + _times(A.mT, nu) + mu)
    if Q is not None:
        p = p - _times(Q, z)
    return Instance(
        Q=Q,
        p=p,
        G=G if m else None,
        h=upper[..., :m] if m else None,
        A=A if e else None,
        b=_times(A, z) if e else None,
        lb=lower[..., m:] if bounds else None,
        ub=upper[..., m:] if bounds else None,
        h_lower=lower[..., :m] if m and two_sided else None,
        z=z,
        lam=lam,
        nu=nu,
        mu=mu,
    )


def random_lp(
    n: int, m: int, e: int = 0, *, batch: tuple[int, ...] = (), bounds: bool = False, seed: int = 0
) -> Instance:
    """A linear program (Q = None) whose solution is one nondegenerate vertex; see `random_qp`."""
    return random_qp(n, m, e, batch=batch, rank=0, bounds=bounds, active=n - e, seed=seed)


def degenerate_qp(n: int, *, batch: tuple[int, ...] = (), seed: int = 0) -> Instance:
    """A QP whose multipliers are not unique: weakly active and duplicated rows.

    Of its 2n rows of G the first half are those of `random_qp(n, n)`, then the first n/2 of them
    come again, and then n - n/2 rows that are active with multiplier zero. The primal solution is
    unique (`z`); `lam` is the solution with all weight on the first copy.
    """
    base = random_qp(n, n, batch=batch, active=n // 2, seed=seed)
    draw = _Draw(seed + 1, batch, ())
    copies = n // 2
    weak = draw.rows("G", n - copies, n)
    G = torch.cat([base.block("G"), base.block("G")[..., :copies, :], weak], -2)
    h = torch.cat(
        [base.block("h"), base.block("h")[..., :copies], _times(weak, base.block("z"))], -1
    )
    lam = torch.cat([base.block("lam"), torch.zeros_like(base.block("z"))], -1)
    return Instance(Q=base.Q, p=base.p, G=G, h=h, z=base.z, lam=lam, nu=base.nu, mu=base.mu)


def rescaled(instance: Instance, z: float, objective: float) -> Instance:
    """The same problem in other units: z times `z`, objective times `objective`, and its answer."""
    vectors = ("h", "b", "lb", "ub", "h_lower", "z")
    units = dict.fromkeys(vectors, z) | {"Q": objective / z**2, "p": objective / z}
    units |= dict.fromkeys(("lam", "nu", "mu"), objective / z)
    changes = {
        k: getattr(instance, k) * u for k, u in units.items() if getattr(instance, k) is not None
    }
    return replace(instance, **changes)


def infeasible_qp(
    n: int, m: int, e: int = 0, *, margin: float = 1.0, batch: tuple[int, ...] = (), seed: int = 0
) -> Instance:
    """A QP whose constraints contradict each other by `margin` > 0.

    The last row of G is minus a positive combination w of the others plus a combination of A, so
    that y = (w, 1) proves infeasibility: G'y + A'nu = 0 while h'y + b'nu = -margin.
    """
    if m < 2:
        raise ValueError(f"m={m}: two rows at least are needed to contradict each other")
    base = random_qp(n, m, e, batch=batch, seed=seed)
    draw = _Draw(seed + 1, batch, ())
    w, nu = draw.uniform(m - 1), draw.normal(e)
    last = -_times(base.block("G")[..., :-1, :].mT, w)
    h_last = -(base.block("h")[..., :-1] * w).sum(-1, keepdim=True) - margin
    if e:
        last = last - _times(base.block("A").mT, nu)
        h_last = h_last - (base.block("b") * nu).sum(-1, keepdim=True)
    G = torch.cat([base.block("G")[..., :-1, :], last.unsqueeze(-2)], -2)
    h = torch.cat([base.block("h")[..., :-1], h_last], -1)
    return Instance(Q=base.Q, p=base.p, G=G, h=h, A=base.A, b=base.b)


def unbounded_qp(
    n: int, m: int, e: int = 0, *, margin: float = 1.0, batch: tuple[int, ...] = (), seed: int = 0
) -> Instance:
    """A feasible QP that falls by `margin` a unit along a ray d: Qd = 0, Ad = 0, Gd < 0."""
    draw = _Draw(seed, batch, ())
    d = torch.nn.functional.normalize(draw.normal(n), dim=-1)
    outer = d.unsqueeze(-1) * d.unsqueeze(-2)
    away = torch.eye(n, dtype=d.dtype) - outer
    Q = away @ draw.spectrum(n, n, 10.0) @ away
    Q = (Q + Q.mT) / 2
    A = draw.rows("A", e, n) @ away
    G = draw.rows("G", m, n) @ away - draw.uniform(m).unsqueeze(-1) * d.unsqueeze(-2)
    z = draw.normal(n)
    p = draw.normal(n)
    p = p - ((p * d).sum(-1, keepdim=True) + margin) * d
    return Instance(
        Q=Q,
        p=p,
        G=G if m else None,
        h=_times(G, z) + draw.uniform(m) if m else None,
        A=A if e else None,
        b=_times(A, z) if e else None,
    )


def _active_count(n: int, m: int, e: int, rank: int, bounds: bool, active: int | None) -> int:
    limits, room, needed = m + (n if bounds else 0), n - e, max(0, n - e - rank)
    if active is None:
        active = max(needed, min(limits, room) // 2)
    if not needed <= active <= min(limits, room):
        raise ValueError(
            f"active={active} with n={n}, m={m}, e={e}, rank={rank}, bounds={bounds}: a unique "
            f"solution needs {needed} to {min(limits, room)} active limits"
        )
    return active


def _side_kinds(draw: _Draw, m: int, n: int, two_sided: bool, bounds: bool) -> Tensor:
    """For each limit 0 (upper only), 1 (lower only), 2 (both) or 3 (none), `(*B, k)`."""
    rows = torch.full((*draw.batch, m), 2 if two_sided else 0)
    return torch.cat([rows, draw.integers(4, n)], -1) if bounds else rows


class _Draw:
    """Random tensors in float64 from one generator, with the batch dimensions in front."""

    def __init__(self, seed: int, batch: tuple[int, ...], shared: tuple[str, ...]) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.batch, self.shared = batch, shared

    def normal(self, *shape: int, name: str = "") -> Tensor:
        lead = () if name in self.shared else self.batch
        return torch.randn(*lead, *shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        """Between 0.1 and 1.1."""
        shape = (*self.batch, *shape)
        return 0.1 + torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, (*self.batch, *shape), generator=self.generator)

    def rows(self, name: str, count: int, n: int) -> Tensor:
        """`(*B, count, n)` with rows of length about one."""
        return self.normal(count, n, name=name) / n**0.5

    def spectrum(self, n: int, rank: int, condition: float, diagonal: bool = False) -> Tensor:
        """A symmetric matrix with `rank` eigenvalues from 1 down to 1/condition, the rest zero."""
        draw = self.normal(n, n, name="Q")
        # The vectors of a diagonal matrix are those of the identity, in the order of random keys.
        order = draw[..., 0].argsort(-1).unsqueeze(-1)
        axes = (order == torch.arange(n)).to(draw.dtype)
        basis = (axes if diagonal else torch.linalg.qr(draw)[0])[..., :rank]
        values = torch.logspace(0, -1, rank, base=condition, dtype=torch.float64)
        Q = (basis * values) @ basis.mT
        return (Q + Q.mT) / 2

    def limits(self, k: int, active: int, kind: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(y, slack below, slack above) for `k` limits, `active` of them active, by their kind."""
        order = torch.rand(*self.batch, k, generator=self.generator, dtype=torch.float64)
        order = torch.where(kind == 3, 2.0, order)  # a limit that is absent comes last
        rank = order.argsort(-1).argsort(-1)
        on = rank < active
        # Where too few limits are present, absent ones are put in to reach the count.
        kind = torch.where(on & (kind == 3), 2, kind)
        low = torch.where(kind == 2, self.integers(2, k) == 1, kind == 1)
        y = torch.where(on, torch.where(low, -self.uniform(k), self.uniform(k)), 0.0)
        below = torch.where(on & low, 0.0, self.uniform(k))
        above = torch.where(on & ~low, 0.0, self.uniform(k))
        below = torch.where((kind == 0) | (kind == 3), torch.inf, below)
        above = torch.where((kind == 1) | (kind == 3), torch.inf, above)
        return y, below, above


def _times(M: Tensor, x: Tensor) -> Tensor:
    return (M @ x.unsqueeze(-1)).squeeze(-1)
