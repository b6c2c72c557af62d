"""What the Jacobian of f says of a fixed point: a penalty to train with, a number to watch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..linear import batched_norm
from ..state import State, form_of


def jacobian_penalty(
    f: Callable[[State], State],
    z: State,
    samples: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """|f'(z)|^2 / n in the Frobenius norm, a sample, estimated: `(B,)`, differentiable.

    E |J'e|^2 = |J|^2 for random signs e (Hutchinson 1990). Added to a loss it keeps f contractive,
    and the solver fast. z is held constant.

    Args:
        f: as for `fixed_point`.
        z: where, usually a fixed point.
        samples: number of random vectors, each one vjp.
        generator: of the random signs; default: torch's own.

    Example:
        Of f(z) = 3 z with two unknowns J is 3 times the identity, |J|^2 / 2 = 9:

        >>> jacobian_penalty(lambda z: 3 * z, torch.zeros(1, 2))
        tensor([9.])

    Source: Bai, Koltun & Kolter, "Stabilizing Equilibrium Models by Jacobian Regularization" (ICML
    2021).
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples={samples!r}: expected a positive integer")
    with torch.enable_grad():
        at, image = _evaluated(f, z)
        total = image.new_zeros(len(image))
        for _ in range(samples):
            signs = torch.randint(0, 2, image.shape, generator=generator, device=image.device)
            e = (2 * signs - 1).to(image.dtype)
            (pulled,) = torch.autograd.grad(image, at, e, create_graph=True)
            total = total + pulled.square().sum(1)
    return total / (samples * max(1, image.shape[1]))


def spectral_radius(f: Callable[[State], State], z: State, steps: int = 50) -> Tensor:
    """The modulus of the largest eigenvalue of f'(z), a sample, estimated: `(B,)`, no gradient.

    Below 1 Picard converges nearby, and the larger it is, the harder the solve. By power iteration
    on the transpose: the geometric mean growth over the second half of `steps`, which is right for
    complex pairs too, up to their angle over the number of steps.

    Args:
        f, z: as for `jacobian_penalty`.
        steps: vjps; the error falls as (second over first eigenvalue)^(steps / 2).

    Example:
        >>> spectral_radius(lambda z: z @ torch.diag(torch.tensor([0.5, 0.1])), torch.zeros(1, 2))
        tensor([0.5000])

    Source: the power method, Golub & Van Loan, Matrix Computations, 4th ed., section 7.3.1.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise ValueError(f"steps={steps!r}: expected an integer of at least 2")
    with torch.enable_grad():
        at, image = _evaluated(f, z)
    v = torch.linspace(1, 2, image.shape[1], dtype=image.dtype, device=image.device)
    v = v.expand_as(image) / batched_norm(v)
    growth, counted = image.new_zeros(len(image)), 0
    for k in range(steps):
        (v,) = torch.autograd.grad(image, at, v, retain_graph=True)
        length = batched_norm(v)
        v = torch.where(length.unsqueeze(1) > 0, v / length.unsqueeze(1), 0.0)
        if 2 * k >= steps:
            growth, counted = growth + length.log(), counted + 1
    return (growth / counted).exp()


def _evaluated(f: Callable[[State], State], z: State) -> tuple[Tensor, Tensor]:
    """(z, f(z)) flat, z a leaf of the graph."""
    form = form_of(z)
    at = form.pack(z).detach().requires_grad_()
    return at, form.flat(f)(at)
