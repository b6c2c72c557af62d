"""Matrices with given row and column sums, by entropy: `EntropicTransport`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..implicit import implicit_root
from ..solution import OnFailure, check_on_failure, check_positive, report, succeeded
from .arguments import Argument, Parameter, by_sample, check_point, check_size, size
from .polyhedron import marginals
from .sinkhorn import jacobian, potentials


@dataclass(frozen=True)
class EntropicTransport:
    """The transport plan of X under entropy: ``EntropicTransport(rows, columns)(X)``, `(*B, n, m)`.

    The Z > 0 with Z 1 = rows, Z'1 = columns that minimises -<X, Z> + epsilon sum Z (log Z - 1):
    the projection of exp(X / epsilon) on the polytope in the Kullback-Leibler divergence, not a
    Euclidean one. The defaults, for square X, give a doubly stochastic matrix. As epsilon -> 0 it
    tends to a plan of largest <X, Z>.

    Args:
        rows: `(*B, n)` or a number, positive.
        columns: `(*B, m)` or a number, positive, of the same sum.
        epsilon: `(*B)` or a number, positive, in the unit of X.
        tol: the search ends where the column sums are off by `tol` of the whole; the Newton step
            of `implicit_root` then squares the error. Row sums are exact.
        max_steps: steps of the search at most (see `sinkhorn`).
        order: how many derivatives are exact; one more raises.
        on_failure: for a sample that did not converge: "warn" (best iterate, zero gradient, one
            warning), "raise", "nan", "ignore".

    Raises:
        ValueError: if a marginal or epsilon is not positive, or the sums differ; if shapes do
            not fit.
        ConvergenceError: under ``on_failure="raise"``, if a sample failed.

    Derivative: by `implicit_root`, in X, epsilon and the marginals (see `TransportPolytope` for
    these); memory does not grow with the steps. Worked out in float64. `torch.func.vmap` cannot
    map the stopping test: make the mapped dimension a batch dimension.

    Example:
        By symmetry Z = [[z, 1 - z], [1 - z, z]] with z / (1 - z) = exp(x / epsilon) = 3:

        >>> x = torch.log(torch.tensor(3.0, dtype=torch.float64))
        >>> EntropicTransport()(torch.diag(x.expand(2))).round(decimals=9)
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]], dtype=torch.float64)

    Source: Cuturi, "Sinkhorn distances" (NIPS 2013); Luise, Rudi, Pontil & Ciliberto,
    "Differential properties of Sinkhorn approximation" (NeurIPS 2018), for its derivative by the
    implicit function theorem.
    """

    rows: Parameter = 1.0
    columns: Parameter = 1.0
    epsilon: Parameter = 1.0
    tol: float = 1e-9
    max_steps: int = 500
    order: int = 1
    on_failure: OnFailure = "warn"

    def __post_init__(self) -> None:
        check_size(self, "epsilon", strictly=True)
        check_positive(self, "tol", "max_steps")
        check_on_failure(self.on_failure)

    def __call__(self, X: Tensor) -> Tensor:
        check_point(X, 2)
        rows, columns = marginals(self.rows, self.columns, X.double(), strictly=True)
        epsilon = size("epsilon", self.epsilon, X.double(), event=2, strictly=True)
        parts = Argument(X.double(), 2), rows, columns, Argument(epsilon, 2)
        return by_sample(self._plan, *parts).to(X.dtype)

    def _plan(self, X: Tensor, rows: Tensor, columns: Tensor, epsilon: Tensor) -> Tensor:
        leads = (v.shape[:-k] for v, k in ((X, 2), (epsilon, 2), (rows, 1), (columns, 1)))
        batch = torch.broadcast_shapes(*leads)
        S = (X / epsilon).expand(*batch, -1, -1)
        rows, columns = rows.expand(*batch, -1), columns.expand(*batch, -1)
        g, converged = self._search(
            X.detach().expand(*batch, -1, -1),
            rows.detach(),
            columns.detach(),
            epsilon.detach().expand(*batch, 1, 1),
        )

        def plan(free: Tensor) -> Tensor:
            shifted = S + torch.cat([free, g[..., -1:]], -1).unsqueeze(-2)
            return rows.unsqueeze(-1) * shifted.softmax(-1)

        def residual(free: Tensor) -> Tensor:
            gap = (plan(free).sum(-2) - columns)[..., :-1]
            return torch.where(converged.unsqueeze(-1), gap, 0.0)  # no step from a failure

        free = g[..., :-1]
        operator = jacobian(plan(free).detach(), rows.detach(), self.on_failure)
        Z = plan(implicit_root(residual, free, operator, self.order))
        fallback = torch.full_like(Z, torch.nan) if self.on_failure == "nan" else Z.detach()
        return torch.where(converged[..., None, None], Z, fallback)

    def _search(
        self, X: Tensor, rows: Tensor, columns: Tensor, epsilon: Tensor
    ) -> tuple[Tensor, Tensor]:
        """g, `(*B, m)`, and which samples converged, `(*B)`."""
        batch, (n, m) = X.shape[:-2], X.shape[-2:]
        parts = X.reshape(-1, n, m), rows.reshape(-1, n), columns.reshape(-1, m)
        out = potentials(*parts, epsilon.reshape(-1, 1), self.tol, self.max_steps)
        report(out.status, out.residual, self.on_failure, "EntropicTransport")
        return out.value.reshape(*batch, m), succeeded(out.status).reshape(batch)
