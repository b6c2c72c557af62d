"""The oracles: CVXPY's own canonical program at given parameters with its KKT conditions, Clarabel.

`kkt_error` is the definition of a solution, on matrices that CVXPY made for the numbers at hand: it
knows nothing of how we lift parameters, nor of the presolve, nor of cvxpylayers.
"""

from __future__ import annotations

from dataclasses import replace

import cvxpy as cp
import numpy as np
from cvxpy.utilities import scopes
from cvxpylayers.interfaces.base import SolverInterface
from cvxpylayers.torch import CvxpyLayer

from diffopt import solve_qp
from diffopt.convex.arguments import Arguments
from diffopt.convex.canonical import Output, canonical
from diffopt.convex.presolve import presolve
from diffopt.convex.recovery import Recovery
from diffopt.convex.reduced import Reduced

TIGHT = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12}


def put(parameters, values, sample) -> None:
    """Give the parameters of a CVXPY problem the values of one sample."""
    for p, v in zip(parameters, values, strict=True):
        own = v.detach().double().numpy()
        own = own[sample] if own.ndim > p.ndim else own
        p.value = (own + own.T) / 2 if p.ndim == 2 and p.is_symmetric() else own


def clarabel(problem) -> float:
    """The optimal value at the parameters' values; variables and multipliers are CVXPY's."""
    with scopes.quad_form_dpp_scope():
        return problem.solve(solver=cp.CLARABEL, **TIGHT)


def everything(problem, parameters, variables, values):
    """All unknowns and all multipliers of the canonical program, `(B, n)` and `(B, m)`, as the
    presolve for `variables` finds them."""
    reader = SolverInterface.from_functions(
        None, None, canon_solver="CLARABEL", supports_quad_obj=True
    )
    program = canonical(CvxpyLayer(problem, parameters, variables, solver=reader).ctx)
    plan = presolve(program)
    reduced = Reduced.of(program, plan)
    n, m = program.n, program.m
    both = Output(False, np.arange(n), (n,)), Output(True, np.arange(m), (m,))
    recovery = Recovery.of(replace(program, outputs=both), plan, reduced)
    shapes = [tuple(p.shape) for p in parameters]
    given = Arguments.of(values, [p.name() for p in parameters], shapes)
    found = reduced.chain(given.values)
    data = reduced.problem(given.values, found)
    data["p"] = data["p"].expand(given.batch.numel(), -1)
    sol = solve_qp(data.pop("Q", None), data.pop("p"), **data, on_failure="raise")
    return [v.numpy() for v in recovery.variables(given.values, found, sol)]


def kkt_error(problem, x, y) -> float:
    """The worst violation, relative, of the conditions for `(x, y)` at the parameters' values.

    minimise 1/2 x'Px + q'x  subject to  Ax + s = b,  s = 0 in the first rows, s >= 0 after.
    """
    with scopes.quad_form_dpp_scope():
        data, _, _ = problem.get_problem_data(cp.CLARABEL)
    P, q, A, b = (data.get(k) for k in ("P", "c", "A", "b"))
    Px, s = 0 * x if P is None else P @ x, b - A @ x
    inside = np.arange(len(b)) >= data["dims"].zero
    size = 1 + max(abs(v).max(initial=0) for v in (x, b))
    force = 1 + max(abs(v).max(initial=0) for v in (Px, q))
    errors = {
        "equality": abs(s[~inside]).max(initial=0) / size,
        "inequality": (-s[inside]).max(initial=0) / size,
        "sign": (-y[inside]).max(initial=0) / force,
        "stationarity": abs(Px + q + A.T @ y).max() / force,
        "complementarity": abs(s * y)[inside].max(initial=0) / (size * force),
    }
    return max(errors.values())
