"""Where the KKT conditions leave a choice: least-norm multipliers, kinks, equal limits."""

import pytest
import torch

from diffopt import solve_qp
from problems.random_qp import degenerate_qp, random_qp

from .. import cases, checks

DOUBLE = torch.float64
EYE = torch.eye(2, dtype=DOUBLE)


def repeated(copies: tuple[float, ...], seed: int = 0) -> dict[str, torch.Tensor]:
    """A QP whose rows of G and A come again, times each of `copies`."""
    a = cases.arguments(random_qp(6, 5, 2, active=3, batch=(4,), seed=seed))
    for matrix, limit in (("G", "h"), ("A", "b")):
        a[matrix] = torch.cat([a[matrix], *(c * a[matrix] for c in copies)], 1)
        a[limit] = torch.cat([a[limit], *(c * a[limit] for c in copies)], -1)
    return a


def least_norm(a: dict, z: torch.Tensor) -> torch.Tensor:
    """min |(lam, nu)|^2, lam >= 0 on active rows, G'lam + A'nu = -(Qz + p), sample by sample."""
    out = []
    for i in range(len(z)):
        force = -(a["Q"][i] @ z[i] + a["p"][i])
        slack = a["h"][i] - a["G"][i] @ z[i]
        rows = torch.cat([a["G"][i], a["A"][i]])
        size = len(rows)
        upper = torch.full((size,), torch.inf, dtype=DOUBLE)
        lower = torch.full((size,), -torch.inf, dtype=DOUBLE)
        lower[: len(slack)] = 0.0
        upper[: len(slack)] = torch.where(slack > 1e-9, 0.0, upper[: len(slack)])
        sol = solve_qp(
            torch.eye(size, dtype=DOUBLE), torch.zeros(size, dtype=DOUBLE), A=rows.mT, b=force,
            lb=lower, ub=upper,
        )  # fmt: skip
        out.append(sol.z)
    return torch.stack(out)


@pytest.mark.parametrize("copies", [(1.0,), (2.0, 0.1), (1.0, 1.0, 1.0)])
def test_multipliers_are_those_of_least_norm(copies):
    a = repeated(copies)
    sol = solve_qp(**a)
    assert checks.kkt_error(a, sol).max() <= 1e-12
    truth = least_norm(a, sol.z)
    torch.testing.assert_close(torch.cat([sol.lam, sol.nu], -1), truth, rtol=1e-8, atol=1e-8)
    # by hand: a row times c carries c times the multiplier of the row
    m = 5
    for c, lam in zip((1.0, *copies), sol.lam.split(m, -1), strict=True):
        torch.testing.assert_close(lam, c * sol.lam[:, :m], rtol=1e-9, atol=1e-9)


def test_least_norm_keeps_the_signs():
    """Rows e_1, e_2, e_1 + 2 e_2 at z = (1, 1), pushed by (1, 0): the pseudo-inverse would give the
    second a negative multiplier; of least norm among the valid ones is (1, 0, 0)."""
    G = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 2.0]], dtype=DOUBLE)
    force = torch.tensor([1.0, 0.0], dtype=DOUBLE)
    assert torch.linalg.pinv(G.mT)[1] @ force < -0.1
    sol = solve_qp(EYE, -torch.ones(2, dtype=DOUBLE) - force, G, G @ torch.ones(2, dtype=DOUBLE))
    torch.testing.assert_close(sol.lam, torch.tensor([1.0, 0.0, 0.0], dtype=DOUBLE))


@pytest.mark.parametrize("output", ["z", "lam", "nu"])
def test_gradients_of_repeated_rows_are_finite_and_shared(output):
    """Two equal copies of every row: each gets half the gradient that one gets alone."""
    once = {k: v.requires_grad_() for k, v in repeated(()).items()}
    twice = {k: v.requires_grad_() for k, v in repeated((1.0,)).items()}
    sums = []
    for a in (once, twice):
        sol = solve_qp(**a)
        value = getattr(sol, output)
        half = value.shape[-1] // 2 if a is twice and output != "z" else value.shape[-1]
        total = value[..., :half] + value[..., half:] if half < value.shape[-1] else value
        weight = torch.linspace(1, 2, total.numel(), dtype=DOUBLE).view_as(total)
        sums.append(torch.autograd.grad((weight * total).sum(), [a[k] for k in ("h", "b", "p")]))
    for alone, (copy, again) in zip(
        sums[0][:2], (g.chunk(2, -1) for g in sums[1][:2]), strict=True
    ):
        torch.testing.assert_close(copy, again, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(copy + again, alone, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(sums[1][2], sums[0][2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("copies", [1, 2, 5])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_central_is_the_mean_whatever_the_units_and_the_copies(copies, unit):
    """min |z|^2 / 2 + p'z, z_0 + z_1 <= 0 at p = 0: dz/dp is -I here, -(I - 11'/2) there."""
    p = torch.zeros(2, dtype=DOUBLE, requires_grad=True)
    G = unit * torch.ones(copies, 2, dtype=DOUBLE)
    sol = solve_qp(EYE, p, G, torch.zeros(copies, dtype=DOUBLE))
    assert sol.weakly_active.tolist() == [True] * copies + [False, False]
    jacobian = torch.stack([torch.autograd.grad(z, p, retain_graph=True)[0] for z in sol.z])
    ones = torch.ones(2, 2, dtype=DOUBLE)
    torch.testing.assert_close(jacobian, -EYE + ones / 4, rtol=0, atol=1e-9)


def test_central_of_two_weak_rows_is_the_limit_of_the_central_path():
    """At a kink of two rows the derivative equals that of x(kappa) for kappa -> 0."""
    G = torch.tensor([[1.0, 0.3], [-0.2, 1.0]], dtype=DOUBLE)
    Q = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=DOUBLE)
    jacobians = []
    for smoothing in (None, 1e-8):
        p = torch.zeros(2, dtype=DOUBLE, requires_grad=True)
        sol = solve_qp(Q, p, G, torch.zeros(2, dtype=DOUBLE), smoothing=smoothing)
        rows = [torch.autograd.grad(z, p, retain_graph=True)[0] for z in sol.z]
        jacobians.append(torch.stack(rows))
    torch.testing.assert_close(jacobians[0], jacobians[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("degenerate", ["active", "inactive"])
def test_weak_rows_count_as_asked(degenerate):
    """The derivative is that of the problem with the weak rows made equalities, or left out."""
    a = cases.arguments(degenerate_qp(6, batch=(3,)))
    n, weak = 6, slice(9, 12)
    p = a["p"].clone().requires_grad_()
    sol = solve_qp(**a | {"p": p}, degenerate=degenerate)
    assert sol.weakly_active[:, weak].all()
    (grad,) = torch.autograd.grad(sol.z.sum(), p)
    rest = {"Q": a["Q"], "G": a["G"][:, :n], "h": a["h"][:, :n]}
    if degenerate == "active":
        rest |= {"A": a["G"][:, weak], "b": a["h"][:, weak]}
    q = a["p"].clone().requires_grad_()
    (truth,) = torch.autograd.grad(solve_qp(**rest, p=q).z.sum(), q)
    torch.testing.assert_close(grad, truth, rtol=1e-8, atol=1e-8)


def test_equal_limits_give_their_gradient_to_the_upper_one():
    upper = torch.tensor([1.0], dtype=DOUBLE, requires_grad=True)
    lower = torch.tensor([1.0], dtype=DOUBLE, requires_grad=True)
    one = torch.ones(1, 1, dtype=DOUBLE)
    for held in (
        {"G": one, "h": upper, "h_lower": lower},
        {"lb": lower, "ub": upper},
    ):
        z = solve_qp(one, torch.zeros(1, dtype=DOUBLE), **held).z
        grads = torch.autograd.grad(z.sum(), (upper, lower))
        assert [g.item() for g in grads] == pytest.approx([1.0, 0.0], abs=1e-12)
