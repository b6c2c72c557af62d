"""smoothing=kappa: the exact value with the derivative of a point of the central path."""

import pytest
import torch
from torch import Tensor

from diffopt import LPGD, solve_qp
from problems.random_qp import random_qp

from .. import cases, checks

DOUBLE = torch.float64
VALUES = ("z", "lam", "nu", "mu")
ONE = torch.ones(1, 1, dtype=DOUBLE)


def gradients(a: dict[str, Tensor], names: tuple[str, ...] = ("z",), **options):
    """(the solution, the gradients of a random linear function of its outputs `names`)."""
    leaves = {k: v.clone().requires_grad_() for k, v in a.items()}
    sol = solve_qp(**{"Q": None} | leaves, **options)
    generator = torch.Generator().manual_seed(0)
    outputs = [getattr(sol, k) for k in names]
    weights = [torch.randn(v.shape, generator=generator, dtype=DOUBLE) for v in outputs]
    loss = sum((w * v).sum() for w, v in zip(weights, outputs, strict=True))
    grads = torch.autograd.grad(loss, leaves.values(), allow_unused=True)
    return sol, dict(zip(leaves, grads, strict=True))


def worst_difference(ours: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """Relative to the largest number of each gradient, and to all of them where it is zero."""
    overall = max(v.abs().max().item() for v in truth.values())
    return max(
        (ours[k] - v).abs().max().item() / max(v.abs().max().item(), 1e-3 * overall)
        for k, v in truth.items()
    )


@pytest.mark.parametrize("kappa", [1e-6, 1e-3, 1.0])
def test_closed_form_to_second_order(kappa):
    """min z^2/2 + pz, z >= 0: z (z + p) = kappa, z = (-p + root)/2, root^2 = p^2 + 4 kappa."""
    p = torch.linspace(-2, 2, 9, dtype=DOUBLE).unsqueeze(-1).requires_grad_()
    sol = solve_qp(ONE, p, lb=0.0, smoothing=kappa, order=2)
    root = (p.detach() ** 2 + 4 * kappa).sqrt()
    (first,) = torch.autograd.grad(sol.z.sum(), p, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), p)
    torch.testing.assert_close(sol.z, (-p).clamp(min=0), rtol=0, atol=1e-15)
    torch.testing.assert_close(first, (p / root - 1) / 2, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(second, 2 * kappa / root**3, rtol=1e-8, atol=1e-8)


def test_two_sided_closed_form():
    """A box |z| <= 1 as bounds and as a row, at p = 0: dz/dp = -1 / (1 + 2 kappa)."""
    for limits in ({"lb": -1.0, "ub": 1.0}, {"G": ONE, "h": 1.0, "h_lower": -1.0}):
        p = torch.zeros(1, dtype=DOUBLE, requires_grad=True)
        sol = solve_qp(ONE, p, **limits, smoothing=0.3)
        (grad,) = torch.autograd.grad(sol.z, p)
        assert grad.item() == pytest.approx(-1 / 1.6, abs=1e-9)


LIMIT = ["two-sided", "everything", "box and equality", "semidefinite", "linear program",
         "shared matrices", "condition 1e4", "fully active"]  # fmt: skip


@pytest.mark.parametrize("name", LIMIT)
def test_tends_to_the_exact_gradient(name):
    """The error falls in proportion to kappa, down to the rounding of slacks: 1e-16 / kappa."""
    a = cases.arguments(cases.QPS[name])
    _, exact = gradients(a, VALUES)
    errors = []
    for kappa in (1e-4, 1e-6, 1e-8, 1e-10):
        errors.append(worst_difference(gradients(a, VALUES, smoothing=kappa)[1], exact))
    assert errors[1] <= 0.05 * errors[0] and errors[2] <= 0.05 * errors[1], errors
    assert errors[2] <= 1e-4 and errors[3] <= 2e-5, errors


@pytest.mark.parametrize("name", ["everything", "linear program, box", "no batch"])
@pytest.mark.parametrize("smoothing", [1e-2, LPGD(0.1)])
def test_the_value_is_that_without_smoothing(name, smoothing):
    a = cases.arguments(cases.QPS[name])
    plain, sol = solve_qp(**{"Q": None} | a), gradients(a, smoothing=smoothing)[0]
    for k in VALUES:
        torch.testing.assert_close(getattr(plain, k), getattr(sol, k), rtol=1e-12, atol=1e-14)


def central_point(a: dict[str, Tensor], kappa: float) -> Tensor:
    """z of the central path by damped Newton steps on the barrier function, one sample."""
    full, n = checks.complete(a), a["p"].shape[-1]
    C = torch.cat([full["G"], torch.eye(n, dtype=DOUBLE)])
    upper, lower = torch.cat([full["h"], full["ub"]]), torch.cat([full["h_lower"], full["lb"]])
    A, z = full["A"], a["inside"]
    e = len(A)
    for _ in range(60):
        above, below = upper - C @ z, C @ z - lower
        g = full["Q"] @ z + full["p"] + C.mT @ (kappa / above - kappa / below)
        H = full["Q"] + C.mT @ ((kappa / above**2 + kappa / below**2).unsqueeze(-1) * C)
        K = torch.cat([torch.cat([H, A.mT], 1), torch.cat([A, A.new_zeros(e, e)], 1)])
        d = torch.linalg.solve(K, -torch.cat([g, A @ z - full["b"]]))[:n]
        room = torch.cat([above / (C @ d).clamp(min=1e-300), below / (-C @ d).clamp(min=1e-300)])
        z = z + min(1.0, 0.9 * room.min().item()) * d
    return z


BARRIER = {
    "box": random_qp(4, bounds=True, seed=1),
    "inequality": random_qp(3, 6, seed=2),
    "two-sided, box and equality": random_qp(5, 4, 2, two_sided=True, bounds=True, seed=3),
}


def with_interior(instance) -> dict[str, Tensor]:
    """The arguments, and a strictly feasible point of them: limits at z are moved away by 0.3."""
    a = cases.arguments(instance)
    for name, sign in (("h", 1), ("ub", 1), ("h_lower", -1), ("lb", -1)):
        if name in a:
            a[name] = a[name] + 0.3 * sign
    return a | {"inside": instance.z}


@pytest.mark.parametrize("name", BARRIER)
@pytest.mark.parametrize("kappa", [1e-3, 0.1])
def test_derivative_of_an_independent_central_path(name, kappa, generator):
    a = with_interior(BARRIER[name])
    inside = a.pop("inside")
    w = torch.randn(inside.shape, generator=generator, dtype=DOUBLE)
    leaves = {k: v.clone().requires_grad_() for k, v in a.items()}
    sol = solve_qp(**leaves, smoothing=kappa)
    grads = dict(zip(leaves, torch.autograd.grad((w * sol.z).sum(), leaves.values()), strict=True))
    for key, value in a.items():
        d = torch.randn(value.shape, generator=generator, dtype=DOUBLE)
        d = d + d.mT if key == "Q" else d
        eps, points = 1e-4, []
        for step in (2, 1, -1, -2):
            moved = a | {key: value + step * eps * d, "inside": inside}
            points.append((w * central_point(moved, kappa)).sum().item())
        truth = (-points[0] + 8 * points[1] - 8 * points[2] + points[3]) / (12 * eps)
        finite = value.isfinite()
        ours = (grads[key][finite] * d[finite]).sum().item()
        assert ours == pytest.approx(truth, rel=1e-6, abs=1e-7), key


@pytest.mark.parametrize("scale", [1e-4, 1e3])
def test_units_of_the_rows_do_not_matter(scale):
    """s y does not change with the units of a row: neither does the central path."""
    a = cases.arguments(cases.QPS["everything"])
    _, plain = gradients(a, smoothing=1e-2)
    unit = torch.logspace(0, 1, a["h"].shape[-1], base=scale, dtype=DOUBLE)
    b = a | {"G": unit.unsqueeze(-1) * a["G"], "h": unit * a["h"], "h_lower": unit * a["h_lower"]}
    _, grads = gradients(b | {"A": scale * a["A"], "b": scale * a["b"]}, smoothing=1e-2)
    back = {"G": unit.unsqueeze(-1), "h": unit, "h_lower": unit, "A": scale, "b": scale}
    same = {k: v * back.get(k, 1.0) for k, v in grads.items()}
    assert worst_difference(same, plain) <= 1e-8


def test_rows_with_equal_limits_are_equalities():
    """h_lower == h and lb == ub have no barrier: the derivative is that of A and of a constant."""
    a = cases.arguments(cases.QPS["inequality and equality"])
    _, truth = gradients(a, smoothing=1e-2)
    G, h = torch.cat([a["G"], a["A"]], -2), torch.cat([a["h"], a["b"]], -1)
    low = torch.cat([torch.full_like(a["h"], -torch.inf), a["b"]], -1)
    _, rows = gradients({"Q": a["Q"], "p": a["p"], "G": G, "h": h, "h_lower": low}, smoothing=1e-2)
    assert worst_difference({"Q": rows["Q"], "p": rows["p"], "G": rows["G"][..., :-3, :],
                             "A": rows["G"][..., -3:, :]},
                            {k: truth[k] for k in ("Q", "p", "G", "A")}) <= 1e-8  # fmt: skip
    fixed = gradients({"Q": a["Q"], "p": a["p"], "ub": a["p"] * 0, "lb": a["p"] * 0},
                      smoothing=1e-2)[1]  # fmt: skip
    assert fixed["p"].abs().max() <= 1e-14


def simplex(p: Tensor, **options):
    """min p'z over the simplex."""
    n = p.shape[-1]
    return solve_qp(None, p, A=torch.ones(1, n, dtype=DOUBLE), b=1.0, lb=0.0, **options)


def test_a_vertex_moves_when_smoothed():
    """On the simplex the central path solves z_i = kappa / (p_i + nu): dz_i/dp_j by hand."""
    p = torch.tensor([0.1, 0.2, 0.4], dtype=DOUBLE, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda p: simplex(p, smoothing=0.05).z, p)
    exact = torch.autograd.functional.jacobian(lambda p: simplex(p).z, p)
    low, high = -p.min().item(), 10.0  # nu where the sum of z is one, by bisection
    for _ in range(200):
        nu = (low + high) / 2
        low, high = (nu, high) if (0.05 / (p + nu)).sum() > 1 else (low, nu)
    d = 0.05 / (p.detach() + nu) ** 2
    truth = -torch.diag(d) + torch.outer(d, d) / d.sum()
    torch.testing.assert_close(jacobian, truth, rtol=0, atol=1e-9)
    assert exact.abs().max() <= 1e-14


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), "yes"])
def test_bad_values_are_named(bad):
    with pytest.raises(ValueError, match="smoothing="):
        solve_qp(ONE, ONE[0], smoothing=bad)
