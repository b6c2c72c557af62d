"""Large sparse quadratic programs with a derivative: `solve_qp_sparse`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from ..qp.answer import QPSolution
from ..qp.arguments import Limit, complete
from ..qp.options import Degenerate
from ..solution import OnFailure
from .admm import ADMM
from .answer import Options, SparseSolver, solve_all
from .arguments import check
from .clarabel import Clarabel
from .osqp import OSQP
from .piqp import PIQP
from .problem import Found, SparseQP

__all__ = ["ADMM", "OSQP", "PIQP", "Clarabel", "Found", "SparseQP", "solve_qp_sparse"]


@overload
def solve_qp_sparse(
    Q: Any,
    p: Tensor,
    G: Any = None,
    h: Limit = None,
    A: Any = None,
    b: Limit = None,
    lb: Limit = None,
    ub: Limit = None,
    *,
    h_lower: Limit = None,
    solver: SparseSolver | None = ...,
    order: int = 1,
    degenerate: Degenerate = "central",
    proximal: float = 0.0,
    on_failure: OnFailure = "warn",
) -> QPSolution: ...
@overload
def solve_qp_sparse(
    Q: Sequence[Mapping[str, Any]],
    *,
    solver: SparseSolver | None = ...,
    order: int = 1,
    degenerate: Degenerate = "central",
    proximal: float = 0.0,
    on_failure: OnFailure = "warn",
) -> list[QPSolution]: ...


def solve_qp_sparse(
    Q: Any,
    p: Tensor | None = None,
    G: Any = None,
    h: Limit = None,
    A: Any = None,
    b: Limit = None,
    lb: Limit = None,
    ub: Limit = None,
    *,
    h_lower: Limit = None,
    solver: SparseSolver | None = None,
    order: int = 1,
    degenerate: Degenerate = "central",
    proximal: float = 0.0,
    on_failure: OnFailure = "warn",
) -> QPSolution | list[QPSolution]:
    """The minimiser of a sparse convex QP, with its multipliers, differentiable; or of a list.

        minimise 1/2 z'Qz + p'z    subject to    h_lower <= Gz <= h,   Az = b,   lb <= z <= ub

    The problem, the signs of the multipliers and the choices where something is not unique are
    those of `solve_qp`. A solver of another project finds the answer; the linear KKT conditions of
    its active set are then solved to rounding here, and differentiated, so that value and
    derivative do not depend on the solver. Memory is that of the entries and of a sparse factor.

    Args:
        Q: `(n, n)`, positive semidefinite; its symmetric part counts, so give both triangles.
            None means zero. Or a list of problems, each a dict of the arguments from Q to h_lower:
            they may differ in every size, and are solved in as many threads as torch uses
            (at the same time by Clarabel, in part by OSQP; PIQP holds the lock of Python).
        p: `(n,)`.
        G: `(m, n)`, with `h` and/or `h_lower`.
        h: `(m,)` or a number; inf switches a row off.
        A: `(e, n)`, with `b`.
        b: `(e,)` or a number.
        lb, ub: `(n,)` or a number; -inf and inf mean no bound, lb == ub fixes an unknown.
        h_lower: `(m,)` or a number.
        solver: `Clarabel()`, `PIQP()` or `OSQP()`, packages of others; `ADMM()`, ours, which
            factorises nothing; or any function from a `SparseQP` to a `Found`. None: `Clarabel()`;
            but where a bound of the arithmetic says that factors may be dense, as of random
            patterns, and Q curves in every unknown, first `ADMM()`.
        order: how many derivatives are exact; one more raises.
        degenerate: what a weakly active limit counts as in the derivative, as in `solve_qp`.
        proximal: weight >= 0 of |z|^2 / 2, added to the objective.
        on_failure: for a problem that has no solution, or was not solved, as in `solve_qp`.

    Q, G and A are sparse tensors of torch (COO, CSR, CSC) or sparse matrices of scipy, which are
    constants. The gradient of a tensor is a sparse tensor of the same pattern; that of
    ``torch.sparse_coo_tensor(indices, values, shape)`` arrives at `values`. An entry that is not
    stored is no parameter. (Of a CSC tensor that is a leaf torch cannot keep the gradient:
    let `values` be the leaf.) Vectors are dense. All of it is on the CPU; answers have the dtype
    that the tensors promote to, the work is done in float64.

    Returns:
        `QPSolution` without batch dimensions, whose `iterations` are the solver's and whose
        `certificate` is zero; a list of them for a list.

    Raises:
        ValueError: if a shape, a layout, a device or the presence of an argument does not fit.
        ImportError: if the package of the solver, or scipy or qdldl, is not installed.
        RuntimeError: inside a transform of torch.func.
        ConvergenceError: under ``on_failure="raise"``, if a problem failed.

    Accuracy: `residuals` of 1e-11 typically where `polished`, whatever the solver's tolerance. A
    problem that the solver calls infeasible or unbounded is believed, without a proof of ours.
    Derivatives are exact for the active set; the relative residual of their linear solve is 1e-9
    at most, or reported.

    Example:
        The point of the line z_0 + z_1 = 1, z >= 0, nearest to -p = (0.9, 0.5) is (0.7, 0.3), with
        z + p + A'nu = 0. Moving p_0 by d moves it by (-d/2, d/2):

        >>> A = torch.ones(1, 2).to_sparse().requires_grad_()
        >>> p = torch.tensor([-0.9, -0.5], requires_grad=True)
        >>> sol = solve_qp_sparse(torch.eye(2).to_sparse(), p, A=A, b=1.0, lb=0.0)
        >>> sol.z.detach(), sol.nu.detach()
        (tensor([0.7000, 0.3000]), tensor([0.2000]))
        >>> sol.z[1].backward()
        >>> p.grad
        tensor([ 0.5000, -0.5000])
        >>> A.grad.is_sparse
        True

    Source: Magoon et al., "Differentiation Through Black-Box Quadratic Programming Solvers" (dQP,
    2024), for the solver-agnostic derivative; Amos & Kolter, "OptNet" (ICML 2017), eq. (6).
    """
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "solve_qp_sparse inside a transform of torch.func: its solvers see numbers only; use "
            "torch.autograd, or solve_qp"
        )
    options = Options(solver, order, degenerate, proximal, on_failure)
    if isinstance(Q, list | tuple):
        others = (p, G, h, A, b, lb, ub, h_lower)
        if any(v is not None for v in others):
            raise ValueError("Q is a list of problems: give the other arguments inside its dicts")
        return solve_all([_checked(i, problem, options) for i, problem in enumerate(Q)], options)
    arguments = {
        "Q": Q, "p": p, "G": G, "h": h, "A": A, "b": b, "lb": lb, "ub": ub, "h_lower": h_lower,
    }  # fmt: skip
    return solve_all([check(arguments, options.proximal)], options)[0]


def _checked(index: int, problem: Mapping[str, Any], options: Options) -> Any:
    try:
        return check(complete(problem), options.proximal)
    except ValueError as error:
        raise ValueError(f"problem {index}: {error}") from None
