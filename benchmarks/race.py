"""A race: contenders take turns at one problem, and the judge looks at their answers.

Setting up a solver (layers, symbolic work) is not counted, and `WARM_UP` calls neither. Then all
contenders take turns, of up to ten calls in a row if they are short, and the median of all calls
counts; one of over `LONG` seconds a call gets three turns. A contender that takes over `LIMIT`
seconds is left out, and so is one that raises, with the reason.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from judge import Problem, Truth, errors, exact, gradients
from peers import CONTENDERS, Forward
from stopwatch import Stopwatch

SETUP_LIMIT, LIMIT, LONG, BURST = 30, 10, 2, 0.02  # seconds
WARM_UP = 3  # calls


@contextlib.contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """TimeoutError after so many seconds, at the next line of Python."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"over {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def burst(a: Problem, forward: Forward, count: int) -> list[tuple[float, float]]:
    """`seconds` of calls in a row, as in a training loop, after a pause in which threads of others
    fall asleep; the first of several is not counted."""
    time.sleep(0.005)
    return [seconds(a, forward) for _ in range(count + (count > 1))][count > 1 :]


def seconds(a: Problem, forward: Forward) -> tuple[float, float]:
    """Of one forward and of one backward pass."""
    watch = Stopwatch(a.p.device)
    z, ahead = watch.time(forward)
    _, back = watch.time(lambda: gradients(a, z))
    return ahead, back


def without_graph(a: Problem, forward: Forward, rounds: int) -> float:
    """Median seconds of the forward pass under `torch.no_grad`."""
    watch = Stopwatch(a.p.device)
    with torch.no_grad():
        return statistics.median(watch.time(forward)[1] for _ in range(rounds))


def enter(a: Problem, name: str) -> tuple[Forward, float]:
    """A contender, set up and warm, and the seconds that a call takes; TimeoutError."""
    with deadline(SETUP_LIMIT):
        forward = CONTENDERS[name][1](a)
    for _ in range(WARM_UP):
        with deadline(LIMIT):
            took = sum(burst(a, forward, 1)[0])
        if took > LIMIT:  # one line of Python can take long
            raise TimeoutError(f"over {LIMIT} s")
    return forward, took


class Runner(NamedTuple):
    """A contender on the track: its forward pass, how many turns it takes, and calls a turn."""

    forward: Forward
    turns: int
    calls: int

    @classmethod
    def of(cls, a: Problem, name: str, budget: float) -> Runner:
        """The contender, with turns for `budget` seconds."""
        forward, call = enter(a, name)
        calls = min(max(int(BURST / call), 1), 10)
        turns = 3 if call > LONG else min(max(int(budget / call / calls), 5), 50)
        return cls(forward, turns, calls)


def contest(
    a: Problem,
    names: list[str],
    budget: float,
    checked: bool = True,
    also: Callable[[str, Forward], dict] = lambda name, forward: {},
) -> dict[str, dict]:
    """Times in milliseconds and errors of each contender, or why it was left out.

    Args:
        a: the problem.
        names: the contenders.
        budget: about how many seconds the calls of one may take together.
        checked: whether to judge the answers.
        also: what else is to be known of a contender.
    """
    runners: dict[str, Runner] = {}
    out: dict[str, dict] = {}
    for name in names:
        try:
            runners[name] = Runner.of(a, name, budget)
        except Exception as error:  # whatever a peer raises, the others go on
            out[name] = {"left out": f"{type(error).__name__}: {error}"[:200]}
    times = take_turns(a, runners)
    truth = judgement(a, [r.forward for r in runners.values()]) if checked else None
    for name, (forward, turns, _) in runners.items():
        out[name] = medians(times[name])
        if CONTENDERS[name][0] == "diffopt":
            out[name]["no_grad"] = 1e3 * without_graph(a, forward, min(turns, 20))
        out[name] |= errors(a, forward, truth) if truth else {}
        out[name] |= also(name, forward)
    return {name: out[name] for name in names}


def take_turns(a: Problem, runners: dict[str, Runner]) -> dict[str, list[tuple[float, float]]]:
    """`seconds` of all calls of each; who takes fewer turns takes them evenly spread."""
    gc.collect()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    rounds = max((r.turns for r in runners.values()), default=0)
    for i in range(rounds):
        for name, (forward, turns, calls) in runners.items():
            if (i + 1) * turns // rounds > i * turns // rounds:
                times[name] += burst(a, forward, calls)
    return times


def medians(times: list[tuple[float, float]]) -> dict:
    """Milliseconds of a forward pass, of a backward pass and of both, and how many were timed."""
    ahead, back = (1e3 * statistics.median(t) for t in zip(*times, strict=True))
    both = 1e3 * statistics.median(sum(t) for t in times)
    return {"forward": ahead, "backward": back, "both": both, "times": len(times)}


def judgement(a: Problem, forwards: Iterable[Forward]) -> Truth | None:
    """What is exact, from the first answer that has the right active set; None: no answer has."""
    for forward in forwards:
        with contextlib.suppress(AssertionError, torch.linalg.LinAlgError):
            return exact(a, forward().detach())
    return None
