"""What variants are verified on: boxes of which a crop can be cut."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from posekit.export.verify.samples import samples_from
from posekit.runtime.detection import Detection
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
