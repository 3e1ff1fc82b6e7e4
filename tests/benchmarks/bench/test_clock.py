"""A clock is tried before anything is measured with it."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from posekit.benchmarks.bench.clock import MAX_STEP_NS, checked_clock
from posekit.runtime.errors import ClockError


def stepping(step_ns: int, readings_per_step: int = 1) -> Any:
    """A clock that goes on by `step_ns` at every so many readings."""
    ticks = count()
    return lambda: next(ticks) // readings_per_step * step_ns


def test_the_clock_of_this_machine_will_do() -> None:
    clock = checked_clock()
    assert (clock.name, 0 < clock.step_ns <= MAX_STEP_NS) == ("perf_counter", True)


@pytest.mark.parametrize("readings_per_step", [1, 7, 5000])
def test_the_step_is_found_however_often_it_is_read(readings_per_step: int) -> None:
    assert checked_clock(stepping(MAX_STEP_NS, readings_per_step)).step_ns == MAX_STEP_NS


@pytest.mark.parametrize("step_ns", [MAX_STEP_NS + 1, 15_600_000])
def test_a_coarse_clock_is_refused(step_ns: int) -> None:
    with pytest.raises(ClockError, match=rf"clock odd: got steps of {step_ns} ns, expected steps of {MAX_STEP_NS} ns"):
        checked_clock(stepping(step_ns, 100), "odd")


def test_a_clock_that_goes_back_is_refused() -> None:
    """Once, by one nanosecond, among twenty thousand readings."""
    readings = (n * 100 if n != 9000 else 8999 * 100 - 1 for n in count())
    with pytest.raises(ClockError, match="a step of 1 ns backwards"):
        checked_clock(readings.__next__)


def test_a_clock_that_stands_is_refused() -> None:
    with pytest.raises(ClockError, match="the same reading"):
        checked_clock(lambda: 5)
