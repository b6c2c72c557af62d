"""Ctrl-C ends a solve at once, and the next one is none the worse."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .agreement import needs_core

pytestmark = [
    needs_core,
    pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for a process of its own"),
]
SETUP = """
import torch
torch.set_num_threads({threads})
from problems.random_qp import random_qp
from tests.native.agreement import NATIVE, given, same_bits, solve_qp, solved
few = given(random_qp(6, 9, 2, two_sided=True, bounds=True, batch=(20,)))
before = solved(few, NATIVE)
g = torch.Generator().manual_seed(0)
n, m, batch = {sizes}
p = torch.randn(batch, n, generator=g, dtype=torch.float64)
G = torch.randn(m, n, generator=g, dtype=torch.float64)
print("begins", flush=True)
"""
LONG = "solve_qp(torch.eye(n).double(), p, G, 1.0, lb=-1.0, solver=NATIVE)"
CAUGHT = f"""
try:
    {LONG}
except KeyboardInterrupt:
    print("interrupted", flush=True)
after = solved(few, NATIVE)
assert same_bits(after[0].z, before[0].z)
assert all(same_bits(after[1][k], v) for k, v in before[1].items())
print("as before")
"""
SIZES = {  # each takes ten seconds and more
    "across the lanes": (10, 10, 1_000_000),
    "one at a time": (300, 300, 5_000),
    "a single large one": (2500, 1500, 1),
}


def interrupted(code: str):
    """(seconds from the signal until the process says something or ends, what it says, errors)."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "begins\n", process.stderr.read()
        time.sleep(0.5)  # it is well inside now
        start = time.perf_counter()
        process.send_signal(signal.SIGINT)
        line = process.stdout.readline() or process.wait()
        seconds = time.perf_counter() - start
        # Not `communicate`: that would lose what readline has already taken into its buffer.
        out, errors = process.stdout.read(), process.stderr.read()
        assert process.wait() in (0, -signal.SIGINT), (process.returncode, errors)
    return seconds, line, out, errors


@pytest.mark.parametrize("name, threads", [("across the lanes", 1), ("a single large one", 2)])
def test_a_solve_is_interrupted_within_a_second_and_the_next_is_right(name, threads):
    code = SETUP.format(threads=threads, sizes=SIZES[name]) + CAUGHT
    seconds, line, out, errors = interrupted(code)
    assert (line, out, errors) == ("interrupted\n", "as before\n", "") and seconds <= 1.0


def test_a_process_ends_with_the_interrupt():
    code = SETUP.format(threads=2, sizes=SIZES["one at a time"]) + LONG
    seconds, status, out, errors = interrupted(code)
    assert (status, out) == (-signal.SIGINT, "") and errors.endswith("KeyboardInterrupt\n")
    assert seconds <= 2.0  # the end of torch takes its time, too
