"""The clock that durations are taken from, tried before anything is measured with it.

What is tried is the clock itself, not what the system says of it: virtual machines and old kernels have said too much.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from posekit.runtime.errors import ClockError

NowNs = Callable[[], int]
READINGS = 20_000  # some milliseconds of a usual clock
MAX_READINGS = 2_000_000  # a second or so, until a coarse clock has made enough steps
MIN_STEPS = 20
MAX_STEP_NS = 1_000  # one per cent of the shortest stage that matters, a crop of 0.1 ms


@dataclass(frozen=True)
class Clock:
    """step_ns: the smallest difference between two readings that differ; a duration is not known better."""

    name: str
    step_ns: int


def checked_clock(now_ns: NowNs = time.perf_counter_ns, name: str = "perf_counter") -> Clock:
    """ClockError for a clock that goes backwards, stands still, or whose steps are longer than MAX_STEP_NS."""
    readings = [now_ns() for _ in range(READINGS)]
    while readings[-1] - readings[0] < MIN_STEPS * MAX_STEP_NS and len(readings) < MAX_READINGS:
        readings += [now_ns() for _ in range(READINGS)]
    differences = [after - before for before, after in pairwise(readings)]
    steps = [difference for difference in differences if difference > 0]
    if min(differences) < 0:
        raise _refused(name, f"a step of {-min(differences)} ns backwards", "readings that never go back")
    if not steps:
        raise _refused(name, f"the same reading {len(readings)} times", "a clock that goes on")
    if min(steps) > MAX_STEP_NS:
        raise _refused(name, f"steps of {min(steps)} ns", f"steps of {MAX_STEP_NS} ns or less")
    return Clock(name, min(steps))


def _refused(name: str, got: str, expected: str) -> ClockError:
    remedy = "Choose another clock source (/sys/devices/system/clocksource), or measure on a machine with a good one."
    return ClockError(f"clock {name}", got=got, expected=expected, remedy=remedy)
