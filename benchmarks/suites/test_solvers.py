"""Every solver on maps of a reference crop: 384 pairs, 1 px of noise, a quarter outliers."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from posekit.benchmarks.peers.pnp import LIMITS, deviations, made_problems
from posekit.runtime.manifest import SolverEntry
from posekit.runtime.solvers import METHODS, pose_from_correspondences


@pytest.mark.parametrize("method", METHODS)
def test_one_object(benchmark: BenchmarkFixture, method: str) -> None:
    (problem,) = made_problems(1)
    solver = SolverEntry(method, iterations=100, reprojection_px=3.0)
    solution = benchmark(pose_from_correspondences, problem.points_m, problem.pixels, problem.K, solver)
    found = deviations([problem.truth], [solution.cam_from_obj])
    assert all(found[name] <= limit for name, limit in LIMITS.items())
