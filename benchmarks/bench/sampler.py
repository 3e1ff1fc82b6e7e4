"""The process that reads the machine while a benchmark runs. `watching` starts it; the standard library alone.

It writes one line of JSON per reading to a file that it was given open: first {"notes": [...]}, then [seconds, {reading: value}] and, where a
setting is new or has another value, [seconds, {reading: value}, {setting: text}]. It ends when its standard input
has something or is closed, which the end of the process that started it does too.
"""

from __future__ import annotations

import json
import os
import resource
import select
import sys
import time
from pathlib import Path
from typing import TextIO

from posekit.benchmarks.bench.linux_sensors import settings
from posekit.benchmarks.bench.sensors import SLOW, Read, Source, open_sources

BUDGET = 0.007  # of one core, for reading and writing; waking up comes on top, together under 1 %
LONGEST_PAUSE_S = 1.0
READY, WITH_POWER = b"r", b"p"  # said once, after the first reading


class Machine:
    """What is read, and when each source was read last."""

    def __init__(self, root: Path, pid: int) -> None:
        self.sources, self.notes = open_sources(root, pid)
        self.read_settings, self.settings = settings(root), dict[str, str]()
        self.due_s: dict[str, float] = {}

    @property
    def has_power(self) -> bool:
        return any(source.power for source, _ in self.sources)

    def readings(self, now_s: float) -> dict[str, float]:
        """Of every source whose turn it is. A source that cannot be read at the moment is left out."""
        found: dict[str, float] = {}
        for source, read in self.sources:
            if self._is_due(source.name, source.every_s, now_s):
                found |= _read(source, read, now_s)
        return found

    def changed_settings(self, now_s: float) -> dict[str, str]:
        """Those that are not as they were; all of them at first."""
        if not self._is_due("settings", SLOW, now_s):
            return {}
        before, self.settings = self.settings, self.read_settings()
        return {name: text for name, text in self.settings.items() if before.get(name) != text}

    def _is_due(self, name: str, every_s: float, now_s: float) -> bool:
        due = now_s >= self.due_s.get(name, now_s)
        if due:
            self.due_s[name] = now_s + every_s
        return due


def sample(machine: Machine, out: TextIO, parent: int, start_s: float, interval_s: float) -> None:
    """Until standard input has something or ends, or `parent` has ended. Seconds are of the monotonic clock, since `start_s`; it is the same in every process."""
    began_s, opened_cpu_s = time.monotonic(), time.process_time()
    _write(out, {"notes": machine.notes})
    last = told = False
    while True:
        if last:
            machine.due_s.clear()  # every source once more, so that what is rare has its end too
        now_s, cpu_s = time.monotonic(), time.process_time()
        found, changed = machine.readings(now_s), machine.changed_settings(now_s)
        if now_s - began_s > SLOW:
            found["sampler.cpu"] = 100 * (cpu_s - opened_cpu_s) / (now_s - began_s)
        values = {name: _short(value) for name, value in found.items()}
        _write(out, [round(now_s - start_s, 4), values, *([changed] if changed else [])])
        if not told:
            told = os.write(sys.stdout.fileno(), WITH_POWER if machine.has_power else READY) > 0
        if last or os.getppid() != parent:
            return
        pause = pause_s(interval_s, time.monotonic() - now_s, time.process_time() - cpu_s)
        last = bool(select.select([sys.stdin], [], [], pause)[0])


def pause_s(interval_s: float, took_s: float, cpu_s: float) -> float:
    """Until the next reading: the rest of the interval, or longer, so that reading takes no more than BUDGET of a core.

    took_s, cpu_s: what this reading took, by the clock and of the processor. Never more than LONGEST_PAUSE_S.
    """
    return max(min(max(interval_s - took_s, cpu_s / BUDGET - took_s), LONGEST_PAUSE_S), 0.0)


def main(arguments: list[str]) -> None:
    """FILE PID START_S INTERVAL_S ROOT; FILE: number of the open file."""
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # a server has four files per processor
    file, pid, start_s, interval_s, root = arguments
    machine = Machine(Path(root), int(pid))
    with open(int(file), "w", encoding="utf-8", buffering=1) as out:
        sample(machine, out, int(pid), float(start_s), float(interval_s))


def _read(source: Source, read: Read, now_s: float) -> dict[str, float]:
    try:
        return read(now_s)
    except (OSError, ValueError, LookupError):  # gone, or not in its layout at the moment
        return {}


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _write(out: TextIO, line: object) -> None:
    out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
