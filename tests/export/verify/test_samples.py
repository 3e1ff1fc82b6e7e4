"""What variants are verified on: boxes of which a crop can be cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from posekit.calibration.fitness import is_noise
from posekit.export.verify.figures import Evidence, evidence_of
from posekit.export.verify.samples import Sample, samples_from
from posekit.runtime.detection import Detection
from posekit.runtime.image_file import Image
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.sources import Frame

CAMERA = Intrinsics(np.array([[100.0, 0, 50], [0, 100, 50], [0, 0, 1]]), 101, 101)
GOOD, OUTSIDE, THIN = ([5.0, 5, 25, 25], [500.0, 5, 520, 25], [5.0, 5, 5.5, 25])


def test_boxes_of_which_no_crop_can_be_cut_are_passed_over(tmp_path: Path) -> None:
    for i in range(3):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((101, 101, 3), 50, np.uint8))

    def boxes(frame: Frame) -> list[Detection]:
        return [Detection(1, 0.9, np.array(box)) for box in (OUTSIDE, GOOD, THIN)]

    samples = samples_from(str(tmp_path), boxes, CAMERA, {1}, at_most=9)
    assert [sample.detection.box_xyxy_px.tolist() for sample in samples] == [GOOD] * 3


def enlarged(picture: Image, side_px: int) -> Image:
    return np.asarray(cv2.resize(picture, (side_px, side_px)), np.uint8)


def recorded(pictures: Sequence[Image], object_id: int = 1) -> list[Sample]:
    return [Sample(str(k), p, CAMERA, Detection(object_id, 1.0, np.array(GOOD)), None) for k, p in enumerate(pictures)]


def test_frames_of_a_still_camera_are_one_frame() -> None:
    """As many poses as there are, in one frame: no verdict, however often it is recorded."""
    rng = np.random.default_rng(0)
    scenes = [enlarged(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8), 101) for _ in range(3)]
    still = [np.clip(scenes[0] + rng.normal(0, 1, scenes[0].shape), 0, 255).astype(np.uint8) for _ in range(9)]
    assert evidence_of(recorded(still)) == Evidence(9, 1)
    assert evidence_of(recorded([*still, *scenes])) == Evidence(12, 3)
    assert evidence_of(recorded(scenes), [True, False, True]) == Evidence(2, 2)
    both = recorded(scenes) + recorded(scenes, object_id=2)  # two objects in the same three frames
    assert evidence_of(both) == Evidence(6, 3)


def test_noise_is_told_from_a_picture_also_where_a_small_box_was_enlarged() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    box = np.array([0.0, 0, 20, 20])
    assert is_noise(enlarged(noise, 96), box)
    assert not is_noise(enlarged(noise[:6, :6], 96), box)
