"""`InteriorPoint.single()`: everything in float32, and honest about what that gives."""

import pytest
import torch

from diffopt import InteriorPoint, Status, solve_qp

from .. import cases, checks

SOLVER = InteriorPoint.single()
EASY = {k: v for k, v in cases.QPS.items() if "condition" not in k and "units" not in k}
HARD = {k: v for k, v in (cases.QPS | cases.LARGE_QPS).items() if "condition" in k}


def single(instance) -> dict:
    return {k: v.float() for k, v in cases.arguments(instance).items()}


@pytest.mark.parametrize("name", EASY)
def test_easy_problems_are_exact_to_rounding(name):
    a = single(EASY[name])
    sol = solve_qp(**{"Q": None} | a, solver=SOLVER)
    assert (sol.status == Status.CONVERGED).all() and sol.z.dtype == torch.float32
    assert checks.kkt_error(a, sol).max() <= 5e-6
    truth = solve_qp(**{"Q": None} | a)
    torch.testing.assert_close(sol.z, truth.z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", HARD)
def test_residuals_of_hard_problems_are_honest(name):
    a = single(HARD[name])
    sol = solve_qp(**{"Q": None} | a, solver=SOLVER)
    reached = checks.kkt_error(a, sol)
    assert (sol.status == Status.CONVERGED).all() and reached.max() <= SOLVER.eps
    torch.testing.assert_close(sol.residuals.worst().double(), reached, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["inequality and equality", "everything", "linear program"])
def test_gradients_are_those_of_float64_to_rounding(name):
    a = single(EASY[name])
    grads = []
    for solver in (SOLVER, InteriorPoint()):
        leaves = {k: v.clone().requires_grad_() for k, v in a.items()}
        sol = solve_qp(**{"Q": None} | leaves, solver=solver)
        grads.append(torch.autograd.grad((sol.z.sin() + sol.mu).sum(), leaves.values()))
    for ours, truth in zip(*grads, strict=True):
        assert (ours - truth).norm() <= 1e-4 * (1 + truth.norm())


@pytest.mark.parametrize("name", [k for k in cases.HOPELESS if "1e-3" not in k])
def test_problems_without_a_solution_are_not_called_solved(name):
    instance, kind = cases.HOPELESS[name]
    sol = solve_qp(**single(instance), solver=SOLVER, on_failure="ignore")
    assert (sol.status == getattr(Status, f"{kind}_INFEASIBLE")).all()


def test_nothing_is_computed_in_float64():
    """For a device that has none: a float64 tensor anywhere would fail there."""

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        seen: set = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **kwargs or {})
            outs = out if isinstance(out, tuple | list) else [out]
            self.seen |= {v.dtype for v in outs if isinstance(v, torch.Tensor)}
            return out

    leaves = {k: v.requires_grad_() for k, v in single(EASY["everything"]).items()}
    with Watch() as watch:
        solve_qp(**leaves, solver=SOLVER).z.sum().backward()
    assert torch.float32 in watch.seen and torch.float64 not in watch.seen


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"InteriorPoint\(dtype=torch.float16\): expected"):
        InteriorPoint(dtype=torch.float16)
