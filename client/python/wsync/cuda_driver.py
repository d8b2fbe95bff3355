"""What this package asks of the CUDA driver: allocations and their IPC handles, page-locked words, streams that wait."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any, Protocol

from .errors import MemoryNotShareable, StreamUnsupported


class Driver(Protocol):
    """What is asked of the CUDA driver. Addresses are device addresses."""

    def allocation(self, address: int) -> tuple[int, int]: ...
    def exportable(self, address: int) -> bool: ...
    def export(self, base: int) -> bytes: ...
    def uuid(self, address: int) -> str: ...


class CudaDriver:
    """libcuda through ctypes. Every call runs in the primary context of the address's own device."""

    _DEVICE_ORDINAL = 9  # CUpointer_attribute
    _LEGACY_IPC_CAPABLE = 10

    def __init__(self) -> None:
        try:
            self._cuda = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise MemoryNotShareable(
                f"a CUDA tensor cannot be exported: {error}", next_step="install the NVIDIA driver"
            ) from error
        self._call("cuInit", 0)
        self._contexts: dict[int, ctypes.c_void_p] = {}

    def _text(self, error: int) -> str:
        text = ctypes.c_char_p()
        self._cuda.cuGetErrorString(error, ctypes.byref(text))
        return f"{(text.value or b'unknown error').decode()} ({error})"

    def _call(self, function: str, *arguments: Any) -> None:
        result = getattr(self._cuda, function)(*arguments)
        if result != 0:
            raise MemoryNotShareable(
                f"{function} failed: {self._text(result)}",
                next_step="exporting needs plain cudaMalloc memory, as torch's allocator uses by default",
            )

    def _attribute(self, address: int, which: int, kind: Any) -> Any:
        value = kind()
        self._call("cuPointerGetAttribute", ctypes.byref(value), which, ctypes.c_uint64(address))
        return value.value

    def _ordinal(self, address: int) -> int:
        return int(self._attribute(address, self._DEVICE_ORDINAL, ctypes.c_int))

    def _device(self, ordinal: int) -> ctypes.c_int:
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), ordinal)
        return device

    def _context(self, ordinal: int) -> ctypes.c_void_p:
        if ordinal not in self._contexts:
            context = ctypes.c_void_p()
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device(ordinal))
            self._contexts[ordinal] = context
        return self._contexts[ordinal]

    @contextlib.contextmanager
    def _current(self, ordinal: int) -> Iterator[None]:
        """The primary context of that device is the thread's meanwhile."""
        self._call("cuCtxPushCurrent_v2", self._context(ordinal))
        try:
            yield
        finally:
            self._cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def allocation(self, address: int) -> tuple[int, int]:
        """(base, bytes) of the allocation that holds `address`."""
        base, size = ctypes.c_uint64(), ctypes.c_size_t()
        with self._current(self._ordinal(address)):  # else an address of another device than the thread's is "not found"
            self._call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(address))
        return base.value, size.value

    def exportable(self, address: int) -> bool:
        """Whether cudaIpcGetMemHandle works on it; not so for expandable segments and pools."""
        return bool(self._attribute(address, self._LEGACY_IPC_CAPABLE, ctypes.c_int))

    def export(self, base: int) -> bytes:
        """The 64 bytes of cudaIpcGetMemHandle."""
        handle = (ctypes.c_ubyte * 64)()
        with self._current(self._ordinal(base)):
            self._call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(base))
        return bytes(handle)

    def page_locked(self, ordinal: int, nbytes: int) -> tuple[int, int]:
        """(address, device address) of zeroed host memory that every GPU can read. It is never freed."""
        host, device = ctypes.c_void_p(), ctypes.c_uint64()
        portable, mapped = 1, 2  # CU_MEMHOSTALLOC_
        with self._current(ordinal):
            self._call("cuMemHostAlloc", ctypes.byref(host), ctypes.c_size_t(nbytes), portable | mapped)
            self._call("cuMemHostGetDevicePointer_v2", ctypes.byref(device), host, 0)
        address = host.value or 0
        ctypes.memset(address, 0, nbytes)
        return address, device.value

    def wait_for_word(self, ordinal: int, stream: int, address: int, value: int) -> None:
        """What `stream` gets from now on waits until the 32-bit word at the device address is at least `value`.

        "At least" by their difference as a signed number. StreamUnsupported: the GPU or its driver cannot.
        """
        try:
            wait = self._cuda.cuStreamWaitValue32_v2  # without _v2 most drivers refuse it
        except AttributeError as error:
            raise StreamUnsupported(f"the NVIDIA driver cannot let a stream wait for a word: {error}") from error
        at_least = 0
        with self._current(ordinal):
            result = wait(ctypes.c_void_p(stream), ctypes.c_uint64(address), ctypes.c_uint32(value), at_least)
        if result != 0:
            raise StreamUnsupported(f"a stream of cuda:{ordinal} cannot wait for a word: {self._text(result)}")

    def uuid(self, address: int) -> str:
        """The device's UUID as nvidia-smi prints it: "GPU-....". """
        raw = (ctypes.c_ubyte * 16)()
        self._call("cuDeviceGetUuid_v2", ctypes.byref(raw), self._device(self._ordinal(address)))
        text = bytes(raw).hex()
        return f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


_driver: CudaDriver | None = None


def cuda_driver() -> CudaDriver:
    global _driver
    if _driver is None:
        _driver = CudaDriver()
    return _driver
