"""Sets whose projection is a QP of its own: `Polyhedron`, `TransportPolytope`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..qp import InteriorPoint, solve_qp
from ..solution import OnFailure
from .arguments import Argument, Parameter, by_sample, check_point, parameter, signed, unless


@dataclass(frozen=True)
class Polyhedron:
    """{z: Gz <= h, Az = b, lb <= z <= ub}: ``Polyhedron(G, h)(x)`` is its point nearest to x.

    This is `solve_qp` with Q = I and p = -x, and the rest as there: what is dependent, weakly
    active or infeasible. Prefer another set of this package where one fits: they need no solver.

    Args:
        G, h: `(*B, m, n)` and `(*B, m)` or a number; None for no inequality.
        A, b: `(*B, e, n)` and `(*B, e)` or a number; None for no equation.
        lb, ub: `(*B, n)` or a number; None for no bound.
        solver: the method and its settings.
        order: how many derivatives are exact; one more raises.
        on_failure: what to do where the set is empty, the data are not finite, or the solve fails;
            see `solve_qp`. There is no `ValueError` for an empty set.

    Returns (the call):
        `(*B, n)`, exact to 1e-8 and typically to 1e-12; worked out in float64.

    Raises:
        ValueError: if G comes without h or A without b; if shapes do not fit.
        ConvergenceError: under ``on_failure="raise"``, if the set is empty or the solve failed.

    Derivative: in x and in every argument; at a tie the one between the sides that
    ``degenerate="central"`` of `solve_qp` gives.

    Example:
        The corner (1, 1) of z_0 <= 1, z_1 <= 1, and a point of the edge z_0 = 1:

        >>> Polyhedron(torch.eye(2), 1.0)(torch.tensor([[2.0, 3.0], [2.0, 0.5]]))
        tensor([[1.0000, 1.0000],
                [1.0000, 0.5000]])
    """

    G: Tensor | None = None
    h: Parameter | None = None
    A: Tensor | None = None
    b: Parameter | None = None
    lb: Parameter | None = None
    ub: Parameter | None = None
    solver: InteriorPoint = InteriorPoint()
    order: int = 1
    on_failure: OnFailure = "warn"

    def __call__(self, x: Tensor) -> Tensor:
        check_point(x)
        solution = solve_qp(
            torch.eye(x.shape[-1], dtype=x.dtype, device=x.device),
            -x,
            *(self.G, self.h, self.A, self.b, self.lb, self.ub),
            solver=self.solver,
            order=self.order,
            on_failure=self.on_failure,
        )
        return solution.z.to(x.dtype)


@dataclass(frozen=True)
class TransportPolytope:
    """{Z >= 0, Z 1 = rows, Z'1 = columns}: ``TransportPolytope(rows, columns)(X)``, `(*B, n, m)`.

    The matrix of the polytope that is nearest to X in the Frobenius norm, by `solve_qp`. The
    defaults, for square X, are the Birkhoff polytope: the doubly stochastic matrices. The cost
    is that of a QP of n m unknowns; `EntropicTransport` is far cheaper, and another point.

    Args:
        rows: `(*B, n)` or a number, >= 0.
        columns: `(*B, m)` or a number, >= 0, of the same sum.
        solver: the method and its settings.
        order: how many derivatives are exact; one more raises.
        on_failure: what to do where the solve fails; see `solve_qp`.

    Raises:
        ValueError: if a marginal is negative, or the sums differ by more than sqrt(eps) of them;
            if shapes do not fit.

    Derivative: as `Polyhedron`. The gradient in the marginals is the one of least norm among
    those that are right for changes that keep the two sums equal.

    Example:
        Subtracting 1/4 makes all sums 1:

        >>> z = TransportPolytope()(torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64))
        >>> z.round(decimals=9)
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]], dtype=torch.float64)
    """

    rows: Parameter = 1.0
    columns: Parameter = 1.0
    solver: InteriorPoint = InteriorPoint()
    order: int = 1
    on_failure: OnFailure = "warn"

    def __call__(self, X: Tensor) -> Tensor:
        check_point(X, 2)
        rows, columns = marginals(self.rows, self.columns, X.double(), strictly=False)
        return by_sample(self._project, Argument(X.double(), 2), rows, columns).to(X.dtype)

    def _project(self, X: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Z by rows is the unknown; the last column sum follows from the others."""
        n, m = X.shape[-2:]
        ones = torch.ones(1, max(n, m), dtype=X.dtype, device=X.device)
        eyes = [torch.eye(k, dtype=X.dtype, device=X.device) for k in (n, m)]
        A = torch.cat([torch.kron(eyes[0], ones[:, :m]), torch.kron(ones[:, :n], eyes[1])[:-1]])
        lead = torch.broadcast_shapes(rows.shape[:-1], columns.shape[:-1])
        b = torch.cat([rows.expand(*lead, -1), columns[..., :-1].expand(*lead, -1)], -1)
        flat = Polyhedron(
            A=A, b=b, lb=0.0, solver=self.solver, order=self.order, on_failure=self.on_failure
        )
        return flat(X.flatten(-2)).unflatten(-1, (n, m))


def marginals(
    rows: Parameter, columns: Parameter, X: Tensor, strictly: bool
) -> tuple[Argument, Argument]:
    """The marginals `(*B, n)` and `(*B, m)`, checked, and of equal sums to the last digits.

    What the sums differ by is taken off in equal parts. That is rounding in the value, and makes
    the gradient orthogonal to changes that move the sums apart. In a sample without a plan both
    are NaN, and what `by_sample` fills in for that has a plan.
    """
    n, m = X.shape[-2:]
    r, c = (
        signed(name, parameter(name, value, (k,), X, event=2), 1, strictly)
        for name, value, k in (("rows", rows, n), ("columns", columns, m))
    )
    total, other = r.sum(-1, keepdim=True), c.sum(-1, keepdim=True)
    given = [v for v in (rows, columns, X) if isinstance(v, Tensor) and v.is_floating_point()]
    eps = max(torch.finfo(v.dtype).eps for v in given)
    apart = (total - other).abs() > eps**0.5 * total.abs()
    message = "rows and columns have different sums: no matrix has both; rescale one"
    share = unless(apart, total - other, message) / (n + m)
    return Argument(r - share, fill=1 / n), Argument(c + share, fill=1 / m)
