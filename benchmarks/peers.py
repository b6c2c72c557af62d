"""Other people's QP layers behind one interface, set up to be as fast and exact as they can be.

A contender is a function of a `Problem` that sets up, once, and returns the forward pass: a
function of nothing that gives z `(B, n)`, with a graph to the leaves of the problem.

    cuda, native, torch   diffopt, its engines; to the CPU, where native runs, the arguments are
                      copied, and the answer back, as part of the time
    moreau            moreau.torch.Solver, solver="active_set", its own choice for these problems,
                      on the CPU, wherever the arguments are
    moreau_ipm        the same, solver="ipm", which it advises for smooth gradients, at 1e-10, on
                      the device of the arguments
    qplayer           proxsuite.torch.qplayer, eps 1e-9, regularisation of the backward pass 1e-9
                      (of 1e-6 it returns gradients with an error of 1e-5, in the same time), OpenMP
                      on all cores (by itself it takes half of them)
    qpth              QPFunction, eps 1e-12, without its check of Q
    cvxpylayers       solver DIFFCP, the default, which is SCS, at eps 1e-9 instead of 1e-4, and
                      mode "dense": by its default LSQR, gradients of 50 unknowns are off by a
                      fifth. It takes no parameter as Q, so Q is given by its Cholesky factor, which
                      is part of the time.
    cvxpylayers_moreau   solver MOREAU; Q itself, as a PSD parameter

Where a peer has no bounds, z >= 0 is -z <= 0, as rows of G, sparse ones where it has a sparse form.
For cvxpylayers it is z >= a parameter: with z >= 0 and MOREAU, cvxpylayers 1.2 on cvxpy 1.9 answers
as if the constraint were not there. Of shared arguments, qpth and QPLayer get an expanded view:
qpth would return the mean of the gradients over the batch instead of the sum.
"""

from __future__ import annotations

import importlib.util
import os
import types
from collections.abc import Callable

import torch
from judge import Problem
from torch import Tensor

import diffopt

Forward = Callable[[], Tensor]


def engine(name: str) -> diffopt.InteriorPoint:
    """The settings of diffopt with that engine."""
    return diffopt.InteriorPoint(engine=name)


def ours(name: str) -> Callable[[Problem], Forward]:
    """diffopt with that engine."""

    def build(a: Problem) -> Forward:
        solver = engine(name)
        return lambda: answer(a, solver).z.to(a.p.device)

    return build


def answer(a: Problem, solver: diffopt.InteriorPoint) -> diffopt.QPSolution:
    """The whole answer of diffopt, on the device where `solver` runs."""
    home = torch.device("cpu") if solver.engine == "native" else a.p.device
    given = {k: v.to(home) for k, v in a.arguments().items() if v is not None}
    return diffopt.solve_qp(**given, **({"lb": 0.0} if a.nonneg else {}), solver=solver)


def moreau(method: str) -> Callable[[Problem], Forward]:
    """moreau's torch layer: Ax + s = b with s = 0 or s >= 0, matrices as values of CSR."""

    def build(a: Problem) -> Forward:
        import moreau as package
        from moreau.torch import Solver

        (batch, n), m, e = a.p.shape, a.rows()[0].shape[1], a.equations()[0].shape[1]
        exact = package.ActiveSetSettings(primal_tol=1e-10, iter_limit=10_000)
        close = package.IPMSettings(tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
        settings = package.Settings(
            solver=method, device="cpu" if method == "active_set" else a.p.device.type,
            batch_size=batch, enable_grad=True,
            active_set_settings=exact, ipm_settings=close,
        )  # fmt: skip
        cones = package.Cones(num_zero_cones=e, num_nonneg_cones=m)
        P, A = csr(n, n, a.nonneg), csr(e, n) if a.nonneg else csr(e + m, n)
        if a.nonneg:
            A = (torch.cat([A[0], A[0][-1] + torch.arange(1, n + 1)]),
                 torch.cat([A[1], torch.arange(n)]))  # fmt: skip
        solver = Solver(n, e + m, *P, *A, cones, settings)
        return lambda: solver.solve(*values(a)).x

    return build


def csr(rows: int, columns: int, diagonal: bool = False) -> tuple[Tensor, Tensor]:
    """Row offsets and column indices of a full, or a diagonal, matrix."""
    if diagonal:
        return torch.arange(rows + 1), torch.arange(rows)
    return torch.arange(rows + 1) * columns, torch.arange(columns).repeat(rows)


def values(a: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What moreau is called with: the values of P and A, and q and b."""
    if a.nonneg:
        eye, zero = a.p.new_full((a.p.shape[1],), -1.0), torch.zeros_like(a.p)
        return a.Q.diagonal(), torch.cat([a.A.flatten(), eye]), a.p, torch.cat([a.b, zero], 1)
    if a.A is None:
        return a.Q.flatten(1), a.G.flatten(1), a.p, a.h
    rows = torch.cat([a.A.flatten(1), a.G.flatten(1)], 1)
    return a.Q.flatten(1), rows, a.p, torch.cat([a.b, a.h], 1)


def qplayer(a: Problem) -> Forward:
    """proxsuite's layer."""
    from proxsuite.torch import qplayer as module

    # It takes half of os.cpu_count() threads; the whole is faster.
    module.os = types.SimpleNamespace(cpu_count=lambda: 2 * (os.cpu_count() or 1))
    solve = module.QPFunction(
        eps=1e-9, eps_backward=1e-9, rho_backward=1e-9, mu_backward=1e-9, omp_parallel=True
    )
    low = torch.full_like(a.rows()[1], -1e20)

    def forward() -> Tensor:
        (G, h), (A, b) = a.rows(), a.equations()
        return solve(a.batched(a.Q), a.p, A, b, G, low, h)[0]

    return forward


def qpth(a: Problem) -> Forward:
    """OptNet's own."""
    from qpth.qp import QPFunction

    solve = QPFunction(eps=1e-12, verbose=-1, check_Q_spd=False)

    def forward() -> Tensor:
        (G, h), (A, b) = a.rows(), a.equations()
        none = a.p.new_zeros(0)
        return solve(a.batched(a.Q), a.p, G, h, *((A, b) if a.A is not None else (none, none)))

    return forward


def cvxpylayers(solver: str | None) -> Callable[[Problem], Forward]:
    """A cvxpy problem of the same shapes, parameters for the leaves, constants for the rest."""

    def build(a: Problem) -> Forward:
        import cvxpy as cp
        from cvxpylayers.torch import CvxpyLayer

        z, leaves = cp.Variable(a.p.shape[1]), a.leaves()
        parameters = {
            k: cp.Parameter(v.shape[1:] if k in "pbh" or v.dim() == 3 else v.shape)
            for k, v in leaves.items()
        }
        value = a.arguments() | parameters
        root = "Q" in leaves and solver is None
        if "Q" in leaves and not root:
            parameters["Q"] = value["Q"] = cp.Parameter(a.Q.shape[1:], PSD=True)
        Q = value["Q"].numpy() if torch.is_tensor(value["Q"]) else value["Q"]
        quadratic = cp.sum_squares(Q.T @ z) if root else cp.quad_form(z, Q)
        limits = [value["G"] @ z <= value["h"]] if a.G is not None else []
        limits += [value["A"] @ z == value["b"]] if a.A is not None else []
        if a.nonneg:
            parameters["lower"] = cp.Parameter(a.p.shape[1])
            limits += [z >= parameters["lower"]]
        task = cp.Problem(cp.Minimize(quadratic / 2 + value["p"] @ z), limits)
        inside = {"eps": 1e-9, "mode": "dense"} if solver is None else {}
        layer = CvxpyLayer(task, list(parameters.values()), [z], solver=solver, solver_args=inside)

        def forward() -> Tensor:
            given = leaves | {"lower": torch.zeros(a.p.shape[1])}
            given |= {"Q": torch.linalg.cholesky(a.Q)} if root else {}
            return layer(*(given[k] for k in parameters))[0]

        return forward

    return build


# name: (what to import, how to build)
CONTENDERS: dict[str, tuple[str, Callable[[Problem], Forward]]] = {
    "cuda": ("diffopt", ours("cuda")),
    "native": ("diffopt", ours("native")),
    "torch": ("diffopt", ours("torch")),
    "moreau": ("moreau", moreau("active_set")),
    "moreau_ipm": ("moreau", moreau("ipm")),
    "qplayer": ("proxsuite", qplayer),
    "qpth": ("qpth", qpth),
    "cvxpylayers": ("cvxpylayers", cvxpylayers(None)),
    "cvxpylayers_moreau": ("cvxpylayers", cvxpylayers("MOREAU")),
}


def absent(names: list[str]) -> list[str]:
    """Those of `names` whose package is not installed."""
    return [name for name in names if importlib.util.find_spec(CONTENDERS[name][0]) is None]
