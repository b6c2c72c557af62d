"""Packages that diffopt works with but does not need: found at the first use, or missed by name."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def package(name: str, extra: str) -> Any:
    """The module `name` of a package that the extra `extra` installs.

    Raises:
        ImportError: if it is not installed, with the command that installs it.

    Example:
        >>> package("math", extra="solvers").sqrt(4.0)
        2.0
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name != name.split(".")[0]:
            raise  # it is there, and misses something itself
        raise ImportError(
            f"this needs the package {missing.name}, which is not installed: run "
            f'python -m pip install "torch-diffopt[{extra}]"'
        ) from None
