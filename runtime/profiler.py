"""Stage timing that costs nothing when off: the estimator is given `no_stage` or a StageProfiler's `stage`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

Stage = Callable[[str], AbstractContextManager[None]]

_OFF = nullcontext()


def no_stage(name: str) -> AbstractContextManager[None]:
    """The profiler that is off: one shared object, nothing measured."""
    return _OFF


@dataclass
class StageProfiler:
    """samples_ns: stage name -> one host duration per pass, in order of first use."""

    samples_ns: dict[str, list[int]] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter_ns()
        try:
            yield
        finally:
            self.samples_ns.setdefault(name, []).append(time.perf_counter_ns() - start)

    def median_ms(self) -> dict[str, float]:
        """Stage name -> median duration, milliseconds."""
        return {name: sorted(ns)[len(ns) // 2] / 1e6 for name, ns in self.samples_ns.items()}
