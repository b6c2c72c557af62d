"""What the others in its lanes, the threads or the processor are leaves no trace in an answer."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from diffopt import ConvergenceWarning, InteriorPoint, QPLayer, doctor, solve_qp
from diffopt._native import BUILDS, reason
from diffopt.qp import native
from problems.random_qp import degenerate_qp, infeasible_qp, random_qp, unbounded_qp

from .agreement import NATIVE, OUTPUTS, TORCH, agree, close, given, needs_core, same_bits, solved

KINDS = {
    "own matrices": lambda size: random_qp(6, 9, 2, two_sided=True, bounds=True, batch=(size,)),
    "shared matrices": lambda size: random_qp(6, 9, 2, shared=("Q", "G", "A"), batch=(size,)),
    "shared Q": lambda size: random_qp(6, 9, 2, shared=("Q",), batch=(size,)),
    "diagonal Q": lambda size: random_qp(6, 0, 2, bounds=True, diagonal=True, batch=(size,)),
    "shared diagonal Q": lambda size: random_qp(
        6, 0, 2, bounds=True, diagonal=True, shared=("Q", "A"), batch=(size,)
    ),
    "one at a time": lambda size: random_qp(90, 60, 5, bounds=True, batch=(size,)),
}


def part(arguments: dict, index) -> dict:
    """Samples of a batch; what is shared stays."""
    return {k: v[index] if v.ndim > (2 if k in "QGA" else 1) else v for k, v in arguments.items()}


def everything(sol):
    return [
        *(getattr(sol, k) for k in OUTPUTS),
        sol.status, sol.iterations, *sol.residuals, sol.polished,
    ]  # fmt: skip


@needs_core
@pytest.mark.parametrize("kind", KINDS)
def test_permuted_and_cut_batches(kind):
    a = given(KINDS[kind](21))
    truth = solved(a, NATIVE, ())
    order = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    for index in (order, order[:11], torch.arange(21).flip(0), torch.zeros(16, dtype=torch.long)):
        found = solved(part(a, index), NATIVE, ())[0]
        assert all(
            same_bits(v, w[index])
            for v, w in zip(everything(found), everything(truth[0]), strict=True)
        )


@needs_core
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [2, 3, 4])
def test_threads(kind, threads):
    a = given(KINDS[kind](21 if kind != "one at a time" else 5))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        truth = solved(a, NATIVE, OUTPUTS)
        torch.set_num_threads(threads)
        found = solved(a, NATIVE, OUTPUTS)
    finally:
        torch.set_num_threads(before)
    assert all(map(same_bits, everything(found[0]), everything(truth[0])))
    assert all(same_bits(found[1][k], v) for k, v in truth[1].items())


MATES = {
    "infeasible": lambda: given(infeasible_qp(6, 12, 2, batch=(5,))),
    "unbounded": lambda: given(unbounded_qp(6, 12, 2, batch=(5,))),
    "degenerate": lambda: given(degenerate_qp(6, batch=(5,))),
    "badly conditioned": lambda: given(random_qp(6, 12, 2, condition=1e12, batch=(5,))),
    "large": lambda: {k: 1e200 * v for k, v in given(random_qp(6, 12, 2, batch=(5,))).items()},
    "zero": lambda: {k: 0 * v for k, v in given(random_qp(6, 12, 2, batch=(5,))).items()},
}
for key in ("Q", "p", "G", "h", "A", "b"):
    for number in (float("nan"), 0.0):
        MATES[f"{key} = {number}"] = lambda key=key, number=number: (
            (a := given(random_qp(6, 12, 2, batch=(5,)))) | {key: torch.full_like(a[key], number)}
        )


def beside(mates: dict):
    """(solution, gradients) of eleven problems in a batch with five others, and that of these."""
    good = given(random_qp(6, 12, 2, batch=(11,), seed=1))
    five = {"A": 0 * good["A"][:5], "b": 0 * good["b"][:5]} | mates
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    sol, grads = solved({k: torch.cat([v, five[k]])[order] for k, v in good.items()}, NATIVE)
    back = order.argsort()[:11]
    return [v.detach()[back] for v in everything(sol)], {k: v[back] for k, v in grads.items()}


@pytest.fixture(scope="module")
def undisturbed():
    return beside(given(random_qp(6, 12, 2, batch=(5,))))


@needs_core
@pytest.mark.parametrize("name", MATES)
def test_mates(name, undisturbed):
    values, grads = beside(MATES[name]())
    clean, clean_grads = undisturbed
    assert (clean[4] == 0).all()
    assert all(torch.equal(v, w) for v, w in zip(values, clean, strict=True))
    assert all(torch.equal(grads[k], v) for k, v in clean_grads.items())


@needs_core
@pytest.mark.parametrize("kind", KINDS)
def test_one_sample_is_that_of_a_batch(kind):
    a = given(KINDS[kind](9))
    together, grads = solved(a, NATIVE)
    for i in (0, 4, 8):
        alone = solve_qp(**part(a, slice(i, i + 1)), solver=NATIVE)
        for k in OUTPUTS:
            close(getattr(alone, k)[0], getattr(together, k)[i], 1e-10)


BUILD = """
import sys, torch
torch.set_num_threads(1)
from diffopt._native import reason
from tests.native.agreement import NATIVE, OUTPUTS, given, solved
from tests.native.test_lanes import KINDS
found = {}
for kind in KINDS:
    sol, grads = solved(given(KINDS[kind](9)), NATIVE, OUTPUTS)
    found[kind] = [getattr(sol, k).detach() for k in OUTPUTS] + list(grads.values())
torch.save((reason, found), sys.argv[1])
"""
CAPABILITIES = {"avx512": "avx512", "avx2": "avx2", "base": "default"}
RUNNABLE = BUILDS.get(torch.backends.cpu.get_cpu_capability(), ("base",))


@needs_core
@pytest.mark.parametrize("name", CAPABILITIES)
def test_every_build_gives_the_same_answers(name, tmp_path):
    if name not in RUNNABLE or find_spec(f"diffopt._native.{name}") is None:
        pytest.skip("not compiled, or not for this processor")
    if name == reason:
        pytest.skip("the one that all other tests run")
    environment = os.environ | {"ATEN_CPU_CAPABILITY": CAPABILITIES[name]}
    root, out = Path(__file__).parents[2], tmp_path / "found"
    subprocess.run([sys.executable, "-c", BUILD, out], env=environment, cwd=root, check=True)
    build, found = torch.load(out)
    assert build == name
    for kind, values in found.items():
        sol, grads = solved(given(KINDS[kind](9)), NATIVE, OUTPUTS)
        truth = [*(getattr(sol, k).detach() for k in OUTPUTS), *grads.values()]
        for value, expected in zip(values, truth, strict=True):
            close(value, expected, 1e-10)


def small():
    return given(random_qp(3, 4, 1, bounds=True, batch=(9,)))


UNFIT = {
    "verbose": (InteriorPoint(engine="native", verbose=True), "verbose is True"),
    "dtype": (InteriorPoint.single(engine="native"), "dtype is torch.float32"),
}


@needs_core
@pytest.mark.parametrize("name", UNFIT)
def test_what_the_core_cannot_do_is_said_and_done_by_the_other_engine(name):
    solver, why = UNFIT[name]
    with pytest.raises(ValueError, match=f"engine='native': .*{why}.* use engine='auto'"):
        solve_qp(**small(), solver=solver)
    values = {k: getattr(solver, k) for k in ("verbose", "dtype", "eps")}
    sol = solve_qp(**small(), solver=InteriorPoint(engine="auto", **values))
    assert (sol.status == 0).all()
    close(sol.z, solve_qp(**small(), solver=TORCH).z, 1e-3)


def test_without_the_core(monkeypatch):
    truth = solve_qp(**small(), solver=TORCH)
    monkeypatch.setattr(native, "core", None)
    monkeypatch.setattr(native, "reason", "not compiled: install with a C++17 compiler at hand")
    with pytest.raises(ValueError, match="engine='native': .*compiler.* use engine='auto'"):
        solve_qp(**small(), solver=NATIVE)
    sol, _ = solved(small(), InteriorPoint(engine="auto"))
    assert same_bits(sol.z, truth.z)
    (line,) = (line for line in doctor().splitlines() if line.startswith("engine native"))
    assert line.startswith("engine native: not live (") and "compiler" in line


@needs_core
def test_the_doctor_says_that_the_core_is_live():
    assert "engine native: live" in doctor() and reason in RUNNABLE


@needs_core
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*pytree")
def test_compiled_by_torch():
    torch._dynamo.reset()
    a = small()

    def function(p, h):
        sol = solve_qp(**a | {"p": p, "h": h}, solver=NATIVE)
        return sol.z, sol.lam, sol.nu, sol.mu

    results = []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        leaves = [a[k].clone().requires_grad_() for k in ("p", "h")]
        out = call(*leaves)
        results.append([*out, *torch.autograd.grad(sum(v.sin().sum() for v in out), leaves)])
    for value, truth in zip(*results, strict=True):
        close(value, truth, 1e-10)


@needs_core
def test_vmap_over_values_and_derivatives():
    a = small()
    first = {k: v[0] for k, v in a.items()}

    def z(p, solver=NATIVE):
        return solve_qp(**first | {"p": p}, solver=solver).z

    expected = torch.stack([z(p, TORCH) for p in a["p"]])
    close(torch.func.vmap(z)(a["p"]), expected, 1e-10)
    jacobians = torch.stack([torch.func.jacrev(lambda p: z(p, TORCH))(p) for p in a["p"]])
    close(torch.func.vmap(torch.func.jacrev(z))(a["p"]), jacobians, 1e-10)
    p = a["p"].clone().requires_grad_()
    value, unit = z(p), torch.eye(3, dtype=torch.float64).unsqueeze(1).expand(3, 9, 3)
    rows = torch.func.vmap(lambda v: torch.autograd.grad(value, p, v, retain_graph=True)[0])(unit)
    close(rows.movedim(0, 1), jacobians, 1e-10)


@needs_core
def test_layers_and_warm_starts():
    a, truth = small(), solve_qp(**small(), solver=TORCH)
    layer = QPLayer(**{k: v for k, v in a.items() if k != "p"}, solver=NATIVE)
    close(layer(a["p"]), truth.z, 1e-10)
    again = agree(a, OUTPUTS, warm_start=solve_qp(**a, solver=NATIVE))
    assert (again.iterations == 0).all()
    with pytest.warns(ConvergenceWarning, match="1 of 9"):
        solve_qp(**a | {"h": a["h"] - 1e3 * (torch.arange(9) == 4).unsqueeze(-1)}, solver=NATIVE)
