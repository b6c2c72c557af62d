"""What NVRTC makes is machine code of the right GPU, made once; what is kept may be trusted."""

import ctypes
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest
import torch

from diffopt._native import cache, nvrtc

LIBRARY, WHERE = nvrtc.find()
needs_nvrtc = pytest.mark.skipif(LIBRARY is None, reason=WHERE)
posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have other owners")
KERNEL = """
#include "unit.hpp"
__device__ double scaled(double x) { return TIMES * UNIT * x; }
double also_on_the_device(double x) { return scaled(x); }
extern "C" __global__ void scale(double* x) { x[threadIdx.x] = also_on_the_device(x[threadIdx.x]); }
"""
PROGRAM = {
    "name": "scale",
    "sources": {"scale.cu": KERNEL, "unit.hpp": "#define UNIT 3.0\n"},
    "main": "scale.cu",
    "arch": "sm_90",
    "defines": {"TIMES": 2},
}
NEWEST = "sm_999"  # no compiler knows it
CUDA = 190  # EM_CUDA, the machine that the header of a cubin names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache, in a process that has compiled nothing."""
    monkeypatch.setenv("DIFFOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(nvrtc, "_images", {})
    return tmp_path / "cache"


@pytest.fixture
def compilations(monkeypatch):
    """The programs that the compiler was given."""
    done, real = [], nvrtc._compile

    def counted(library, sources, main, *rest):
        done.append(main)
        return real(library, sources, main, *rest)

    monkeypatch.setattr(nvrtc, "_compile", counted)
    return done


def compiled(**changes):
    return nvrtc.compile(**(PROGRAM | changes))


def compiled_anew(monkeypatch, **changes):
    """As by a new process."""
    monkeypatch.setattr(nvrtc, "_images", {})
    return compiled(**changes)


def the_file(folder):
    (file,) = folder.iterdir()  # no drafts are left either
    return file


# ---- the compiler


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90", "sm_90a"])
def test_a_cubin_is_code_of_a_gpu_with_the_kernel(arch, folder):
    image = compiled(arch=arch)
    assert image[:4] == b"\x7fELF" and int.from_bytes(image[18:20], "little") == CUDA
    assert b".text.scale\0" in image  # the section of the kernel's code


@needs_nvrtc
@pytest.mark.parametrize("times, product", [(2, 6.0), ("0.25", 0.75), ("(1 + 1.5)", 7.5)])
def test_macros_and_headers_are_those_given(times, product, folder):
    image = compiled(arch=NEWEST, defines={"TIMES": times})
    bits = ctypes.c_uint64.from_buffer(ctypes.c_double(product)).value
    assert f"0d{bits:016X}".encode() in image  # how PTX writes the number


@needs_nvrtc
def test_a_gpu_that_is_too_new_gets_text_for_the_newest_known(folder):
    count = ctypes.c_int()
    LIBRARY.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    LIBRARY.nvrtcGetSupportedArchs(known)
    image = compiled(arch=NEWEST)
    assert f".target sm_{max(known)}\n".encode() in image
    assert b".visible .entry scale(" in image


class Known:
    """An NVRTC that knows these GPUs."""

    archs = (80, 86, 90, 100)

    def nvrtcVersion(self, major, minor):
        major._obj.value, minor._obj.value = 12, 3

    def nvrtcGetNumSupportedArchs(self, count):
        count._obj.value = len(self.archs)

    def nvrtcGetSupportedArchs(self, known):
        known[:] = self.archs


@pytest.mark.parametrize(
    "arch, target",
    [
        ("sm_80", ("sm_80", "CUBIN")),
        ("sm_90a", ("sm_90a", "CUBIN")),
        ("sm_100f", ("sm_100f", "CUBIN")),
        ("sm_89", ("compute_86", "PTX")),
        ("sm_103", ("compute_100", "PTX")),
        ("sm_121a", ("compute_100", "PTX")),
    ],
)
def test_the_target_is_the_gpu_or_the_nearest_older_one(arch, target):
    assert nvrtc._target(Known(), arch) == target


def test_a_gpu_that_is_too_old_is_refused():
    with pytest.raises(nvrtc.CompileError, match=r"NVRTC 12\.3 does not know sm_75: .* sm_80"):
        nvrtc._target(Known(), "sm_75")


WRONG = {  # name: (the main file, what the log says)
    "syntax": ("extern int x\nint y;", r'scale\.cu\(2\): error: expected a ";"'),
    "a name": (
        '#include "unit.hpp"\ndouble x = UNIT;\ny\n',
        r"scale\.cu\(3\): error: this declaration",
    ),
    "in a header": ('#include "unit.hpp"\nint n = UNIT * BASE;', 'identifier "BASE" is undefined'),
    "a header that is not there": ("#include <vector>\n", 'could not open source file "vector"'),
}


@needs_nvrtc
@pytest.mark.parametrize("name", WRONG)
def test_the_log_of_the_compiler_is_in_the_error(name, folder, compilations):
    main, said = WRONG[name]
    for _ in range(2):  # a failure is not kept
        with pytest.raises(nvrtc.CompileError, match=said) as caught:
            compiled(sources=PROGRAM["sources"] | {"scale.cu": main})
        assert str(caught.value).startswith("scale.cu does not compile with --std=c++17 ")
    assert len(compilations) == 2 and not folder.exists()


@needs_nvrtc
def test_a_file_in_the_current_directory_is_no_header(folder, tmp_path, monkeypatch):
    (tmp_path / "unit.hpp").write_text("#define UNIT 1.0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(nvrtc.CompileError, match='could not open source file "unit.hpp"'):
        compiled(sources={"scale.cu": KERNEL})


@needs_nvrtc
def test_an_error_of_nvrtc_itself_is_named():
    with pytest.raises(nvrtc.CompileError, match="nvrtcGetPTX: NVRTC_ERROR_INVALID_PROGRAM"):
        nvrtc._check(LIBRARY, "nvrtcGetPTX", None, None)


@needs_nvrtc
def test_a_failure_without_a_log_is_named(folder, monkeypatch):
    monkeypatch.setattr(nvrtc, "_output", lambda library, program, what: b"\0")
    with pytest.raises(nvrtc.CompileError, match=r":\nNVRTC_ERROR_COMPILATION$"):
        compiled(sources={"scale.cu": "x"})


# ---- the cache

CHANGES = {
    "name": {"name": "other"},
    "which is the main file": {"main": "unit.hpp"},
    "a source": {"sources": PROGRAM["sources"] | {"scale.cu": KERNEL + " "}},
    "a header": {"sources": PROGRAM["sources"] | {"unit.hpp": "#define UNIT 4.0\n"}},
    "one header more": {"sources": PROGRAM["sources"] | {"empty.hpp": ""}},
    "the GPU": {"arch": "sm_80"},
    "the GPU's own additions": {"arch": "sm_90a"},
    "a macro": {"defines": {"TIMES": 3}},
    "one macro more": {"defines": {"TIMES": 2, "OTHER": 1}},
}


@needs_nvrtc
def test_it_is_compiled_once_and_then_read(folder, compilations, monkeypatch):
    first = compiled()
    assert compiled() == first
    assert compiled_anew(monkeypatch) == first
    assert compilations == ["scale.cu"]
    shutil.rmtree(folder)
    assert compiled() == first  # this process has it
    assert len(compilations) == 1


@needs_nvrtc
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_it_is_another_program(change, folder, compilations):
    first = compiled()
    second = compiled(**CHANGES[change])
    assert len(compilations) == len(list(folder.iterdir())) == 2
    assert (compiled(), compiled(**CHANGES[change])) == (first, second)
    assert len(compilations) == 2


@needs_nvrtc
def test_another_compiler_makes_another_program(folder, compilations, monkeypatch):
    compiled()
    monkeypatch.setattr(nvrtc, "version", lambda library: (99, 0))
    compiled()
    assert len(compilations) == 2


@needs_nvrtc
def test_threads_compile_it_once(folder, compilations):
    images, start = [None] * 8, threading.Barrier(8)

    def work(k):
        start.wait()
        images[k] = compiled()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compilations) == 1 and set(images) == {compiled()}


DAMAGES = {
    "one bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "the checksum": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "cut off": lambda content: content[:-100],
    "cut off early": lambda content: content[:10],
    "empty": lambda content: b"",
    "longer": lambda content: content + b"\0",
}


@needs_nvrtc
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_replaced(damage, folder, compilations, monkeypatch):
    first = compiled()
    file = the_file(folder)
    whole = file.read_bytes()
    file.write_bytes(DAMAGES[damage](whole))
    assert compiled_anew(monkeypatch) == first
    assert len(compilations) == 2 and the_file(folder).read_bytes() == whole
    compiled_anew(monkeypatch)
    assert len(compilations) == 2


def test_what_was_written_under_another_name_is_not_read(folder):
    cache.write("one", b"code")
    shutil.copy(folder / "one", folder / "two")
    assert cache.read("one") == b"code" and cache.read("two") is None


@posix
def test_files_are_private(folder):
    cache.write("one", b"code")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(the_file(folder).stat().st_mode) == 0o600


@posix
@needs_nvrtc
def test_code_of_another_user_is_not_run(folder, compilations, monkeypatch):
    compiled()
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    compiled_anew(monkeypatch)
    assert len(compilations) == 2


@posix
@pytest.mark.parametrize("mode, trusted", [(0o600, True), (0o644, True), (0o620, False),
                                           (0o602, False)])  # fmt: skip
def test_a_file_that_others_may_write_is_not_read(mode, trusted, folder):
    cache.write("one", b"code")
    (folder / "one").chmod(mode)
    assert (cache.read("one") == b"code") == trusted


def under_a_file(path, monkeypatch):
    (path / "file").write_text("")
    monkeypatch.setenv("DIFFOPT_CACHE", str(path / "file" / "cache"))


def no_home(path, monkeypatch):
    def home():
        raise RuntimeError("could not determine home directory")

    for name in ("DIFFOPT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)


def full_disk(path, monkeypatch):
    def replace(*names):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)


def read_only(path, monkeypatch):
    def mkstemp(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache.tempfile, "mkstemp", mkstemp)


@needs_nvrtc
@pytest.mark.parametrize("trouble", [under_a_file, no_home, full_disk, read_only])
def test_without_a_folder_it_is_compiled_all_the_same(
    trouble, folder, compilations, tmp_path, monkeypatch
):
    trouble(tmp_path, monkeypatch)
    assert compiled() == compiled() == compiled_anew(monkeypatch)
    assert len(compilations) == 2
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="the variables of other systems")
@pytest.mark.parametrize(
    "variables, expected",
    [
        ({"DIFFOPT_CACHE": "/d", "XDG_CACHE_HOME": "/x"}, "/d"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/diffopt"),
        ({"XDG_CACHE_HOME": "relative"}, "/h/.cache/diffopt"),
        ({"DIFFOPT_CACHE": "", "XDG_CACHE_HOME": ""}, "/h/.cache/diffopt"),
        ({}, "/h/.cache/diffopt"),
    ],
)
def test_where_the_folder_is(variables, expected, monkeypatch):
    for name in ("DIFFOPT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/h"} | variables).items():
        monkeypatch.setenv(name, value)
    assert cache._folder() == Path(expected)


# ---- the library


@pytest.mark.parametrize(
    "name, library, builtins",
    [
        ("libnvrtc.so", True, False),
        ("libnvrtc.so.12", True, False),
        ("libnvrtc.so.12.9.86", True, False),
        ("libnvrtc-672ee683.so.11.2", True, False),
        ("nvrtc64_120_0.dll", True, False),
        ("libnvrtc-builtins.so.12.9", False, True),
        ("libnvrtc-builtins-7237cb5d.so.11.7", False, True),
        ("nvrtc-builtins64_129.dll", False, True),
        ("libnvrtc.alt.so.12", False, False),
        ("libnvrtc-builtins.alt.so.12.9", False, False),
        ("nvrtc64_120_0.alt.dll", False, False),
        ("libnvrtc_static.a", False, False),
        ("libnvrtc.so.12.bak", False, False),
        ("libcudart.so.12", False, False),
    ],
)
def test_the_names_of_the_two_libraries(name, library, builtins):
    assert bool(nvrtc.LIBRARY.fullmatch(name)) == library
    assert bool(nvrtc.BUILTINS.fullmatch(name)) == builtins


# wheels of CUDA 12 and 13, on Linux and Windows
PLACES = ["cuda_nvrtc/lib/libnvrtc.so.12", "cu13/lib/libnvrtc.so.13",
          "cuda_nvrtc/bin/nvrtc64_120_0.dll", "cu13/bin/x86_64/nvrtc64_130_0.dll"]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_the_wheels_are_searched(place, tmp_path, monkeypatch):
    file = tmp_path / "nvidia" / place
    file.parent.mkdir(parents=True)
    for name in (file.name, "libnvrtc-builtins.so.12.9", "libnvrtc.alt.so.12"):
        (file.parent / name).touch()
    monkeypatch.setattr(nvrtc.sys, "path", ["/no/such/folder", str(tmp_path)])
    assert [p for p in nvrtc._candidates() if p.startswith(str(tmp_path))] == [str(file)]


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_a_toolkit_is_searched_after_the_wheels(variable, tmp_path, monkeypatch):
    files = [tmp_path / "nvidia/cuda_nvrtc/lib/libnvrtc.so.12", tmp_path / "kit/lib64/libnvrtc.so"]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    monkeypatch.setattr(nvrtc.sys, "path", [str(tmp_path)])
    monkeypatch.setenv(variable, str(tmp_path / "kit"))
    found = [p for p in nvrtc._candidates() if p.startswith(str(tmp_path))]
    assert found == list(map(str, files))


VERSIONS = {"a": (12, 9), "b": (13, 0), "c": (13, 1), "broken": None}


@pytest.mark.parametrize(
    "files, cuda, chosen",
    [
        ("abc", "12.8", "a"),
        ("abc", "13.0", "b"),
        ("bca", "12.8", "a"),
        ("cb", "12.8", "c"),
        ("ba", None, "b"),
        (["broken", "a"], "12.8", "a"),
        (["a", "broken"], "13.0", "a"),
    ],
)
def test_the_first_of_torchs_version_is_taken_else_the_first(files, cuda, chosen, monkeypatch):
    machine_with(files, cuda, monkeypatch)
    assert nvrtc.find.__wrapped__() == (chosen, chosen)


@pytest.mark.parametrize("cuda", ["12.8", None])
def test_no_more_is_loaded_than_needed(cuda, monkeypatch):
    loaded = machine_with("abc", cuda, monkeypatch)
    nvrtc.find.__wrapped__()
    assert loaded == ["a"]


@pytest.mark.parametrize(
    "files, why", [([], "NVRTC not found: .*pip install"), (["broken"], "NVRTC cannot be loaded")]
)
def test_without_nvrtc_the_reason_is_said(files, why, folder, monkeypatch):
    machine_with(files, "12.8", monkeypatch)
    monkeypatch.setattr(nvrtc, "find", nvrtc.find.__wrapped__)
    with pytest.raises(nvrtc.CompileError, match=f"scale cannot be compiled for sm_90: {why}"):
        compiled()


def machine_with(files, cuda, monkeypatch):
    """The list of what is loaded where NVRTC is `files`, of `VERSIONS`, and torch has this CUDA."""
    loaded = []

    def load(path):
        loaded.append(path)
        if VERSIONS[path] is None:
            raise OSError("wrong ELF class")
        return path

    monkeypatch.setattr(nvrtc, "_candidates", lambda: iter(files))
    monkeypatch.setattr(nvrtc, "_load", load)
    monkeypatch.setattr(nvrtc, "version", VERSIONS.get)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    return loaded


def test_the_builtins_beside_it_are_loaded_first(tmp_path, monkeypatch):
    for name in ("libnvrtc.so.12", "libnvrtc-builtins.so.12.9", "libnvrtc-builtins.alt.so.12.9"):
        (tmp_path / name).touch()
    loaded = []

    class Opened:
        def __init__(self, path):
            loaded.append(path)

        def __getattr__(self, name):
            setattr(self, name, type(name, (), {}))
            return getattr(self, name)

    monkeypatch.setattr(nvrtc.ctypes, "CDLL", Opened)
    nvrtc._load(str(tmp_path / "libnvrtc.so.12"))
    names = ["libnvrtc-builtins.so.12.9", "libnvrtc.so.12"]
    assert loaded == [str(tmp_path / name) for name in names]
