"""Problems of different sizes as one batch: `stack_qps`.

The smaller problems are padded so that their solutions stay the same: an unknown more has Q_jj = 1
and neither a linear term nor a limit, so it is zero; a row more of G has no limit; a row more of A
reads 0 = 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, replace
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from .arguments import SHAPES, check, complete

# argument: what a padded entry holds, where that is not zero
FILL = {"h": float("inf"), "ub": float("inf"), "h_lower": -float("inf"), "lb": -float("inf")}
# field of a solution: the blocks of its last dimension, () for one number a problem; of a named
# tuple those of all entries, or of each by its name
Blocks = tuple[str, ...]
FIELDS: dict[str, Blocks | dict[str, Blocks]] = {
    "z": ("n",),
    "lam": ("m",),
    "nu": ("e",),
    "mu": ("n",),
    "weakly_active": ("m", "n"),
    "status": (),
    "iterations": (),
    "residuals": (),
    "polished": (),
    "certificate": {
        "z": ("n",),
        "nu": ("e",),
        "lam_upper": ("m",),
        "lam_lower": ("m",),
        "mu_upper": ("n",),
        "mu_lower": ("n",),
    },
    "shifts": {"G": ("m",), "A": ("e",)},
}


class Sizes(NamedTuple):
    """The sizes of a problem: `n` unknowns, `m` rows of G, `e` rows of A."""

    n: int
    m: int
    e: int

    @classmethod
    def of(cls, problem: Mapping[str, Any]) -> Sizes:
        """The sizes of a problem whose arguments were checked."""
        rows = (0 if problem[name] is None else len(problem[name]) for name in ("G", "A"))
        return cls(len(problem["p"]), *rows)

    def pick(self, names: Iterable[str]) -> list[int]:
        """The sizes called `names`, in that order."""
        return [getattr(self, name) for name in names]


class _Solved(Protocol):
    """A dataclass with a z: what `unstack` knows of a `QPSolution`, besides `FIELDS`."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def z(self) -> Tensor: ...


S = TypeVar("S", bound=_Solved)


class QPStack(dict[str, Tensor]):
    """The keyword arguments of one `solve_qp` for problems of different sizes; see `stack_qps`.

    Attributes:
        sizes: the `Sizes` (n, m, e) of each problem before it was padded.
    """

    def __init__(self, arguments: Mapping[str, Tensor], sizes: Sequence[Sizes]) -> None:
        super().__init__(arguments)
        self.sizes = tuple(sizes)

    def unstack(self, solution: S) -> list[S]:
        """The solution of each problem in its own sizes, in the order they were stacked.

        Args:
            solution: of `solve_qp(**stack)`, whose batch shape is `(len(stack.sizes),)`.

        Returns:
            A `QPSolution` for each problem, without batch dimensions, in the graph of `solution`.

        Raises:
            ValueError: if `solution` has not the shape of this stack.
        """
        largest = _largest(self.sizes)
        found, expected = tuple(solution.z.shape), (len(self.sizes), largest.n)
        if found != expected:
            raise ValueError(
                f"solution.z has shape {found}: expected {expected}, as solve_qp(**stack) gives it"
            )
        apart = [self._apart(getattr(solution, k), blocks) for k, blocks in FIELDS.items()]
        each = (dict(zip(FIELDS, values, strict=True)) for values in zip(*apart, strict=True))
        return [replace(solution, **fields) for fields in each]

    def _apart(self, value: Any, blocks: Any) -> Sequence[Any]:
        """One field of the batched solution, a problem; a named tuple entry by entry."""
        if value is None:
            return [None] * len(self.sizes)
        if isinstance(value, tuple):
            entries: dict[str, Any] = value._asdict()  # type: ignore[attr-defined]
            layout = blocks if isinstance(blocks, dict) else dict.fromkeys(entries, blocks)
            parts = (self._apart(v, layout[name]) for name, v in entries.items())
            return [type(value)(*part) for part in zip(*parts, strict=True)]
        # unbind, since 1000 times value[i] has a backward pass quadratic in their number
        samples: Sequence[Tensor] = value.unbind(0)
        if not blocks:
            return samples
        full = _largest(self.sizes).pick(blocks)
        return [_cut(v, full, s.pick(blocks)) for v, s in zip(samples, self.sizes, strict=True)]


def stack_qps(problems: Sequence[Mapping[str, Tensor | float | None]]) -> QPStack:
    """One batch of QPs of different sizes, to be solved by one `solve_qp` and taken apart again.

        stack = stack_qps(problems)
        solutions = stack.unstack(solve_qp(**stack))

    Every answer, and every gradient with respect to the tensors in `problems`, is that of the
    problem solved alone. Each problem is padded to the largest n, m and e, so problems of similar
    sizes are stacked best.

    Args:
        problems: for each problem the keyword arguments of one `solve_qp`, without batch
            dimensions: Q `(n, n)`, p `(n,)`, G `(m, n)`, h and h_lower `(m,)`, A `(e, n)`,
            b `(e,)`, lb and ub `(n,)`. Limits may be numbers, everything but p may be None or
            absent, and n, m, e are each problem's own.

    Returns:
        `QPStack`: a dict of Q and the arguments that any problem has, each with one batch
        dimension.

    Raises:
        ValueError: if there is no problem, or, naming the problem and the argument, if one is
            unknown, missing, of a wrong shape, has batch dimensions, or differs in dtype or device
            from p of the first problem.

    Example:
        The point of z_0 = 0.5 nearest to (3,), and that of z_0 + z_1 = 1 nearest to (1, 0.5):

        >>> one = {"Q": torch.eye(1), "p": torch.tensor([-3.0]), "lb": 0.5, "ub": 0.5}
        >>> two = {
        ...     "Q": torch.eye(2), "p": torch.tensor([-1.0, -0.5]), "A": torch.ones(1, 2), "b": 1.0
        ... }
        >>> stack = stack_qps([one, two])
        >>> stack["p"].tolist(), stack["lb"].tolist()
        ([[-3.0, 0.0], [-1.0, -0.5]], [[0.5, -inf], [-inf, -inf]])
        >>> [sol.z for sol in stack.unstack(solve_qp(**stack))]
        [tensor([0.5000]), tensor([0.7500, 0.2500])]
    """
    if not problems:
        raise ValueError("problems is empty: expected the arguments of one QP at least")
    held = [_checked(i, problem) for i, problem in enumerate(problems)]
    _check_alike(held)
    sizes = [Sizes.of(problem) for problem in held]
    largest = _largest(sizes)
    present = {"Q"} | {k for k in SHAPES for problem in held if problem[k] is not None}
    pairs = list(zip(held, sizes, strict=True))
    stacked = {
        k: torch.stack([_padded(k, problem, own, largest) for problem, own in pairs])
        for k in SHAPES
        if k in present
    }
    stacked["Q"] = stacked["Q"] + _added_curvature(sizes, stacked["Q"])
    return QPStack(stacked, sizes)


def _checked(index: int, problem: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of one problem, checked as `solve_qp` would, errors naming the problem."""
    try:
        full = complete(problem)
        with torch.no_grad():
            batch = check(**full).batch
        if len(batch):
            shapes = {k: tuple(v.shape) for k, v in full.items() if isinstance(v, Tensor)}
            raise ValueError(
                f"its arguments have batch dimensions, {tuple(batch)} together: give each sample "
                f"as a problem of its own. The shapes are {shapes}"
            )
    except ValueError as error:
        raise ValueError(f"problem {index}: {error}") from None
    return full


def _check_alike(held: Sequence[Mapping[str, Any]]) -> None:
    """All tensors on one device and, but for limits without a dimension, of one real dtype."""
    like: Tensor = held[0]["p"]
    if not like.is_floating_point():
        raise ValueError(f"problem 0: p is {like.dtype}: expected a floating-point dtype")
    for i, problem in enumerate(held):
        for name, value in problem.items():
            if not isinstance(value, Tensor):
                continue
            if value.device != like.device or (value.ndim and value.dtype != like.dtype):
                raise ValueError(
                    f"problem {i}: {name} is {value.dtype} on {value.device}, but p of problem 0 "
                    f"is {like.dtype} on {like.device}: convert all to one dtype and device"
                )


def _largest(sizes: Sequence[Sizes]) -> Sizes:
    return Sizes(*map(max, zip(*sizes, strict=True)))


def _padded(name: str, problem: Mapping[str, Any], own: Sizes, largest: Sizes) -> Tensor:
    """One argument of one problem in the shape of the largest, in the graph of the argument."""
    fill, value, p = FILL.get(name, 0.0), problem[name], problem["p"]
    shape, full = own.pick(SHAPES[name]), largest.pick(SHAPES[name])
    if value is None:
        return p.new_full(full, fill)
    if not isinstance(value, Tensor):
        value = p.new_full(shape, value)
    value = value.to(p.dtype).expand(shape)  # a limit without a dimension holds for every row
    if shape == full:
        return value
    room = [r for s, f in zip(reversed(shape), reversed(full), strict=True) for r in (0, f - s)]
    return torch.nn.functional.pad(value, room, value=fill)


def _added_curvature(sizes: Sequence[Sizes], Q: Tensor) -> Tensor:
    """1 on the diagonal of the padded unknowns of each problem, `(B, n, n)`."""
    own = torch.tensor([s.n for s in sizes]).unsqueeze(-1)
    return torch.diag_embed((torch.arange(Q.shape[-1]) >= own).to(Q))


def _cut(value: Tensor, full: Sequence[int], own: Sequence[int]) -> Tensor:
    """`value` `(sum(full),)` without the padding that ends each of its blocks, `(sum(own),)`."""
    kept = [part[:size] for part, size in zip(value.split(list(full)), own, strict=True)]
    return kept[0] if len(kept) == 1 else torch.cat(kept)
