"""On a GPU, where there is one: the same answers, without waiting, by graphs, whatever is set."""

import pytest
import torch

from diffopt import InteriorPoint, Status, device, solve_qp, unattended
from diffopt.product import product
from diffopt.qp.arguments import check
from diffopt.qp.homogeneous import Embedding, _start
from diffopt.qp.interior_point import Setup
from diffopt.qp.path import Path
from diffopt.qp.start import cold_start
from diffopt.tree import mapped, tensors

from .. import cases

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TORCH, GRAPH = InteriorPoint(engine="torch"), InteriorPoint(engine="torch", cuda_graph=True)
KERNEL = InteriorPoint(engine="cuda")


@pytest.fixture(autouse=True, scope="module")
def engine():
    """In place of one run for each engine of the CPU."""


def on_cuda(instance, dtype=torch.float64):
    return {k: v.to("cuda", dtype) for k, v in cases.arguments(instance).items()}


def outputs(sol):
    return [sol.z, sol.lam, sol.nu, sol.mu]


@pytest.mark.parametrize("solver", [TORCH, KERNEL], ids=["torch", "cuda"])
@pytest.mark.parametrize("name", [*cases.QPS, *cases.LARGE_QPS])
def test_answers_and_gradients_equal_those_of_the_cpu(name, solver):
    a = cases.arguments((cases.QPS | cases.LARGE_QPS)[name])
    results = []
    for place in ("cpu", "cuda"):
        leaves = {k: v.detach().to(place).requires_grad_() for k, v in a.items()}
        sol = solve_qp(**leaves, solver=TORCH if place == "cpu" else solver)
        assert sol.z.device.type == place and (sol.status == Status.CONVERGED).all()
        grads = torch.autograd.grad((sol.z + sol.mu).pow(2).sum() + sol.lam.sum(), leaves.values())
        results.append([*outputs(sol), *grads])
    for ours, truth in zip(*results[::-1], strict=True):
        torch.testing.assert_close(ours.cpu(), truth, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("solver", [TORCH, KERNEL], ids=["torch", "cuda"])
@pytest.mark.parametrize("name", cases.HOPELESS)
def test_problems_without_a_solution_are_proven_so(name, solver):
    instance, kind = cases.HOPELESS[name]
    sol = solve_qp(**on_cuda(instance), solver=solver, on_failure="ignore")
    assert (sol.status == Status[f"{kind}_INFEASIBLE"]).all()


@pytest.fixture
def never_waiting():
    """Whatever waits for the device raises, within ``with``."""

    class Never:
        def __enter__(self):
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *error):
            torch.cuda.set_sync_debug_mode("default")

    yield Never()
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", [*cases.QPS, *cases.LARGE_QPS])
def test_an_iteration_does_not_wait(name, never_waiting):
    qp = check(**(cases.QPS | cases.LARGE_QPS)[name].arguments()).qp()
    qp = mapped(qp, torch.Tensor.cuda)
    setup = Setup.of(qp, TORCH)
    starts = {
        Path: cold_start(setup.family, setup.sides),
        Embedding: _start(setup.family.qp, setup.sides),
    }
    for kind, start in starts.items():
        task = kind(qp, setup, TORCH, TORCH.eps)
        progress = unattended._begun(task, start, next(tensors(start)))
        glance = device.Glance()
        with never_waiting:
            for _ in range(4):
                progress = unattended.advanced(task, progress)
                glance.look(unattended._counts(progress))
        assert (progress.steps > 0).all()


@pytest.mark.parametrize("name", cases.QPS)
def test_graphs_give_the_same_answers(name):
    a = on_cuda(cases.QPS[name])
    expected = solve_qp(**a, solver=TORCH)
    for _ in range(2):  # captured, and replayed only
        sol = solve_qp(**a, solver=GRAPH)
        assert torch.equal(sol.status, expected.status)
        assert torch.equal(sol.iterations, expected.iterations)
        for ours, truth in zip(outputs(sol), outputs(expected), strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-9)


def test_a_graph_serves_other_data_of_the_same_shapes():
    for seed in (1, 2, 3):
        a = on_cuda(cases.random_qp(20, 30, 4, bounds=True, batch=(256,), seed=seed))
        sol, expected = solve_qp(**a, solver=GRAPH), solve_qp(**a, solver=TORCH)
        assert (sol.status == Status.CONVERGED).all()
        torch.testing.assert_close(sol.z, expected.z, rtol=1e-9, atol=1e-9)


def test_large_batches_are_compacted_to_the_same_answers(monkeypatch):
    a = on_cuda(cases.random_qp(20, 30, 4, bounds=True, batch=(512,), seed=1))
    sol = solve_qp(**a, solver=TORCH)
    monkeypatch.setattr(unattended, "FULL", 10**9)
    whole = solve_qp(**a, solver=TORCH)
    assert torch.equal(sol.iterations, whole.iterations)
    torch.testing.assert_close(sol.z, whole.z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [10, 50, 100])
def test_a_batch_of_the_kernel_is_its_samples(n):
    a = on_cuda(cases.random_qp(n, n, 5, batch=(300,), seed=n))
    whole, part = solve_qp(**a, solver=KERNEL), {k: v[7:9] for k, v in a.items()}
    assert torch.equal(whole.z[7:9], solve_qp(**part, solver=KERNEL).z)


@pytest.mark.parametrize("name", ["everything", "shared matrices", "box and equality"])
def test_no_setting_of_tf32_changes_an_answer(name, monkeypatch):
    a, answers = on_cuda(cases.QPS[name], torch.float32), []
    for allowed in (False, True):
        monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", allowed)
        leaves = {k: v.clone().requires_grad_() for k, v in a.items()}
        sol = solve_qp(**leaves, solver=InteriorPoint.single(engine="torch"))
        grads = torch.autograd.grad(sol.z.sin().sum() + sol.mu.sum(), leaves.values())
        answers.append([*outputs(sol), *grads])
        assert torch.backends.cuda.matmul.allow_tf32 == allowed
    for with_tf32, without in zip(*answers[::-1], strict=True):
        assert torch.equal(with_tf32, without)


def test_a_product_is_not_rounded_to_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    a, b = (torch.randn(64, 64, device="cuda") for _ in range(2))
    exact = (a.double() @ b.double()).float()
    assert torch.equal(product(a, b), exact)
