"""Steps of a process, each with its wall clock and the most memory that the process held meanwhile. Linux."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from posekit.benchmarks.studies.precision_result import Step

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5), clear_refs: the peak resident set becomes the present one


@dataclass
class Stopwatch:
    done: list[Step] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        CLEAR_REFS.write_text(RESET_PEAK)
        start = time.perf_counter()
        yield
        self.done.append(Step(name, round(time.perf_counter() - start, 3), _peak_rss_mb()))


def _peak_rss_mb() -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return round(int(found[1]) / 1024, 1)
