"""Boxes from files: two forms, each read strictly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posekit.runtime.bop import TrueObject
from posekit.runtime.boxes import boxes_from
from posekit.runtime.errors import InputError, SourceError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Pose
from posekit.runtime.sources import Frame

CAMERA = Intrinsics(np.diag([60.0, 60.0, 1.0]), 64, 48)


def frame(name: str, scene_id: int = 0, im_id: int = 0) -> Frame:
    return Frame(np.zeros((48, 64, 3), np.uint8), CAMERA, name, 0, scene_id=scene_id, im_id=im_id)


def box_file(folder: Path, content: Any) -> Path:
    path = folder / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_boxes_by_frame_name(tmp_path: Path) -> None:
    row = {"object_id": 3, "box_xyxy_px": [1, 2, 30, 40.5]}
    boxes = boxes_from(box_file(tmp_path, {"a.png": [row, row | {"score": 0.25}], "b.png": []}))
    first, second = boxes(frame("a.png"))
    assert (first.object_id, first.score, second.score) == (3, 1.0, 0.25)
    np.testing.assert_array_equal(first.box_xyxy_px, [1, 2, 30, 40.5])
    assert boxes(frame("b.png")) == []


def test_a_frame_that_the_file_does_not_name_is_refused(tmp_path: Path) -> None:
    boxes = boxes_from(box_file(tmp_path, {"a.png": []}))
    with pytest.raises(InputError, match=r"frame c\.png: got no entry"):
        boxes(frame("c.png"))


def test_bop_detections(tmp_path: Path) -> None:
    row = {"scene_id": 2, "image_id": 7, "category_id": 5, "bbox": [10, 12, 20, 16], "score": 0.5, "time": 0.1}
    boxes = boxes_from(box_file(tmp_path, [row]))
    (detection,) = boxes(frame("000002/000007", 2, 7))
    assert (detection.object_id, detection.score) == (5, 0.5)
    np.testing.assert_array_equal(detection.box_xyxy_px, [9.5, 11.5, 29.5, 27.5])
    assert boxes(frame("000002/000008", 2, 8)) == []


@pytest.mark.parametrize(
    "content",
    [
        "{", "5", "null", '"boxes"',
        {"a": 5},
        {"a": [{"object_id": 1}]},
        {"a": [{"object_id": 1, "box_xyxy_px": [0, 0, 5, 5], "label": "cup"}]},
        {"a": [{"object_id": 1, "box_xyxy_px": [5, 5, 0, 0]}]},
        {"a": [{"object_id": 1, "box_xyxy_px": [0, 0, 5]}]},
        {"a": [{"object_id": "1", "box_xyxy_px": [0, 0, 5, 5]}]},
        {"a": [{"object_id": 1.5, "box_xyxy_px": [0, 0, 5, 5]}]},
        {"a": [{"object_id": 1, "box_xyxy_px": ["0", "0", "5", "5"]}]},
        {"a": [{"object_id": 1, "box_xyxy_px": [0, 0, 5, float("nan")]}]},
        {"a": [{"object_id": 1, "box_xyxy_px": [0, 0, 5, 5], "score": "0.5"}]},
        {"a": [{"object_id": 1, "box_xyxy_px": [0, 0, 5, 5], "score": float("nan")}]},
        {"a": [[1, 0, 0, 5, 5]]},
        {"a": {"object_id": 1, "box_xyxy_px": [0, 0, 5, 5]}},
        [{"scene_id": 1}],
        [{"scene_id": "1", "image_id": 1, "category_id": 1, "score": 1, "bbox": [0, 0, 4, 3]}],
        [{"scene_id": 1, "image_id": 1, "category_id": 1, "score": None, "bbox": [0, 0, 4, 3]}],
        [5],
        [{"scene_id": 1, "image_id": 1, "category_id": 1, "score": 1, "bbox": [0, 0, -4, 3]}],
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(SourceError, match=r"boxes\.json"):
        boxes_from(box_file(tmp_path, content))


def test_boxes_that_no_crop_can_be_cut_of_are_read_all_the_same(tmp_path: Path) -> None:
    """Outside the image, or of no width: of the detection, not of the file."""
    places = [[100, 5, 120, 25], [3, 3, 3, 9], [-40, -40, -20, -20]]
    named = boxes_from(box_file(tmp_path, {"a.png": [{"object_id": 1, "box_xyxy_px": place} for place in places]}))
    assert [found.box_xyxy_px.tolist() for found in named(frame("a.png"))] == places
    row = {"scene_id": 0, "image_id": 0, "category_id": 1, "score": 1, "bbox": [3, 3, 0, 6]}
    (found,) = boxes_from(box_file(tmp_path, [row]))(frame("0", 0, 0))
    assert found.box_xyxy_px.tolist() == [2.5, 2.5, 2.5, 8.5]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"absent\.json"):
        boxes_from(tmp_path / "absent.json")


HIDDEN = TrueObject(1, Pose.identity(), np.array([-5.0, 2, 20, 30]), np.array([0.0, 2, 10, 30]), 0.5)
AWAY = TrueObject(2, Pose.identity(), np.array([5.0, 2, 20, 30]), None, 0.05)


def test_true_boxes_are_of_what_is_seen_or_of_the_whole_object() -> None:
    scene = replace(frame("a.png"), truth=(HIDDEN, AWAY))
    (seen,), (whole,) = boxes_from("gt")(scene), boxes_from("gt-amodal")(scene)
    np.testing.assert_array_equal(seen.box_xyxy_px, HIDDEN.visible_box_xyxy_px)
    np.testing.assert_array_equal(whole.box_xyxy_px, HIDDEN.amodal_box_xyxy_px)
    assert (whole.object_id, whole.score) == (1, 1.0)


def test_a_data_set_without_amodal_boxes_cannot_give_them() -> None:
    scene = replace(frame("a.png"), truth=(replace(HIDDEN, amodal_box_xyxy_px=None, visible_fraction=None),))
    assert len(boxes_from("gt")(scene)) == 1
    with pytest.raises(InputError, match=r"expected bbox_obj in scene_gt_info\.json"):
        boxes_from("gt-amodal")(scene)
