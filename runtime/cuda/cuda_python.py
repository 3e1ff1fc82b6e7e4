"""The driver API through NVIDIA's cuda-bindings; needs no compiler, and no CUDA toolkit."""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np

from posekit.runtime.cuda.driver import Array, Bytes, Device
from posekit.runtime.errors import BackendError

REMEDY_INSTALL = "pip install 'cuda-bindings>=12.9' (JetPack 6: also '<13')"
LIBCUDA = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"  # as the bindings look for it
NO_LIBCUDA = "no libcuda, which NVIDIA's driver brings"
REMEDY_DRIVER = "Install NVIDIA's driver (Jetson: flash JetPack 6.1 or later), or take backend openvino or onnxruntime."


def missing() -> str | None:
    """Why this provider cannot be imported, or None. Looks, does not import."""
    try:
        found = find_spec("cuda.bindings")
    except ModuleNotFoundError:  # no package `cuda` at all
        found = None
    return None if found else f"the package cuda-bindings is not installed ({REMEDY_INSTALL})"


class CudaPythonDriver:
    """Implements posekit.runtime.cuda.driver.Driver."""

    no_graphs = None

    def __init__(self, index: int = 0) -> None:
        """index: of the GPU. Raises BackendError: no package, no driver, no such GPU."""
        _check_libcuda()
        import cuda.bindings

        self.provider = f"cuda-bindings {cuda.bindings.__version__}"
        self._cuda = _imported()
        self._call("cuInit", 0)
        device = self._call("cuDeviceGet", index)
        self._context = self._call("cuDevicePrimaryCtxRetain", device)
        attribute = self._cuda.CUdevice_attribute
        major = self._call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
        minor = self._call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
        version = self._call("cuDriverGetVersion")
        self.device = Device(
            self._call("cuDeviceGetName", 256, device).split(b"\0")[0].decode(),
            10 * major + minor,
            self._call("cuDeviceTotalMem", device),
            f"{version // 1000}.{version % 1000 // 10}",
        )

    @contextmanager
    def current(self) -> Iterator[None]:
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def allocate(self, size_bytes: int) -> int:
        return int(self._call("cuMemAlloc", max(size_bytes, 1)))

    def free(self, pointer: int) -> None:
        self._call("cuMemFree", pointer)

    def pinned(self, size_bytes: int) -> Bytes:
        pointer = int(self._call("cuMemHostAlloc", max(size_bytes, 1), 0))
        memory = _HostMemory(pointer, size_bytes)
        weakref.finalize(memory, self._free_pinned, pointer).atexit = False
        return np.asarray(memory)

    def _free_pinned(self, pointer: int) -> None:
        with self.current():
            self._call("cuMemFreeHost", pointer)

    def stream(self) -> int:
        return int(self._call("cuStreamCreate", int(self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)))

    def destroy_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy", stream)

    def copy_to_device(self, pointer: int, array: Array, stream: int) -> None:
        self._call("cuMemcpyHtoDAsync", pointer, array.ctypes.data, array.nbytes, stream)

    def copy_to_host(self, array: Array, pointer: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, pointer, array.nbytes, stream)

    def synchronise(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def event(self) -> int:
        return int(self._call("cuEventCreate", 0))

    def destroy_event(self, event: int) -> None:
        self._call("cuEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        self._call("cuEventRecord", event, stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        return float(self._call("cuEventElapsedTime", start, end))

    def begin_capture(self, stream: int) -> None:
        # Thread-local: other threads may go on allocating.
        self._call("cuStreamBeginCapture", stream, self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        graph = self._call("cuStreamEndCapture", stream)
        try:
            return int(self._call("cuGraphInstantiate", graph, 0))
        finally:
            self._call("cuGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", graph)

    def _call(self, function: str, *arguments: Any) -> Any:
        """The value that the function gives beside its error code."""
        try:
            code, *values = getattr(self._cuda, function)(*arguments)
        except RuntimeError as error:  # the bindings' way of saying that libcuda or this function is not there
            absent = type(error).__name__ == "DynamicLibNotFoundError"
            got = NO_LIBCUDA if absent else f"{function}: {str(error).splitlines()[0]}"
            raise BackendError("CUDA", got=got, expected="an NVIDIA driver", remedy=REMEDY_DRIVER) from error
        if int(code) != 0:
            raise BackendError(f"CUDA {function}", got=code.name, expected="CUDA_SUCCESS", remedy=_remedy(code.name))
        return values[0] if values else None


class _HostMemory:
    """Lets NumPy look into memory that it does not own, and keeps it as long as a view lives."""

    def __init__(self, pointer: int, size_bytes: int) -> None:
        self.__array_interface__ = {"shape": (size_bytes,), "typestr": "|u1", "data": (pointer, False), "version": 3}


def _check_libcuda() -> None:
    """Asked before the bindings are imported, which takes as long as opening the sessions of another backend."""
    try:
        ctypes.CDLL(LIBCUDA)
    except OSError as error:
        got = f"{NO_LIBCUDA} ({error})"
        raise BackendError("CUDA", got=got, expected="an NVIDIA driver", remedy=REMEDY_DRIVER) from error


def _imported() -> Any:
    try:
        from cuda.bindings import driver
    except (ImportError, OSError) as error:
        raise BackendError(
            "cuda-bindings", got=error, expected="the package cuda-bindings", remedy=REMEDY_INSTALL
        ) from error
    return driver


def _remedy(code: str) -> str:
    if "MEMORY" in code:
        return "Close other programs on the GPU, or feed smaller batches."
    if code in ("CUDA_ERROR_NO_DEVICE", "CUDA_ERROR_INVALID_DEVICE", "CUDA_ERROR_UNKNOWN"):
        return "Check nvidia-smi (Jetson: reboot), or take backend openvino or onnxruntime."
    return "Run `posekit doctor`; the code is CUDA's own."
