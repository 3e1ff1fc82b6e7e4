"""Stage timing that costs nothing when off: the estimator is given `no_stage` or a StageProfiler's `stage`.

What no stage covers is the frame's own overhead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

Stage = Callable[[str], AbstractContextManager[None]]

# In the order of a frame; a path has some of them. "detector" is the network of it, "boxes" what follows it.
STAGES = ("letterbox", "detector", "boxes", "crop", "network", "retrieve", "decode", "solve", "refine")
NETWORK_STAGES = frozenset({"detector", "network", "retrieve"})  # those that run a session

_OFF = nullcontext()


def no_stage(name: str) -> AbstractContextManager[None]:
    """The profiler that is off: one shared object, nothing measured."""
    return _OFF


@dataclass
class StageProfiler:
    """samples_ns: stage name -> one host duration per pass, in order of first use.

    Stages are disjoint: the time of a stage that begins within another one is not in the outer one's.
    """

    samples_ns: dict[str, list[int]] = field(default_factory=dict)
    _inner_ns: list[int] = field(default_factory=list)  # per open stage, of the stages within it

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._inner_ns.append(0)
        start = time.perf_counter_ns()
        try:
            yield
        finally:
            duration_ns = time.perf_counter_ns() - start
            self.samples_ns.setdefault(name, []).append(duration_ns - self._inner_ns.pop())
            if self._inner_ns:
                self._inner_ns[-1] += duration_ns

    def median_ms(self) -> dict[str, float]:
        """Stage name -> median duration, milliseconds."""
        return {name: sorted(ns)[len(ns) // 2] / 1e6 for name, ns in self.samples_ns.items()}
