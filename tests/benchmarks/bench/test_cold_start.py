"""A fresh process says how long it took to the first poses, or why there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_bundles import write_toy_bundle

from posekit.benchmarks.bench.cold_start import Opening, cold_start
from posekit.runtime.detection import Detection
from posekit.runtime.errors import BackendError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.sources import Frame

CAMERA = Intrinsics(np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]), 101, 101, (0.01, 0.0, 0.0, 0.0))
FRAME = Frame(np.full((101, 101, 3), 90, np.uint8), CAMERA, "grey.png", 0)
BOXES = [Detection(1, 0.9, np.array([40.0, 40, 60, 60]))]


def test_the_total_is_the_sum_of_its_steps(tmp_path: Path) -> None:
    path = write_toy_bundle(tmp_path / "toy.posekit")
    found = cold_start(Opening(path, "regressor", "onnxruntime", "fp32"), FRAME, BOXES)
    steps = (found.import_ms, found.open_bundle_ms, found.sessions_ms, found.first_frame_ms)
    assert min(steps) > 0
    assert found.total_ms == pytest.approx(sum(steps))
    assert found.engine == "none"


def test_what_fails_in_the_process_is_said(tmp_path: Path) -> None:
    """Boxes left out, and no detector: the estimator's own words arrive."""
    path = write_toy_bundle(tmp_path / "toy.posekit")
    with pytest.raises(BackendError, match=r"cold start: got .*the bundle has no detector"):
        cold_start(Opening(path), FRAME, None)
