"""The minimiser over a convex set as a module: `ProjectedGradient`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..projected_gradient import ProximalSolution, projected_gradient

OPTIONS = ("solver", "operator", "order", "on_failure")


class ProjectedGradient(nn.Module):
    """A layer whose output minimises f(z, *inputs) over a convex set; see `projected_gradient`.

    Args:
        objective: (z, *inputs) -> one number a sample, `(*B, n)` and the inputs to `(*B)`; convex
            and smooth in z. If it is a module its parameters are those of the layer.
        projection: z -> the point of the set nearest to z, `(*B, n)` both; may be a module too.
        options: further keyword arguments of `projected_gradient` (solver, order, ...).

    Raises:
        ValueError: if there is no option of a name given; otherwise as `projected_gradient`.

    Example:
        The point of [0, 1] nearest to each input:

        >>> nearest = ProjectedGradient(
        ...     lambda z, x: (z - x).square().sum(-1), lambda z: z.clamp(0, 1))
        >>> nearest(torch.zeros(3), torch.tensor([-2.0, 0.25, 3.0]))
        tensor([0.0000, 0.2500, 1.0000])
    """

    def __init__(
        self,
        objective: Callable[..., Tensor],
        projection: Callable[[Tensor], Tensor],
        **options: Any,
    ) -> None:
        super().__init__()
        for name in options:
            if name not in OPTIONS:
                raise ValueError(
                    f"{name!r} is no option of projected_gradient: expected one of {OPTIONS}"
                )
        self.objective, self.projection, self.options = objective, projection, options

    def forward(self, z0: Tensor, *inputs: Any) -> Tensor:
        """The minimiser z, `(*B, n)`, found from z0, `(*B, n)`."""
        return self.solve(z0, *inputs).z

    def solve(self, z0: Tensor, *inputs: Any) -> ProximalSolution:
        """The whole `ProximalSolution`: status, steps and residual too."""
        return projected_gradient(
            lambda z: self.objective(z, *inputs), self.projection, z0, **self.options
        )

    def extra_repr(self) -> str:
        """The options given."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
