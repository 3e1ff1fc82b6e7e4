"""Laws of the modes, on a clock that only the test moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_lanes import MS, ToyClock, ToyLane, spread, toy_frames

from posekit.benchmarks.bench.lane import Lane, Passed
from posekit.benchmarks.bench.modes import Extent, Kept, Paced, Soak, back_to_back, collected, resident_mb
from posekit.runtime.detection import Reason
from posekit.runtime.errors import BackendError

PERIOD_MS, RATE_HZ = 20.0, 50.0
Lines = list[str]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ToyClock:
    return ToyClock(monkeypatch)


def lane(clock: ToyClock, *durations_ms: float, **options: Any) -> Lane:
    return cast(Lane, ToyLane(clock, spread(durations_ms), **options))


def paced(clock: ToyClock, camera_frames: int, *durations_ms: float) -> tuple[Any, Any]:
    passes = Paced(lane(clock, *durations_ms), toy_frames(camera_frames), RATE_HZ, camera_frames)
    kept = collected("paced", iter(passes), lambda line: None)
    return kept, passes.deadlines(len(kept))


def test_back_to_back_goes_round_the_frames_in_their_order(clock: ToyClock) -> None:
    worker = lane(clock, 5)
    kept = collected("b", back_to_back(worker, toy_frames(3), Extent(7)), lambda line: None)
    assert worker.frames == [0, 1, 2, 0, 1, 2, 0]  # type: ignore[attr-defined]
    assert list(kept.total_ns) == [5 * MS] * 7
    assert kept.seconds == pytest.approx(0.035, rel=0.01)


@pytest.mark.parametrize(("extent", "passes"), [(Extent(10, 0.0), 10), (Extent(10, 0.2), 20), (Extent(30, 0.2), 30)])
def test_a_mode_goes_on_until_frames_and_seconds_are_reached(clock: ToyClock, extent: Extent, passes: int) -> None:
    kept = collected("b", back_to_back(lane(clock, 10), toy_frames(2), extent), lambda line: None)
    assert len(kept) == passes


@pytest.mark.parametrize(
    ("error", "words"),
    [(None, "ended after 4 frames: session: got a lost device"), (KeyboardInterrupt(), "was stopped after 4 frames")],
)
def test_what_was_measured_before_the_end_is_kept(clock: ToyClock, error: BaseException | None, words: str) -> None:
    worker = lane(clock, 3, fails_at=4, error=error)
    kept = collected("b", back_to_back(worker, toy_frames(2), Extent(9)), lambda line: None)
    assert list(kept.total_ns) == [3 * MS] * 4
    assert kept.problem is not None
    assert words in kept.problem


def test_a_clock_that_goes_back_meanwhile_ends_it(clock: ToyClock) -> None:
    worker = lane(clock, 3, 3, 3, -1)
    kept = collected("b", back_to_back(worker, toy_frames(2), Extent(9)), lambda line: None)
    assert list(kept.total_ns) == [3 * MS] * 3
    assert "b ended after 3 frames: clock: got a stage of -1000000 ns" in str(kept.problem)


def test_a_mistake_of_posekit_is_no_measurement(clock: ToyClock) -> None:
    worker = lane(clock, 3, fails_at=4, error=ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        collected("b", back_to_back(worker, toy_frames(2), Extent(9)), lambda line: None)


def test_a_long_mode_says_how_far_it_is(clock: ToyClock) -> None:
    said: Lines = []
    collected("b", back_to_back(lane(clock, 10_000), toy_frames(2), Extent(9)), said.append)
    assert said == ["b: 3 frames in 30 s", "b: 6 frames in 60 s", "b: 9 frames in 90 s"]


def test_a_camera_that_is_slow_enough_loses_nothing(clock: ToyClock) -> None:
    kept, deadlines = paced(clock, 10, 5, 19)
    assert (deadlines.missed, deadlines.of, deadlines.dropped, deadlines.worst_late_ms) == (0, 10, 0, 0.0)
    assert [round(ns / MS) for ns in kept.total_ns] == [5, 19] * 5
    assert kept.seconds == pytest.approx(10 * PERIOD_MS / 1e3 + 0.019, rel=0.02)  # at the camera's rate, not its own


def test_one_late_frame_is_one_missed_deadline_and_the_next_one_has_waited(clock: ToyClock) -> None:
    """25 ms of 20: the next frame lay 5 ms in memory, which its own time begins with."""
    kept, deadlines = paced(clock, 4, 5, 25, 5, 5)
    assert (deadlines.missed, deadlines.of, deadlines.dropped) == (1, 4, 0)
    assert deadlines.worst_late_ms == pytest.approx(5, abs=0.1)
    assert [round(ns / MS) for ns in kept.total_ns] == [5, 25, 10, 5]
    assert [round(ns / MS) for ns in kept.host_ns["wait"]] == [0, 0, 5, 0]


def test_frames_that_nobody_took_are_missed_too(clock: ToyClock) -> None:
    """At 50 ms a frame of 20, about every other one is taken, and none in time."""
    kept, deadlines = paced(clock, 21, 50)
    assert deadlines.of == 21
    assert deadlines.missed == 21
    assert deadlines.dropped == 21 - len(kept)
    assert len(kept) == pytest.approx(21 * PERIOD_MS / 50, abs=2)
    assert max(kept.host_ns["wait"]) < PERIOD_MS * MS  # always the newest: never one that lay for a period


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.lists(st.floats(0.1, 120), min_size=1, max_size=8), st.integers(1, 40))
def test_every_frame_of_the_camera_is_estimated_or_dropped(
    monkeypatch: pytest.MonkeyPatch, durations_ms: list[float], camera_frames: int
) -> None:
    kept, deadlines = paced(ToyClock(monkeypatch), camera_frames, *durations_ms)
    assert len(kept) + deadlines.dropped == deadlines.of == camera_frames
    assert deadlines.dropped <= deadlines.missed <= deadlines.of
    assert (deadlines.worst_late_ms > 0) == (deadlines.missed > deadlines.dropped)
    assert all(waited >= 0 for waited in kept.host_ns["wait"])


def test_a_soak_holds_its_first_minute_against_its_last(clock: ToyClock) -> None:
    """Three minutes at 10, then 20, then 30 ms."""
    began_ns = clock.now_ns

    def slower(number: int, frame: object) -> float:
        return 10.0 * (1 + (clock.now_ns - began_ns) // (60_000 * MS))

    passes = Soak(cast(Lane, ToyLane(clock, slower)), toy_frames(4), 180.0)
    drift = passes.drift(collected("soak", iter(passes), lambda line: None))
    assert drift is not None
    assert (drift.first_p50_ms, drift.last_p50_ms) == (10.0, 30.0)
    assert drift.first_rss_mb > 0
    assert drift.last_rss_mb > 0


def test_a_short_soak_is_halved(clock: ToyClock) -> None:
    passes = Soak(lane(clock, 10, 10, 10, 10, 10, 40, 40, 40, 40), toy_frames(1), 0.2)
    drift = passes.drift(collected("soak", iter(passes), lambda line: None))
    assert drift is not None
    assert (drift.first_p50_ms, drift.last_p50_ms) == (10.0, 40.0)


def test_a_soak_that_ended_at_once_has_no_drift(clock: ToyClock) -> None:
    passes = Soak(lane(clock, 1, fails_at=0), toy_frames(1), 60.0)
    assert passes.drift(collected("soak", iter(passes), lambda line: None)) is None


def test_memory_grows_by_what_is_held(tmp_path: Path) -> None:
    before = resident_mb()
    held = bytearray(64 << 20)
    held[::4096] = b"x" * len(held[::4096])
    assert resident_mb() - before > 50
    with pytest.raises(BackendError, match="resident memory"):
        resident_mb(tmp_path / "none")


def test_what_a_frame_is_divided_by_are_its_poses() -> None:
    kept = Kept()
    kept.add(Passed(0, 5, {}, {}, 3, (Reason.NO_CONSENSUS,)))
    kept.add(Passed(9, 5, {}, {}, 1))
    assert (kept.objects, kept.poses, kept.reasons) == (4, 3, {"no_consensus": 1})
