"""PyCUDA: for systems that have it installed already. Its objects are kept here, so that callers see integers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from typing import Any

import numpy as np

from posekit.runtime.cuda.driver import Array, Bytes, Device
from posekit.runtime.errors import BackendError

REMEDY_INSTALL = "pip install pycuda, which needs nvcc, or pip install cuda-bindings, which needs no compiler"


def missing() -> str | None:
    """Why this provider cannot be imported, or None. Looks, does not import."""
    return None if find_spec("pycuda") else f"the package pycuda is not installed ({REMEDY_INSTALL})"


class PycudaDriver:
    """Implements posekit.runtime.cuda.driver.Driver."""

    no_graphs = "pycuda has no CUDA graphs; cuda-bindings has"

    def __init__(self, index: int = 0) -> None:
        """index: of the GPU. Raises BackendError: no package, no driver, no such GPU."""
        self._cuda = _imported()
        with self._errors("device"):
            self._cuda.init()
            device = self._cuda.Device(index)
            self._context = device.retain_primary_context()  # TensorRT's; a context of its own would hide its memory
            major, minor = device.compute_capability()
            version = self._cuda.get_driver_version()
            self.device = Device(
                device.name(),
                10 * major + minor,
                device.total_memory(),
                f"{version // 1000}.{version % 1000 // 10}",
            )
        self.provider = f"pycuda {'.'.join(map(str, self._version()))}"
        self._memory: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        self._events: dict[int, Any] = {}
        self._event_numbers = count(1)

    @contextmanager
    def current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            self._cuda.Context.pop()

    def allocate(self, size_bytes: int) -> int:
        with self._errors("mem_alloc"):
            memory = self._cuda.mem_alloc(max(size_bytes, 1))
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, pointer: int) -> None:
        with self._errors("free"):
            self._memory.pop(pointer).free()

    def pinned(self, size_bytes: int) -> Bytes:
        with self._errors("pagelocked_empty"):
            memory: Bytes = self._cuda.pagelocked_empty(max(size_bytes, 1), np.uint8)
        return memory[:size_bytes]

    def stream(self) -> int:
        with self._errors("Stream"):
            stream = self._cuda.Stream(NON_BLOCKING)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        del self._streams[stream]

    def copy_to_device(self, pointer: int, array: Array, stream: int) -> None:
        with self._errors("memcpy_htod_async"):
            self._cuda.memcpy_htod_async(pointer, array, self._streams[stream])

    def copy_to_host(self, array: Array, pointer: int, stream: int) -> None:
        with self._errors("memcpy_dtoh_async"):
            self._cuda.memcpy_dtoh_async(array, pointer, self._streams[stream])

    def synchronise(self, stream: int) -> None:
        with self._errors("synchronize"):
            self._streams[stream].synchronize()

    def event(self) -> int:
        number = next(self._event_numbers)
        with self._errors("Event"):
            self._events[number] = self._cuda.Event()
        return number

    def destroy_event(self, event: int) -> None:
        del self._events[event]

    def record(self, event: int, stream: int) -> None:
        with self._errors("record"):
            self._events[event].record(self._streams[stream])

    def elapsed_ms(self, start: int, end: int) -> float:
        with self._errors("time_till"):
            return float(self._events[start].time_till(self._events[end]))

    def begin_capture(self, stream: int) -> None:
        raise self._without_graphs()

    def end_capture(self, stream: int) -> int:
        raise self._without_graphs()

    def launch(self, graph: int, stream: int) -> None:
        raise self._without_graphs()

    def destroy_graph(self, graph: int) -> None:
        raise self._without_graphs()

    def _without_graphs(self) -> BackendError:
        return BackendError(
            "CUDA graph", got=self.no_graphs, expected="cuda-bindings", remedy="Enqueue without a graph."
        )

    def _version(self) -> tuple[int, ...]:
        import pycuda

        return tuple(pycuda.VERSION)

    @contextmanager
    def _errors(self, function: str) -> Iterator[None]:
        try:
            yield
        except self._cuda.Error as error:
            raise BackendError(
                f"pycuda {function}",
                got=f"{type(error).__name__}: {error}",
                expected="CUDA_SUCCESS",
                remedy="Check nvidia-smi (Jetson: reboot), or feed smaller batches if memory ran out.",
            ) from error


NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING, which pycuda does not name


def _imported() -> Any:
    """pycuda's extension module is linked against libcuda, so that a missing driver is an ImportError."""
    try:
        import pycuda.driver
    except (ImportError, OSError) as error:
        raise BackendError(
            "pycuda", got=error, expected="the package pycuda and an NVIDIA driver", remedy=REMEDY_INSTALL
        ) from error
    return pycuda.driver
