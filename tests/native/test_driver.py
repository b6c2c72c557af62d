"""The driver gets what its C interface expects, and what it refuses is said."""

import ctypes
import threading
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_double, c_int, c_int64, c_uint, c_void_p
from functools import partial

import pytest
import torch

from diffopt._native import driver, nvrtc
from diffopt._native.driver import Driver, DriverError, Module

# handles as a machine has them, which do not fit into 32 bits
CONTEXT, MODULE, KERNEL, STREAM = (0x7F00_1234_0000 + k for k in range(1, 5))
IMAGE = b"\x7fELF\0\0 what follows a zero byte\0"
NAMES = {201: (b"CUDA_ERROR_INVALID_CONTEXT", b"invalid device context"), 999: (None, None)}
# function: its arguments in cuda.h
PROTOTYPES = {
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxGetCurrent": (POINTER(c_void_p),),
    "cuCtxSetCurrent": (c_void_p,),
    "cuModuleLoadData": (POINTER(c_void_p), c_void_p),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuFuncGetAttribute": (POINTER(c_int), c_int, c_void_p),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuLaunchKernel": (
        c_void_p, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_void_p,
        POINTER(c_void_p), POINTER(c_void_p),
    ),
}  # fmt: skip


class Numbers(ctypes.Structure):
    """struct { double x; long long n; }"""

    _fields_ = (("x", c_double), ("n", c_int64))


class Fake:
    """A driver of C functions that keep their inputs, and answer as they are told.

    `failing` maps functions to the codes that they return; `types` are those of the arguments of
    the kernel; `context` is the one that the thread has.
    """

    def __init__(self, failing=(), types=(), context=CONTEXT):
        self.failing, self.types, self.context, self.calls = dict(failing), types, context, []
        for name, prototype in PROTOTYPES.items():
            setattr(self, name, CFUNCTYPE(c_int, *prototype)(partial(self.answer, name)))

    def answer(self, name, *arguments):
        if name in self.failing:
            return self.failing[name]
        if name.startswith("cuGetError"):
            text = NAMES[arguments[0]][name == "cuGetErrorString"]
            if text is None:
                return 1  # CUDA_ERROR_INVALID_VALUE
            arguments[1][0] = text
            return 0
        self.calls.append((name, *getattr(self, f"see_{name}")(*arguments)))
        return 0

    def see_cuDeviceGet(self, device, index):
        device[0] = 10 + index
        return (index,)

    def see_cuDeviceGetAttribute(self, value, attribute, device):
        value[0] = 1000 * device + attribute
        return attribute, device

    def see_cuDevicePrimaryCtxRetain(self, context, device):
        context[0] = CONTEXT
        return (device,)

    def see_cuCtxGetCurrent(self, context):
        context[0] = self.context
        return ()

    def see_cuCtxSetCurrent(self, context):
        self.context = context
        return (context,)

    def see_cuModuleLoadData(self, module, image):
        module[0] = MODULE
        return (ctypes.string_at(image, len(IMAGE)),)

    def see_cuModuleGetFunction(self, kernel, module, name):
        kernel[0] = KERNEL
        return module, name

    def see_cuFuncGetAttribute(self, value, attribute, kernel):
        value[0] = 7000 + attribute
        return attribute, kernel

    def see_cuFuncSetAttribute(self, *arguments):
        return arguments

    def see_cuLaunchKernel(self, kernel, *rest):
        *sizes, stream, places, extra = rest
        assert not extra
        values = [ctypes.cast(places[i], POINTER(t))[0] for i, t in enumerate(self.types)]
        plain = [(v.x, v.n) if isinstance(v, Numbers) else v for v in values]
        return kernel, tuple(sizes), stream, plain

    def seen(self, name):
        return [call[1:] for call in self.calls if call[0] == name]


def loaded(**settings):
    """(the fake, a kernel of a module loaded with it)."""
    fake = Fake(**settings)
    return fake, Module(IMAGE, Driver(fake)).function("solve")


def test_a_module_is_the_whole_image_and_a_kernel_is_found_in_it():
    fake, kernel = loaded()
    assert fake.seen("cuModuleLoadData") == [(IMAGE,)]
    assert fake.seen("cuModuleGetFunction") == [(MODULE, b"solve")]
    assert kernel.handle.value == KERNEL


ARGUMENTS = {
    "none": [],
    "a pointer beyond 32 bits": [c_void_p(0x7F12_3456_789A)],
    "a null pointer": [c_void_p(None)],
    "numbers": [c_double(-2.5), c_int(-3), c_int64(-(2**40))],
    "a structure among others": [c_int(1), Numbers(0.1, 2**50 + 1), c_double(3.0)],
}


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize(
    "grid, block, sizes",
    [(128, 64, (128, 1, 1, 64, 1, 1)), ((2**31 - 1, 3, 4), (8, 4, 2), (2**31 - 1, 3, 4, 8, 4, 2))],
)
def test_a_launch_says_what_was_asked_for(name, grid, block, sizes):
    arguments = ARGUMENTS[name]
    fake, kernel = loaded(types=[type(a) for a in arguments])
    kernel.launch(grid, block, 99_000, STREAM, *arguments)
    values = [(a.x, a.n) if isinstance(a, Numbers) else a.value for a in arguments]
    assert fake.seen("cuLaunchKernel") == [(KERNEL, (*sizes, 99_000), STREAM, values)]


def test_the_default_stream_of_torch_is_null():
    fake, kernel = loaded()
    kernel.launch(1, 1, 0, 0)
    assert fake.seen("cuLaunchKernel") == [(KERNEL, (1,) * 6 + (0,), None, [])]


def test_what_is_asked_of_a_kernel():  # the numbers are those of CUfunction_attribute
    fake, kernel = loaded()
    assert kernel.local_bytes() == 7003
    assert kernel.registers() == 7004
    kernel.allow_shared(200_000)
    assert fake.seen("cuFuncGetAttribute") == [(3, KERNEL), (4, KERNEL)]
    assert fake.seen("cuFuncSetAttribute") == [(KERNEL, 8, 200_000)]


@pytest.mark.parametrize("device", [1, torch.device("cuda:1"), torch.device("cuda")])
def test_what_is_asked_of_a_device(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    fake = Fake()  # in which 11 is the handle of device 1
    assert driver.shared_limit(device, Driver(fake)) == 11_097
    assert driver.multiprocessors(device, Driver(fake)) == 11_016
    assert fake.seen("cuDeviceGet") == [(1,), (1,)]


ACTIONS = {  # name: (what is done, the functions on its way)
    "load": (lambda d: Module(IMAGE, d), ["cuCtxGetCurrent", "cuModuleLoadData"]),
    "find": (lambda d: Module(IMAGE, d).function("solve"), ["cuModuleGetFunction"]),
    "launch": (
        lambda d: Module(IMAGE, d).function("solve").launch(1, 1, 0, STREAM),
        ["cuLaunchKernel"],
    ),
    "shared": (
        lambda d: Module(IMAGE, d).function("solve").allow_shared(10**6),
        ["cuFuncSetAttribute"],
    ),
    "registers": (
        lambda d: Module(IMAGE, d).function("solve").registers(),
        ["cuFuncGetAttribute"],
    ),
    "limit": (lambda d: driver.shared_limit(0, d), ["cuDeviceGet", "cuDeviceGetAttribute"]),
}
FAILURES = [(action, function) for action in ACTIONS for function in ACTIONS[action][1]]


@pytest.mark.parametrize("action, function", FAILURES)
@pytest.mark.parametrize(
    "code, text",
    [
        (201, r"CUDA_ERROR_INVALID_CONTEXT \(201\): invalid device context"),
        (999, r"unknown \(999\): unknown"),
    ],
)
def test_what_fails_is_named(action, function, code, text):
    with pytest.raises(DriverError, match=f"^{function}: {text}$"):
        ACTIONS[action][0](Driver(Fake({function: code})))


@pytest.mark.parametrize("action", ["load", "find", "launch", "shared", "registers"])
def test_a_thread_without_a_context_gets_that_of_torch_once(action, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    fake = Fake(context=None)
    ACTIONS[action][0](Driver(fake))
    assert fake.calls[:4] == [
        ("cuCtxGetCurrent",), ("cuDeviceGet", 2), ("cuDevicePrimaryCtxRetain", 12),
        ("cuCtxSetCurrent", CONTEXT),
    ]  # fmt: skip
    assert len(fake.seen("cuCtxSetCurrent")) == 1


@pytest.mark.parametrize("action", ["find", "launch", "shared", "registers"])
def test_each_call_looks_for_the_context_of_its_own_thread(action, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    fake = Fake(context=None)
    module = Module(IMAGE, Driver(fake))
    kernel = module.function("solve")
    later = {
        "find": lambda: module.function("solve"),
        "launch": lambda: kernel.launch(1, 1, 0, STREAM),
        "shared": lambda: kernel.allow_shared(1),
        "registers": kernel.registers,
    }
    fake.context = None  # as another thread has it
    later[action]()
    assert len(fake.seen("cuCtxSetCurrent")) == 2


def missing(name):
    raise OSError(f"{name}: no such file")


def test_a_machine_without_a_driver_says_so(monkeypatch):
    monkeypatch.setattr(driver.ctypes, "CDLL", missing)
    found, why = driver.find.__wrapped__()
    assert found is None and "the CUDA driver cannot be loaded" in why and "no such file" in why


def test_a_driver_without_a_function_is_none(monkeypatch):
    fake = Fake()
    del fake.cuLaunchKernel
    monkeypatch.setattr(driver.ctypes, "CDLL", lambda name: fake)
    found, why = driver.find.__wrapped__()
    assert found is None and "cuLaunchKernel" in why


def test_without_a_driver_nothing_is_loaded(monkeypatch):
    monkeypatch.setattr(driver, "find", lambda: (None, "no driver today"))
    with pytest.raises(DriverError, match="no driver today"):
        Module(IMAGE)
    with pytest.raises(DriverError, match="no driver today"):
        driver.shared_limit(0)


SOURCE = """
extern "C" __global__ void reverse(double* x, int n, double factor) {
    extern __shared__ double copy[];
    for (int i = threadIdx.x; i < n; i += blockDim.x) copy[i] = x[blockIdx.x * n + i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        x[blockIdx.x * n + i] = factor * copy[n - 1 - i];
}
"""


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("in_thread", [False, True])
def test_a_kernel_runs(in_thread):
    device = torch.device("cuda", torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability(device)
    image = nvrtc.compile("reverse", {"k.cu": SOURCE}, "k.cu", f"sm_{major}{minor}", {})
    x = torch.arange(3 * 7000, dtype=torch.float64, device=device).reshape(3, 7000)
    truth, size = -2.0 * x.flip(1), 8 * x.shape[1]  # more shared memory than the default
    assert size < driver.shared_limit(device)

    def run():
        kernel = Module(image).function("reverse")
        kernel.allow_shared(size)
        stream = torch.cuda.current_stream(device).cuda_stream
        kernel.launch(3, 128, size, stream, c_void_p(x.data_ptr()), c_int(7000), c_double(-2.0))
        assert 0 < kernel.registers() < 256 and kernel.local_bytes() == 0

    if in_thread:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    else:
        run()
    torch.testing.assert_close(x, truth, rtol=0.0, atol=0.0)
