"""A CVXPY problem as a module: `ConvexLayer`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..convex.accept import check_options, check_problem
from ..convex.arguments import Arguments
from ..convex.canonical import canonical, other_cones
from ..convex.conic import Conic
from ..convex.program import ConvexSolution, Program
from ..optional import package
from ..qp import InteriorPoint, QPSolution
from ..solution import check_on_failure

# of SCS, in diffcp. Clarabel there is faster, but reports no infeasible problem, and its gradients
# are wrong for exponential cones (diffcp 1.1.9: by 1.8 for the entropy of three numbers).
ACCURATE = {"eps": 1e-9, "max_iters": 100_000}
logger = logging.getLogger("diffopt")


class ConvexLayer(nn.Module):
    """A layer whose output is the solution of a convex CVXPY problem; a drop-in `CvxpyLayer`.

    The problem is canonicalised once, by CVXPY and cvxpylayers. A linear or quadratic program is
    then solved by `solve_qp`: all samples at once, on the device of the parameters, in float64,
    with a status for each sample and derivatives of any order. A quadratic stays one, and unknowns
    that CVXPY introduces are substituted away again (see `convex.presolve`). A problem with other
    cones (second-order, exponential, positive semidefinite, power) is left to cvxpylayers' own
    solvers, and the log says so.

    Args:
        problem: a `cvxpy.Problem`: convex, DPP, without integers.
        parameters: its `cvxpy.Parameter` objects, in the order of the layer's arguments.
        variables: the variables that are wanted, in the order of the layer's outputs; also
            ``constraint.dual_variables[0]``, the multipliers of a constraint.
        solver: the method for linear and quadratic programs and its settings.
        gp: the problem is a geometric program; see cvxpy's DGP.
        fallback: what cvxpylayers shall solve other cones with: its `solver` argument.
        fallback_args: settings of that solver, its `solver_args`. Where neither is given it is
            SCS through diffcp with ``eps=1e-9`` (cvxpylayers' own default is 1e-4).
        options: further keyword arguments of `solve_qp`: order, degenerate, smoothing, proximal,
            on_failure. For other cones only on_failure.

    Each parameter has the shape of its `cvxpy.Parameter` behind any batch dimensions of its own,
    which broadcast; one without them is shared by the batch and gets the summed gradient. Of a
    symmetric parameter the symmetric part counts.

    Returns:
        In a call: a tuple of tensors, one for each of `variables`, `(*B, *shape)`.

    Raises:
        ValueError: if the problem is not convex, not DPP or has integers, with what to change; if
            the parameters or variables are not the problem's; in a call, if shapes do not fit.
        ImportError: if cvxpy or cvxpylayers is not installed.
        ConvergenceError: under ``on_failure="raise"``, if a sample failed.

    Where the answer is not unique, and at kinks, as in `solve_qp`; what is not unique among the
    unknowns that CVXPY introduced does not matter to the derivative of the user's.

    Accuracy: that of `solve_qp` (1e-8 at most, 1e-12 typically); with other cones that of
    `fallback`: gradients to about 1e-6 by default.

    Example:
        The point of the simplex nearest to (0.9, 0.5) is (0.7, 0.3), and moves by (1/2, -1/2) for
        each unit of the first coordinate.

        >>> import cvxpy as cp, torch
        >>> x, y = cp.Variable(2), cp.Parameter(2)
        >>> problem = cp.Problem(cp.Minimize(cp.sum_squares(x - y)), [cp.sum(x) == 1, x >= 0])
        >>> layer = ConvexLayer(problem, parameters=[y], variables=[x])
        >>> point = torch.tensor([0.9, 0.5], requires_grad=True)
        >>> (nearest,) = layer(point)
        >>> nearest.detach(), torch.autograd.grad(nearest[0], point)[0]
        (tensor([0.7000, 0.3000]), tensor([ 0.5000, -0.5000]))

    Source: Agrawal et al., "Differentiable Convex Optimization Layers" (NeurIPS 2019), for the
    layer and its affine maps; the derivative is that of `solve_qp`.
    """

    def __init__(
        self,
        problem: Any,
        parameters: Sequence[Any],
        variables: Sequence[Any],
        *,
        solver: InteriorPoint | None = None,
        gp: bool = False,
        fallback: Any = None,
        fallback_args: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_options(options)
        self.solver = InteriorPoint() if solver is None else solver
        self.options = options
        check_problem(problem, parameters, variables, gp)
        self.names = tuple(p.name() for p in parameters)
        self.shapes = tuple(tuple(p.shape) for p in parameters)
        self.program = _program(problem, parameters, variables, gp, fallback, fallback_args)
        if isinstance(self.program, Conic):
            _check_conic_options(options)

    def forward(self, *parameters: Tensor | float) -> tuple[Tensor, ...]:
        """The variables, `(*B, *shape)` each."""
        return self.solve(*parameters).values

    def solve(
        self, *parameters: Tensor | float, warm_start: ConvexSolution | None = None
    ) -> ConvexSolution:
        """The variables with the status of each sample.

        Args:
            parameters: as in a call.
            warm_start: the solution of a similar batch of the same shape, to start from.
        """
        arguments = Arguments.of(parameters, self.names, self.shapes)
        if isinstance(self.program, Conic):
            return self.program.solve(arguments, self.options.get("on_failure", "warn"))
        return self.program.solve(arguments, self.solver, _started(warm_start), self.options)

    def extra_repr(self) -> str:
        """What is solved, and by what."""
        return f"{', '.join(self.names)} -> {self.program!r}"


def _started(warm_start: ConvexSolution | None) -> QPSolution | None:
    if warm_start is not None and not isinstance(warm_start, ConvexSolution):
        raise ValueError(
            f"warm_start is a {type(warm_start).__name__}: expected the ConvexSolution that an "
            "earlier layer.solve(...) returned"
        )
    return None if warm_start is None else warm_start.qp


def _program(
    problem: Any,
    parameters: Sequence[Any],
    variables: Sequence[Any],
    gp: bool,
    fallback: Any,
    fallback_args: dict[str, Any] | None,
) -> Program | Conic:
    """The problem in the form that will be solved."""
    torch_layers = package("cvxpylayers.torch", extra="cvxpy")
    interface = package("cvxpylayers.interfaces.base", extra="cvxpy").SolverInterface
    # An interface that is never called: it asks for the canonical form with a quadratic objective.
    reader = interface.from_functions(None, None, canon_solver="CLARABEL", supports_quad_obj=True)
    lists = list(parameters), list(variables)
    ctx = torch_layers.CvxpyLayer(problem, *lists, solver=reader, gp=gp).ctx
    other = other_cones(ctx.cone_dims)
    if not other and not gp:
        return Program(canonical(ctx))
    what = "is a geometric program" if gp else f"has {' and '.join(other)} cones"
    if fallback is None and not gp and not problem.is_dpp():
        raise ValueError(
            f"problem {what}, for which cvxpylayers' default solver takes no quad_form with a "
            "parameter as its matrix: write sum_squares(L @ x) with a parameter L of which the "
            "matrix is L'L"
        )
    if fallback is None and fallback_args is None:
        fallback_args = ACCURATE
    layer = torch_layers.CvxpyLayer(
        problem, *lists, solver=fallback, gp=gp, solver_args=fallback_args
    )
    logger.warning(
        "ConvexLayer: the problem %s and is left to cvxpylayers (%s)", what, fallback or "diffcp"
    )
    failures = (
        package("diffcp", extra="cvxpy").SolverError,
        package("cvxpy", extra="cvxpy").SolverError,
    )
    return Conic(layer, tuple(tuple(p.shape) for p in parameters), failures)


def _check_conic_options(options: dict[str, Any]) -> None:
    check_on_failure(options.get("on_failure", "warn"))
    unfit = sorted(set(options) - {"on_failure"})
    if unfit:
        raise ValueError(
            f"{', '.join(unfit)}: options of quadratic programs, but this problem has other cones "
            "and is solved by cvxpylayers; leave them out"
        )
