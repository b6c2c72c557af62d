"""What this installation can do: `doctor`."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from importlib import metadata

import torch

from ._native import reason as core_build
from .qp import InteriorPoint, cuda, native, solve_qp

# engine: a function that gives None if the engine can be used here, else the reason why not
ENGINES: dict[str, Callable[[], str | None]] = {
    "torch": lambda: None,
    "native": lambda: native.unavailable(InteriorPoint(), torch.device("cpu")),
    "cuda": cuda.absent,
}
# those of the extras `cvxpy` and `solvers`, without which the rest works
PACKAGES = ("cvxpy", "cvxpylayers", "scipy", "osqp", "clarabel", "piqp", "qdldl")
# the self-test has an answer of rounding size 1e-16
TOLERANCE = 1e-12


def doctor() -> str:
    """What this installation can do, as text, with a small problem solved on each device.

    Returns:
        Lines for: the versions of diffopt, Python and torch, and torch's threads; the CUDA
        devices; the engines, each live or with the reason why not; the build of the compiled core;
        the devices, with whether float64 works there and the error of a QP with a known answer and
        a known derivative; the optional packages. Nothing is raised: what does not work is said.

    Example:
        >>> print(doctor())  # doctest: +ELLIPSIS
        diffopt ..., Python ..., torch ..., threads ...
        CUDA: ...
        engine torch: live
        engine native: ...
        native core: ...
        device cpu: float64 works, self-test passed (error ...
    """
    devices = _devices()
    lines = [
        _versions(),
        f"CUDA: {', '.join(_said(_cuda_name, d) for d in devices if d.type == 'cuda') or 'none'}",
        *(f"engine {name}: {_engine(reason)}" for name, reason in ENGINES.items()),
        f"native core: {core_build}",
        *(f"device {d}: {_said(_float64, d)}, self-test {_said(_self_test, d)}" for d in devices),
        *(f"package {name}: {_package(name)}" for name in PACKAGES),
    ]
    return "\n".join(lines)


def _versions() -> str:
    # The version is written in the package's __init__, which imports this file, and a checkout
    # that is not installed has no metadata.
    version = getattr(sys.modules[__package__], "__version__", "unknown")
    python, threads = platform.python_version(), torch.get_num_threads()
    return f"diffopt {version}, Python {python}, torch {torch.__version__}, threads {threads}"


def _devices() -> list[torch.device]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return [torch.device(name) for name in ("cpu", *(f"cuda:{i}" for i in range(count)), *mps)]


def _cuda_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


def _engine(reason: Callable[[], str | None]) -> str:
    why = reason()
    return "live" if why is None else f"not live ({why})"


def _package(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _float64(device: torch.device) -> str:
    third = torch.ones(2, 2, dtype=torch.float64, device=device) / 3
    error = abs((third @ third).sum().item() - 8 / 9)
    return "float64 works" if error <= TOLERANCE else f"float64 FAILED (error {error:.1e})"


def _self_test(device: torch.device) -> str:
    """The verdict on the QP of `solve_qp`'s docstring: z, nu and the derivative of z_1."""
    with torch.inference_mode(False):  # which allows gradients whatever the caller's mode
        p = torch.tensor([-0.9, -0.5], dtype=torch.float64, device=device, requires_grad=True)
        Q, A = torch.eye(2).to(p), torch.ones(1, 2).to(p)
        sol = solve_qp(Q, p, A=A, b=1.0, lb=0.0, on_failure="ignore")
        (slope,) = torch.autograd.grad(sol.z[1], p)
    found = torch.cat([sol.z, sol.nu, slope]).detach()
    error = (found - found.new_tensor([0.7, 0.3, 0.2, 0.5, -0.5])).abs().max().item()
    return f"{'passed' if error <= TOLERANCE else 'FAILED'} (error {error:.1e})"  # NaN fails


def _said(work: Callable[[torch.device], str], device: torch.device) -> str:
    """What `work` says of a device, or how it failed, in one line: a doctor reports the illness."""
    try:
        return work(device)
    except Exception as error:
        text = str(error).strip().splitlines() or [""]
        return f"FAILED ({type(error).__name__}: {text[0]})"
