"""Frames that count nothing, until their times stand still."""

from __future__ import annotations

import time
from collections import Counter, deque

from posekit.benchmarks.bench.frames import HeldFrames
from posekit.benchmarks.bench.lane import Lane
from posekit.benchmarks.bench.result import WarmUp
from posekit.benchmarks.bench.statistics import cov

MIN_FRAMES, MIN_S, MAX_S = 10, 0.2, 5.0
WINDOW = 10
STABLE_COV = 0.05
ROUND = 16  # frames of the first round, spread over those that are held


def warm_up(lane: Lane, frames: HeldFrames, objects: int | None = None) -> WarmUp:
    """Run until the last WINDOW passes of one frame vary by less than STABLE_COV, or MAX_S are over.

    First comes a round over the frames, so that what is prepared per number of crops is prepared; then one frame again
    and again, one with the most common number of boxes, because frames of different content differ in their times.
    Raises what running raises.
    """
    start_ns, passes, window = time.perf_counter_ns(), 0, deque[int](maxlen=WINDOW)
    spread = frames.frames[:: -(-len(frames) // ROUND)]
    counts: list[int] = []
    steady = frames[0]
    while True:
        in_round = passes < len(spread)
        passed = lane.run(spread[passes] if in_round else steady, objects)
        passes += 1
        if in_round:
            counts.append(passed.objects)
            if passes == len(spread):
                steady = spread[counts.index(Counter(counts).most_common(1)[0][0])]
        else:
            window.append(passed.total_ns)
        seconds = (time.perf_counter_ns() - start_ns) / 1e9
        spread_of_window = cov(window) if window else 0.0
        stable = len(window) == WINDOW and spread_of_window <= STABLE_COV
        if (stable and passes >= MIN_FRAMES and seconds >= MIN_S) or seconds >= MAX_S:
            return WarmUp(passes, seconds, stable, spread_of_window)
