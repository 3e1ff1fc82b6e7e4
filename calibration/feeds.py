"""Calibration feeds: what the device would feed a graph, cut by the runtime's own functions from recorded frames.

A source is read as often as it is iterated, one frame at a time; two passes give the same bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from posekit.runtime.boxes import Boxes
from posekit.runtime.crop import CropPreset, has_crop
from posekit.runtime.crop_batch import CropBatch, check_feedable
from posekit.runtime.detection import Detection
from posekit.runtime.detector import family_named, iou, letterbox
from posekit.runtime.errors import CalibrationError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import DetectorEntry, ObjectEntry
from posekit.runtime.pose import Array, Pose
from posekit.runtime.records import json_from_record
from posekit.runtime.sources import Frame, Frames, frames_from
from posekit.runtime.tensor import TensorSpec

Arrays = dict[str, npt.NDArray[Any]]
MAX_CROPS = 512
BATCH = 8  # crops fed at once: what bounds the memory of a calibration
SAME_OBJECT_IOU = 0.5  # a box and a true box are of one object from here on


@dataclass(frozen=True, eq=False)
class Sample:
    """What one row of a feed shows.

    object_id: None for a whole image.   box_xyxy_px: (4,) in the frame.   cam_from_obj: the truth, None where unknown.
    off: whether the frame's truth is known and has no object of that kind at the box.
    """

    frame: str
    object_id: int | None
    box_xyxy_px: Array
    cam_from_obj: Pose | None
    off: bool = False


@dataclass(frozen=True, eq=False)
class Portion:
    """One batch. feed: input name -> array, owned by the receiver.   samples: one per row."""

    feed: Arrays
    samples: tuple[Sample, ...]


class CalibrationSource(Protocol):
    """Portions of feeds, the same at every iteration, and how they were prepared."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def preprocessing(self) -> str:
        """One line of JSON, equal for equal preparation."""

    def __iter__(self) -> Iterator[Portion]: ...


def recorded_frames(source: Path | str, intrinsics: Intrinsics | None = None) -> Callable[[], Frames]:
    """Opens a recorded source (`posekit.runtime.sources.frames_from`) anew at every call.

    CalibrationError for a live camera, which never shows the same twice.
    """
    if str(source).isdecimal() and not Path(source).exists():
        raise CalibrationError(
            f"calibration source {source}",
            got="a live camera",
            expected="recorded frames, which can be read twice",
            remedy="Record a video or a folder of images first.",
        )
    return lambda: frames_from(source, intrinsics)


@dataclass(frozen=True, eq=False)
class CropFeeds:
    """Crops and their geometry for an embedder, pose or correspondence graph. Implements CalibrationSource.

    open_frames: see `recorded_frames`.   boxes: see `posekit.runtime.boxes.boxes_from`; boxes of objects that are not
    among `objects`, and those of which no crop can be cut, are passed over.   objects: in the order of the path's object_ids.   inputs: of the graph.

    With more than `max_crops` boxes every object gets the same share, spread evenly over its own boxes.
    Raises SpecError for a graph input that no crop can give; iterating raises SourceError, InputError and
    CalibrationError.
    """

    open_frames: Callable[[], Frames]
    boxes: Boxes
    objects: Sequence[ObjectEntry]
    crop: CropPreset
    inputs: tuple[TensorSpec, ...]
    max_crops: int = MAX_CROPS
    batch: int = BATCH

    def __post_init__(self) -> None:
        check_feedable(self.inputs)

    @property
    def preprocessing(self) -> str:
        return json_from_record({"crop": self.crop, "objects": tuple(self.objects)})

    def __iter__(self) -> Iterator[Portion]:
        counts = self._counts()
        wanted = {id_: set(places) for id_, places in spread(counts, self.max_crops).items()}
        cutter = CropBatch(self.crop, self.objects, self.batch)
        rows: list[tuple[Arrays, Sample]] = []
        passed: dict[int, int] = defaultdict(int)
        for frame, detections in self._boxed_frames():
            kept = []
            for detection in detections:
                if passed[detection.object_id] in wanted.get(detection.object_id, ()):
                    kept.append(detection)
                passed[detection.object_id] += 1
            for start in range(0, len(kept), self.batch):
                rows += self._cut(cutter, frame, kept[start : start + self.batch])
                while len(rows) >= self.batch:
                    yield _portion(rows[: self.batch])
                    del rows[: self.batch]
        if dict(passed) != counts:
            raise CalibrationError(
                "calibration frames",
                got=f"{sum(passed.values())} boxes",
                expected=f"{sum(counts.values())}, as in the first reading",
                remedy="Leave the files alone while calibrating.",
            )
        if rows:
            yield _portion(rows)

    def _boxed_frames(self) -> Iterator[tuple[Frame, list[Detection]]]:
        known = {entry.id for entry in self.objects}
        frames = self.open_frames()
        try:
            for frame in frames:
                found = [box for box in self.boxes(frame) if box.object_id in known]
                yield frame, [box for box in found if has_crop(box.box_xyxy_px, frame.intrinsics)]
        finally:
            frames.close()

    def _counts(self) -> dict[int, int]:
        """Boxes per object in all frames."""
        counts: dict[int, int] = defaultdict(int)
        for _, detections in self._boxed_frames():
            for detection in detections:
                counts[detection.object_id] += 1
        return dict(counts)

    def _cut(self, cutter: CropBatch, frame: Frame, detections: Sequence[Detection]) -> list[tuple[Arrays, Sample]]:
        """Rows of one frame, copied out of the cutter's buffers."""
        cutter.cut(frame.image_rgb_u8, frame.intrinsics, detections)
        feed = cutter.feed(self.inputs)
        return [
            ({name: array[i : i + 1].copy() for name, array in feed.items()}, _sample(frame, detection))
            for i, detection in enumerate(detections)
        ]


@dataclass(frozen=True, eq=False)
class ImageFeeds:
    """Letterboxed images for a detector graph, one at a time, as `posekit.runtime.detector` feeds them.

    Implements CalibrationSource. At most `max_images`, spread evenly over the source.
    """

    open_frames: Callable[[], Frames]
    detector: DetectorEntry
    inputs: tuple[TensorSpec, ...]
    max_images: int = MAX_CROPS

    @property
    def preprocessing(self) -> str:
        entry, placement = self.detector, family_named(self.detector.family).placement
        return json_from_record(
            {"wh_px": entry.input_wh_px, "value": entry.letterbox_value, "placement": placement, "layout": "image"}
        )

    def __iter__(self) -> Iterator[Portion]:
        places = set(spread({0: self._count()}, self.max_images).get(0, ()))
        entry, placement = self.detector, family_named(self.detector.family).placement
        frames = self.open_frames()
        try:
            for number, frame in enumerate(frames):
                if number in places:
                    boxed = letterbox(frame.image_rgb_u8, entry.input_wh_px, entry.letterbox_value, placement)
                    height, width = frame.image_rgb_u8.shape[:2]
                    whole = np.array([-0.5, -0.5, width - 0.5, height - 0.5])
                    yield Portion({"image": boxed.pixels[None]}, (Sample(frame.name, None, whole, None),))
        finally:
            frames.close()

    def _count(self) -> int:
        frames = self.open_frames()
        try:
            return sum(1 for _ in frames)
        finally:
            frames.close()


def spread(counts: Mapping[int, int], most: int) -> dict[int, tuple[int, ...]]:
    """Per key, which of its `counts[key]` things to take so that at most `most` are taken in all.

    Every key gets the same number, or all it has where that is less; what is taken lies evenly.
    """
    left, shares = most, {}
    for turn, key in enumerate(sorted(counts, key=lambda k: (counts[k], k))):  # the rarest first leave room for others
        shares[key] = min(counts[key], left // (len(counts) - turn))
        left -= shares[key]
    return {
        key: tuple((2 * i + 1) * counts[key] // (2 * share) for i in range(share)) if share else ()
        for key, share in sorted(shares.items())
    }


def _portion(rows: Sequence[tuple[Arrays, Sample]]) -> Portion:
    feed = {name: np.concatenate([row[name] for row, _ in rows]) for name in rows[0][0]}
    return Portion(feed, tuple(sample for _, sample in rows))


def _sample(frame: Frame, detection: Detection) -> Sample:
    pose = true_pose_of(frame, detection)
    boxed = any(
        true.visible_box_xyxy_px is not None or true.amodal_box_xyxy_px is not None for true in frame.truth or ()
    )
    return Sample(frame.name, detection.object_id, detection.box_xyxy_px, pose, off=boxed and pose is None)


def true_pose_of(frame: Frame, detection: Detection) -> Pose | None:
    """The pose of the true object of that kind whose box is the detection's, None without one."""
    best, pose = SAME_OBJECT_IOU, None
    for true in frame.truth or ():
        boxes = [b for b in (true.visible_box_xyxy_px, true.amodal_box_xyxy_px) if b is not None]
        if true.object_id == detection.object_id and boxes:
            overlap = float(iou(detection.box_xyxy_px.astype(np.float32), np.stack(boxes).astype(np.float32)).max())
            if overlap >= best:
                best, pose = overlap, true.cam_from_obj
    return pose
