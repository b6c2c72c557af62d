"""Densities known in closed form: mixtures of Gaussians with noise added, and two noisy circles.

A mixture to which Gaussian noise of variance v is added is a mixture again, its covariances larger
by v I. So the density p_v and the score grad log p_v of the diffusion dx = sigma(t) dw that starts
in the mixture are known at every time, with v = integral of sigma^2, and so is its
probability-flow ODE x' = -1/2 sigma(t)^2 grad log p_v(x), which carries p_0 to p_v.

Source: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(ICLR 2021), section 4.3 (probability flow).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal


@dataclass(frozen=True)
class Mixture:
    """A mixture of K Gaussians in d dimensions, float64.

    Attributes:
        weights: `(K,)`, positive, of sum 1.
        means: `(K, d)`.
        covariances: `(K, d, d)`, symmetric and positive definite.

    Example:
        >>> one = Mixture(torch.ones(1), torch.zeros(1, 1), torch.ones(1, 1, 1))
        >>> x = torch.tensor([[2.0]], dtype=torch.float64)
        >>> one.score(x, torch.tensor(3.0)).item()              # of N(0, 1 + 3): -x / 4
        -0.5
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __post_init__(self) -> None:
        if self.means.ndim != 2:
            raise ValueError(f"means has shape {tuple(self.means.shape)}: expected (K, d)")
        K, d = self.means.shape
        shapes = tuple(self.weights.shape), tuple(self.covariances.shape)
        if shapes != ((K,), (K, d, d)):
            raise ValueError(
                f"weights and covariances have shapes {shapes}: expected {((K,), (K, d, d))}, as "
                f"means has shape {(K, d)}"
            )
        for name in ("weights", "means", "covariances"):
            object.__setattr__(self, name, getattr(self, name).double())
        if not ((self.weights > 0).all() and abs(self.weights.sum() - 1) < 1e-6):
            raise ValueError(f"weights is {self.weights.tolist()}: give positive ones of sum 1")
        if not (torch.linalg.eigvalsh(self.covariances) > 0).all():
            raise ValueError("covariances: a matrix is not positive definite")

    def log_prob(self, x: Tensor, variance: Tensor | float = 0.0) -> Tensor:
        """log p_v at x `(*B, d)`, `(*B,)`; the variance v of the noise is a number or `(*B,)`."""
        return self._parts(x, variance)[0].logsumexp(-1)

    def score(self, x: Tensor, variance: Tensor | float = 0.0) -> Tensor:
        """grad log p_v at x `(*B, d)`, like x: the pulls of the parts, by their share in p_v."""
        log_parts, pulls = self._parts(x, variance)
        return (log_parts.softmax(-1).unsqueeze(-1) * pulls).sum(-2)

    def distribution(self, variance: float = 0.0) -> MixtureSameFamily:
        """p_v as a distribution of torch, to draw from."""
        noise = variance * torch.eye(self.means.shape[1], dtype=torch.float64)
        parts = MultivariateNormal(self.means, self.covariances + noise)
        return MixtureSameFamily(Categorical(self.weights), parts)

    @cached_property
    def _axes(self) -> tuple[Tensor, Tensor]:
        """The eigenvalues of the covariances, and their axes as columns: those of C + v I, too."""
        lam, axes = torch.linalg.eigh(self.covariances)
        return lam, axes

    def _parts(self, x: Tensor, variance: Tensor | float) -> tuple[Tensor, Tensor]:
        """log of weight times density `(*B, K)`, and -(C + v I)^-1 (x - mean) `(*B, K, d)`."""
        lam, axes = self._axes
        spread = lam + torch.as_tensor(variance, dtype=torch.float64)[..., None, None]
        along = ((x.unsqueeze(-2) - self.means).unsqueeze(-2) @ axes).squeeze(-2)
        pulls = -along / spread
        log_parts = 0.5 * (along * pulls - (2 * math.pi * spread).log()).sum(-1)
        return log_parts + self.weights.log(), (axes @ pulls.unsqueeze(-1)).squeeze(-1)


def ring(K: int = 6, radius: float = 4.0, long: float = 0.8, short: float = 0.25) -> Mixture:
    """`K` equal Gaussians on a circle in the plane, with axes `long` outwards, `short` along it.

    >>> ring(4).means.round(decimals=9).abs().tolist()
    [[4.0, 0.0], [0.0, 4.0], [4.0, 0.0], [0.0, 4.0]]
    """
    if K < 1:
        raise ValueError(f"K is {K}: ask for 1 part at least")
    angle = torch.arange(K, dtype=torch.float64) * (2 * math.pi / K)
    out = torch.stack([angle.cos(), angle.sin()], -1)
    around = torch.stack([-angle.sin(), angle.cos()], -1)
    axes = torch.stack([long * out, short * around], -1)
    return Mixture(torch.full((K,), 1 / K, dtype=torch.float64), radius * out, axes @ axes.mT)


@dataclass(frozen=True)
class Circles:
    """Points on two circles about the origin, each as likely, of radius 1 and `factor`, and noise.

    Attributes:
        noise: standard deviation of the normal noise on both coordinates, > 0.
        factor: radius of the inner circle, > 0.

    Example:
        >>> near_points = Circles(noise=1.0, factor=1e-9).log_prob(torch.zeros(2).double())
        >>> round(near_points.exp().item(), 6)           # (1 + exp(-1/2)) / 2 / (2 pi)
        0.127844
    """

    noise: float = 0.06
    factor: float = 0.5

    def __post_init__(self) -> None:
        for name in ("noise", "factor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: give a positive number")

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """`count` points `(count, 2)`, float64; the seed is of a generator of its own."""
        if count < 1:
            raise ValueError(f"count is {count}: ask for 1 point at least")
        generator = torch.Generator().manual_seed(seed)
        u = torch.rand(2, count, generator=generator, dtype=torch.float64)
        radius, angle = torch.where(u[0] < 0.5, 1.0, self.factor), 2 * math.pi * u[1]
        points = radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], -1)
        noise = torch.randn(count, 2, generator=generator, dtype=torch.float64)
        return points + self.noise * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density at x `(*B, 2)`, `(*B,)`.

        A normal density averaged over the angle of its centre, at distance r from the origin, is
        exp(-(rho^2 + r^2) / (2 s^2)) I0(rho r / s^2) / (2 pi s^2) at distance rho.
        """
        rho, s2 = torch.linalg.vector_norm(x, dim=-1, keepdim=True), self.noise**2
        r = x.new_tensor([1.0, self.factor])
        # i0e(v) = exp(-v) I0(v) does not overflow
        log_parts = -((rho - r) ** 2) / (2 * s2) + torch.special.i0e(rho * r / s2).log()
        return log_parts.logsumexp(-1) - math.log(4 * math.pi * s2)

    def entropy(self) -> float:
        """The least expected -log_prob that any model has, in nats; accurate to 1e-8.

        The density depends on rho only, so that it is an integral over rho, by the trapezoidal
        rule, which for a smooth function that vanishes at both ends is as good as any.
        """
        end = max(1.0, self.factor) + 12 * self.noise
        rho = torch.linspace(0, end, 20_001, dtype=torch.float64)
        log_p = self.log_prob(torch.stack([rho, torch.zeros_like(rho)], -1))
        return torch.trapezoid(-log_p.exp() * log_p * 2 * math.pi * rho, rho).item()
