"""The machine while a benchmark runs: read by a process of its own, judged afterwards.

with watching() as watch:
    watch.idle()
    with watch.during("sequential"):
        ...
watch.reasons  # why the run is INVALID; empty: nothing speaks against it
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from posekit.benchmarks.bench.energy import Energy, Phase, energy, power_w, total_rails
from posekit.benchmarks.bench.result import Readings, Watched
from posekit.benchmarks.bench.sampler import READY, WITH_POWER
from posekit.benchmarks.bench.sensors import unit
from posekit.benchmarks.bench.validity import Change, Seen, gpu_was_busy, reasons_against, unlocked_clocks
from posekit.runtime.machine import power_mode

SAMPLER = "posekit.benchmarks.bench.sampler"
ROOT = Path("/")
START_TIMEOUT_S = 20.0  # opening every source, NVIDIA's tools among them
END_TIMEOUT_S = 15.0
END = b"."
SETTINGS_LAG_S = 1.1  # settings are read once a second
IDLE, WHOLE = "idle", "run"


@dataclass
class Watch:
    """The fields behind `phases` are there when the block has ended.

    readings, watched: as in `result.json` and `watch.json`.  reasons: against the run, sentences.  notes: what of the
    machine could not be read, and which clocks are not locked; no reason against it.
    settings: governors, limits and power mode as they were at first.
    """

    start_s: float
    phases: list[Phase] = field(default_factory=list)
    readings: Readings = field(default_factory=dict)
    watched: tuple[Watched, ...] = ()
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    _has_power: bool = False

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """A part of the run that is judged for itself: its clocks may differ from another part's."""
        start_s = self._now_s()
        try:
            yield
        finally:
            self.phases.append(Phase(name, start_s, self._now_s()))

    def idle(self, seconds: float = 2.0) -> None:
        """Wait, so that the power of the idling machine is known. Before the run, with everything loaded.

        Where no power is readable there is nothing to wait for.
        """
        if not self._has_power:
            return
        with self.during(IDLE):
            time.sleep(seconds)

    def energy(self, name: str, poses: int) -> Energy | None:
        """Of the part of that name, which gave so many poses. None where no power is readable, or too shortly."""
        named = {phase.name: phase for phase in self.phases}
        return energy(self.readings, named[name], poses, named.get(IDLE))

    def _now_s(self) -> float:
        return time.monotonic() - self.start_s


@contextmanager
def watching(interval_s: float = 0.1, uses_gpu: bool = True, root: Path = ROOT) -> Iterator[Watch]:
    """Read the machine every interval_s seconds, from now until the block ends, in a process without torch or NumPy.

    What it cannot read is a note; a reader that does not start or dies is a reason against the run, never an exception.
    uses_gpu: whether a throttled or shared GPU concerns the run.  root: folder that has /proc and /sys; the real one.
    """
    watch = Watch(time.monotonic())
    mode = power_mode(root)
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as errors,
    ):  # without a name: nothing can be left behind
        sampler, problem, watch._has_power = _started(out, errors, watch.start_s, interval_s, root)
        try:
            yield watch
        finally:
            end_s = watch._now_s()
            ended = _ended(sampler) if sampler else None
        _fill(watch, _lines(_text(out)), end_s, uses_gpu, (mode, power_mode(root)))
        if problem := problem or ended:
            cause = "".join(f": {line}" for line in _text(errors).strip().splitlines()[-1:])
            watch.reasons = (f"The machine was not watched to the end: {problem}{cause}.", *watch.reasons)


def _started(
    out: IO[bytes], errors: IO[bytes], start_s: float, interval_s: float, root: Path
) -> tuple[subprocess.Popen[bytes] | None, str | None, bool]:
    """The process, after its first reading; what is wrong with it; whether it reads power.

    Its standard input is its lifeline: it ends when that is closed.
    """
    arguments = [str(out.fileno()), str(os.getpid()), repr(start_s), repr(interval_s), str(root)]
    try:
        sampler = subprocess.Popen(
            [sys.executable, "-m", SAMPLER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd="/",  # no module of the working folder is taken for one of Python's
            pass_fds=[out.fileno()],
            start_new_session=True,  # Ctrl-C ends the benchmark, which ends this one
        )
    except OSError as error:
        return None, f"the reading process could not be started ({error})", False
    assert sampler.stdout is not None
    readable = select.select([sampler.stdout], [], [], START_TIMEOUT_S)[0]
    if not readable:
        sampler.kill()
        return sampler, f"no reading within {START_TIMEOUT_S:.0f} s", False
    said = sampler.stdout.read(1)
    problem = None if said in (READY, WITH_POWER) else "the reading process did not begin to read"
    return sampler, problem, said == WITH_POWER


def _ended(sampler: subprocess.Popen[bytes]) -> str | None:
    """What is wrong with how it ended, or None."""
    assert sampler.stdin is not None
    assert sampler.stdout is not None
    died = sampler.poll()
    try:
        sampler.stdin.write(END)  # closing is not enough where a forked process has the pipe too
        sampler.stdin.close()
    except BrokenPipeError:
        died = sampler.wait()
    try:
        code = sampler.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        sampler.kill()
        sampler.wait()
        return "the reading process did not answer at the end"
    finally:
        sampler.stdout.close()
    return f"the reading process ended early ({_fate(code)})" if died is not None or code else None


def _fate(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _lines(text: str) -> list[Any]:
    """Whole lines; the last one of a killed process may be cut off."""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _fill(watch: Watch, lines: list[Any], end_s: float, uses_gpu: bool, modes: tuple[str | None, str | None]) -> None:
    notes: list[str] = lines[0]["notes"] if lines else []
    series: dict[str, list[tuple[float, float]]] = {}
    settings: dict[str, str] = {}
    changes: list[Change] = []
    for t_s, values, *changed in lines[1:]:
        for name, value in values.items():
            series.setdefault(name, []).append((t_s, value))
        for name, text in (changed[0] if changed else {}).items():
            if name in settings:
                changes.append(Change(t_s - SETTINGS_LAG_S, t_s, name, settings[name], text))
            settings[name] = text
    if modes[0] != modes[1]:
        changes.append(Change(0.0, end_s, "power mode", str(modes[0]), str(modes[1])))
    watch.readings = {name: tuple(series[name]) for name in sorted(series)}
    watch.watched = tuple(_watched(name, values) for name, values in watch.readings.items())
    first = {**settings, **{change.setting: change.before for change in reversed(changes)}}
    watch.settings = first
    to_the_end_s = max([end_s, *(t_s for t_s, *_ in lines[1:])])  # the last reading comes when the block has ended
    parts = [phase for phase in watch.phases if phase.name != IDLE] or [Phase(WHOLE, 0.0, to_the_end_s)]
    seen = Seen(watch.readings, first, tuple(changes), len(os.sched_getaffinity(0)), uses_gpu)
    idle = next((phase for phase in watch.phases if phase.name == IDLE), None)
    watch.reasons = (*reasons_against(seen, parts), *(gpu_was_busy(seen, idle) if idle else ())) if lines else ()
    watch.notes = (*notes, *_notes(watch, seen))


def _notes(watch: Watch, seen: Seen) -> Iterator[str]:
    rails = total_rails(tuple(watch.readings))
    if rails:
        idles = [phase for phase in watch.phases if phase.name == IDLE]
        idle_w = power_w(watch.readings, rails, idles[-1]) if idles else None
        idle = f"; {idle_w:.1f} W when idle, measured for {idles[-1].end_s - idles[-1].start_s:.1f} s" if idle_w else ""
        yield f"Power is the sum of {', '.join(rails)}{idle}."
    else:
        yield "No power rail is readable: energy is not known."
    if clocks := unlocked_clocks(seen):
        yield f"Clocks are not locked: {', '.join(clocks)}."


def _watched(name: str, series: tuple[tuple[float, float], ...]) -> Watched:
    values = [value for _, value in series]
    mean = sum(values) / len(values)
    return Watched(name, unit(name), values[0], min(values), mean, max(values), values[-1])
