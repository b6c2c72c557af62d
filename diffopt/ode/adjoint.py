"""How a solution of an ODE is differentiated: the choices of `odeint(adjoint=...)`.

The trajectory y_0, y_1, ... is the unknown of F_n = y_n - Phi_n(y_n-1) = 0, one step after the
other. dF/dy is block lower bidiagonal, with unit blocks on the diagonal: time stepping is its
forward substitution, and the solve with its transpose, which the derivative asks for, is the back
substitution

    u_n = v_n + (dPhi_n+1 / dy)^T u_n+1,      dL/dtheta = sum_n (dPhi_n / dtheta)^T u_n,

one sweep from the last step to the first: the discrete adjoint. The policies differ in where the
linearisation of Phi_n comes from.

    Discrete      kept from the forward pass                    exact, memory ~ steps
    Checkpointed  taken again, from every n-th state kept       exact, memory ~ steps / n
    Unrolled      Discrete, and the choice of the steps as well
    Backsolve     a differential equation for u, solved backwards in time   to O(tolerance)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ..implicit import check_order
from ..solution import check_counts
from .methods import Adaptive


@dataclass(frozen=True)
class Discrete:
    """The exact derivative of the numbers that were computed, on the grid that was accepted.

    The steps are constants; what was rejected is not kept. Memory: what f keeps for its own
    backward pass, times the slopes evaluated.

    Attributes:
        order: how many derivatives of an implicit solver are exact; a further one raises. Explicit
            ones have all of them.
    """

    order: int = 1

    def __post_init__(self) -> None:
        check_order(self.order)


@dataclass(frozen=True)
class Checkpointed:
    """`Discrete`, with a state kept after every `every` steps, and the others taken again.

    Twice the evaluations of f, and memory for `every` steps and steps / `every` states. Where f
    calls `torch.autograd.grad` itself, each such call takes its whole stretch again: prefer
    `Discrete`. `order` is as there.
    """

    every: int = 10
    order: int = 1

    def __post_init__(self) -> None:
        check_counts(self, "every")
        check_order(self.order)


@dataclass(frozen=True)
class Unrolled:
    """Backpropagation through everything, the choice of the steps after the first too.

    A reference to compare with; a sample that meets NaN gives it to the gradient of all.
    Of the stages of an implicit solver one derivative is exact; a further one raises.
    """


@dataclass(frozen=True)
class Backsolve:
    """The continuous adjoint: u' = -f_y^T u, solved backwards together with y.

    Memory does not grow with the steps. The derivative is that of the differential equation, not
    of the numbers, up to O(tolerance); where f contracts, y cannot be found again backwards, and
    the derivative is wrong: the distance from the states of the forward pass is measured at every
    output time (`ODESolution.backward`), and a warning is given. Where the way back itself fails,
    the sample has no gradient from there on.

    Attributes:
        solver: for the way back, explicit; None for that of the forward pass if it is adaptive and
            explicit, else `Dopri5()`.

    Source: Chen et al., "Neural Ordinary Differential Equations" (NeurIPS 2018), Algorithm 1.
    """

    solver: Adaptive | None = None

    def __post_init__(self) -> None:
        suits = isinstance(self.solver, Adaptive) and not self.solver.tableau.implicit
        if self.solver is not None and not suits:
            raise ValueError(
                f"Backsolve(solver={self.solver!r}): expected an explicit one with adaptive steps, "
                "for example Dopri5(), or None"
            )


class Policy(NamedTuple):
    """How the forward pass is recorded.

    Attributes:
        follow: whether the choice of the steps is differentiated, too.
        every: how many steps lie between two states that are kept; None to keep all.
        order: how many derivatives of an implicit step are exact.
    """

    follow: bool = False
    every: int | None = None
    order: int = 1


EVERYTHING = Policy()  # is kept


def policy_of(adjoint: Adjoint) -> Policy:
    """What `adjoint` asks of the forward pass; `Backsolve` asks for nothing."""
    if isinstance(adjoint, Checkpointed):
        return Policy(every=adjoint.every, order=adjoint.order)
    if isinstance(adjoint, Discrete):
        return Policy(order=adjoint.order)
    return Policy(follow=isinstance(adjoint, Unrolled))


Adjoint = Discrete | Checkpointed | Unrolled | Backsolve
