"""What is launched on a GPU, with a driver that runs the kernels on the CPU."""

from contextlib import nullcontext
from ctypes import addressof
from types import SimpleNamespace

import pytest
import torch

from diffopt import InteriorPoint
from diffopt._native import driver, launcher
from diffopt._native.launcher import RESERVED, Launcher
from diffopt.qp import cuda
from problems.random_qp import random_qp

from .agreement import TORCH, close, given, solved
from .emulation import COMPILED, emulated

if COMPILED:
    from diffopt._native import emulation

pytestmark = pytest.mark.skipif(not COMPILED, reason="the kernels are not compiled for the CPU")
SHARED, REGISTERS, MULTIPROCESSORS, STREAM = 99 * 1024, 128, 2, 77
# columns of the factor: threads of a team, teams of a block
TEAMS = {(10, 20, 3): (32, 4), (40, 10, 5): (64, 1), (70, 20, 0): (128, 1)}


class FakeFunction:
    def __init__(self, name, log):
        self.name, self.log, self.allowed = name, log, 48 * 1024

    def allow_shared(self, size):
        self.allowed = size

    def registers(self):
        return REGISTERS

    def launch(self, grid, block, shared_bytes, stream, task, *more):
        assert shared_bytes <= self.allowed and stream == STREAM
        if self.name == "measure":
            emulation.measure(addressof(task), more[0].value)
            return
        self.log.append((self.name, grid, block, shared_bytes))
        teams = TEAMS[task.batch.n, task.batch.m, task.batch.e][1]
        assert shared_bytes == teams * task.fast_bytes
        getattr(emulation, self.name)(addressof(task), grid * teams, 1)


@pytest.fixture
def log(monkeypatch):
    """The launches of a `Launcher` whose device is the CPU: (kernel, blocks, threads, bytes)."""
    calls, loaded = [], []

    class FakeModule:
        def __init__(self, image):
            loaded.append(image)

        def function(self, name):
            return FakeFunction(name, calls)

    monkeypatch.setattr(driver, "Module", FakeModule)
    monkeypatch.setattr(driver, "shared_limit", lambda device: SHARED)
    monkeypatch.setattr(driver, "multiprocessors", lambda device: MULTIPROCESSORS)
    monkeypatch.setattr(launcher, "image", lambda *how: how)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=STREAM)
    )
    with emulated():
        cuda.LAUNCHERS["cpu"] = Launcher
        yield calls
    assert len(loaded) == len(set(loaded))  # each is compiled and loaded once
    assert {arch for _, _, arch in loaded} == {"sm_90"}


@pytest.mark.parametrize("size", TEAMS)
def test_blocks_teams_and_memory(size, log):
    batch, (threads, teams) = 40, TEAMS[size]
    arguments = given(random_qp(*size, batch=(batch,)))
    sol, grads = solved(arguments, InteriorPoint(engine="cuda"))
    truth, true_grads = solved(arguments, TORCH)
    close(sol.z, truth.z, 1e-9)
    for k, v in true_grads.items():
        close(grads[k], v, 1e-7)
    (solve, *first), (inverse, *second), (pull, *third) = log
    assert (solve, inverse, pull) == ("solve_all", "apply_inverse_all", "pull_back_all")
    for blocks, block, shared in (first, second):
        assert block == threads * teams and shared <= SHARED - RESERVED
        by_memory = SHARED // (shared + RESERVED)
        by_registers = 65536 // (REGISTERS * block)
        resident = MULTIPROCESSORS * max(1, min(by_memory, by_registers))
        assert blocks == min(-(-batch // teams), resident)
    assert third == [-(-batch // teams), block, 0]
