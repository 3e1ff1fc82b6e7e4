"""A GPU that exists in NumPy and forgives nothing: what CUDA leaves undefined is an error here.

Work is done as late as CUDA allows, at `synchronise`. A host buffer that a copy will write holds NaN until then, and one
that a copy will read is read only then, so touching either too early gives wrong numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt

from posekit.runtime.cuda.driver import Device
from posekit.runtime.errors import BackendError

Array = npt.NDArray[Any]
POISON = 0xFF  # NaN as float16 and float32, -1 as an integer


class Violation(AssertionError):
    """A use of CUDA or TensorRT that their documentation forbids or leaves undefined."""


@dataclass(frozen=True, eq=False)
class Operation:
    """One thing that a stream does. reads, writes: device pointers."""

    what: str
    do: Callable[[], None]
    reads: frozenset[int] = frozenset()
    writes: frozenset[int] = frozenset()


class SimulatedCuda:
    """Implements posekit.runtime.cuda.driver.Driver."""

    provider = "simulation"
    device = Device("Simulated GPU", 87, 8 << 30, "12.6")

    def __init__(self, *, no_graphs: str | None = None, memory_bytes: int = 1 << 30) -> None:
        self.no_graphs, self.free_bytes = no_graphs, memory_bytes
        self.memory: dict[int, Array] = {}
        self.streams: dict[int, list[Operation]] = {}
        self.events: dict[int, float | None] = {}
        self.graphs: dict[int, tuple[Operation, ...]] = {}
        self.captures: dict[int, list[Operation]] = {}
        self.copies: list[str] = []  # of every copy: "h2d" or "d2h" and its bytes
        self._numbers, self._clock = count(0x1000, 0x100), count()
        self._threads = threading.local()

    @contextmanager
    def current(self) -> Iterator[None]:
        self._threads.depth = getattr(self._threads, "depth", 0) + 1
        try:
            yield
        finally:
            self._threads.depth -= 1

    def allocate(self, size_bytes: int) -> int:
        self._check("allocate", while_capturing=False)
        if size_bytes > self.free_bytes:
            raise BackendError(
                "CUDA cuMemAlloc", got="CUDA_ERROR_OUT_OF_MEMORY", expected="CUDA_SUCCESS", remedy="Close programs."
            )
        self.free_bytes -= size_bytes
        pointer = next(self._numbers)
        self.memory[pointer] = np.full(size_bytes, POISON, np.uint8)
        return pointer

    def free(self, pointer: int) -> None:
        self._check("free", while_capturing=False)
        for operation in (o for queue in self.streams.values() for o in queue):
            if pointer in operation.reads | operation.writes:
                raise Violation(f"freed {pointer:#x} before {operation.what} was done")
        self.free_bytes += self.at(pointer).size
        del self.memory[pointer]

    def pinned(self, size_bytes: int) -> Array:
        self._check("pinned", while_capturing=False)
        return np.full(size_bytes, POISON, np.uint8)

    def stream(self) -> int:
        self._check("stream", while_capturing=False)
        return self._new(self.streams, [])

    def destroy_stream(self, stream: int) -> None:
        self._check("destroy_stream", while_capturing=False)
        if self.queue(stream):
            raise Violation("destroyed a stream with work in it")
        del self.streams[stream]

    def copy_to_device(self, pointer: int, array: Array, stream: int) -> None:
        self._check("copy_to_device")
        target = self._room(pointer, array)
        source = array.reshape(-1).view(np.uint8)

        def do() -> None:
            target[: source.size] = source

        self.copies.append(f"h2d {array.nbytes}")
        self.enqueue(stream, Operation("a copy to the device", do, writes=frozenset([pointer])))

    def copy_to_host(self, array: Array, pointer: int, stream: int) -> None:
        self._check("copy_to_host")
        source = self._room(pointer, array)
        target = array.reshape(-1).view(np.uint8)
        if not np.shares_memory(target, array):
            raise Violation("copied to the host into a temporary")
        target[:] = POISON

        def do() -> None:
            target[:] = source[: target.size]

        self.copies.append(f"d2h {array.nbytes}")
        self.enqueue(stream, Operation("a copy to the host", do, reads=frozenset([pointer])))

    def synchronise(self, stream: int) -> None:
        self._check("synchronise", while_capturing=False)
        queue = self.queue(stream)
        while queue:
            queue.pop(0).do()

    def event(self) -> int:
        self._check("event")
        return self._new(self.events, None)

    def destroy_event(self, event: int) -> None:
        self._check("destroy_event")
        del self.events[event]

    def record(self, event: int, stream: int) -> None:
        self._check("record")
        self.events[event] = None

        def do() -> None:
            self.events[event] = float(next(self._clock))

        self.enqueue(stream, Operation("an event", do))

    def elapsed_ms(self, start: int, end: int) -> float:
        self._check("elapsed_ms")
        times = self.events[start], self.events[end]
        if times[0] is None or times[1] is None:
            raise Violation("asked for the time of an event that has not happened")
        return times[1] - times[0]

    def begin_capture(self, stream: int) -> None:
        self._check("begin_capture", while_capturing=False)
        self.queue(stream)
        self.captures[stream] = []

    def end_capture(self, stream: int) -> int:
        self._check("end_capture")
        return self._new(self.graphs, tuple(self.captures.pop(stream)))

    def launch(self, graph: int, stream: int) -> None:
        self._check("launch")
        for operation in self.graphs[graph]:
            for pointer in operation.reads | operation.writes:
                self.at(pointer)
            self.enqueue(stream, operation)

    def destroy_graph(self, graph: int) -> None:
        self._check("destroy_graph", while_capturing=False)
        del self.graphs[graph]

    def enqueue(self, stream: int, operation: Operation) -> None:
        """Without events between streams, nothing orders two streams that touch the same memory."""
        if stream in self.captures:
            self.captures[stream].append(operation)
            return
        for other, queue in self.streams.items():
            for pending in queue if other != stream else ():
                if operation.writes & (pending.reads | pending.writes) or operation.reads & pending.writes:
                    raise Violation(f"{operation.what} races with {pending.what} of another stream")
        self.queue(stream).append(operation)

    def queue(self, stream: int) -> list[Operation]:
        if stream not in self.streams:
            raise Violation(f"stream {stream} is the default one, or none")
        return self.streams[stream]

    def at(self, pointer: int) -> Array:
        if pointer not in self.memory:
            raise Violation(f"pointer {pointer:#x} was freed or never allocated")
        return self.memory[pointer]

    def _room(self, pointer: int, array: Array) -> Array:
        if not array.flags.c_contiguous or array.nbytes > self.at(pointer).size:
            raise Violation(f"copied {array.nbytes} bytes, scattered or past the end of {self.at(pointer).size}")
        return self.at(pointer)

    def _new(self, table: dict[int, Any], value: Any) -> int:
        number = next(self._numbers)
        table[number] = value
        return number

    def _check(self, what: str, *, while_capturing: bool = True) -> None:
        if getattr(self._threads, "depth", 0) < 1:
            raise Violation(f"{what} without a current context in this thread")
        if self.captures and not while_capturing:
            raise Violation(f"{what} while a stream is captured")
