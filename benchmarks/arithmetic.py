"""The arithmetic of a QP, and how fast a device can do arithmetic."""

from __future__ import annotations

import torch
from stopwatch import Stopwatch


def flops(n: int, m: int, e: int) -> float:
    """Multiplications and additions of one step of the interior point, for one problem.

    With n unknowns, m rows of G and e of A, W diagonal, H = Q + G'WG and S = A H^-1 A', a step

        forms H, the half of it that counts       m n^2
        factorises it                             n^3 / 3
        forms L^-1 A' and S, half of it           n^2 e + n e^2
        factorises S                              e^3 / 3

    and solves twice with the factors, for the predictor and for the corrector, each time with

        both triangles of L, and products with L^-1 A' and its transpose      2 n^2 + 4 n e
        products with Q, and with G, A and their transposes                   2 n (n + 2 m + 2 e)

    where a product with an r x n matrix is 2 r n and a triangle of size n is n^2; terms of order n,
    m and e, and the two triangles of S, are left out, and so are bounds, whose rows are those of
    the identity. It is the useful work of a textbook method, not a count of what an engine does.
    """
    factors = m * n**2 + n**3 / 3 + n**2 * e + n * e**2 + e**3 / 3
    solves = 2 * (2 * n**2 + 4 * n * e + 2 * n * (n + 2 * m + 2 * e))
    return factors + solves


def matrix_rate(device: torch.device, size: int, rounds: int = 5) -> float:
    """Operations a second of a float64 product of two matrices, 2 size^3: the best of `rounds`."""
    X = torch.randn(size, size, dtype=torch.float64, device=device)
    watch, out = Stopwatch(device), torch.empty_like(X)
    took = [watch.time(lambda: torch.mm(X, X, out=out))[1] for _ in range(rounds + 1)]
    return 2 * size**3 / min(took[1:])
