"""Memory does not grow with the number of frames, on either CPU backend, whichever path; the study says so when it does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from recordings import write_recording
from toy_bundles import perfect_maps, write_toy_bundle

from posekit.benchmarks.studies import growth
from posekit.benchmarks.studies.growth import Mark, Marks, Result, markdown, marked
from posekit.benchmarks.studies.machine import this_machine
from posekit.benchmarks.studies.precision_result import Run
from posekit.runtime.boxes import boxes_from
from posekit.runtime.bundle import Bundle
from posekit.runtime.detection import Detection
from posekit.runtime.errors import InputError
from posekit.runtime.estimator import PoseEstimator
from posekit.runtime.pose import Pose
from posekit.runtime.records import plain_from, record_from
from posekit.runtime.sources import Frame, frames_from

MARKS = (300, 600, 900, 1200, 1500, 1800)
LEAST_LEAK_BYTES = 24.0  # per frame: Python's smallest object. Reused blocks alone make up to some 10 of so few frames
K_CROP = np.array([[100.0, 0, 15.5], [0, 100.0, 15.5], [0, 0, 1]])


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mask, coords_m = perfect_maps(Pose.from_rotvec([0.4, -0.9, 0.2], [0, 0, 0.7]), K_CROP, 32, 16)
    return write_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy.posekit", mask=mask, coords_m=coords_m)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> list[Frame]:
    return list(frames_from(write_recording(tmp_path_factory.mktemp("recording"), 4)))


@pytest.mark.parametrize(
    ("path", "backend"),
    [("regressor", "onnxruntime"), ("regressor", "openvino"), ("bank", "openvino"), ("epnp", "onnxruntime")],
)
def test_frames_leave_nothing_behind(bundle_path: Path, frames: list[Frame], path: str, backend: str) -> None:
    with Bundle(bundle_path) as bundle, PoseEstimator(bundle, path=path, backend=backend) as estimator:
        poses, marks = marked(estimator, frames, boxes_from("gt"), MARKS)
    assert poses == MARKS[-1], "a frame without a pose leaves no pose behind"
    assert Marks(path, backend, poses, marks).bytes_per_frame < LEAST_LEAK_BYTES


def test_what_stays_is_seen(bundle_path: Path, frames: list[Frame]) -> None:
    """One number per frame, in a list of its own."""
    kept, boxes = list[list[float]](), boxes_from("gt")

    def keeping(frame: Frame) -> list[Detection]:
        kept.append([float(len(kept))])
        return boxes(frame)

    with Bundle(bundle_path) as bundle, PoseEstimator(bundle) as estimator:
        poses, marks = marked(estimator, frames, keeping, MARKS)
    assert Marks("regressor", "", poses, marks).bytes_per_frame > LEAST_LEAK_BYTES


def test_the_table_says_what_the_file_says() -> None:
    row = Marks("regressor", "onnxruntime", 200_000, (Mark(1000, 50_000, 94.5), Mark(100_000, 51_234, 95.0)))
    assert row.bytes_per_frame == pytest.approx(1234 / 99_000)
    run = Run("2026-01-01T00:00:00+00:00", "abc", "a command", 0.5, 1.0, False)
    result = Result(this_machine(), run, "toy, 4 frames over and over", (row,))
    assert "| regressor | onnxruntime | 200,000 | 50,000 | 51,234 | +0.01 | 94.5 | 95.0 |" in markdown(result)
    assert record_from(Result, json.loads(json.dumps(plain_from(result)))) == result


@pytest.mark.parametrize("marks", [["1000"], ["10", "5"], ["0", "5"], ["5", "5"]])
def test_marks_that_say_nothing_are_refused(marks: list[str]) -> None:
    with pytest.raises(InputError, match="--marks"):
        growth.requested(["toy.posekit", "frames", "--marks", *marks])
