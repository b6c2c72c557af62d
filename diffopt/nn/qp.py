"""The QP as a module: `QPLayer`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..qp import InteriorPoint, QPSolution, solve_qp

ARGUMENTS = ("Q", "p", "G", "h", "A", "b", "lb", "ub", "h_lower")
OPTIONS = (
    "order", "degenerate", "infeasible", "penalty", "smoothing", "proximal", "on_failure"
)  # fmt: skip


class QPLayer(nn.Module):
    """A layer whose output is the minimiser of a QP; see `solve_qp` for the problem.

        minimise 1/2 z'Qz + p'z    subject to    h_lower <= Gz <= h,   Az = b,   lb <= z <= ub

    It holds any of the arguments and takes the rest at each call. An `nn.Parameter` is learned, a
    tensor is kept as a buffer (it moves with the module and is saved with it), a number as itself
    (it is not saved). Learn a Q through a factor, ``layer(p, Q=L @ L.mT + eps * torch.eye(n))``:
    gradient steps on Q itself leave the positive semidefinite matrices, and then every sample is
    INVALID_INPUT. `solve` gives the status and the multipliers too, and takes a warm start.

    Args:
        Q, p, G, h, A, b, lb, ub, h_lower: arguments of `solve_qp` to hold, of the shapes given
            there; None (default) leaves one to the call, or absent.
        solver: the method and its settings.
        options: further keyword arguments of `solve_qp` (order, on_failure, ...).

    Raises:
        ValueError: if there is no argument or option of a name given, or, in the call, if an
            argument is held already; otherwise as `solve_qp`.

    Example:
        A layer that projects on the probability simplex, p = -x:

        >>> simplex = QPLayer(Q=torch.eye(3), A=torch.ones(1, 3), b=1.0, lb=0.0)
        >>> simplex(torch.tensor([[-0.5, -0.5, 0.0]]))
        tensor([[0.5000, 0.5000, 0.0000]])
    """

    def __init__(
        self,
        *,
        Q: Tensor | None = None,
        p: Tensor | None = None,
        G: Tensor | None = None,
        h: Tensor | float | None = None,
        A: Tensor | None = None,
        b: Tensor | float | None = None,
        lb: Tensor | float | None = None,
        ub: Tensor | float | None = None,
        h_lower: Tensor | float | None = None,
        solver: InteriorPoint | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.solver = InteriorPoint() if solver is None else solver
        for name in options:
            if name not in OPTIONS:
                raise ValueError(f"{name!r} is no option of a QP layer: expected one of {OPTIONS}")
        self.options = options
        given = dict(zip(ARGUMENTS, (Q, p, G, h, A, b, lb, ub, h_lower), strict=True))
        self.held = tuple(name for name, value in given.items() if value is not None)
        for name in self.held:
            value = given[name]
            if not isinstance(value, Tensor | int | float):
                raise ValueError(f"{name} is a {type(value).__name__}: expected a tensor")
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            elif isinstance(value, Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, p: Tensor | None = None, **arguments: Any) -> Tensor:
        """The minimiser z, `(*B, n)`; p first, so that the layer fits an `nn.Sequential`."""
        return self.solve(p, **arguments).z

    def solve(
        self, p: Tensor | None = None, *, warm_start: QPSolution | None = None, **arguments: Any
    ) -> QPSolution:
        """The whole `QPSolution`: multipliers, status and residuals too."""
        given = {k: v for k, v in {"p": p, **arguments}.items() if v is not None}
        for name in given:
            if name in OPTIONS:
                raise ValueError(f"{name} is an option of the layer: give it to QPLayer(...)")
            if name not in ARGUMENTS:
                raise ValueError(f"{name!r} is no argument of a QP: expected one of {ARGUMENTS}")
            if name in self.held:
                raise ValueError(
                    f"{name} is held by this layer already: leave it out of the call, or make "
                    "the layer without it"
                )
        if "p" not in given and "p" not in self.held:
            raise ValueError("p is missing: give it to the layer or to the call")
        full = given | {name: getattr(self, name) for name in self.held}
        return solve_qp(
            full.pop("Q", None),
            full.pop("p"),
            **full,
            solver=self.solver,
            warm_start=warm_start,
            **self.options,
        )

    def extra_repr(self) -> str:
        """Sizes of what is held, what is learned, and the solver."""
        learned = {name for name, _ in self.named_parameters(recurse=False)}
        parts = [
            f"{name}{' learned' if name in learned else ''}={_size(getattr(self, name))}"
            for name in self.held
        ]
        return ", ".join([*parts, f"solver={self.solver}"])


def _size(value: Tensor | float) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"{value:g}"
