"""How frames follow each other, and what became of them: every mode yields its passes one by one to `collected`."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np

from posekit.benchmarks.bench.frames import HeldFrames, OpenFrames, streamed
from posekit.benchmarks.bench.lane import CAPTURE, Lane, Passed
from posekit.benchmarks.bench.result import Deadlines, Drift
from posekit.benchmarks.bench.statistics import NS_PER_MS, percentile_ms
from posekit.runtime.errors import BackendError, ClockError, PosekitError

NS_PER_S = 1e9
SAY_EVERY_S = 30.0
SPIN_S = 0.002  # a sleeping process wakes late: the last of the wait is spent awake
MINUTE_S = 60.0
RSS_EVERY_S = 1.0
BYTES_PER_MB = 1e6
STATM = Path("/proc/self/statm")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Extent:
    """A mode goes on until both are reached."""

    frames: int
    seconds: float = 0.0


@dataclass(eq=False)
class Kept:
    """All passes of a mode, compactly: a soak must not grow by what it records. host, device: stage -> nanoseconds.

    objects: boxes.  reasons: how many of them have no pose, by why.  problem: why it ended before its time, or None.
    """

    start_ns: array[int] = field(default_factory=lambda: array("q"))
    total_ns: array[int] = field(default_factory=lambda: array("q"))
    host_ns: dict[str, array[int]] = field(default_factory=dict)
    device_ns: dict[str, array[int]] = field(default_factory=dict)
    objects: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    problem: str | None = None

    def __len__(self) -> int:
        return len(self.total_ns)

    @property
    def poses(self) -> int:
        return self.objects - self.reasons.total()

    def add(self, passed: Passed) -> None:
        self.start_ns.append(passed.start_ns)
        self.total_ns.append(passed.total_ns)
        self.objects += passed.objects
        self.reasons.update(reason.value for reason in passed.unposed)
        for kept, found in ((self.host_ns, passed.host_ns), (self.device_ns, passed.device_ns)):
            for name, duration_ns in found.items():
                kept.setdefault(name, array("q")).append(duration_ns)


def collected(mode: str, passes: Iterator[Passed], say: Say) -> Kept:
    """Every pass until they end, a device fails or the user stops them; what was measured until then is kept."""
    kept, start_ns = Kept(), time.perf_counter_ns()
    said_s = 0.0
    try:
        for passed in passes:
            _check_clock(passed)
            kept.add(passed)
            kept.seconds = (time.perf_counter_ns() - start_ns) / NS_PER_S
            if kept.seconds - said_s >= SAY_EVERY_S:
                said_s = kept.seconds
                say(f"{mode}: {len(kept)} frames in {kept.seconds:.0f} s")
    except PosekitError as error:
        kept.problem = f"{mode} ended after {len(kept)} frames: {error}"
    except KeyboardInterrupt:
        kept.problem = f"{mode} was stopped after {len(kept)} frames"
    return kept


def _check_clock(passed: Passed) -> None:
    least_ns = min((passed.total_ns, *passed.host_ns.values()))
    if least_ns < 0:
        raise ClockError(
            "clock", got=f"a stage of {least_ns} ns", expected="0 ns or more", remedy="Choose another clock source."
        )


def back_to_back(lane: Lane, frames: HeldFrames, extent: Extent, objects: int | None = None) -> Iterator[Passed]:
    """The next frame begins when the poses of this one are there."""
    start_ns = time.perf_counter_ns()
    for n in count():
        if n >= extent.frames and time.perf_counter_ns() - start_ns >= extent.seconds * NS_PER_S:
            return
        yield lane.run(frames[n], objects)


def sequential(lane: Lane, open_frames: OpenFrames, frames: int) -> Iterator[Passed]:
    """Each frame is read, then estimated, then the next one: what `pipelined` is held against."""
    for frame, capture_ns in streamed(open_frames, frames):
        passed = lane.run(frame)
        yield replace(passed, host_ns={CAPTURE: capture_ns, **passed.host_ns})


class Paced:
    """Frames at the rate of a camera that waits for nobody.

    Its newest frame is taken when the one before is done. Frames that came in between are dropped, as a camera with one
    buffer drops them. A frame's total is from when it came, not from when it was begun, so waiting is not forgotten.
    """

    def __init__(self, lane: Lane, frames: HeldFrames, rate_hz: float, camera_frames: int) -> None:
        self._lane, self._frames, self._camera_frames, self.rate_hz = lane, frames, camera_frames, rate_hz
        self._late, self._dropped, self._worst_late_ns = 0, 0, 0

    def __iter__(self) -> Iterator[Passed]:
        period_ns = NS_PER_S / self.rate_hz
        first_ns = time.perf_counter_ns() + round(period_ns)
        n = 0
        while n < self._camera_frames:
            due_ns = first_ns + round(n * period_ns)
            _wait_until(due_ns)
            passed = self._lane.run(self._frames[n], arrived_ns=due_ns)
            end_ns = passed.start_ns + passed.total_ns
            late_ns = end_ns - first_ns - round((n + 1) * period_ns)
            if late_ns > 0:
                self._late += 1
                self._worst_late_ns = max(self._worst_late_ns, late_ns)
            newest = int((end_ns - first_ns) // period_ns)
            following = min(max(n + 1, newest), self._camera_frames)
            self._dropped += following - n - 1
            n = following
            yield passed

    def deadlines(self, passes: int) -> Deadlines:
        """Of what the camera gave until now: `passes` that were estimated, and those that were dropped."""
        missed = self._late + self._dropped
        return Deadlines(self.rate_hz, missed, passes + self._dropped, self._worst_late_ns / NS_PER_MS, self._dropped)


def _wait_until(due_ns: int) -> None:
    left_s = (due_ns - time.perf_counter_ns()) / NS_PER_S
    if left_s > SPIN_S:
        time.sleep(left_s - SPIN_S)
    while time.perf_counter_ns() < due_ns:
        pass


class Soak:
    """Back to back for minutes, with the process's memory read every second."""

    def __init__(self, lane: Lane, frames: HeldFrames, seconds: float, minute_s: float = MINUTE_S) -> None:
        self._passes = back_to_back(lane, frames, Extent(1, seconds))
        self._minute_s = min(minute_s, seconds / 2)
        self._rss_mb: list[tuple[int, float]] = []

    def __iter__(self) -> Iterator[Passed]:
        self._rss_mb = [(time.perf_counter_ns(), resident_mb())]
        for passed in self._passes:
            now_ns = time.perf_counter_ns()
            if now_ns - self._rss_mb[-1][0] >= RSS_EVERY_S * NS_PER_S:
                self._rss_mb.append((now_ns, resident_mb()))
            yield passed
        self._rss_mb.append((time.perf_counter_ns(), resident_mb()))

    def drift(self, kept: Kept) -> Drift | None:
        """The first minute against the last, halves of what is shorter than two; None before a frame was done."""
        if not len(kept):
            return None
        start_ns, total_ns = np.asarray(kept.start_ns), np.asarray(kept.total_ns)
        minute_ns = self._minute_s * NS_PER_S
        begin_ns, end_ns = start_ns[0] + minute_ns, start_ns[-1] + total_ns[-1] - minute_ns
        first, last = total_ns[start_ns <= begin_ns], total_ns[start_ns + total_ns >= end_ns]
        rss_first = [mb for at_ns, mb in self._rss_mb if at_ns <= begin_ns]
        rss_last = [mb for at_ns, mb in self._rss_mb if at_ns >= end_ns] or [self._rss_mb[-1][1]]
        return Drift(
            percentile_ms(np.sort(first), 0.5),
            percentile_ms(np.sort(last), 0.5),
            float(np.median(rss_first)),
            float(np.median(rss_last)),
        )


def resident_mb(statm: Path = STATM) -> float:
    """Memory of this process that is in RAM. BackendError where the kernel does not say (Linux does)."""
    import resource

    try:
        return int(statm.read_text().split()[1]) * resource.getpagesize() / BYTES_PER_MB
    except (OSError, ValueError, IndexError) as error:
        raise BackendError(
            f"resident memory, {statm}", got=error, expected="pages", remedy="Soak on Linux, with /proc mounted."
        ) from error
