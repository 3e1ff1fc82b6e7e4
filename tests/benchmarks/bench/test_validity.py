"""What speaks against a run: laws of each rule, on readings that are made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posekit.benchmarks.bench.energy import Phase
from posekit.benchmarks.bench.result import Readings
from posekit.benchmarks.bench.validity import (
    CLOCK_SHARE,
    GAP_S,
    NEEDED,
    OTHERS_SHARE,
    Change,
    Seen,
    clock_is_locked,
    gpu_was_busy,
    reasons_against,
    unlocked_clocks,
)

RUN = Phase("sequential", 0.0, 30.0)
LOCKED = {"cpu0.lowest": "2201600", "cpu0.highest": "2201600", "gpu-gpc-0.lowest": "7", "gpu-gpc-0.highest": "7"}
Values = list[float] | Callable[[float], float]


def seen(
    series: Mapping[str, Values],
    settings: Mapping[str, str] | None = None,
    changes: tuple[Change, ...] = (),
    processors: int = 4,
    uses_gpu: bool = True,
) -> Seen:
    """A reading every 0.1 s over 30 s: a function of time, or values that are spread over it. Memory is always read."""
    readings: Readings = {"memory.rss": tuple((n / 10, 100.0) for n in range(301))}
    for name, values in series.items():
        if callable(values):
            readings[name] = tuple((n / 10, values(n / 10)) for n in range(301))
        else:
            times = np.linspace(0.0, 30.0, len(values)).tolist()
            readings[name] = tuple(zip(times, values, strict=True))
    return Seen(readings, settings or {}, changes, processors, uses_gpu)


def test_a_machine_that_tells_nothing_has_no_reason_against_it() -> None:
    assert reasons_against(seen({}), [RUN]) == ()


@given(st.floats(1, 5000), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_clock_that_stands_still_has_not_moved(mhz: float, locked: bool) -> None:
    assert reasons_against(seen({"clock.cpu0": lambda t_s: mhz}, LOCKED if locked else {}), [RUN]) == ()


@given(st.floats(500, 5000), st.floats(0.3, 1 - CLOCK_SHARE - 0.01), st.floats(8, 22), st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_clock_whose_level_falls_has_moved(mhz: float, to: float, at_s: float, locked: bool) -> None:
    """For at least a quarter of the run, by more than 1 % beyond the limit; with it the limits, which nobody locked."""
    falls = seen({"clock.cpu0": lambda t_s: mhz if t_s < at_s else mhz * to}, LOCKED if locked else {})
    cpu = "cpu0" if locked else "the fastest processor"
    within = abs(1 - to) > 2 * CLOCK_SHARE  # a fall in the middle of a third is seen as half of it
    reasons = reasons_against(falls, [RUN])
    assert len(reasons) == 1 or not (locked or within)
    assert all(reason.startswith(f"sequential: the clock of {cpu} moved between ") for reason in reasons)


def test_a_locked_clock_must_not_dip_once_but_an_unlocked_one_may() -> None:
    def dips(t_s: float) -> float:
        return 1000.0 if t_s == 15.0 else 2201.6

    assert reasons_against(seen({"clock.cpu0": dips}), [RUN]) == ()
    (reason,) = reasons_against(seen({"clock.cpu0": dips}, LOCKED), [RUN])
    assert reason == "sequential: the clock of cpu0 moved between 1000 and 2202 MHz."


@pytest.mark.parametrize("seed", range(20))
def test_a_clock_that_follows_the_load_is_at_the_same_level_throughout(seed: int) -> None:
    """Up and down between two rates, as a paced run has it, by chance."""
    rates = np.random.default_rng(seed).choice([729.6, 1510.4], 301).tolist()
    assert reasons_against(seen({"clock.cpu0": rates}), [RUN]) == ()


def test_work_may_wander_between_clusters_that_follow_the_load() -> None:
    """Only if they are locked, each has to stand still."""
    wanders: dict[str, Values] = {
        "clock.cpu0": lambda t_s: 1510.4 if t_s < 15 else 729.6,
        "clock.cpu4": lambda t_s: 729.6 if t_s < 15 else 1510.4,
    }
    assert reasons_against(seen(wanders), [RUN]) == ()
    limits = {**LOCKED, "cpu4.lowest": "1", "cpu4.highest": "1"}
    assert len(reasons_against(seen(wanders, limits), [RUN])) == 2


def test_each_phase_is_judged_for_itself() -> None:
    """The clock of a paced run may be another than that of a run back to back."""
    moves = seen({"clock.cpu0": lambda t_s: 2000.0 if t_s < 15 else 1000.0})
    assert reasons_against(moves, [Phase("sequential", 0.0, 14.9), Phase("paced", 15.0, 30.0)]) == ()
    assert len(reasons_against(moves, [RUN])) == 1


def test_limits_that_are_equal_are_a_locked_clock() -> None:
    assert clock_is_locked(LOCKED, "clock.cpu0")
    assert not clock_is_locked({**LOCKED, "cpu0.highest": "9"}, "clock.cpu0")
    assert not clock_is_locked({}, "clock.cpu0")


def test_only_clocks_that_are_read_and_may_move_are_told() -> None:
    limits = {**LOCKED, "cpu0.lowest": "1", "cpu0.governor": "schedutil", "cpu1.lowest": "1", "cpu1.highest": "2"}
    read: dict[str, Values] = {"clock.cpu0": lambda t_s: 1.0, "clock.gpu-gpc-0": lambda t_s: 1.0}
    assert unlocked_clocks(seen(read, limits)) == ("cpu0 (schedutil, 1 to 2201600)",)
    assert unlocked_clocks(seen(read, LOCKED)) == ()


@pytest.mark.parametrize(("since_s", "t_s"), [(-1.0, 0.0), (11.0, 12.0), (29.5, 30.5), (-5.0, 99.0)])
def test_a_setting_that_changed_is_a_reason(since_s: float, t_s: float) -> None:
    """Also one that may have changed before the run or after it: it was not looked at in between."""
    change = Change(since_s, t_s, "cpu0.governor", "performance", "powersave")
    (reason,) = reasons_against(seen({}, changes=(change,)), [RUN])
    assert reason == "sequential: cpu0.governor went from performance to powersave."


def test_what_many_processors_do_alike_is_said_once() -> None:
    changes = tuple(Change(1.0, 2.0, f"cpu{n}.governor", "performance", "powersave") for n in range(128))
    other = Change(1.0, 2.0, "cpu0.highest", "3400000", "800000")
    assert reasons_against(seen({}, changes=(*changes, other)), [RUN]) == (
        "sequential: cpu0.governor went from performance to powersave, and so did 127 more.",
        "sequential: cpu0.highest went from 3400000 to 800000.",
    )


def test_a_setting_that_changed_before_or_after_the_run_is_none() -> None:
    changes = (Change(0.0, 1.0, "power mode", "MAXN", "15W"), Change(28.0, 29.0, "power mode", "15W", "MAXN"))
    assert reasons_against(seen({}, changes=changes), [Phase("sequential", 5.0, 25.0)]) == ()


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (0x20, "heat (software slowdown)"),
        (0x04 | 0x40, "the power limit and heat (hardware slowdown)"),
        (0x80, "the external power brake"),
    ],
)
def test_a_throttled_gpu_is_a_reason_with_its_cause(flags: int, why: str) -> None:
    up = seen({"alert.gpu0": lambda t_s: float(flags) if 10 < t_s < 11 else 0.0})
    assert reasons_against(up, [RUN]) == (f"sequential: gpu0 was throttled by {why}.",)


def test_causes_at_different_times_are_told_together() -> None:
    up = seen({"alert.gpu0": lambda t_s: 0x4 if t_s < 10 else 0x20})
    (reason,) = reasons_against(up, [RUN])
    assert "the power limit" in reason
    assert "heat" in reason


def test_a_throttle_alert_of_a_jetson_is_a_reason() -> None:
    up = seen({"alert.cpu-throttle-alert": [0.0, 0.0, 1.0, 0.0]})
    assert reasons_against(up, [RUN]) == ("sequential: cpu-throttle-alert was throttled.",)


def test_a_counter_counts_only_what_rose_during_the_run() -> None:
    assert reasons_against(seen({"count.oc3": lambda t_s: 813.0}), [RUN]) == ()
    (reason,) = reasons_against(seen({"count.oc3": lambda t_s: 813.0 + t_s // 10}), [RUN])
    assert reason == "sequential: the machine was throttled 3 times (oc3)."


def test_a_counter_that_is_read_rarely_counts_up_to_the_next_reading() -> None:
    """Read at 0, 10, 20, 30 s: what rose within 12 to 18 s is seen at 20 s."""
    rises = seen({"count.thermal-throttle": [5.0, 5.0, 9.0, 9.0]})
    assert len(reasons_against(rises, [Phase("short", 12.0, 18.0)])) == 1
    assert reasons_against(rises, [Phase("late", 22.0, 28.0)]) == ()


def test_a_throttle_state_that_stays_is_the_machine_and_one_that_moves_is_not() -> None:
    assert reasons_against(seen({"state.devfreq-gpu-gpc-0": lambda t_s: 18.0}), [RUN]) == ()
    moved = reasons_against(seen({"state.devfreq-gpu-gpc-0": lambda t_s: 18.0 + (t_s > 9)}), [RUN])
    assert moved == ("sequential: the throttle state of devfreq-gpu-gpc-0 moved between 18 and 19.",)


@given(st.floats(0, 4), st.integers(1, 64))
@settings(max_examples=50, deadline=None)
def test_others_may_use_a_share_of_the_processors(load: float, processors: int) -> None:
    reasons = reasons_against(seen({"load.others": lambda t_s: load}, processors=processors), [RUN])
    assert bool(reasons) == (float(np.mean([load] * 301)) / processors > OTHERS_SHARE)


def test_a_shared_gpu_is_a_reason_even_for_a_moment() -> None:
    shared = seen({"others.gpu0": lambda t_s: float(t_s == 7.0)})
    assert reasons_against(shared, [RUN]) == ("sequential: gpu0 was shared with 1 other process.",)


def test_a_gpu_that_the_run_does_not_use_may_do_what_it_likes() -> None:
    busy: dict[str, Values] = {
        "clock.gpu0": lambda t_s: 1980 - 50 * t_s,
        "clock.17000000.ga10b": lambda t_s: 1000 - 30 * t_s,
        "alert.gpu0": lambda t_s: 4.0,
        "alert.gpu-throttle-alert": lambda t_s: 1.0,
        "state.devfreq-17000000.gpu": lambda t_s: t_s,
        "others.gpu0": lambda t_s: 3.0,
    }
    assert reasons_against(seen(busy, uses_gpu=False), [RUN]) == ()
    assert len(reasons_against(seen(busy), [RUN])) == len(busy)


def test_another_gpu_of_the_machine_does_not_concern_the_run() -> None:
    """Where NVML tells on which one the run is; else all of them concern it."""
    busy: dict[str, Values] = {"alert.gpu1": lambda t_s: 4.0, "others.gpu1": lambda t_s: 3.0}
    owned: dict[str, Values] = {"own.gpu0": lambda t_s: float(t_s > 9), "own.gpu1": lambda t_s: 0.0}
    nobody: dict[str, Values] = {"own.gpu0": lambda t_s: 0.0, "own.gpu1": lambda t_s: 0.0}
    assert reasons_against(seen({**busy, **owned}), [RUN]) == ()
    assert len(reasons_against(seen({**busy, **nobody}), [RUN])) == 2
    assert len(reasons_against(seen(busy), [RUN])) == 2


@pytest.mark.parametrize("start_s", [0.0, 10.0, 30.0 - GAP_S - 0.5])
def test_a_time_without_readings_is_a_reason(start_s: float) -> None:
    whole = seen({"clock.cpu0": lambda t_s: 1000.0})
    end_s = start_s + GAP_S + 0.5
    cut = {n: tuple(p for p in s if not start_s <= p[0] <= end_s) for n, s in whole.readings.items()}
    (reason,) = reasons_against(Seen(cut, {}, (), 4, True), [RUN])
    assert reason.startswith("sequential: the machine was not watched for 3.")


def test_no_readings_at_all_are_a_reason_for_all_but_the_shortest_run() -> None:
    nothing = Seen({}, {}, (), 4, True)
    assert len(reasons_against(nothing, [RUN])) == 1
    assert reasons_against(nothing, [Phase("short", 0.0, GAP_S / 2)]) == ()


@pytest.mark.parametrize("kind", NEEDED)
def test_a_source_that_falls_silent_is_a_reason(kind: str) -> None:
    """A device that vanishes. Not a temperature: a unit that is switched off has none."""
    silent = tuple((n / 10, 0.0) for n in range(100))
    for name, expected in ((f"{kind}.gpu0", 1), ("temperature.cv0", 0)):
        readings = {**seen({}).readings, name: silent}
        assert len(reasons_against(Seen(readings, {}, (), 4, True), [RUN])) == expected


def test_a_gpu_that_was_busy_while_the_run_idled_was_shared() -> None:
    busy = seen({"busy.17000000.gpu": lambda t_s: 35.0 if t_s < 5 else 99.0})
    idle = Phase("idle", 0.0, 4.9)
    (reason,) = gpu_was_busy(busy, idle)
    assert reason == "idle: 17000000.gpu was 35 % busy before the run began, with the work of others."
    assert list(gpu_was_busy(seen({"busy.gpu0": lambda t_s: 3.0}), idle)) == []
    assert list(gpu_was_busy(seen({"busy.gpu0": lambda t_s: 35.0}, uses_gpu=False), idle)) == []


def test_a_reason_is_said_once() -> None:
    change = Change(0.0, 1.0, "power mode", "MAXN", "15W")
    assert len(reasons_against(seen({}, changes=(change,)), [RUN, RUN])) == 1
