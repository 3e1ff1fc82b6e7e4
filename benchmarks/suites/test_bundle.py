"""Opening a bundle: every member's size and hash is verified."""

from __future__ import annotations

from pathlib import Path

from pytest_benchmark.fixture import BenchmarkFixture

from posekit.runtime.bundle import Bundle


def test_open_and_verify(benchmark: BenchmarkFixture, bundle_path: Path) -> None:
    def opened() -> int:
        with Bundle(bundle_path) as bundle:
            return len(bundle.manifest.files)

    assert benchmark(opened) == 7
