"""Our solver inside cvxpylayers: ``CvxpyLayer(problem, ..., solver=DiffoptSolver())``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..optional import package
from ..qp import InteriorPoint
from ..solution import caution
from .accept import check_options
from .arguments import Arguments
from .canonical import canonical_by_value, other_cones
from .program import ConvexSolution, Program

SolverInterface: Any = package("cvxpylayers.interfaces.base", extra="cvxpy").SolverInterface
State = tuple[bool, tuple[Tensor, ...], tuple[Tensor, ...]] | None


class DiffoptSolver(SolverInterface):
    """A solver for `CvxpyLayer`, by which every linear or quadratic program of a batch is solved.

    All samples are solved at once and to 1e-8 or better; one that fails has a status, and the
    others their answer, where cvxpylayers' own solvers raise for the whole batch. One object may
    serve any number of layers. `ConvexLayer` does the same without cvxpylayers' own overhead, and
    gives the status of each sample, derivatives of higher order, and batches of any shape. (With
    any solver cvxpylayers leaves its part out of second derivatives, and does not say so.)

    Args:
        solver: the method and its settings; the `solver_args` of a call of the layer override
            them by name, and names that it does not have are named in a warning. (Those of the
            layer itself cvxpylayers keeps to its own solvers.)
        options: further keyword arguments of `solve_qp`: degenerate, smoothing, proximal,
            on_failure.

    Raises:
        ValueError: if there is no option of a name given; when a layer is made of a problem with
            other cones than those of linear and quadratic programs.

    Example:
        >>> import cvxpy as cp
        >>> from cvxpylayers.torch import CvxpyLayer
        >>> x, y = cp.Variable(2), cp.Parameter(2)
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - y)), [cp.sum(x) == 1, x >= 0])
        >>> layer = CvxpyLayer(problem, [y], [x], solver=DiffoptSolver())
        >>> layer(torch.tensor([[0.9, 0.5], [2.0, 0.0]], dtype=torch.float64))[0]
        tensor([[0.7000, 0.3000],
                [1.0000, 0.0000]], dtype=torch.float64)
    """

    canon_solver = "CLARABEL"
    supports_quad_obj = True

    def __init__(self, solver: InteriorPoint | None = None, **options: Any) -> None:
        self.solver = InteriorPoint() if solver is None else solver
        check_options(options)
        self.options = options
        self.last: ConvexSolution | None = None
        self._programs: WeakKeyDictionary[Any, Program] = WeakKeyDictionary()

    def setup(self, ctx: Any) -> None:
        """Prepare for the problem of a layer; called by cvxpylayers."""
        other = other_cones(ctx.cone_dims)
        if other:
            raise ValueError(
                f"the problem has {', '.join(other)} cones: DiffoptSolver solves linear and "
                "quadratic programs. Leave solver= out, or use diffopt.ConvexLayer, which does so"
            )
        self._programs[ctx.cone_dims] = Program(canonical_by_value(ctx))

    def solve_torch_batch(
        self,
        P: Tensor | None,
        q: Tensor,
        A: Tensor,
        dims: Any,
        solver_args: Mapping[str, Any],
        needs_grad: bool,
    ) -> tuple[Tensor, Tensor, State]:
        """Unknowns and multipliers, `(B, n)` and `(B, m)`; called by cvxpylayers."""
        given = (q.new_zeros(len(q), 0) if P is None else P), q, A
        leaves = tuple(v.detach().requires_grad_(needs_grad) for v in given)
        with torch.set_grad_enabled(needs_grad):
            values = tuple(v.to(torch.float64) for v in leaves)
            arguments = Arguments(values, q.shape[:1], q.dtype)
            solver = _overridden(self.solver, solver_args)
            solution = self._programs[dims].solve(arguments, solver, None, self.options)
        self.last = solution
        primal, dual = solution.values
        state = (P is not None, leaves, (primal, dual)) if needs_grad else None
        return primal.detach(), dual.detach(), state

    def derivative_torch_batch(
        self, dprimal: Tensor, ddual: Tensor, state: State
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """The gradients of P, q and A, `(B, ...)` each; called by cvxpylayers."""
        assert state is not None
        quadratic, leaves, outputs = state
        grads = torch.autograd.grad(
            outputs, leaves, (dprimal, ddual), retain_graph=True, materialize_grads=True
        )
        return (grads[0] if quadratic else None), grads[1], grads[2]


def _overridden(solver: InteriorPoint, settings: Mapping[str, Any]) -> InteriorPoint:
    """`solver` with the settings that it has."""
    own = {f.name for f in fields(solver)}
    unknown = sorted(set(settings) - own)
    if unknown:
        caution(
            f"DiffoptSolver: solver_args has {', '.join(unknown)}, which InteriorPoint does not "
            f"have, and which is ignored: expected some of {', '.join(sorted(own))}"
        )
    return replace(solver, **{k: v for k, v in settings.items() if k in own})
