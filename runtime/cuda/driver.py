"""What posekit needs of CUDA, and nothing else. Every provider implements Driver over one library."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Device:
    """sm: compute capability as one number, 87 for 8.7.  driver_version: of CUDA, as the driver has it."""

    name: str
    sm: int
    memory_bytes: int
    driver_version: str


class Driver(Protocol):
    """One GPU. Device pointers, streams, events and graphs are integers of the driver that made them.

    Every call happens inside `current()`. All of them raise BackendError with CUDA's own words. Copies are only
    enqueued: neither side of one may be touched before `synchronise`.
    """

    @property
    def provider(self) -> str:
        """Library and version."""

    @property
    def device(self) -> Device: ...

    @property
    def no_graphs(self) -> str | None:
        """Why this provider captures no CUDA graphs, or None."""

    def current(self) -> AbstractContextManager[None]:
        """This GPU's primary context, which TensorRT uses, for this thread; the one before comes back after it."""

    def allocate(self, size_bytes: int) -> int:
        """Device memory, aligned to 256 bytes."""

    def free(self, pointer: int) -> None: ...

    def pinned(self, size_bytes: int) -> Bytes:
        """Page-locked host memory, given back when the last view of it goes."""

    def stream(self) -> int:
        """A new stream that does not wait for the default one."""

    def destroy_stream(self, stream: int) -> None: ...

    def copy_to_device(self, pointer: int, array: Array, stream: int) -> None:
        """array: contiguous; asynchronous when it is pinned."""

    def copy_to_host(self, array: Array, pointer: int, stream: int) -> None:
        """array: contiguous and pinned."""

    def synchronise(self, stream: int) -> None:
        """Wait until all that was enqueued is done."""

    def event(self) -> int: ...

    def destroy_event(self, event: int) -> None: ...

    def record(self, event: int, stream: int) -> None: ...

    def elapsed_ms(self, start: int, end: int) -> float:
        """Between two events that are done."""

    def begin_capture(self, stream: int) -> None:
        """What is enqueued from now on is recorded and not done."""

    def end_capture(self, stream: int) -> int:
        """The recorded graph, ready to launch."""

    def launch(self, graph: int, stream: int) -> None: ...

    def destroy_graph(self, graph: int) -> None: ...
