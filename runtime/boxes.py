"""Where detections come from when not from the bundle's own detector: a file, or a data set's ground truth."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from posekit.runtime.bop import TrueObject, box_from_bop
from posekit.runtime.detection import Detection, overlaps_image
from posekit.runtime.errors import InputError, SourceError
from posekit.runtime.pose import Array
from posekit.runtime.records import record_from
from posekit.runtime.sources import Frame

Boxes = Callable[[Frame], list[Detection]]
FORMS = '{"FRAME": [{"object_id", "box_xyxy_px", ["score"]}]} or BOP\'s [{"scene_id", "image_id", "category_id", "bbox", "score"}]'


@dataclass(frozen=True)
class _NamedRow:
    object_id: int
    box_xyxy_px: tuple[float, float, float, float]
    score: float = 1.0


@dataclass(frozen=True)
class _BopRow:
    scene_id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float


def boxes_from(source: Path | str) -> Boxes:
    """A key of TRUE_BOXES for the true boxes of a BOP data set, else a JSON file in one of two forms.

    "gt": around what is visible of each object.  "gt-amodal": around the whole object, hidden parts included.

    By frame name: {"img7.png": [{"object_id": 1, "box_xyxy_px": [x0, y0, x1, y1], "score": 0.9}]}; every frame needs
    an entry, if only an empty list.  BOP detections: a list of {"scene_id", "image_id", "category_id", "bbox", "score"}
    with bbox x, y, width, height; an image without entries has no detections.
    Raises SourceError for a file of another form; the returned function raises InputError for a frame without boxes.
    """
    if str(source) in TRUE_BOXES:
        return TRUE_BOXES[str(source)]
    path = Path(source)
    try:
        content = json.loads(path.read_text())
        by_form = _by_image(content) if isinstance(content, list) else _by_name(content, path)
    except InputError as error:
        raise SourceError(
            f"box file {path}, {error.what}", got=error.got, expected=error.expected, remedy=error.remedy
        ) from error
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise SourceError(f"box file {path}", got=error, expected=FORMS, remedy="Write it in that form.") from error
    return by_form


def detections_from_truth(frame: Frame) -> list[Detection]:
    """The visible box of each true object that counts, score 1; the amodal box where the data set has no other."""
    return _detections(
        frame, lambda true: true.amodal_box_xyxy_px if true.visible_box_xyxy_px is None else true.visible_box_xyxy_px
    )


def amodal_detections_from_truth(frame: Frame) -> list[Detection]:
    """The box of each true object that counts, with its hidden parts and those outside the image, score 1."""
    return _detections(frame, lambda true: true.amodal_box_xyxy_px, "bbox_obj")


TRUE_BOXES: dict[str, Boxes] = {"gt": detections_from_truth, "gt-amodal": amodal_detections_from_truth}


def _detections(
    frame: Frame, box_of: Callable[[TrueObject], Array | None], needs: str = "bbox_visib or bbox_obj"
) -> list[Detection]:
    if frame.truth is None:
        raise InputError(
            f"frame {frame.name}",
            got="no ground truth",
            expected="a BOP data set with scene_gt.json",
            remedy="Give boxes from a file instead.",
        )
    boxes = [(true.object_id, _counted(true, box_of(true), frame, needs)) for true in frame.truth]
    found = [Detection(object_id, 1.0, box) for object_id, box in boxes if box is not None]
    wh = (frame.intrinsics.width_px, frame.intrinsics.height_px)
    return [detection for detection in found if overlaps_image(detection.box_xyxy_px, *wh)]


def _counted(true: TrueObject, box: Array | None, frame: Frame, needs: str) -> Array | None:
    if not true.counts:
        return None
    if box is None and true.visible_fraction is None:
        raise InputError(
            f"frame {frame.name}, object {true.object_id}",
            got="no true box",
            expected=f"{needs} in scene_gt_info.json",
            remedy="Make scene_gt_info.json with BOP's toolkit, or give boxes from a file.",
        )
    return box


def _by_name(content: dict[str, Any], path: Path) -> Boxes:
    rows = {name: record_from(tuple[_NamedRow, ...], value, name) for name, value in content.items()}
    table = {name: [Detection(r.object_id, r.score, np.array(r.box_xyxy_px)) for r in rs] for name, rs in rows.items()}

    def boxes(frame: Frame) -> list[Detection]:
        if frame.name not in table:
            raise InputError(
                f"frame {frame.name}",
                got=f"no entry in {path}",
                expected=f"names such as {', '.join(list(table)[:3])}",
                remedy="Give every frame an entry; an empty list says that nothing is there.",
            )
        return table[frame.name]

    return boxes


def _by_image(rows: list[dict[str, Any]]) -> Boxes:
    table: dict[tuple[int, int], list[Detection]] = defaultdict(list)
    names = {field.name for field in fields(_BopRow)}
    for n, row in enumerate(rows):  # the format allows more keys: "time", "segmentation"
        kept = {key: value for key, value in row.items() if key in names}
        read = record_from(_BopRow, kept, f"[{n}]")
        table[read.scene_id, read.image_id].append(Detection(read.category_id, read.score, box_from_bop(read.bbox)))
    return lambda frame: table.get((frame.scene_id, frame.im_id), [])
