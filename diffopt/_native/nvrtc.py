"""CUDA C++ compiled at run time: source text in, machine code of one GPU out.

NVRTC, NVIDIA's compiler as a library, comes with torch's CUDA wheels; it needs neither a toolkit
nor a GPU. Its C interface is called through ctypes, and what it makes is kept on disk (`cache`).

Source: NVIDIA, "NVRTC" (the manual of the CUDA Toolkit), sections "User Interface" and "Supported
Compile Options".
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p
from ctypes.util import find_library
from functools import cache
from pathlib import Path
from typing import Any

import torch

from . import cache as disk

OUTPUTS = ("CUBIN", "PTX", "ProgramLog")
# function: the types of its arguments; it returns an nvrtcResult, of which 0 is success
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "nvrtcVersion": (POINTER(c_int), POINTER(c_int)),
    "nvrtcGetNumSupportedArchs": (POINTER(c_int),),
    "nvrtcGetSupportedArchs": (POINTER(c_int),),
    "nvrtcCreateProgram": (
        POINTER(c_void_p), c_char_p, c_char_p, c_int, POINTER(c_char_p), POINTER(c_char_p),
    ),
    "nvrtcCompileProgram": (c_void_p, c_int, POINTER(c_char_p)),
    "nvrtcDestroyProgram": (POINTER(c_void_p),),
    **{f"nvrtcGet{what}Size": (c_void_p, POINTER(c_size_t)) for what in OUTPUTS},
    **{f"nvrtcGet{what}": (c_void_p, c_char_p) for what in OUTPUTS},
    "nvrtcGetErrorString": (c_int,),
}  # fmt: skip
# libnvrtc.so.12, libnvrtc-672ee683.so.11.2, nvrtc64_120_0.dll; not what is built for other hosts
LIBRARY = re.compile(r"libnvrtc(-[0-9a-f]+)?\.so[.\d]*|nvrtc64_\d+_\d+\.dll")
# libnvrtc-builtins.so.12.9, nvrtc-builtins64_129.dll
BUILTINS = re.compile(r"libnvrtc-builtins(-[0-9a-f]+)?\.so[.\d]*|nvrtc-builtins64_\d+\.dll")
# A header is one of the sources, or missing: NVRTC would look in the current directory as well.
OPTIONS = ("--std=c++17", "-default-device", "--fmad=true", "--no-source-include")

# One compilation at a time: NVRTC changes, and restores, the stack limit of the whole process.
_lock = threading.Lock()
_images: dict[str, bytes] = {}


class CompileError(RuntimeError):
    """CUDA C++ could not be compiled; the text is the compiler's log, or why there is none."""


def compile(
    name: str,
    sources: Mapping[str, str],
    main: str,
    arch: str,
    defines: Mapping[str, str | int],
) -> bytes:
    """The machine code of a CUDA C++ program: a cubin, for `cuModuleLoadData`.

    It is compiled at most once by a process, and only if `cache` has not kept it. A change of any
    argument, of the options or of the version of NVRTC is another program.

    Args:
        name: of the program, an identifier; for the file in the cache and for messages.
        sources: file names as in `#include`, and their texts. There are no others: no headers of
            the C++ library, either.
        main: which of them is compiled; the others are its headers.
        arch: the GPU, "sm_90" for compute capability 9.0. If NVRTC does not know it, the answer is
            PTX text for the nearest older one that it knows, which the driver translates.
        defines: macros and their values.

    Raises:
        CompileError: if the source is wrong, NVRTC is not found, or the GPU is too old for it.
    """
    assert name.isidentifier() and main in sources, (name, main)
    library, where = find()
    if library is None:
        raise CompileError(f"{name} cannot be compiled for {arch}: {where}")
    target, kind = _target(library, arch)
    options = [*OPTIONS, f"--gpu-architecture={target}"]
    options += [f"-D{macro}={value}" for macro, value in sorted(defines.items())]
    facts = sorted(sources.items()), main, options, version(library)
    key = f"{name}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}"
    with _lock:
        if key not in _images:
            image = disk.read(key)
            if image is None:
                image = _compile(library, sources, main, options, kind)
                disk.write(key, image)
            _images[key] = image
        return _images[key]


@cache
def find() -> tuple[ctypes.CDLL | None, str]:
    """NVRTC and the file that it was loaded from; or None, and why.

    The first of torch's major version of CUDA, since that is what the driver runs; else the first.
    """
    wanted = int((torch.version.cuda or "0").split(".")[0])
    second: tuple[ctypes.CDLL | None, str] | None = None
    why = 'not found: python -m pip install "nvidia-cuda-nvrtc-cu12" (or -cu13, as torch has)'
    for path in _candidates():
        try:
            library = _load(path)
        except (OSError, AttributeError) as error:  # broken; or so old that it misses a function
            why = f"cannot be loaded: {error}"
            continue
        if version(library)[0] == wanted or not wanted:
            return library, path
        second = second or (library, path)
    return second or (None, f"NVRTC {why}")


def version(library: ctypes.CDLL) -> tuple[int, int]:
    """The version of NVRTC, which is that of its CUDA: (12, 9)."""
    major, minor = c_int(), c_int()
    library.nvrtcVersion(byref(major), byref(minor))
    return major.value, minor.value


def _candidates() -> Iterator[str]:
    """Files that may be NVRTC: torch's own, those of NVIDIA's wheels, then those of the system."""
    for folder in _folders():
        found = (file for file in folder.glob("*nvrtc*") if LIBRARY.fullmatch(file.name))
        yield from sorted(map(str, found))
    if system := find_library("nvrtc"):
        yield system


def _folders() -> Iterator[Path]:
    yield Path(torch.__file__).parent / "lib"
    for entry in sys.path:
        for pattern in ("*/lib", "*/bin", "*/bin/x86_64"):  # the last two on Windows
            yield from sorted(Path(entry, "nvidia").glob(pattern))
    toolkits = [os.environ[k] for k in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(k)]
    for root in (*toolkits, sys.prefix, f"{sys.prefix}/Library", "/usr/local/cuda"):  # and conda's
        yield from (Path(root, leaf) for leaf in ("lib64", "lib", "bin", "bin/x64"))


def _load(path: str) -> ctypes.CDLL:
    """The library in a file, with its functions declared.

    At its first compilation NVRTC opens a second library, of built-in functions, by a bare name
    that the system need not find, although it lies beside it. One that is loaded already is found.
    """
    if os.path.dirname(path):
        for beside in sorted(Path(path).parent.glob("*nvrtc-builtins*")):
            if BUILTINS.fullmatch(beside.name):
                ctypes.CDLL(str(beside))
    library = ctypes.CDLL(path)
    for function, types in SIGNATURES.items():
        getattr(library, function).argtypes = types
    library.nvrtcGetErrorString.restype = c_char_p
    return library


def _target(library: ctypes.CDLL, arch: str) -> tuple[str, str]:
    """What to compile for a GPU, as NVRTC calls it, and in which form: CUBIN or PTX.

    PTX of one GPU runs on every newer one, which a cubin does not.
    """
    number = int(re.sub(r"sm_(\d+)[a-z]?", r"\1", arch))  # sm_90a is sm_90 with its own additions
    count = c_int()
    _check(library, "nvrtcGetNumSupportedArchs", byref(count))
    known = (c_int * count.value)()
    _check(library, "nvrtcGetSupportedArchs", known)
    if number in known:
        return arch, "CUBIN"
    if number < min(known):
        release = ".".join(map(str, version(library)))
        raise CompileError(f"NVRTC {release} does not know {arch}: its oldest is sm_{min(known)}")
    return f"compute_{max(k for k in known if k < number)}", "PTX"


def _compile(
    library: ctypes.CDLL, sources: Mapping[str, str], main: str, options: list[str], kind: str
) -> bytes:
    """The program as `kind`, from the compiler."""
    headers = {file: text for file, text in sources.items() if file != main}
    program = c_void_p()
    _check(
        library, "nvrtcCreateProgram", byref(program), sources[main].encode(), main.encode(),
        len(headers), _strings(headers.values()), _strings(headers),
    )  # fmt: skip
    try:
        if code := library.nvrtcCompileProgram(program, len(options), _strings(options)):
            log = _output(library, program, "ProgramLog").rstrip(b"\0\n")
            text = (log or library.nvrtcGetErrorString(code)).decode(errors="replace")
            raise CompileError(f"{main} does not compile with {' '.join(options)}:\n{text}")
        return _output(library, program, kind)
    finally:
        library.nvrtcDestroyProgram(byref(program))


def _output(library: ctypes.CDLL, program: c_void_p, what: str) -> bytes:
    """What NVRTC has of a program: one of `OUTPUTS`; texts end with a zero byte."""
    size = c_size_t()
    _check(library, f"nvrtcGet{what}Size", program, byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    _check(library, f"nvrtcGet{what}", program, buffer)
    return buffer.raw


def _check(library: ctypes.CDLL, function: str, *arguments: Any) -> None:
    """Call a function that fails only if NVRTC itself does."""
    if code := getattr(library, function)(*arguments):
        raise CompileError(f"{function}: {library.nvrtcGetErrorString(code).decode()}")


def _strings(texts: Iterable[str]) -> ctypes.Array[c_char_p]:
    encoded = [text.encode() for text in texts]
    return (c_char_p * len(encoded))(*encoded)
