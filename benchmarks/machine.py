"""What a benchmark ran on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from datetime import date
from pathlib import Path

import torch

PACKAGES = [
    "torch",
    "numpy",
    "moreau",
    "proxsuite",
    "qpth",
    "cvxpylayers",
    "cvxpy",
    "diffcp",
    "scs",
]


def machine(device: torch.device | None = None) -> dict:
    """Processor, threads, versions and the day, and the GPU if `device` is one."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    gpu = device is not None and device.type == "cuda"
    there = {"GPU": torch.cuda.get_device_name(device), "CUDA": torch.version.cuda} if gpu else {}
    return there | {
        "processor": model, "cores": os.cpu_count(), "torch threads": torch.get_num_threads(),
        "load before": round(os.getloadavg()[0], 1), "date": str(date.today()),
        "python": platform.python_version(), **versions,
    }  # fmt: skip
