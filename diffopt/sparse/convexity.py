"""Whether a sparse Q is positive semidefinite: by a factorisation, or by what Lanczos finds."""

from __future__ import annotations

import numpy as np

from .linear import CHEAP, arithmetic, ldl
from .problem import Matrix, sparse


def convex(Q: Matrix) -> bool:
    """Whether Q is positive semidefinite, up to 1e-4 of its diagonal.

    Certain for a diagonally dominant Q and where a factor is cheap; else a negative eigenvalue is
    looked for by Lanczos' method, which does not see one that is small and hidden among others.
    """
    size = np.abs(Q.diagonal())
    size = np.maximum(size, 1e-12 * (abs(Q).max() if Q.nnz else 0.0))
    S = sparse().diags_array(1 / np.sqrt(np.where(size > 0, size, 1.0)))
    shifted = (S @ Q @ S + 1e-4 * sparse().eye_array(Q.shape[0])).tocsc()
    diagonal = shifted.diagonal()
    if (2 * diagonal - np.asarray(abs(shifted).sum(axis=0)).ravel() >= 0).all():
        return True
    if arithmetic(shifted) <= CHEAP / 10:
        factor, pivots, _ = ldl(shifted)
        return factor is not None and bool((pivots > 0).all())
    return _least_ritz_value(shifted) > 0


def _least_ritz_value(M: Matrix, steps: int = 80) -> float:
    """An upper bound of the smallest eigenvalue of the symmetric M (Lanczos 1950)."""
    v = np.random.default_rng(0).standard_normal(M.shape[0])
    v, old, beta = v / np.linalg.norm(v), np.zeros_like(v), 0.0
    alphas, betas = [], []
    for _ in range(steps):
        w = M @ v - beta * old
        alphas.append(float(v @ w))
        w = w - alphas[-1] * v
        beta = float(np.linalg.norm(w))
        if beta < 1e-12:
            break
        betas.append(beta)
        old, v = v, w / beta
    k = len(alphas)
    T = np.diag(alphas) + np.diag(betas[: k - 1], 1) + np.diag(betas[: k - 1], -1)
    return float(np.linalg.eigvalsh(T)[0])
