"""A fresh process says how long it took to the first poses, or why there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_bundles import write_toy_bundle

from posekit.benchmarks.bench import cold_start as cold_start_module
from posekit.benchmarks.bench.cold_start import Opening, cold_start
from posekit.benchmarks.bench.cold_start_child import MARK
from posekit.runtime.detection import Detection
from posekit.runtime.errors import BackendError, BundleError, InputError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.sources import Frame

CAMERA = Intrinsics(np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]), 101, 101, (0.01, 0.0, 0.0, 0.0))
FRAME = Frame(np.full((101, 101, 3), 90, np.uint8), CAMERA, "grey.png", 0)
BOXES = [Detection(1, 0.9, np.array([40.0, 40, 60, 60]))]


def test_the_total_is_the_sum_of_its_steps(tmp_path: Path) -> None:
    path = write_toy_bundle(tmp_path / "toy.posekit")
    found = cold_start(Opening(path, "regressor", "onnxruntime", "fp32"), FRAME, BOXES, print)
    steps = (found.import_ms, found.open_bundle_ms, found.sessions_ms, found.first_frame_ms)
    assert min(steps) > 0
    assert found.total_ms == pytest.approx(sum(steps))
    assert found.engine == "none"


def test_an_error_arrives_as_it_was_raised(tmp_path: Path) -> None:
    """Boxes left out, and no detector; a backend that is not there; a bundle that is none."""
    path = write_toy_bundle(tmp_path / "toy.posekit")
    with pytest.raises(InputError, match="detections: got none, and the bundle has no detector"):
        cold_start(Opening(path), FRAME, None, print)
    with pytest.raises(BackendError, match="backend 'abacus': got unknown"):
        cold_start(Opening(path, backend="abacus"), FRAME, BOXES, print)
    with pytest.raises(BundleError, match=r"none\.posekit"):
        cold_start(Opening(tmp_path / "none.posekit"), FRAME, BOXES, print)


def test_the_last_words_of_a_process_that_dies_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = tmp_path / "dying.py"
    module.write_text("import sys\nprint('noise', file=sys.stderr)\nsys.exit('the driver crashed')\n")
    monkeypatch.setattr(cold_start_module, "CHILD", "dying")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BackendError, match="cold start: got the driver crashed, expected poses of one frame"):
        cold_start(Opening(tmp_path / "toy.posekit"), FRAME, BOXES, print)


def test_an_engine_that_is_built_meanwhile_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Marked lines alone: what libraries print is not for people."""
    module = tmp_path / "building.py"
    module.write_text(f"print('noise')\nprint({MARK!r} + 'building an engine, 10%', flush=True)\n")
    monkeypatch.setattr(cold_start_module, "CHILD", "building")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said: list[str] = []
    with pytest.raises(BackendError, match="exit code 0"):
        cold_start(Opening(tmp_path / "toy.posekit"), FRAME, BOXES, said.append)
    assert said == ["building an engine, 10%"]
