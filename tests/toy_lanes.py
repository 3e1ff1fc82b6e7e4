"""A lane whose frames take as long as a test says, on a clock that only the test moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count

import numpy as np
import pytest

from posekit.benchmarks.bench.frames import HeldFrames
from posekit.benchmarks.bench.lane import WAIT, Passed
from posekit.runtime.errors import BackendError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.sources import Frame

MS = 1_000_000
READING_NS = 1_000  # a clock that stood still while it is read would never come to the end of a wait
CAMERA = Intrinsics(np.array([[100.0, 0, 8], [0, 100, 6], [0, 0, 1]]), 16, 12)


class ToyClock:
    """Moved by what takes time: frames, sleeps, and a microsecond per reading."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 10**12
        monkeypatch.setattr(time, "perf_counter_ns", self._read)
        monkeypatch.setattr(time, "sleep", lambda seconds: self.pass_ns(round(seconds * 1e9)))

    def pass_ns(self, duration_ns: int) -> None:
        self.now_ns += duration_ns

    def _read(self) -> int:
        self.pass_ns(READING_NS)
        return self.now_ns


class ToyLane:
    """duration_ms: number of the pass, frame -> milliseconds.  fails_at: the pass in which the device is gone."""

    def __init__(
        self,
        clock: ToyClock,
        duration_ms: Callable[[int, Frame], float],
        fails_at: int | None = None,
        error: BaseException | None = None,
    ) -> None:
        self._clock, self._duration_ms, self._fails_at = clock, duration_ms, fails_at
        self._error = error or BackendError("session", got="a lost device", expected="a device", remedy="Plug it in.")
        self._passes = count()
        self.frames: list[int] = []

    def run(self, frame: Frame, objects: int | None = None, arrived_ns: int | None = None) -> Passed:
        number = next(self._passes)
        if number == self._fails_at:
            raise self._error
        self.frames.append(frame.index)
        begin_ns = time.perf_counter_ns()
        duration_ns = round(self._duration_ms(number, frame) * MS)
        self._clock.pass_ns(duration_ns)
        start_ns = begin_ns if arrived_ns is None else arrived_ns
        waited = {} if arrived_ns is None else {WAIT: begin_ns - arrived_ns}
        total_ns = begin_ns + duration_ns - start_ns
        return Passed(start_ns, total_ns, waited | {"network": duration_ns}, {}, 1 if objects is None else objects)


def toy_frames(count: int, size: tuple[int, int] = (12, 16)) -> HeldFrames:
    return HeldFrames(tuple(toy_frame(i, size) for i in range(count)), tuple(range(count)))


def toy_frame(index: int, size: tuple[int, int] = (12, 16)) -> Frame:
    return Frame(np.full((*size, 3), 40 + index % 200, np.uint8), CAMERA, f"{index}.png", index)


def spread(values: Sequence[float]) -> Callable[[int, Frame], float]:
    """Pass after pass, over and over."""
    return lambda number, frame: values[number % len(values)]
