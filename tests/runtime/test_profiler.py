"""Stages are disjoint, whatever the code within them does."""

from __future__ import annotations

import time

import pytest

from posekit.runtime.profiler import StageProfiler


class SteppedClock:
    """Every reading is one nanosecond after the one before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ns = 0
        monkeypatch.setattr(time, "perf_counter_ns", self.read)

    def read(self) -> int:
        self.now_ns += 1
        return self.now_ns


def test_an_inner_stage_is_not_in_the_outer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outer from 1 to 6, inner from 2 to 3 and from 4 to 5: three nanoseconds are its own, and all five are counted."""
    SteppedClock(monkeypatch)
    profiler = StageProfiler()
    with profiler.stage("outer"):
        for _ in range(2):
            with profiler.stage("inner"):
                pass
    assert profiler.samples_ns == {"inner": [1, 1], "outer": [3]}


def test_a_stage_that_fails_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    SteppedClock(monkeypatch)
    profiler = StageProfiler()
    with pytest.raises(ZeroDivisionError), profiler.stage("outer"), profiler.stage("inner"):
        raise ZeroDivisionError
    with profiler.stage("next"):
        pass
    assert profiler.samples_ns == {"inner": [1], "outer": [2], "next": [1]}
