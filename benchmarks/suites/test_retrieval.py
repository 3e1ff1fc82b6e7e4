"""The matcher graph over banks of the reference's size, of 642 directions, and of one descriptor per view."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from posekit.benchmarks.peers.retrieval import (
    GLOBAL_VIEWS,
    LOCAL_VIEWS,
    Size,
    deviations,
    exact,
    made_views,
    posekit_matcher,
)

PLACES, CHANNELS, THRESHOLD = 36, 16, 0.2
SIZES = [
    Size("reference", PLACES, CHANNELS, 162 * 36, 1, THRESHOLD),
    Size("reference, 8 crops", PLACES, CHANNELS, 162 * 36, 8, THRESHOLD),
    Size("642 directions", PLACES, CHANNELS, LOCAL_VIEWS, 1, THRESHOLD),
    Size("global, 2562 directions", 1, 384, GLOBAL_VIEWS, 1),
]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
def test_best_views(benchmark: BenchmarkFixture, size: Size) -> None:
    views = made_views(size)
    with posekit_matcher(views, threads=1) as contender:
        found = benchmark(contender.run)
    assert deviations(exact(views), found)["top1"] == 0
