"""The numbers of the implicit methods: an explicit first stage, and one gamma for all the others.

With the slope k_1 = f(t, y) known, stage i is one equation in its own slope,

    k_i = f(t + c_i h, base_i + h gamma k_i),      base_i = y + h sum_j<i a_ij k_j,

and I - h gamma df/dy serves all of them. The last stage is the new state: its slope is the first
of the next step, and a component that decays at once is at its end already (L-stability; of
`TRAPEZOID`, which is only A-stable, it swings). The error estimates compare the last stage with
the one before it, which is as stable, so that a stiff component does not inflate them.
"""

from __future__ import annotations

from .tableaus import Row, Tableau, hermite

Rows = tuple[Row, ...]


def _esdirk(order: int, c: Row, a: Rows) -> Tableau:
    """The method whose rows `a`, below the first, end in gamma."""
    last, before = a[-1], (*a[-2], 0.0)
    error = tuple(p - q for p, q in zip(last, before, strict=True))
    return Tableau(order, c, a, (error,), hermite(last), implicit=last[-1])


def _kvaerno3() -> Tableau:
    """Stages of order two, b and c determined by gamma; see Kvaerno (2004), ESDIRK 3/2."""
    g = 0.4358665215084590  # the middle root of 6 g^3 - 18 g^2 + 9 g - 1: L-stable, of order 3
    third = ((-4 * g * g + 6 * g - 1) / (4 * g), (1 - 2 * g) / (4 * g), g)
    last = (
        (6 * g - 1) / (12 * g),
        -1 / ((24 * g - 12) * g),
        (-6 * g * g + 6 * g - 1) / (6 * g - 3),
        g,
    )
    return _esdirk(3, (0.0, 2 * g, 1.0, 1.0), ((), (g, g), third, last))


IMPLICIT_EULER = Tableau(1, (0.0, 1.0), ((), (0.0, 1.0)), implicit=1.0)
TRAPEZOID = Tableau(2, (0.0, 1.0), ((), (1 / 2, 1 / 2)), implicit=1 / 2)
KVAERNO3 = _kvaerno3()
KVAERNO5 = _esdirk(
    5,
    (0.0, 0.52, 1.230333209967908, 0.8957659843500759, 0.43639360985864756, 1.0, 1.0),
    (
        (),
        (0.26, 0.26),
        (0.13, 0.84033320996790809, 0.26),
        (0.22371961478320505, 0.47675532319799699, -0.06470895363112615, 0.26),
        (
            0.16648564323248321, 0.10450018841591720, 0.03631482272098715,
            -0.13090704451073998, 0.26,
        ),
        (
            0.13855640231268224, 0.0, -0.04245337201752043, 0.02446657898003141,
            0.61943039072480676, 0.26,
        ),
        (
            0.13659751177640291, 0.0, -0.05496908796538376, -0.04118626728321046,
            0.62993304899016403, 0.06962479448202728, 0.26,
        ),
    ),
)  # fmt: skip
