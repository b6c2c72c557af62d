"""Compiled code on a GPU: loaded, asked for its needs, and launched, by the CUDA driver.

The driver's C interface is called through ctypes, beside torch, which has set the device up: call
`torch.cuda.init()` first. Everything here is about one device, the current one of torch:

    with torch.cuda.device(device):
        stream = torch.cuda.current_stream().cuda_stream
        Module(image).function("solve").launch(batch, 128, 0, stream, c_void_p(z.data_ptr()))

Source: NVIDIA, "CUDA Driver API", sections "Context Management", "Module Management" and
"Execution Control"; the numbers of attributes are those of cuda.h.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, byref, c_char_p, c_int, c_uint, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

# function: the types of its arguments; it returns a CUresult, of which 0 is success
SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxGetCurrent": (POINTER(c_void_p),),
    "cuCtxSetCurrent": (c_void_p,),
    "cuModuleLoadData": (POINTER(c_void_p), c_char_p),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuFuncGetAttribute": (POINTER(c_int), c_int, c_void_p),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuLaunchKernel": (c_void_p, *[c_uint] * 7, c_void_p, POINTER(c_void_p), POINTER(c_void_p)),
}
# CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, _MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
MULTIPROCESSORS, SHARED_LIMIT = 16, 97
# CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES, _NUM_REGS, _MAX_DYNAMIC_SHARED_SIZE_BYTES
LOCAL_BYTES, REGISTERS, DYNAMIC_SHARED = 3, 4, 8


class DriverError(RuntimeError):
    """The CUDA driver refused a call; the text names the call, the error and what it means."""


@dataclass(frozen=True)
class Driver:
    """The CUDA driver's library, every call of it checked.

    Attributes:
        library: what ctypes made of it: an object with the functions of `SIGNATURES`.
    """

    library: Any

    def __post_init__(self) -> None:
        for function, types in SIGNATURES.items():
            getattr(self.library, function).argtypes = types

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the driver.

        Raises:
            DriverError: if it does not return success. An error of a kernel that still runs comes
                out of a later call, as everywhere in CUDA.
        """
        if code := getattr(self.library, function)(*arguments):
            texts = [c_char_p(), c_char_p()]
            for asked, text in zip(("cuGetErrorName", "cuGetErrorString"), texts, strict=True):
                getattr(self.library, asked)(code, byref(text))
            name, meaning = ((text.value or b"unknown").decode() for text in texts)
            raise DriverError(f"{function}: {name} ({code}): {meaning}")

    def enter(self) -> None:
        """Give this thread the context that torch works in, if it has none.

        Contexts belong to threads, and torch gives a new one its context no earlier than it needs
        it itself. The primary context is one for the process; torch keeps it alive.
        """
        context, device = c_void_p(), c_int()
        self.call("cuCtxGetCurrent", byref(context))
        if not context:
            self.call("cuDeviceGet", byref(device), torch.cuda.current_device())
            self.call("cuDevicePrimaryCtxRetain", byref(context), device)
            self.call("cuCtxSetCurrent", context)

    def attribute(self, number: int, device: torch.device | int) -> int:
        """The CUdevice_attribute `number` of a device, counted or given as torch does."""
        index = device.index if isinstance(device, torch.device) else device
        handle, value = c_int(), c_int()
        index = torch.cuda.current_device() if index is None else index
        self.call("cuDeviceGet", byref(handle), index)
        self.call("cuDeviceGetAttribute", byref(value), number, handle)
        return value.value


@cache
def find() -> tuple[Driver | None, str]:
    """The driver and the name of its library; or None, and why."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return Driver(ctypes.CDLL(name)), name
    except (OSError, AttributeError) as error:  # absent; or so old that it misses a function
        return None, f"the CUDA driver cannot be loaded: {error}"


def shared_limit(device: torch.device | int, driver: Driver | None = None) -> int:
    """How many bytes of shared memory one thread block may have there, if it asks for them."""
    return _present(driver).attribute(SHARED_LIMIT, device)


def multiprocessors(device: torch.device | int, driver: Driver | None = None) -> int:
    """How many streaming multiprocessors the device has."""
    return _present(driver).attribute(MULTIPROCESSORS, device)


class Module:
    """Compiled code, loaded on the current device; load it once for each device.

    It is never unloaded: at the end of a process the driver may be gone before Python's objects
    are, and a call of it then would crash. The memory goes back with the context.
    """

    def __init__(self, image: bytes, driver: Driver | None = None) -> None:
        """Load `image`, a cubin or PTX (see `nvrtc.compile`), with the driver of this machine.

        Raises:
            DriverError: if there is no driver, or the image is not for this device or driver.
        """
        self.driver, self.handle = _present(driver), c_void_p()
        self.driver.enter()
        self.driver.call("cuModuleLoadData", byref(self.handle), image)

    def function(self, name: str) -> Function:
        """The kernel called `name`, which the source declares extern "C".

        Raises:
            DriverError: if there is none.
        """
        handle = c_void_p()
        self.driver.enter()
        self.driver.call("cuModuleGetFunction", byref(handle), self.handle, name.encode())
        return Function(self.driver, handle)


@dataclass(frozen=True)
class Function:
    """A kernel of a `Module`; it is launched on the device that the module was loaded on."""

    driver: Driver
    handle: c_void_p

    def allow_shared(self, size: int) -> None:
        """Permit launches with `size` bytes of dynamic shared memory, where 48 KiB is the default.

        Raises:
            DriverError: if that and what the kernel declares exceed `shared_limit`.
        """
        self.driver.enter()
        self.driver.call("cuFuncSetAttribute", self.handle, DYNAMIC_SHARED, size)

    def registers(self) -> int:
        """How many registers each thread uses."""
        return self._attribute(REGISTERS)

    def local_bytes(self) -> int:
        """How many bytes of local memory each thread uses: its arrays, and spilled registers."""
        return self._attribute(LOCAL_BYTES)

    def launch(
        self,
        grid: int | tuple[int, int, int],
        block: int | tuple[int, int, int],
        shared_bytes: int,
        stream: int,
        *arguments: Any,
    ) -> None:
        """Put the kernel into a stream, and return at once.

        Args:
            grid: thread blocks, in one dimension or three; at least one.
            block: threads in each of them, likewise.
            shared_bytes: of dynamic shared memory; beyond 48 KiB see `allow_shared`.
            stream: a handle, as in `torch.cuda.current_stream().cuda_stream`. The tensors that the
                kernel uses belong to that stream, or are kept alive until it is done.
            arguments: the kernel's, as ctypes values or structures of exactly the C types. They are
                copied here.

        Raises:
            DriverError: if the launch is refused.
        """
        self.driver.enter()
        places = (c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        size = (*_three(grid), *_three(block), shared_bytes)
        self.driver.call("cuLaunchKernel", self.handle, *size, stream, places, None)

    def _attribute(self, number: int) -> int:
        value = c_int()
        self.driver.enter()
        self.driver.call("cuFuncGetAttribute", byref(value), number, self.handle)
        return value.value


def _present(driver: Driver | None) -> Driver:
    found, why = (driver, "") if driver is not None else find()
    if found is None:
        raise DriverError(why)
    return found


def _three(size: int | tuple[int, int, int]) -> tuple[int, int, int]:
    return (size, 1, 1) if isinstance(size, int) else size
