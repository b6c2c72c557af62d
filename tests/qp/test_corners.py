"""Small problems at which something else could go wrong without a word."""

import pytest
import torch

from diffopt import LPGD, ConvergenceWarning, Status, solve_qp


def f64(value) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


EYE1, EYE2 = f64([[1.0]]), torch.eye(2, dtype=torch.float64)
TILTED = f64([[1.0, 0.3], [-0.2, 1.0], [0.5, 0.5]])
# kinks and equal limits, where a solution alone does not say which limits are active
KINKS = {
    "a fixed unknown without force": dict(Q=EYE1, p=f64([0.0]), lb=f64([0.0]), ub=f64([0.0])),
    "a fixed unknown pushed up": dict(Q=EYE1, p=f64([1.0]), lb=f64([0.0]), ub=f64([0.0])),
    "a fixed row pushed up": dict(
        Q=EYE1, p=f64([1.0]), G=EYE1, h=f64([0.0]), h_lower=f64([0.0])
    ),
    "a weak bound": dict(Q=EYE1, p=f64([0.0]), ub=f64([0.0])),
    "a weak bound and an active one": dict(Q=EYE2, p=f64([0.0, -1.0]), ub=f64([0.0, 0.0])),
    "a weak lower bound": dict(Q=EYE1, p=f64([0.0]), lb=f64([0.0])),
    "weak lower bounds and an active one": dict(
        Q=torch.eye(3).double(), p=f64([0.0, 1.0, 0.0]), lb=f64([0.0] * 3)
    ),
    "a weak lower bound below an upper": dict(
        Q=EYE2, p=f64([0.0, -0.5]), lb=f64([0.0, 0.0]), ub=f64([1.0, 1.0])
    ),
    "three weak two-sided rows": dict(
        Q=EYE2, p=f64([0.0, 0.0]), G=TILTED, h=f64([0.0] * 3), h_lower=f64([-1.0] * 3)
    ),
    "a weak row given twice": dict(
        Q=EYE2, p=f64([0.0, 1.0]), G=f64([[1.0, 0.0], [1.0, 0.0]]), h=f64([0.0, 0.0])
    ),
    "four rows through a point": dict(
        Q=EYE2, p=f64([-3.0, -2.0]), G=f64([[1, 0], [0, 1], [1, 1], [2, 1]]), h=f64([1, 1, 2, 3])
    ),
}  # fmt: skip


def gradients(arguments: dict, **options) -> list[torch.Tensor]:
    leaves = {k: v.clone().requires_grad_() for k, v in arguments.items()}
    sol = solve_qp(**leaves, **options)
    value = (sol.z * torch.linspace(1, 2, sol.z.shape[-1], dtype=torch.float64)).sum()
    return [sol.z, sol.lam, sol.mu, *torch.autograd.grad(value, leaves.values())]


@pytest.mark.parametrize("degenerate", ["central", "active", "inactive"])
@pytest.mark.parametrize("name", KINKS)
def test_a_warm_start_changes_no_gradient(name, degenerate):
    cold = gradients(KINKS[name], degenerate=degenerate)
    start = solve_qp(**KINKS[name])
    warm = gradients(KINKS[name], degenerate=degenerate, warm_start=start)
    for ours, truth in zip(warm, cold, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("upper", [None, 1.0])
def test_the_kink_of_a_lower_bound_belongs_to_it(upper):
    """z = max(lb, -p) at lb = -p = 0: half of the slope to each, and none to the other bound."""
    p, lb = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    ub = None if upper is None else torch.full_like(p, upper)
    given = [v.requires_grad_() for v in (p, lb, ub) if v is not None]
    z = solve_qp(EYE2, p, lb=lb, ub=ub).z
    slopes = torch.autograd.grad(z.sum(), given)
    for slope, truth in zip(slopes, (-0.5, 0.5, 0.0), strict=False):
        torch.testing.assert_close(slope, torch.full_like(p, truth), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", KINKS)
def test_compiling_changes_no_gradient(name):
    torch._dynamo.reset()

    def loss(p):
        return solve_qp(**KINKS[name] | {"p": p}).z.sum()

    results = []
    for call in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        p = KINKS[name]["p"].clone().requires_grad_()
        results.append(torch.autograd.grad(call(p), p)[0])
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-9)


def test_equal_limits_give_h_and_ub_the_whole_gradient():
    for name in ("a fixed unknown pushed up", "a fixed row pushed up"):
        *_, first, second = gradients(KINKS[name])
        upper, lower = (second, first) if "lb" in KINKS[name] else (first, second)
        assert upper.item() == pytest.approx(1.0, abs=1e-12) and lower.item() == 0.0


@pytest.mark.parametrize("p", [-1.0, 0.0, 1.0, 100.0])
def test_a_row_and_its_negative_leave_no_room(p):
    """z <= 1, -z <= -1: z = 1 whatever p is, and dz/dh = (1/2, -1/2), of least norm."""
    h = f64([1.0, -1.0]).requires_grad_()
    sol = solve_qp(EYE1, f64([p]), f64([[1.0], [-1.0]]), h)
    assert sol.z.item() == pytest.approx(1.0, abs=1e-12)
    (grad,) = torch.autograd.grad(sol.z.sum(), h)
    assert grad.tolist() == pytest.approx([0.5, -0.5], abs=1e-9)


@pytest.mark.parametrize("angle", [1e-6, 1e-8, 1e-9, 1e-10])
def test_a_solution_far_away_is_no_proof_of_none(angle):
    """z_0 = 0, z_0 + angle z_1 = 1, as equalities and as inequalities: z_1 = 1 / angle."""
    rows = f64([[1.0, 0.0], [1.0, angle]])
    sides = f64([1.0, -1.0])
    zero = torch.zeros(2, dtype=torch.float64)
    equal = solve_qp(EYE2, zero, A=rows, b=f64([0.0, 1.0]))
    above = solve_qp(EYE2, zero, sides[:, None] * f64([[1, 0], [0, angle]]), f64([0.0, -1.0]))
    for sol in (equal, above):
        assert sol.status == Status.CONVERGED
        assert sol.z[1].item() == pytest.approx(1 / angle, rel=1e-6)


@pytest.mark.parametrize("condition", [1e6, 1e9])
def test_a_flat_bowl_is_no_ray(condition):
    basis = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    basis = basis.double()
    Q = basis @ torch.diag(f64([1.0, 1.0, 1 / condition])) @ basis.mT
    Q, p = (Q + Q.mT) / 2, f64([1.0, 0.0, 0.0])
    sol = solve_qp(Q, p)
    assert sol.status == Status.CONVERGED
    assert (sol.z + torch.linalg.solve(Q, p)).norm() <= 1e-5 * sol.z.norm()


def test_smoothing_without_an_interior_says_so():
    h = f64([1.0, -1.0]).requires_grad_()
    sol = solve_qp(EYE1, f64([1.0]), f64([[1.0], [-1.0]]), h, smoothing=1e-2)
    assert sol.z.item() == pytest.approx(1.0, abs=1e-9) and sol.status == Status.CONVERGED
    with pytest.warns(ConvergenceWarning, match="1 of 1 samples failed"):
        (grad,) = torch.autograd.grad(sol.z.sum(), h)
    assert grad.tolist() == [0.0, 0.0]


def test_small_perturbations_of_dependent_rows_give_the_exact_gradient():
    """3 z <= 3, given as z <= 1 and 10 z <= 10: dz/dh = (1, 10) / 101."""
    h = f64([1.0, 10.0]).requires_grad_()
    sol = solve_qp(EYE1, f64([-3.0]), f64([[1.0], [10.0]]), h, smoothing=LPGD(1e-5))
    (grad,) = torch.autograd.grad(sol.z.sum(), h)
    assert grad.tolist() == pytest.approx([1 / 101, 10 / 101], abs=1e-6)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("smoothing", [None, 1e-2])
def test_nan_of_a_failed_sample_reaches_only_who_used_it(order, smoothing):
    Q = EYE2.clone().requires_grad_()
    ub = f64([[1.0, 1.0], [float("nan"), 1.0]])
    p = f64([[-3.0, -3.0], [-3.0, -3.0]])
    sol = solve_qp(Q, p, ub=ub, on_failure="nan", order=order, smoothing=smoothing)
    assert sol.z[0].isfinite().all() and sol.z[1].isnan().all()
    (fine,) = torch.autograd.grad(sol.z[0].sum(), Q, retain_graph=True)
    (loud,) = torch.autograd.grad(sol.z[1].sum(), Q)
    assert fine.isfinite().all() and loud.isnan().all()


def test_no_proof_for_what_is_not_a_problem():
    """An indefinite Q that also falls for ever, and contradicting bounds beside a NaN."""
    bad = solve_qp(f64([[[1.0, 0], [0, -1.0]]]), f64([[0.0, 1.0]]), on_failure="ignore")
    nan = solve_qp(EYE1, f64([float("nan")]), lb=1.0, ub=0.0, on_failure="ignore")
    for sol in (bad, nan):
        assert (sol.status == Status.INVALID_INPUT).all()
        assert all((v == 0).all() for v in sol.certificate)


def test_shifts_of_what_stays_infeasible_are_zero():
    sol = solve_qp(
        EYE1,
        f64([0.0]),
        EYE1,
        f64([-2.0]),
        lb=1.0,
        ub=0.0,
        infeasible="closest",
        on_failure="ignore",
    )
    assert sol.status == Status.PRIMAL_INFEASIBLE and sol.shifts.G.item() == 0.0


@pytest.mark.parametrize("batch", [1, 2, 50])
def test_a_closest_problem_with_one_feasible_point(batch):
    """z_0 + z_1 = -b, z >= 0: moved by b, which leaves z = 0 only, whatever the batch mates are."""
    b = torch.linspace(0.1, 1, batch, dtype=torch.float64).unsqueeze(-1).requires_grad_()
    p = torch.zeros(2, dtype=torch.float64)
    ones = torch.ones(1, 2, dtype=torch.float64)
    sol = solve_qp(EYE2, p, A=ones, b=-b, lb=0.0, infeasible="closest")
    assert (sol.status == Status.CONVERGED).all() and (sol.z == 0).all()
    torch.testing.assert_close(sol.shifts.A, b)
    (grad,) = torch.autograd.grad(sol.shifts.A.sum(), b)
    torch.testing.assert_close(grad, torch.ones_like(b))


def test_elastic_equalities_without_rows_of_G():
    """min |z|^2 / 2 + z_0 + z_1 + 2 |z_0 + z_1 + 1|, z >= 0: z = 0, shifted by 1."""
    ones = torch.ones(2, dtype=torch.float64)
    sol = solve_qp(EYE2, ones, A=ones[None], b=-1.0, lb=0.0, infeasible="elastic", penalty=2.0)
    assert sol.status == Status.CONVERGED and (sol.z == 0).all()
    assert sol.shifts.A.tolist() == [1.0] and "shifted            1" in repr(sol)


def test_the_warning_points_at_the_line_of_the_user():
    with pytest.warns(ConvergenceWarning) as caught:
        solve_qp(EYE1, f64([0.0]), lb=1.0, ub=0.0)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("lower", [None, 0.0, -1.0])
def test_a_row_of_zeros_has_no_multiplier(lower):
    """Cold and warm, at a limit of zero: no multiplier, and no gradient but that of the rest."""
    G = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    a = dict(Q=torch.diag(f64([1.0, 6.0])), p=f64([-2.0, -6.0]), G=G, h=0.0, lb=1.0, ub=3.0)
    cold = solve_qp(**a, h_lower=lower)
    for sol in (cold, solve_qp(**a, h_lower=lower, warm_start=cold)):
        assert sol.lam.tolist() == [0.0] and sol.z.tolist() == pytest.approx([2.0, 1.0])
        (grad,) = torch.autograd.grad(sol.z.sum(), G)
        assert grad.abs().max() <= 1e-12


def test_a_failed_search_for_the_centre_poisons_nobody():
    G = f64([[0.0, 0.0], [1.0, 0.0]]).requires_grad_()
    h = f64([[0.0, 1.0], [1.0, 1.0]]).requires_grad_()
    p = f64([[-2.0, -6.0], [-2.0, -6.0]])
    with pytest.warns(ConvergenceWarning, match="1 of 2 samples failed"):
        sol = solve_qp(EYE2, p, G, h, smoothing=1e-3)
        shared, own = torch.autograd.grad(sol.z.sum(), (G, h))
    (alone,) = torch.autograd.grad(solve_qp(EYE2, p[1], G, h[1], smoothing=1e-3).z.sum(), G)
    torch.testing.assert_close(shared, alone)
    assert own[0].tolist() == [0.0, 0.0] and own.isfinite().all()


def test_units_of_the_unknowns_make_no_rows_dependent():
    """(1, 1e-12), (1, -1e-12) with z_1 in units of 1e12: a plain change of variables."""
    A, b = f64([[1.0, 1.0], [1.0, -1.0]]), f64([1.0, 3.0])
    unit = f64([1.0, 1e-12])
    Q = torch.diag(unit**2)
    plain, odd = (
        gradients(dict(Q=q, p=f64([0.0, 0.0]), A=a, b=b))
        for q, a in ((EYE2, A), (Q, A * unit))
    )  # fmt: skip
    torch.testing.assert_close(odd[0] * unit, plain[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1e-18, 1e-33])
def test_a_row_of_rounding_binds_nothing(size):
    """The point of x + y + w <= -1 nearest to 0, whatever row of rounding stands beside."""
    G = f64([[1.0, 1.0, 1.0], [0.0, -2.0, 1.0]]) * f64([[1.0], [size]])
    sol = solve_qp(torch.eye(3).double(), f64([0.0] * 3), G=G, h=f64([-1.0, 0.02]))
    torch.testing.assert_close(sol.z, f64([-1 / 3] * 3), rtol=1e-12, atol=1e-12)
    assert sol.status == Status.CONVERGED
    assert sol.lam.tolist() == pytest.approx([1 / 3, 0], abs=1e-12)
