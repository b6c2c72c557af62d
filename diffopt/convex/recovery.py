"""From the solver's answer back to the user's variables: `Recovery`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..qp import QPSolution
from ..qp.problem import matvec
from .affine import Affine
from .canonical import Canonical, Output
from .entries import Array
from .presolve import Plan
from .reduced import Reduced, remaining
from .substitution import Substitution, Values, removed


@dataclass(frozen=True)
class Pick:
    """The entries of one variable of the user among the unknowns, or the multipliers."""

    dual: bool
    places: Tensor
    run: slice | None  # the same as a slice, if it is one
    shape: tuple[int, ...]

    def of(self, v: Tensor) -> Tensor:
        """The variable, `(B|1, *shape)`."""
        if self.run is not None:
            return v[:, self.run].reshape(len(v), *self.shape)
        return v.gather(-1, self.places.expand(len(v), -1)).reshape(len(v), *self.shape)


@dataclass(frozen=True)
class Recovery:
    """What is needed to say what the user's variables are.

    The multipliers of rows that define unknowns follow from stationarity in those unknowns, last
    level first:  A_RJ'y_R = -(Px + q)_J - A_SJ'y_S.

    Attributes:
        picks: one a variable, of the unknowns (kept, then removed) or of the multipliers
            (equalities, inequalities, other sides, upper and lower bounds, definitions).
        removed: whether one of them is among the unknowns that were removed.
        duals: whether one is a multiplier.
    """

    reduced: Reduced
    picks: tuple[Pick, ...]
    removed: bool
    duals: bool

    @classmethod
    def of(cls, program: Canonical, plan: Plan, reduced: Reduced) -> Recovery:
        """The recovery of the outputs of `program`."""
        unknowns = np.argsort(np.concatenate([plan.kept, removed(plan)]))
        defining = [level.rows for level in plan.levels]
        rows = np.argsort(np.concatenate([remaining(plan), *defining]))
        picks = tuple(_pick(o, rows if o.dual else unknowns) for o in program.outputs)
        behind = any(not k.dual and bool((k.places >= reduced.K).any()) for k in picks)
        return cls(reduced, picks, behind, any(k.dual for k in picks))

    def variables(
        self, values: Values, found: Substitution | None, sol: QPSolution
    ) -> tuple[Tensor, ...]:
        """The user's variables, `(B, *shape)` each."""
        x = y = sol.z
        if found is not None and (self.removed or self.duals):
            x_J = matvec(found.T, sol.z) + found.t
            x = torch.cat([sol.z, x_J], -1)
        if self.duals:
            y = self._multipliers(values, x, sol)
        return tuple(pick.of(y if pick.dual else x) for pick in self.picks)

    def _multipliers(self, values: Values, x: Tensor, sol: QPSolution) -> Tensor:
        """Those of all rows."""
        reduced = self.reduced
        lam, mu, paired = sol.lam, sol.mu, reduced.paired
        other = (-lam[:, paired]).clamp(min=0)
        if len(paired):
            two_sided = torch.zeros_like(lam[0], dtype=torch.bool)
            two_sided[paired] = True
            lam = torch.where(two_sided, lam.clamp(min=0), lam)
        above = mu[:, reduced.ub.unknowns] / reduced.ub.coefficients
        below = mu[:, reduced.lb.unknowns] / reduced.lb.coefficients
        y = torch.cat([sol.nu, lam, other, above.clamp(min=0), below.clamp(min=0)], -1)
        return torch.cat([y, self._of_definitions(values, x, y)], -1) if reduced.J else y

    def _of_definitions(self, values: Values, x: Tensor, y: Tensor) -> Tensor:
        """y_R, by back substitution."""
        reduced = self.reduced
        x_K, x_J = x.split([reduced.K, reduced.J], -1)
        pull = torch.zeros_like(x_J)
        if reduced.q_J is not None:
            pull = pull + reduced.q_J(values).squeeze(-1)
        if reduced.P_JJ is not None:
            pull = pull + reduced.weighted(values, x_J.unsqueeze(-1)).squeeze(-1)
        if reduced.P_KJ is not None:
            pull = pull + _pulled(reduced.P_KJ, values, x_K)
        if reduced.through is not None:
            pull = pull + _pulled(reduced.through, values, y)
        out: list[Tensor] = []
        for links in reversed(reduced.chain.levels):
            size = len(links.pivots)
            own = -pull[:, -size:]  # times the pivots
            pull = pull[:, :-size]
            if links.earlier is not None:
                moved = _pulled(links.earlier, values, own)
                behind = pull.shape[-1] - links.first - moved.shape[-1]
                pull = pull + torch.nn.functional.pad(moved, (links.first, behind))
            out.insert(0, own / links.pivots)
        return torch.cat(out, -1)


def _pulled(block: Affine, values: Values, v: Tensor) -> Tensor:
    """M'v for the block M."""
    return matvec(block(values).mT, v)


def _pick(output: Output, place: Array) -> Pick:
    places = place[output.index]
    run: slice | None = None
    if len(places) and (np.diff(places) == 1).all():
        run = slice(int(places[0]), int(places[-1]) + 1)
    return Pick(output.dual, torch.from_numpy(np.asarray(places)), run, output.shape)
