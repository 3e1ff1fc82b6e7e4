"""Stand-ins for the two libraries that reach CUDA, with the names and results that the real ones have.

They do everything at once in host memory, so they show that the providers call the right functions with the right
arguments, and nothing about order: that is simulated_cuda's part.
"""

from __future__ import annotations

import ctypes
import enum
from itertools import count
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2


class Memory:
    """Addresses of host memory that plays the device's, until it is freed."""

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}

    def new(self, size: int) -> int:
        block = np.full(size, 0xFF, np.uint8)
        self.blocks[block.ctypes.data] = block
        return int(block.ctypes.data)


class Bindings(ModuleType):
    """cuda.bindings.driver: every function gives (CUresult, *values)."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major", CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor"
    )
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread-local")

    def __init__(self) -> None:
        super().__init__("cuda.bindings.driver")
        self.memory, self.pushed, self.open, self._numbers = Memory(), 0, set[int](), count(100)

    def __getattr__(self, name: str) -> Any:
        """Handles: created, used, destroyed once."""
        makes = {"cuStreamCreate", "cuEventCreate", "cuStreamEndCapture", "cuGraphInstantiate"}
        ends = {"cuStreamDestroy", "cuEventDestroy", "cuGraphDestroy", "cuGraphExecDestroy"}
        uses = {"cuStreamSynchronize", "cuEventRecord", "cuStreamBeginCapture", "cuGraphLaunch"}

        def call(*arguments: Any) -> tuple[Any, ...]:
            if name in makes:
                self.open.add(number := next(self._numbers))
                return CUresult.CUDA_SUCCESS, number
            if arguments[0] not in self.open:
                return (CUresult.CUDA_ERROR_INVALID_VALUE, None)
            if name in ends:
                self.open.remove(arguments[0])
            return (CUresult.CUDA_SUCCESS,)

        if name not in makes | ends | uses:
            raise AttributeError(name)
        return call

    def cuInit(self, flags: int) -> Any:
        return (CUresult.CUDA_SUCCESS,)

    def cuDeviceGet(self, index: int) -> Any:
        return CUresult.CUDA_SUCCESS, index

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        return CUresult.CUDA_SUCCESS, 7

    def cuDeviceGetAttribute(self, which: str, device: int) -> Any:
        return CUresult.CUDA_SUCCESS, {"major": 8, "minor": 7}[which]

    def cuDriverGetVersion(self) -> Any:
        return CUresult.CUDA_SUCCESS, 12060

    def cuDeviceGetName(self, length: int, device: int) -> Any:
        return CUresult.CUDA_SUCCESS, b"Stand-in".ljust(length, b"\0")

    def cuDeviceTotalMem(self, device: int) -> Any:
        return CUresult.CUDA_SUCCESS, 8 << 30

    def cuCtxPushCurrent(self, context: int) -> Any:
        self.pushed += 1
        return (CUresult.CUDA_SUCCESS,)

    def cuCtxPopCurrent(self) -> Any:
        self.pushed -= 1
        return CUresult.CUDA_SUCCESS, 7

    def cuMemAlloc(self, size: int) -> Any:
        if size > 1 << 30:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        return CUresult.CUDA_SUCCESS, self.memory.new(size)

    def cuMemHostAlloc(self, size: int, flags: int) -> Any:
        return self.cuMemAlloc(size)

    def cuMemFree(self, pointer: int) -> Any:
        del self.memory.blocks[pointer]
        return (CUresult.CUDA_SUCCESS,)

    cuMemFreeHost = cuMemFree

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> Any:
        ctypes.memmove(target, source, size)
        return (CUresult.CUDA_SUCCESS if stream in self.open else CUresult.CUDA_ERROR_INVALID_VALUE,)

    cuMemcpyDtoHAsync = cuMemcpyHtoDAsync

    def cuEventElapsedTime(self, start: int, end: int) -> Any:
        return CUresult.CUDA_SUCCESS, float(end - start)


class Pycuda(ModuleType):
    """pycuda.driver, as its wrapper's source of 2026.1 names things; objects instead of handles."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        memory, numbers, stack = Memory(), count(1), list[Any]()
        self.memory, self.stack = memory, stack
        error = Pycuda.Error

        class Context:
            def push(self) -> None:
                stack.append(self)

            @staticmethod
            def pop() -> None:
                stack.pop()

        class Device:
            def __init__(self, index: int) -> None:
                self.name, self.compute_capability = (lambda: "Stand-in"), (lambda: (8, 7))
                self.retain_primary_context, self.total_memory = Context, (lambda: 8 << 30)

        class DeviceAllocation:
            def __init__(self, size: int) -> None:
                if size > 1 << 30:
                    raise error("cuMemAlloc failed: out of memory")
                self.address = memory.new(size)

            def __int__(self) -> int:
                return self.address

            def free(self) -> None:
                del memory.blocks[self.address]

        class Stream:
            def __init__(self, flags: int) -> None:
                self.handle = next(numbers)

            def synchronize(self) -> None:
                pass

        class Event:
            def record(self, stream: Stream) -> Event:
                self.time = next(numbers)
                return self

            def time_till(self, other: Event) -> float:
                return float(other.time - self.time)

        self.Context, self.Device, self.mem_alloc = Context, Device, DeviceAllocation
        self.Stream, self.Event = Stream, Event

    def init(self) -> None:
        pass

    def get_driver_version(self) -> int:
        return 12060

    def pagelocked_empty(self, shape: int, dtype: Any) -> Any:
        return np.empty(shape, dtype)

    def memcpy_htod_async(self, target: int, source: Any, stream: Any) -> None:
        ctypes.memmove(target, source.ctypes.data, source.nbytes)

    def memcpy_dtoh_async(self, target: Any, source: int, stream: Any) -> None:
        ctypes.memmove(target.ctypes.data, source, target.nbytes)
