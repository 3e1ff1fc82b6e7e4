"""What variants are verified on: real frames with one box each and, where the data set knows it, the true pose."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from posekit.benchmarks.accuracy import DETECTED_IOU, box_iou
from posekit.runtime.bop import TrueObject
from posekit.runtime.boxes import Boxes
from posekit.runtime.detection import Detection
from posekit.runtime.image_file import Image
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Pose
from posekit.runtime.sources import Frame, frames_from


@dataclass(frozen=True, eq=False)
class Sample:
    """One crop to be. image_rgb_u8: (H, W, 3), shared by the samples of a frame.   true_pose: None where not known."""

    name: str
    image_rgb_u8: Image
    intrinsics: Intrinsics
    detection: Detection
    true_pose: Pose | None


def samples_from(
    source: str, boxes: Boxes, intrinsics: Intrinsics | None, object_ids: Collection[int], at_most: int
) -> list[Sample]:
    """Boxes of these objects, spread evenly over the whole source; only the frames of those chosen are kept.

    The source is read twice. Raises SourceError and InputError as the source and the boxes do.
    """
    total = sum(1 for _ in _sightings(source, boxes, intrinsics, object_ids))
    chosen = {k * total // at_most for k in range(at_most)} if total > at_most else set(range(total))
    found = enumerate(_sightings(source, boxes, intrinsics, object_ids))
    return [_sample(frame, detection) for k, (frame, detection) in found if k in chosen]


def _sightings(
    source: str, boxes: Boxes, intrinsics: Intrinsics | None, object_ids: Collection[int]
) -> Iterator[tuple[Frame, Detection]]:
    frames = frames_from(source, intrinsics)
    try:
        for frame in frames:
            yield from ((frame, detection) for detection in boxes(frame) if detection.object_id in object_ids)
    finally:
        frames.close()


def _sample(frame: Frame, detection: Detection) -> Sample:
    name = f"{frame.name} object {detection.object_id}"
    return Sample(name, frame.image_rgb_u8, frame.intrinsics, detection, _true_pose(frame, detection))


def _true_pose(frame: Frame, detection: Detection) -> Pose | None:
    """Of the true object that the box shows: of its id, with the largest overlap, at least one half."""
    overlaps = [
        (_overlap(true, detection), true) for true in frame.truth or () if true.object_id == detection.object_id
    ]
    best = max(overlaps, key=lambda pair: pair[0], default=None)
    return best[1].cam_from_obj if best and best[0] >= DETECTED_IOU else None


def _overlap(true: TrueObject, detection: Detection) -> float:
    boxes = (true.visible_box_xyxy_px, true.amodal_box_xyxy_px)
    return max((box_iou(box, detection.box_xyxy_px) for box in boxes if box is not None), default=0.0)
