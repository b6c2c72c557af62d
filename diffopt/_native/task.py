"""The arguments of a kernel, as `kernel.hpp` lays them out in memory."""

from __future__ import annotations

from ctypes import Structure, c_bool, c_double, c_int, c_long, c_ulong
from ctypes import c_void_p as Address


class Slice(Structure):
    """An argument of all samples: where it is, and how far it is to the next sample and entry."""

    _fields_ = [("data", Address), ("batch", c_long), ("step", c_long)]


ARGUMENTS = ("Q", "p", "G", "h", "A", "b", "lb", "ub", "h_lower")


class Batch(Structure):
    """The problems."""

    _fields_ = [
        ("size", c_long), ("n", c_int), ("m", c_int), ("e", c_int), ("bounded", c_bool),
        *((name, Slice) for name in ARGUMENTS),
    ]  # fmt: skip


class Settings(Structure):
    """The settings of the method."""

    _fields_ = [
        ("eps", c_double), ("eps_polish", c_double), ("eps_infeasible", c_double),
        ("regularization", c_double), ("warm_mu", c_double),
        ("max_steps", c_int), ("patience", c_int), ("refinements", c_int),
    ]  # fmt: skip


class Warm(Structure):
    """Where to start from."""

    _fields_ = [(name, Address) for name in ("z", "nu", "y")]


class Answers(Structure):
    """Where the answers go."""

    _fields_ = [
        (name, Address) for name in ("x", "facts", "active", "steps", "polished", "settled")
    ]


class Gradients(Structure):
    """Where the gradients go."""

    _fields_ = [(name, Address) for name in ARGUMENTS]


class Task(Structure):
    """One launch."""

    _fields_ = [
        ("batch", Batch), ("settings", Settings), ("warm", Warm), ("answers", Answers),
        ("store", Address), ("work", Address),
        ("matrix_bytes", c_ulong), ("tape_bytes", c_ulong), ("work_bytes", c_ulong),
        ("fast_bytes", c_ulong),
        ("keep", c_bool), ("fast_matrices", c_bool), ("transpose", c_bool),
        ("v", Address), ("x", Address), ("error", Address), ("gradients", Gradients),
    ]  # fmt: skip


class Needs(Structure):
    """Bytes that a problem needs, as `kernel.hpp` says, and those of a `Task`."""

    _fields_ = [
        (f"{name}_bytes", c_ulong)
        for name in ("matrix", "tape", "vector", "base", "moment", "task")
    ]
