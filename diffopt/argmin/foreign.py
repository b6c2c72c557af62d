"""Solvers of other people: any callable, and those of scipy as `ScipyMinimize`.

scipy solves one problem at a time, and the user's functions take the whole batch. So each sample
has a thread that runs scipy, and that waits whenever it needs the functions; when all wait, one
evaluation of the batch answers them all. What the threads do in between is scipy's own work.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..optional import package
from ..solution import check_positive
from .problem import Problem

# (problem, z0) to z `(B, n)`, or to (z, nu, lam, mu), each of the last three a tensor or None
Foreign = Callable[[Problem, Tensor], Any]
BOUNDS = ("Nelder-Mead", "L-BFGS-B", "TNC", "SLSQP", "Powell", "trust-constr", "COBYLA", "COBYQA")
CONSTRAINTS = ("SLSQP", "trust-constr", "COBYLA", "COBYQA")
AT_ONCE = 256  # threads
ALONE = ("COBYLA", "COBYQA")  # scipy has a lock (COBYLA: before 1.16), in which they would wait


@dataclass(frozen=True)
class ScipyMinimize:
    """`scipy.optimize.minimize` for every sample, with gradients by autograd.

    Attributes:
        method: "SLSQP" (constraints and bounds, small problems), "trust-constr" (the same, slower
            and more robust), "L-BFGS-B" (bounds only), or another of scipy's.
        tol: passed to scipy, which gives it the meaning that it has for `method`.
        options: passed to scipy, for example ``{"maxiter": 500}``.

    What scipy says of its success is not believed: the KKT residual decides.

    Raises:
        ImportError: if scipy is not installed.
        ValueError: if `method` cannot handle the constraints.
    """

    method: str = "SLSQP"
    tol: float = 1e-10
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_positive(self, "tol")

    def __call__(self, problem: Problem, z0: Tensor) -> Tensor:
        """z, `(B, n)`."""
        minimize = package("scipy.optimize", extra="solvers").minimize
        self._check_method(problem)
        z, count = z0.clone(), 1 if self.method.upper() in ALONE else AT_ONCE
        for first in range(0, len(z), count):
            samples = range(first, min(first + count, len(z)))
            desk = _Desk(problem, z)  # which moves z
            threads = [
                Thread(target=self._run, args=(minimize, desk, i), daemon=True) for i in samples
            ]
            with warnings.catch_warnings():  # of all threads; they say less than the residual
                warnings.simplefilter("ignore")
                desk.serve(threads)
        return z

    def _check_method(self, problem: Problem) -> None:
        for present, able, what in (
            (problem.bounded, BOUNDS, "bounds"),
            (problem.m + problem.e > 0, CONSTRAINTS, "constraints"),
        ):
            if present and self.method.upper() not in map(str.upper, able):
                raise ValueError(
                    f"ScipyMinimize(method={self.method!r}) cannot handle {what}: use one of {able}"
                )

    def _run(self, minimize: Any, desk: _Desk, i: int) -> None:
        """Solve sample i, and hand in what came out, or what went wrong."""
        try:
            ask = _Asking(desk, i)
            out = minimize(
                lambda v: ask(v).f,
                desk.z[i].cpu().numpy(),
                jac=lambda v: ask(v).g,
                method=self.method,
                bounds=ask.bounds(),
                constraints=ask.constraints(),
                tol=self.tol,
                options=self.options,
            )
            desk.inbox.put((i, out.x, True))
        except Exception as error:  # of the thread: raised again by the one who waits
            desk.inbox.put((i, error, True))


class _Numbers(NamedTuple):
    """The functions of one sample, as scipy takes them."""

    f: Any
    equality: Any
    inequality: Any
    g: Any
    A: Any
    G: Any


class _Desk:
    """Where the threads ask for the functions, and are answered together."""

    def __init__(self, problem: Problem, z: Tensor) -> None:
        self.problem, self.z = problem, z
        self.inbox: SimpleQueue[tuple[int, Any, bool]] = SimpleQueue()
        self.outbox: dict[int, SimpleQueue[_Numbers | None]] = {}

    def serve(self, threads: list[Thread]) -> None:
        """Run the threads until all have handed in their z."""
        waiting = len(threads)
        for thread in threads:
            thread.start()
        failure: Exception | None = None
        while waiting:
            asked = [self.inbox.get() for _ in range(waiting)]
            for i, z, done in asked:
                if isinstance(z, Exception):
                    failure = failure or z
                else:
                    self.z[i] = torch.as_tensor(z).to(self.z)
                waiting -= done
            open_questions = [i for i, _, done in asked if not done]
            answers: dict[int, _Numbers | None] = dict.fromkeys(open_questions)
            try:
                if failure is None:
                    answers = self._answers(open_questions)
            finally:  # a thread that gets no answer would wait for ever
                for i, answer in answers.items():
                    self.outbox[i].put(answer)
        if failure is not None and not isinstance(failure, _Cancelled):
            raise failure

    def _answers(self, samples: list[int]) -> dict[int, _Numbers | None]:
        if not samples:
            return {}
        at = [v.cpu().numpy() for v in self.problem.slopes(self.z)]
        return {i: _Numbers(*(v[i] for v in at)) for i in samples}


class _Cancelled(Exception):
    """Another thread has failed."""


class _Asking:
    """The functions of sample i as scipy calls them: one question a point."""

    def __init__(self, desk: _Desk, i: int) -> None:
        self.desk, self.i = desk, i
        self.last: tuple[bytes, _Numbers] | None = None
        desk.outbox[i] = SimpleQueue()

    def __call__(self, z: Any) -> _Numbers:
        key = z.tobytes()
        if self.last is None or self.last[0] != key:
            self.desk.inbox.put((self.i, z.copy(), False))
            answer = self.desk.outbox[self.i].get()
            if answer is None:
                raise _Cancelled
            self.last = key, answer
        return self.last[1]

    def bounds(self) -> Any:
        problem = self.desk.problem
        if not problem.bounded:
            return None
        lb, ub = (
            v.detach()[self.i if len(v) > 1 else 0].tolist() for v in (problem.lb, problem.ub)
        )
        return list(zip(lb, ub, strict=True))

    def constraints(self) -> list[dict[str, Any]]:
        """In scipy's signs: an inequality is >= 0."""
        out: list[dict[str, Any]] = []
        if self.desk.problem.e:
            out.append(
                {"type": "eq", "fun": lambda v: self(v).equality, "jac": lambda v: self(v).A}
            )
        if self.desk.problem.m:
            out.append(
                {"type": "ineq", "fun": lambda v: -self(v).inequality, "jac": lambda v: -self(v).G}
            )
        return out
