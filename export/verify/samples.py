"""What variants are verified on: real frames with one box each and, where the data set knows it, the true pose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from posekit.calibration.feeds import Arrays, spread, true_pose_of
from posekit.calibration.fitness import thumbnail_of
from posekit.runtime.boxes import Boxes
from posekit.runtime.crop import CropPreset, has_crop
from posekit.runtime.crop_batch import CropBatch
from posekit.runtime.detection import Detection
from posekit.runtime.image_file import Image
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import ObjectEntry
from posekit.runtime.pose import Array, Pose
from posekit.runtime.sources import Frame, frames_from
from posekit.runtime.tensor import TensorSpec


@dataclass(frozen=True, eq=False)
class Sample:
    """One crop to be. image_rgb_u8: (H, W, 3), shared by the samples of a frame.   true_pose: None where not known."""

    name: str
    image_rgb_u8: Image
    intrinsics: Intrinsics
    detection: Detection
    true_pose: Pose | None

    @cached_property
    def thumbnail(self) -> Array:
        """Of what is in the box."""
        height, width, _ = self.image_rgb_u8.shape
        low = np.clip(np.floor(self.detection.box_xyxy_px[:2]), 0, (width - 1, height - 1)).astype(int)
        high = np.clip(np.ceil(self.detection.box_xyxy_px[2:]), low + 1, (width, height)).astype(int)
        return thumbnail_of(self.image_rgb_u8[low[1] : high[1], low[0] : high[0]])


@dataclass(frozen=True, eq=False)
class FrameSample:
    """A whole frame for a detector. true_boxes: of the samples that are from it."""

    name: str
    image_rgb_u8: Image
    true_boxes: tuple[Detection, ...]

    @cached_property
    def thumbnail(self) -> Array:
        return thumbnail_of(self.image_rgb_u8)


def frames_of(samples: Sequence[Sample]) -> list[FrameSample]:
    """The frames that samples were cut from, each once, in order."""
    boxes: dict[int, list[Sample]] = {}
    for sample in samples:
        boxes.setdefault(id(sample.image_rgb_u8), []).append(sample)
    return [
        FrameSample(own[0].name.rpartition(" object ")[0], own[0].image_rgb_u8, tuple(s.detection for s in own))
        for own in boxes.values()
    ]


def samples_from(
    source: str, boxes: Boxes, intrinsics: Intrinsics | None, object_ids: Collection[int], at_most: int
) -> list[Sample]:
    """Boxes of these objects, the same share of each, spread evenly; only the frames of those chosen are kept.

    Boxes of which no crop can be cut are passed over: no variant says anything of them. The source is read twice.
    Raises SourceError and InputError as the source and the boxes do.
    """
    counts = Counter(detection.object_id for _, detection in _sightings(source, boxes, intrinsics, object_ids))
    wanted = {object_id: set(places) for object_id, places in spread(counts, at_most).items()}
    passed: Counter[int] = Counter()
    samples = []
    for frame, detection in _sightings(source, boxes, intrinsics, object_ids):
        if passed[detection.object_id] in wanted[detection.object_id]:
            samples.append(_sample(frame, detection))
        passed[detection.object_id] += 1
    return samples


def feeds_from(
    samples: Sequence[Sample], crop: CropPreset, objects: Sequence[ObjectEntry], inputs: tuple[TensorSpec, ...]
) -> list[Arrays]:
    """One feed of one crop per sample, as the runtime cuts it. objects: in the order of the path's ids."""
    batch, feeds = CropBatch(crop, objects, capacity=1), []
    for sample in samples:
        batch.cut(sample.image_rgb_u8, sample.intrinsics, [sample.detection])
        feeds.append({name: array.copy() for name, array in batch.feed(inputs).items()})
    return feeds


def _sightings(
    source: str, boxes: Boxes, intrinsics: Intrinsics | None, object_ids: Collection[int]
) -> Iterator[tuple[Frame, Detection]]:
    frames = frames_from(source, intrinsics)
    try:
        for frame in frames:
            known = [detection for detection in boxes(frame) if detection.object_id in object_ids]
            yield from ((frame, box) for box in known if has_crop(box.box_xyxy_px, frame.intrinsics))
    finally:
        frames.close()


def _sample(frame: Frame, detection: Detection) -> Sample:
    name = f"{frame.name} object {detection.object_id}"
    return Sample(name, frame.image_rgb_u8, frame.intrinsics, detection, true_pose_of(frame, detection))
