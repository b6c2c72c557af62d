"""The torch engine as on a CUDA device: no iteration waits for it, and the answers are equal."""

import pytest
import torch

from diffopt import InteriorPoint, Status, device, replay, solve_qp, unattended
from diffopt.qp import degeneracy, smooth, structure
from diffopt.qp.arguments import check
from diffopt.qp.homogeneous import Embedding, _start
from diffopt.qp.interior_point import Setup
from diffopt.qp.path import Path
from diffopt.qp.start import cold_start
from diffopt.tree import tensors

from .. import cases
from ..unseen import Watch, believe, without_numbers

TORCH, GRAPH = InteriorPoint(engine="torch"), InteriorPoint(engine="torch", cuda_graph=True)
SOLVABLE = cases.QPS | cases.LARGE_QPS | cases.DEGENERATE
HOPELESS = {name: instance for name, (instance, _) in cases.HOPELESS.items()}
OUTPUTS = ("z", "lam", "nu", "mu")
# One for each way through the code that the shapes decide.
SHAPES = [
    "equality only", "box and equality", "everything", "shared matrices", "shared Q",
    "linear program, box", "n = 50", "infeasible, margin 1", "unbounded, no constraints",
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def engine():
    """In place of one run for each engine: these are tests of the torch engine."""


def solved(instance, solver=TORCH, **options):
    options = {"solver": solver, "on_failure": "ignore"} | options
    return solve_qp(**{"Q": None} | cases.arguments(instance), **options)


LOOKS = {
    "bool": lambda x: bool(x.any()),
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "assignment by a mask": lambda x: x.index_put((x > 0,), x.new_zeros(())),
    "equal": lambda x: torch.equal(x, x),
    "unique": lambda x: x.unique(),
    "repeat": lambda x: x.repeat_interleave((x[0] > 0).long(), dim=0),
    "cholesky": lambda x: torch.linalg.cholesky(x),
    "solve": lambda x: torch.linalg.solve(x, x),
    "svd": lambda x: torch.linalg.svd(x),
    "data of the host": lambda x: x * torch.tensor([1.0, 2.0]),
}
HARMLESS = {
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "cholesky_ex": lambda x: torch.linalg.cholesky_ex(x),
    "triangular": lambda x: torch.linalg.solve_triangular(x, x, upper=False),
    "sort": lambda x: (x > 0).to(torch.int8).argsort(descending=True, stable=True)[:1],
    "look at a copy": lambda x: device.Glance().look(x.sum(0)),
}


@pytest.mark.parametrize("name", LOOKS)
def test_the_watch_sees_what_waits(name):
    with Watch() as watch:
        LOOKS[name](torch.eye(2))
    assert watch.waits


@pytest.mark.parametrize("name", HARMLESS)
def test_the_watch_lets_pass_what_does_not_wait(name):
    with Watch() as watch:
        HARMLESS[name](torch.eye(2))
    assert not watch.waits


def tasks(instance):
    """Everything that is iterated for a batch, each with its start."""
    qp = check(**instance.arguments()).qp()
    setup = Setup.of(qp, TORCH)
    family, sides, scaled = setup.family, setup.sides, setup.family.qp
    goal, everyone = torch.full((qp.batch,), 1e-3).double(), torch.ones(qp.batch).bool()
    cold = cold_start(family, sides)
    yield Path(qp, setup, TORCH, TORCH.eps), cold
    yield Embedding(qp, setup, TORCH, TORCH.eps), _start(scaled, sides)
    yield smooth._Centring(family, sides, goal, everyone, TORCH), cold
    yield degeneracy._Centring(family, sides), degeneracy.origin(scaled, sides)


@pytest.mark.parametrize("name", SHAPES)
def test_an_iteration_looks_at_nothing_and_writes_to_memory_of_its_own(name):
    """Else it would wait, or a replay would overwrite what it still has to read."""
    for task, start in tasks((SOLVABLE | HOPELESS)[name]):
        before = unattended._begun(task, start, next(tensors(start)))
        with Watch() as watch:
            after = unattended.advanced(task, before)
        assert not watch.waits
        if isinstance(task, Path):  # the others are made of the same parts
            nowhere = unattended.advanced(*without_numbers((task, before)))
            assert [v.shape for v in tensors(nowhere)] == [v.shape for v in tensors(after)]
        assert not addresses((task, before)) & addresses(after)
        assert torch.equal(after.steps == 1, before.running & ~before.held & ~after.failed)


def addresses(part):
    return {v.untyped_storage().data_ptr() for v in tensors(part) if v.numel()}


WAYS = {"whole": (10**9, TORCH), "compacted": (1, TORCH), "graph": (10**9, GRAPH)}


@pytest.fixture(scope="module")
def truth():
    """The answers without all that, each made once."""
    made = {}

    def answer(name, instance, **options):
        if name not in made:
            made[name] = solved(instance, **options)
        return made[name]

    return answer


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SOLVABLE)
def test_answers_are_equal(name, way, truth, monkeypatch):
    expected = truth(name, SOLVABLE[name])
    full, solver = WAYS[way]
    believe(monkeypatch, full)
    sol = solved(SOLVABLE[name], solver)
    assert torch.equal(sol.status, expected.status) and (sol.status == Status.CONVERGED).all()
    assert torch.equal(sol.iterations, expected.iterations)
    for key in OUTPUTS:
        ours, theirs = getattr(sol, key), getattr(expected, key)
        size = 1 + theirs.abs().amax() if theirs.numel() else 1.0
        torch.testing.assert_close(ours / size, theirs / size, rtol=0, atol=1e-12)


@pytest.mark.parametrize("way", ["compacted", "graph"])
@pytest.mark.parametrize("name", HOPELESS)
def test_problems_without_a_solution_are_proven_so(name, way, monkeypatch):
    full, solver = WAYS[way]
    believe(monkeypatch, full)
    sol = solved(HOPELESS[name], solver)
    kind = cases.HOPELESS[name][1]
    assert (sol.status == Status[f"{kind}_INFEASIBLE"]).all()
    a, proof = cases.arguments(HOPELESS[name]), sol.certificate
    if kind == "DUAL":
        slope = (a["p"] * proof.z).sum(-1)
        torch.testing.assert_close(slope, torch.full_like(slope, -1.0))
        flat = (a["Q"] @ proof.z.unsqueeze(-1)).abs().amax((-2, -1))
        assert (flat <= 1e-9 * proof.z.abs().amax(-1)).all()
    else:
        sums = (a["G"].mT @ (proof.lam_upper - proof.lam_lower).unsqueeze(-1)).squeeze(-1)
        if "A" in a:
            sums = sums + (a["A"].mT @ proof.nu.unsqueeze(-1)).squeeze(-1)
        assert (sums.abs().amax(-1) <= 1e-9 * proof.lam_upper.abs().amax(-1)).all()


@pytest.mark.parametrize("smoothing", [None, 1e-2])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["everything", "weak and duplicated rows"])
def test_gradients_are_equal(name, way, smoothing, monkeypatch):
    def gradients(solver):
        a = cases.arguments(SOLVABLE[name])
        leaves = {k: v.clone().requires_grad_() for k, v in a.items()}
        sol = solve_qp(**leaves, solver=solver, smoothing=smoothing)
        return torch.autograd.grad((sol.z.sin() + sol.mu).sum() + sol.lam.sum(), leaves.values())

    expected, (full, solver) = gradients(TORCH), WAYS[way]
    believe(monkeypatch, full)
    for ours, theirs in zip(gradients(solver), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("full", [1, 10**9])
@pytest.mark.parametrize("name", ["everything", "infeasible, margin 1", "unbounded, margin 1"])
def test_when_the_host_looks_changes_nothing(name, full, monkeypatch):
    """But for rounding, where batches are compacted earlier or later, or someone is attended."""
    believe(monkeypatch, full)
    instance, answers = (SOLVABLE | HOPELESS)[name], []
    for late in (1, 2, 7):
        monkeypatch.setattr(device, "AHEAD", late)
        answers.append(solved(instance))
    for other in answers[1:]:
        assert torch.equal(other.status, answers[0].status)
        assert torch.equal(other.iterations, answers[0].iterations)
        for key in OUTPUTS:
            alone = name in SOLVABLE and full > 1
            close = {"rtol": 0, "atol": 0} if alone else {"rtol": 1e-9, "atol": 1e-9}
            torch.testing.assert_close(getattr(other, key), getattr(answers[0], key), **close)


def test_a_graph_serves_warm_starts_of_all_samples(monkeypatch):
    made = []
    believe(monkeypatch)
    monkeypatch.setattr(device, "capture", lambda work, like: made.append(like) or work)
    monkeypatch.setattr(replay, "_KEPT", replay._Kept())
    a = cases.arguments(SOLVABLE["inequality"])
    solver = InteriorPoint(engine="torch", cuda_graph=True)
    before = solve_qp(**a, solver=InteriorPoint(engine="torch"))
    solve_qp(**(a | {"p": -5 * a["p"]}), solver=solver, warm_start=before)
    assert len(made) == 1


@pytest.mark.parametrize("name", ["everything", "inequality", "shared matrices", "n = 50"])
def test_how_often_the_host_waits_does_not_grow_with_the_steps(name, monkeypatch):
    believe(monkeypatch)
    counts, steps = [], []
    for eps in (1e-5, 1e-8):
        with Watch() as watch:
            sol = solved(SOLVABLE[name], InteriorPoint(engine="torch", eps_polish=eps))
        counts.append(len(watch.waits))
        steps.append(int(sol.iterations.max()))
    assert steps[1] > steps[0] and counts[1] == counts[0] <= 40


@pytest.mark.parametrize("name", ["everything", "box and equality", "shared matrices"])
@pytest.mark.parametrize("way", WAYS)
def test_a_step_that_fails_unseen_is_done_again_by_the_host(name, way, truth, monkeypatch):
    expected = truth(name, SOLVABLE[name])
    full, solver = WAYS[way]
    believe(monkeypatch, full)
    calls, cholesky = [], structure.cholesky

    def failing(M, attended=True):
        factor = cholesky(M, attended)
        calls.append(attended)
        if not attended and calls.count(False) in (3, 6) and len(factor) > 1:
            factor[1] = torch.nan
        return factor

    monkeypatch.setattr(structure, "cholesky", failing)
    monkeypatch.setattr("diffopt.qp.factors.cholesky", failing)
    sol = solved(SOLVABLE[name], solver)
    assert torch.equal(sol.status, expected.status)
    assert torch.equal(sol.iterations, expected.iterations)
    torch.testing.assert_close(sol.z, expected.z, rtol=1e-12, atol=1e-12)


def test_a_matrix_that_is_not_definite_is_marked_and_no_other_is():
    M = torch.stack([torch.eye(3), -torch.eye(3), 2 * torch.eye(3)]).double()
    factor = structure.cholesky(M, attended=False)
    assert factor[1].diagonal().isnan().all() and factor[[0, 2]].isfinite().all()


ROUNDED = {
    "everything": {},
    "shared matrices": {},
    "box and equality": {"smoothing": 1e-2},
    "linear program, box": {},
    "infeasible, margin 10": {"infeasible": "closest"},
    "unbounded, margin 1": {},
}


@pytest.mark.parametrize("name", ROUNDED)
def test_no_product_is_taken_in_float32(name, monkeypatch):
    """Where it could be one of TF32, whatever the user has set: forward and backward."""
    believe(monkeypatch)
    a = cases.arguments((SOLVABLE | HOPELESS)[name])
    leaves = {k: v.float().requires_grad_() for k, v in a.items()}
    solver = InteriorPoint.single(engine="torch")
    flags = torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()
    with Watch() as watch:
        options = {"Q": None, "solver": solver, "on_failure": "ignore"} | ROUNDED[name]
        sol = solve_qp(**options | leaves)
        sol.z.sum().backward()
    assert sol.z.dtype == torch.float32 and not watch.rounded
    assert flags == (torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision())


def test_elsewhere_float32_is_multiplied_as_it_is():
    a = {k: v.float() for k, v in cases.arguments(SOLVABLE["everything"]).items()}
    with Watch() as watch:
        solve_qp(**a, solver=InteriorPoint.single(engine="torch"))
    assert watch.rounded


def test_a_graph_is_captured_once_for_all_problems_alike(monkeypatch):
    believe(monkeypatch)
    captured = []
    monkeypatch.setattr(device, "capture", lambda work, like: captured.append(1) or work)
    for seed in (11, 12, 13):
        instance = cases.random_qp(7, 9, 2, batch=(3,), seed=seed)
        sol, expected = solved(instance, GRAPH), solved(instance)
        torch.testing.assert_close(sol.z, expected.z, rtol=0, atol=0)
    assert len(captured) == 1
    solved(cases.random_qp(7, 9, 2, batch=(4,)), GRAPH)
    assert len(captured) == 2


def test_a_graph_needs_a_cuda_device():
    with pytest.raises(ValueError, match="cuda_graph=True: the arguments are on cpu; move them"):
        solved(SOLVABLE["box"], GRAPH)
    with pytest.raises(ValueError, match=r"cuda_graph=True, verbose=True\): a graph cannot log"):
        InteriorPoint(cuda_graph=True, verbose=True)
