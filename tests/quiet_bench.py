"""A bench that is quick to test: a machine that nobody else uses, a short warm-up, and a cold start that is not measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from posekit.benchmarks.bench import bench, warm_up
from posekit.benchmarks.bench.result import ColdStart
from posekit.benchmarks.bench.watch import Watch

COLD = ColdStart(1.0, 2.0, 3.0, 4.0, 10.0, "none")


def make_quiet(patch: pytest.MonkeyPatch) -> None:
    """Whatever other processes do while tests run, no reason comes from the machine."""

    @contextmanager
    def unwatched(**options: Any) -> Iterator[Watch]:
        watch = Watch(time.monotonic())
        patch.setattr(watch, "idle", lambda: None)
        yield watch

    patch.setattr(bench, "watching", unwatched)
    patch.setattr(bench, "cold_start", lambda *given: COLD)
    patch.setattr(warm_up, "MIN_S", 0.0)
    patch.setattr(warm_up, "MAX_S", 0.05)
