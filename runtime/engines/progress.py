"""How far a build is: TensorRT's nested phases as one fraction and an estimate of the time that is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BuildProgress:
    """fraction: 0 to 1, never falling.  left_s: estimate; None until there is something to estimate from.

    TensorRT's phases are not equally long, so both are for people, not for measuring.
    """

    phase: str
    fraction: float
    elapsed_s: float
    left_s: float | None


Progress = Callable[[BuildProgress], None]


_watcher: ContextVar[Progress | None] = ContextVar("watcher of engine builds", default=None)


@contextmanager
def builds_watched(progress: Progress) -> Iterator[None]:
    """Builds inside the block report to `progress`, however deep below a session they happen."""
    before = _watcher.get()
    _watcher.set(progress)
    try:
        yield
    finally:
        _watcher.set(before)


def watcher() -> Progress:
    """Who wants to know of a build that starts now; perhaps nobody."""
    return _watcher.get() or (lambda _: None)


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """The open phases of one build. Called by TensorRT from any thread."""

    def __init__(self) -> None:
        self._open: dict[str, _Phase] = {}
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._best, self._name = 0.0, ""

    def begin(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._open[name] = _Phase(parent, max(steps, 1))
            self._name = name

    def step(self, name: str, index: int) -> None:
        with self._lock:
            if name in self._open:
                self._open[name].done = index + 1
            self._best = max(self._best, self._fraction(None))

    def end(self, name: str) -> None:
        with self._lock:
            phase = self._open.pop(name, None)
            if phase is not None and phase.parent is None:
                self._best = 1.0

    def now(self) -> BuildProgress:
        with self._lock:
            elapsed = time.monotonic() - self._start
            left = elapsed * (1 - self._best) / self._best if self._best > 0 else None
            return BuildProgress(self._name, self._best, elapsed, left)

    def _fraction(self, parent: str | None) -> float:
        """Of the furthest open phase below `parent`: its finished steps and the part of the running one."""
        found = [(n, p) for n, p in self._open.items() if p.parent == parent]
        return max((min(1.0, (p.done + self._fraction(n)) / p.steps) for n, p in found), default=0.0)


def monitor_class(module: Any) -> Any:
    """An IProgressMonitor of this module: constructed with Phases and an Event that asks the build to stop."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        def __init__(self, phases: Phases, stop: threading.Event) -> None:
            module.IProgressMonitor.__init__(self)
            self.phases, self.stop = phases, stop

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases.begin(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.phases.step(phase_name, step)
            return not self.stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self.phases.end(phase_name)

    return Monitor
