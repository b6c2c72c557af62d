"""Projections on convex sets (and two spheres), batched, exact, differentiable.

Each set is a frozen dataclass, called on a point: ``Simplex(scale=2.0)(x)``. Parameters are
numbers or tensors, broadcast over the batch of x each on its own, and get gradients too. The
answer has the dtype of x, in which the work is done; `Polyhedron`, `TransportPolytope` and
`EntropicTransport` work in float64 whatever it is.

* A sample that is not finite, in x or in a parameter, is NaN in the answer; it gets no gradient,
  and the others do not notice. (`Box`, `Nonnegative` and `LinfBall` take infinite x, and answer
  NaN in the entry only; `Polyhedron` reports it, as `solve_qp` does.)
* An empty set raises a `ValueError` on the CPU; on another device, in a transform of `torch.func`
  and in `torch.compile`, where asking would cost or fail, its samples are NaN. (`Polyhedron` has
  `on_failure` for it.)
* Derivatives are those of closed formulas by autograd, in reverse and forward mode and to any
  order, but for `PSDCone`, `Polyhedron`, `TransportPolytope` and `EntropicTransport`, which have
  an `order`. Projections have kinks. There a derivative is one of those beside it, or between
  them: finite, and each class says which.
"""

from .arguments import Projection
from .balls import L2Ball, L2Sphere
from .boxes import Box, LinfBall, Nonnegative
from .cones import PSDCone, SecondOrderCone
from .entropic import EntropicTransport
from .flats import Affine, Halfspace, Hyperplane
from .polyhedron import Polyhedron, TransportPolytope
from .section import BoxHyperplane
from .simplex import L1Ball, L1Sphere, Simplex

__all__ = [
    "Affine",
    "Box",
    "BoxHyperplane",
    "EntropicTransport",
    "Halfspace",
    "Hyperplane",
    "L1Ball",
    "L1Sphere",
    "L2Ball",
    "L2Sphere",
    "LinfBall",
    "Nonnegative",
    "PSDCone",
    "Polyhedron",
    "Projection",
    "SecondOrderCone",
    "Simplex",
    "TransportPolytope",
]
