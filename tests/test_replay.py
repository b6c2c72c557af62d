"""An iteration over memory of its own: the same answers, made once for all problems alike."""

import contextlib
import functools
import inspect
import threading
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from diffopt import device, replay
from diffopt.replay import replayed

from .unseen import believe


class Problem(NamedTuple):
    rate: torch.Tensor
    times: float


def advance(problem, state):
    return (state[0] * problem.rate * problem.times, state[0] + state[1])


@pytest.fixture(autouse=True)
def captures(monkeypatch):
    """How often something was captured."""
    made = []
    believe(monkeypatch)
    monkeypatch.setattr(device, "capture", lambda work, like: made.append(like) or work)
    monkeypatch.setattr(replay, "_KEPT", replay._Kept())
    return made


def start(size=3):
    return torch.ones(size), torch.zeros(1).expand(size)


def after(problem, steps, state):
    again, expected = replayed(advance, problem, state), state
    for _ in range(steps):
        state, expected = again(state), advance(problem, expected)
    for ours, theirs in zip(state, expected, strict=True):
        assert torch.equal(ours, theirs)
    return again


@pytest.mark.parametrize("steps", [1, 5])
def test_it_advances_as_the_function_does(steps):
    after(Problem(torch.tensor([1.0, 2.0, 3.0]), 0.5), steps, start())


def test_problems_alike_share_a_capture_and_others_do_not(captures):
    first = after(Problem(torch.ones(3), 0.5), 3, start())
    assert after(Problem(torch.rand(3), 0.5), 2, start()) is first and len(captures) == 1
    others = [Problem(torch.ones(1), 0.5), Problem(torch.ones(3), 0.25)]
    assert all(after(problem, 2, start()) is not first for problem in others)
    after(Problem(torch.ones(3).double(), 0.5), 2, start())
    assert len(captures) == 4


def test_what_is_given_is_not_written_to():
    problem, state = Problem(torch.full((3,), 2.0), 0.5), start()
    kept = [v.clone() for v in (problem.rate, *state)]
    after(problem, 3, state)
    assert all(torch.equal(a, b) for a, b in zip(kept, (problem.rate, *state), strict=True))


def test_only_so_many_are_kept_those_used_last(captures):
    first = after(Problem(torch.ones(1), 0.0), 1, start())
    for k in range(1, replay.KEPT):
        after(Problem(torch.ones(1), float(k)), 1, start())
    assert after(Problem(torch.ones(1), 0.0), 1, start()) is first
    after(Problem(torch.ones(1), -1.0), 1, start())  # in place of that with 1.0
    assert after(Problem(torch.ones(1), 0.0), 1, start()) is first
    before = len(captures)
    after(Problem(torch.ones(1), 1.0), 1, start())
    assert len(captures) == before + 1


def test_each_thread_has_its_own():
    problem, found = Problem(torch.ones(3), 0.5), []
    for _ in range(2):
        thread = threading.Thread(target=lambda: found.append(replayed(advance, problem, start())))
        thread.start()
        thread.join()
    assert found[0] is not found[1]


def test_what_is_kept_from_inference_serves_training():
    with torch.inference_mode():
        first = after(Problem(torch.ones(3), 0.5), 2, start())
    assert after(Problem(torch.rand(3), 0.5), 2, start()) is first


def test_a_capture_warms_up_aside_and_then_records_once(monkeypatch):
    """The calls of torch.cuda, with stand-ins: what a GPU would do with them needs one."""
    monkeypatch.undo()
    log, streams = [], []

    class Stream:
        def wait_stream(self, other):
            log.append("wait")

    @contextlib.contextmanager
    def within(name, *args, **options):
        log.append(f"{name} in")
        streams.extend(v for v in (*args, *options.values()) if isinstance(v, Stream))
        yield
        log.append(f"{name} out")

    graph = SimpleNamespace(replay=lambda: log.append("replay"))
    stands = {"current_stream": Stream, "Stream": Stream, "CUDAGraph": lambda: graph}
    contexts = {name: functools.partial(within, name) for name in ("device", "stream", "graph")}
    options = inspect.signature(torch.cuda.graph).parameters
    for name, stand in (stands | contexts).items():
        monkeypatch.setattr(torch.cuda, name, stand)
    again = device.capture(lambda: log.append("work"), torch.ones(1))
    again()
    warm = ["wait", "stream in", *["work"] * device.WARM_UPS, "stream out", "wait"]
    recorded = ["graph in", "work", "graph out"]
    assert log == ["device in", *warm, *recorded, "device out", "replay"]
    assert "capture_error_mode" in options and "stream" in options
    assert streams[0] is streams[1]  # where libraries have found their memory
