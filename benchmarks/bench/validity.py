"""Whether a run may be believed: every reason against it, a sentence each, from what the machine told while it ran."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from posekit.benchmarks.bench.energy import Phase
from posekit.benchmarks.bench.linux_sensors import GPU
from posekit.benchmarks.bench.nvidia_sensors import HELD_BACK
from posekit.benchmarks.bench.result import Readings

CLOCK_SHARE = 0.05  # a clock that differs by more has moved
OTHERS_SHARE = 0.10  # of the processors, used by others
GAP_S = 3.0  # without any reading
LOST_S = 5.0  # without one of a source that was read before
BUSY_PERCENT = 10.0  # of a GPU, while the run idled
NEEDED = ("clock", "power", "load", "others", "alert")  # not a temperature: units that are off have none

Series = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Change:
    """A setting of the machine that was `before` and is `after`: when it was last seen so, and when first otherwise."""

    since_s: float
    t_s: float
    setting: str
    before: str
    after: str


@dataclass(frozen=True)
class Seen:
    """All that is known. settings: as they were at first.  processors: that the run may use."""

    readings: Readings
    settings: Mapping[str, str]
    changes: tuple[Change, ...]
    processors: int
    uses_gpu: bool


def reasons_against(seen: Seen, phases: Sequence[Phase]) -> tuple[str, ...]:
    """Each of these parts of the run by each rule; empty: nothing speaks against it."""
    return tuple(dict.fromkeys(reason for phase in phases for rule in RULES for reason in rule(seen, phase)))


def clocks_moved(seen: Seen, phase: Phase) -> Iterator[str]:
    """A locked clock has to stand still. One that follows the load may dither, but its level must hold to the end.

    Of processors that follow the load the fastest counts: work may wander from one cluster to another.
    """
    clocks = {n: _values(series) for n, series in _of(seen, "clock", phase) if _serves_the_run(seen, n)}
    locked = {name for name in clocks if clock_is_locked(seen.settings, name)}
    following = [clocks.pop(name) for name in sorted(clocks) if name.startswith("clock.cpu") and name not in locked]
    if following:
        clocks["clock.the fastest processor"] = [max(values) for values in zip(*following, strict=False)]
    for name, values in clocks.items():
        if moved := _moved(values, name in locked):
            low, high = moved
            yield f"{phase.name}: the clock of {_short(name)} moved between {low:.0f} and {high:.0f} MHz."


def settings_changed(seen: Seen, phase: Phase) -> Iterator[str]:
    """What all processors of a server do alike is said once."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for change in seen.changes:
        if change.since_s <= phase.end_s and change.t_s >= phase.start_s:
            alike.setdefault((change.setting.split(".")[-1], change.before, change.after), []).append(change.setting)
    for (_, before, after), (first, *more) in alike.items():
        so_did = f", and so did {len(more)} more" if more else ""
        yield f"{phase.name}: {first} went from {before} to {after}{so_did}."


def held_back(seen: Seen, phase: Phase) -> Iterator[str]:
    """Alerts that are up, cooling devices that moved, counters that rose."""
    for name, series in _of(seen, "alert", phase, around=True):
        if any(_values(series)) and _serves_the_run(seen, name):
            yield f"{phase.name}: {_short(name)} was throttled{_causes(name, _values(series))}."
    for name, series in _of(seen, "state", phase, around=True):
        if (low := min(_values(series))) != (high := max(_values(series))) and _serves_the_run(seen, name):
            yield f"{phase.name}: the throttle state of {_short(name)} moved between {low:.0f} and {high:.0f}."
    for name, series in _of(seen, "count", phase, around=True):
        if (rose := series[-1][1] - series[0][1]) > 0:
            yield f"{phase.name}: the machine was throttled {rose:.0f} times ({_short(name)})."


def others_ran(seen: Seen, phase: Phase) -> Iterator[str]:
    """On the processors, as a mean over the phase; on the GPU, at any time."""
    for _, series in _of(seen, "load", phase):
        if (share := float(np.mean(_values(series))) / seen.processors) > OTHERS_SHARE:
            yield f"{phase.name}: other processes used {share:.0%} of the {seen.processors} processors."
    for name, series in _of(seen, "others", phase):
        if (count := max(_values(series))) > 0 and _serves_the_run(seen, name):
            yield f"{phase.name}: {_short(name)} was shared with {count:.0f} other process{'es' * (count > 1)}."


def not_watched(seen: Seen, phase: Phase) -> Iterator[str]:
    """Times without readings, and sources that fell silent."""
    times = sorted({t_s for series in seen.readings.values() for t_s, _ in series})
    inside = [phase.start_s, *(t_s for t_s in times if phase.start_s < t_s < phase.end_s), phase.end_s]
    gap_s = max(after - before for before, after in pairwise(inside))
    if gap_s > GAP_S:
        yield f"{phase.name}: the machine was not watched for {gap_s:.1f} s."
        return
    for name, series in seen.readings.items():
        if name.split(".")[0] in NEEDED and series[-1][0] < phase.end_s - LOST_S:
            yield f"{phase.name}: {name} could not be read any more after {series[-1][0]:.1f} s."


def gpu_was_busy(seen: Seen, idle: Phase) -> Iterator[str]:
    """While the run idled: somebody else's work. All that a Jetson tells, which has no list of processes."""
    for name, series in _of(seen, "busy", idle):
        if (mean := float(np.mean(_values(series)))) > BUSY_PERCENT and _serves_the_run(seen, name):
            yield f"{idle.name}: {_short(name)} was {mean:.0f} % busy before the run began, with the work of others."


RULES: tuple[Callable[[Seen, Phase], Iterator[str]], ...] = (
    clocks_moved,
    settings_changed,
    held_back,
    others_ran,
    not_watched,
)


def clock_is_locked(settings: Mapping[str, str], clock: str) -> bool:
    """Its lowest rate is its highest, as jetson_clocks does it; False also where limits are not told."""
    low, high = (settings.get(f"{_short(clock)}.{key}") for key in ("lowest", "highest"))
    return low is not None and low == high


def unlocked_clocks(seen: Seen) -> tuple[str, ...]:
    """The clocks that were read and may move, where that is told: "cpu0 (schedutil, 729600 to 1510400)"."""
    told = [_short(name) for name in seen.readings if f"{_short(name)}.lowest" in seen.settings]
    return tuple(
        f"{name} ({seen.settings.get(f'{name}.governor', 'no governor')}, {seen.settings[f'{name}.lowest']} to "
        f"{seen.settings.get(f'{name}.highest', 'unknown')})"
        for name in dict.fromkeys(told)
        if not clock_is_locked(seen.settings, f"clock.{name}")
    )


def _moved(values: Sequence[float], locked: bool) -> tuple[float, float] | None:
    """The two levels that differ by more than CLOCK_SHARE, or None.

    Locked: of any two readings. Else of the means of the three thirds, where they also differ by more than three
    standard errors, so that a clock that only dithers has not moved.
    """
    if locked:
        low, high = min(values), max(values)
        return (low, high) if high - low > CLOCK_SHARE * high else None
    if len(values) < 9:
        return None
    thirds = np.array_split(np.array(values), 3)
    low_third, *_, high_third = sorted(thirds, key=lambda third: float(third.mean()))
    error = np.sqrt(sum(third.var(ddof=1) / third.size for third in (low_third, high_third)))
    low, high = float(low_third.mean()), float(high_third.mean())
    return (low, high) if high - low > max(CLOCK_SHARE * high, 3 * error) else None


def _of(seen: Seen, kind: str, phase: Phase, around: bool = False) -> Iterator[tuple[str, Series]]:
    """The readings of one kind inside the phase, where there are any. around: and the nearest one on either side."""
    for name, series in seen.readings.items():
        if not name.startswith(f"{kind}."):
            continue
        times = [t_s for t_s, _ in series]
        first, end = bisect_left(times, phase.start_s), bisect_right(times, phase.end_s)
        if found := series[max(first - around, 0) : end + around]:
            yield name, found


def _serves_the_run(seen: Seen, name: str) -> bool:
    """A GPU that the run does not use may do what it likes: any of them, or, where NVML tells whose it is, another one."""
    if not GPU.search(name):
        return True
    own = {_short(n): max(_values(s)) for n, s in seen.readings.items() if n.startswith("own.")}
    return seen.uses_gpu and (not any(own.values()) or own.get(_short(name), 1) > 0)


def _causes(name: str, values: Sequence[float]) -> str:
    """Of NVML's flags; a Jetson's alerts have none."""
    flags = {bit for bit in HELD_BACK for value in values if int(value) & bit}
    causes = [text for bit, text in HELD_BACK.items() if bit in flags]
    return f" by {' and '.join(causes)}" if re.fullmatch(r"alert\.gpu\d+", name) and causes else ""


def _values(series: Series) -> list[float]:
    return [value for _, value in series]


def _short(name: str) -> str:
    return name.split(".", 1)[1]
