"""Warm-up ends when times stand still, and not before enough frames and time; or it says that they did not."""

from __future__ import annotations

from typing import Any, cast

import pytest
from toy_lanes import ToyClock, ToyLane, toy_frames

from posekit.benchmarks.bench.lane import Lane
from posekit.benchmarks.bench.warm_up import MAX_S, MIN_FRAMES, MIN_S, STABLE_COV, WINDOW, warm_up


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ToyClock:
    return ToyClock(monkeypatch)


def warmed(clock: ToyClock, duration_ms: Any, frames: int = 1) -> Any:
    return warm_up(cast(Lane, ToyLane(clock, duration_ms)), toy_frames(frames))


def test_a_steady_machine_is_warm_after_the_least(clock: ToyClock) -> None:
    found = warmed(clock, lambda number, frame: 50)
    assert (found.stable, found.frames, found.cov) == (True, WINDOW + 1, 0.0)
    assert found.seconds >= MIN_S


def test_quick_frames_run_for_the_least_time(clock: ToyClock) -> None:
    found = warmed(clock, lambda number, frame: 1)
    assert found.stable
    assert found.frames > MIN_FRAMES
    assert MIN_S <= found.seconds < MIN_S + 0.01


def test_slow_first_frames_are_left_behind(clock: ToyClock) -> None:
    found = warmed(clock, lambda number, frame: 400 if number < 5 else 20)
    assert found.stable
    assert found.frames == 5 + WINDOW
    assert found.cov <= STABLE_COV


def test_frames_that_differ_from_each_other_are_no_unrest(clock: ToyClock) -> None:
    assert warmed(clock, lambda number, frame: 10 + 30 * frame.index, frames=8).stable


def test_a_machine_that_never_rests_ends_it_by_time(clock: ToyClock) -> None:
    found = warmed(clock, lambda number, frame: 10 + 10 * (number % 2))
    assert not found.stable
    assert found.cov == pytest.approx(1 / 3, abs=0.01)
    assert MAX_S <= found.seconds < MAX_S + 0.1


def test_even_frames_of_a_minute_end_it(clock: ToyClock) -> None:
    found = warmed(clock, lambda number, frame: 60_000, frames=20)
    assert (found.frames, found.stable) == (1, False)
