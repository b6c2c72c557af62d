"""The compiled core, one build for each set of vector instructions, and the kernels of the GPU
compiled for a CPU, which the tests need; the rest is in setup.cfg.

The builds are optional: where one cannot be compiled, installation goes on without it, and
`diffopt.doctor()` says what is live.
"""

import os
import platform
import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

SOURCES = Path("diffopt") / "_native"
# -O3 keeps NaN and infinities as they are; what is switched off are errno and trapping arithmetic.
FLAGS = [
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-pthread",
    "-Wno-psabi",
    "-Wno-ignored-attributes",
]
BUILDS = {
    "base": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
}
EDITABLE = "editable_wheel" in sys.argv  # as who runs the tests has it
X86 = platform.machine().lower() in ("x86_64", "amd64")


def build(name: str, source: str = "module.cpp") -> Pybind11Extension:
    """The extension `diffopt._native.<name>`."""
    return Pybind11Extension(
        f"diffopt._native.{name}",
        [str(SOURCES / source)],
        depends=[str(path) for path in sorted(SOURCES.glob("*.hpp"))],
        define_macros=[("DIFFOPT_MODULE", name)],
        extra_compile_args=FLAGS + BUILDS.get(name, []),
        extra_link_args=["-pthread"],
        cxx_std=17,
        optional=True,
    )


setup(
    ext_modules=[
        *(build(name) for name in BUILDS if X86 or name == "base"),
        *([build("emulation", "emulation.cpp")] if EDITABLE else []),
    ],
    options={"build_ext": {"parallel": os.cpu_count()}},
)
