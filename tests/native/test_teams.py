"""The kernels of the cuda engine: teams of threads on a CPU, and the compiler for GPUs."""

import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
import torch

from diffopt import InteriorPoint, solve_qp
from diffopt._native import launcher as launcher_module
from diffopt._native import nvrtc
from diffopt._native.driver import DriverError
from diffopt._native.launcher import image
from diffopt._native.task import Batch, Task
from diffopt.qp import cuda
from problems.random_qp import random_qp

from .agreement import TORCH, close, given, same_bits, solved
from .emulation import COMPILED, Emulation, emulated

CUDA = InteriorPoint(engine="cuda")
SOURCES = Path(cuda.__file__).parents[1] / "_native"
needs_kernels = pytest.mark.skipif(not COMPILED, reason="the kernels are not compiled for the CPU")
# every structure: rows, equations, bounds, both kinds of Q, none of them; more rows than threads
SHAPES = {
    "rows": random_qp(10, 20, batch=(3,)),
    "rows and equations": random_qp(10, 15, 3, batch=(3,)),
    "two-sided rows, equations, bounds": random_qp(
        6, 9, 2, two_sided=True, bounds=True, batch=(3,)
    ),
    "diagonal Q, equations, bounds": random_qp(20, 0, 5, diagonal=True, bounds=True, batch=(3,)),
    "equations and bounds": random_qp(20, 0, 5, bounds=True, batch=(3,)),
    "equations": random_qp(9, 0, 4, batch=(3,)),
    "nothing but Q": random_qp(8, batch=(3,)),
    "one unknown": random_qp(1, 1, batch=(3,)),
    "large": random_qp(45, 40, 5, batch=(1,)),
}


def by_emulation(name, **how):
    with emulated(Emulation(**how)):
        return solved(given(SHAPES[name]), CUDA, ("z", "lam", "nu", "mu"))


def same(one, other):
    assert same_bits(one[0].z, other[0].z) and same_bits(one[0].lam, other[0].lam)
    assert all(same_bits(one[1][k], other[1][k]) for k in one[1])


@needs_kernels
@pytest.mark.parametrize("threads", [1, 3, 8])
@pytest.mark.parametrize("name", SHAPES)
def test_any_number_of_threads_gives_the_answers_of_the_torch_engine(name, threads):
    sol, grads = by_emulation(name, threads=threads)
    truth, true_grads = solved(given(SHAPES[name]), TORCH, ("z", "lam", "nu", "mu"))
    assert torch.equal(sol.status, truth.status) and (sol.status == 0).all()
    close(sol.z, truth.z, 1e-9)
    for k, v in true_grads.items():
        close(grads[k], v, 1e-7)


@needs_kernels
@pytest.mark.parametrize("name", SHAPES)
def test_where_the_memory_lies_changes_no_bit(name):
    shape = given(SHAPES[name])
    n, bounded = shape["p"].shape[-1], "lb" in shape
    m, e = (0 if shape.get(k) is None else shape[k].shape[-2] for k in ("G", "A"))
    least = Emulation().measure(32, 4, Task(batch=Batch(1, n, m, e, bounded))).tape_bytes
    blocks = 4 if n + e <= 32 else 1
    whole = by_emulation(name)
    for more in (0, 1024):
        same(by_emulation(name, fast_bytes=blocks * (least + more)), whole)


@needs_kernels
@pytest.mark.parametrize("teams", [1, 2, 7])
def test_samples_do_not_depend_on_their_mates_or_teams(teams):
    whole = by_emulation("rows and equations", teams=teams)
    with emulated():
        for i in range(3):
            alone = {k: v[i : i + 1] for k, v in given(SHAPES["rows and equations"]).items()}
            sol, _ = solved(alone, CUDA)
            assert same_bits(sol.z[0], whole[0].z[i])


class Counted(Emulation):
    """Counts its launches, and refuses those of `fails`."""

    def __init__(self, *fails, **how):
        super().__init__(**how)
        object.__setattr__(self, "launched", [])
        object.__setattr__(self, "fails", fails)

    def launch(self, kernel, *arguments):
        self.launched.append(kernel)
        self.fail(kernel)
        super().launch(kernel, *arguments)

    def measure(self, *arguments):
        self.fail("measure")
        return super().measure(*arguments)

    def resident(self, *arguments):
        self.fail("resident")
        return super().resident(*arguments)

    def fail(self, what):
        if what in self.fails:
            raise DriverError(f"{what}: no")


@needs_kernels
def test_one_launch_solves_and_two_differentiate():
    with emulated(Counted()) as counted:
        solved(given(SHAPES["rows and equations"]), CUDA)
    assert counted.launched == ["solve_all", "apply_inverse_all", "pull_back_all"]


@needs_kernels
def test_a_launch_without_memory_is_tried_again(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))

    class Short(Counted):
        def fail(self, what):
            if what == "solve_all" and len(self.launched) == 1:
                raise DriverError("cuLaunchKernel: CUDA_ERROR_OUT_OF_MEMORY (2): out of memory")

    with emulated(Short()) as short:
        sol, _ = solved(given(SHAPES["rows"]), CUDA)
    assert short.launched[:2] == ["solve_all"] * 2 and emptied == [True]
    assert (sol.status == 0).all()


@needs_kernels
def test_a_team_has_a_block_to_itself_where_many_rows_need_it():
    shape = random_qp(30, 200, batch=(2,))
    with emulated(Counted(fast_bytes=99 * 1024)) as counted:
        sol, _ = solved(given(shape), CUDA)
    assert counted.launched[0] == "solve_all" and (sol.status == 0).all()


@needs_kernels
def test_a_problem_that_does_not_fit_is_left_to_the_torch_engine():
    with emulated(Counted(fast_bytes=4096)) as counted:
        found = solved(given(SHAPES["large"]), CUDA)
    assert counted.launched == []
    same(found, solved(given(SHAPES["large"]), TORCH))


@needs_kernels
@pytest.mark.parametrize(
    "kernel", ["measure", "resident", "solve_all", "apply_inverse_all", "pull_back_all"]
)
def test_a_failure_is_warned_of_once_and_the_torch_engine_answers(kernel):
    arguments = given(SHAPES["rows and equations"])
    truth, true_grads = solved(arguments, TORCH)
    with emulated(Counted(kernel)):
        with pytest.warns(RuntimeWarning, match=rf"{kernel}: no\n.*torch engine") as caught:
            sol, grads = solved(arguments, CUDA)
        assert len(caught) == 1
        assert cuda.FAILED[torch.device("cpu")].startswith("it cannot be used on cpu")
    close(sol.z, truth.z, 1e-9)
    for k, v in true_grads.items():
        close(grads[k], v, 1e-7)


@needs_kernels
def test_an_engine_that_has_failed_leaves_without_a_word():
    arguments = given(SHAPES["rows"])
    with emulated(Counted("solve_all")):
        with pytest.warns(RuntimeWarning):
            solve_qp(**arguments, solver=CUDA)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sol = solve_qp(**arguments, solver=CUDA)
    close(sol.z, solve_qp(**arguments, solver=TORCH).z, 1e-9)


def test_the_engine_says_why_it_cannot_serve():
    p = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(
        ValueError, match="engine='cuda': it runs on a CUDA device, but p is on cpu"
    ):
        solve_qp(None, p, lb=0.0, solver=CUDA)


@needs_kernels
@pytest.mark.parametrize(
    "change, why", [({"dtype": torch.float32}, "works in float64"), ({"verbose": True}, "log")]
)
def test_what_the_kernels_cannot_do_is_named(change, why):
    solver = InteriorPoint(engine="cuda", **change)
    with emulated(), pytest.raises(ValueError, match=why):
        solve_qp(None, torch.zeros(2, dtype=torch.float64), lb=0.0, solver=solver)


@pytest.mark.parametrize("arch, threads, teams", [("sm_80", 32, 4), ("sm_90", 128, 1)])
def test_the_kernels_compile_for_a_gpu(arch, threads, teams, tmp_path, monkeypatch):
    if nvrtc.find()[0] is None:
        pytest.skip(nvrtc.find()[1])
    monkeypatch.setenv("DIFFOPT_CACHE", str(tmp_path))
    compiled = image(threads, teams, arch)
    assert all(f"{kernel}\0".encode() in compiled for kernel in launcher_module.KERNELS)


def test_threads_of_a_team_do_not_race(tmp_path):
    compiler = shutil.which("g++")
    flags = ["-O1", "-g", "-std=c++17", "-pthread", "-w", "-fsanitize=thread", f"-I{SOURCES}"]
    if compiler is None:
        pytest.skip("no g++")
    source, program = Path(__file__).with_name("races.cpp"), str(tmp_path / "races")
    built = subprocess.run([compiler, *flags, str(source), "-o", program], capture_output=True)
    if b"tsan" in built.stderr:
        pytest.skip("the race detector is not installed")
    assert built.returncode == 0, built.stderr.decode()
    ran = subprocess.run([program], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "") and ran.stdout.endswith(" 1\n"), ran
