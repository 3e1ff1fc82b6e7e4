"""Crops of one frame and the geometry that graphs may ask for, in buffers made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from posekit.runtime.crop import Crop, CropPreset, Image, crop
from posekit.runtime.detection import BoxError, Detection, Reason
from posekit.runtime.errors import SpecError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import ObjectEntry
from posekit.runtime.one_at_a_time import OneAtATime
from posekit.runtime.tensor import TensorSpec

# Everything that a graph may be fed, per crop. README, "Graphs".
FEEDS: dict[str, tuple[str, tuple[int, ...]]] = {
    "box": ("float32", (4,)),
    "warp": ("float32", (2, 3)),
    "K": ("float32", (3, 3)),
    "image_wh": ("float32", (2,)),
    "label": ("int64", ()),
    "bbox_m": ("float32", (2, 3)),
}


class CropBatch:
    """Up to `capacity` crops. Cut with `cut`, then feed graphs; everything is overwritten by the next `cut`.

    For one thread: a `cut` while another is running is an InputError.

    crops: the Crop records of the last cut, whose pixels look into the batch.   detections: those that they are of.
    intrinsics, labels: of that cut.   bbox_m: (objects, 2, 3) by label.
    """

    def __init__(self, preset: CropPreset, objects: Sequence[ObjectEntry], capacity: int) -> None:
        width, height = preset.wh_px
        self.preset, self.capacity = preset, capacity
        self._alone = OneAtATime("crop batch")
        self.crops: list[Crop] = []
        self.detections: list[Detection] = []
        self.labels: list[int] = []
        self.intrinsics: Intrinsics
        self._label_of = {entry.id: label for label, entry in enumerate(objects)}
        self.bbox_m = np.array([[entry.bbox_min_m, entry.bbox_max_m] for entry in objects], dtype=np.float32)
        self._pixels = np.zeros((capacity, height, width, 3), dtype=np.uint8)
        self._arrays: dict[str, npt.NDArray[np.generic]] = {"crops": self._pixels}
        self._arrays |= {name: np.zeros((capacity, *shape), dtype) for name, (dtype, shape) in FEEDS.items()}

    def cut(self, image_rgb_u8: Image, intrinsics: Intrinsics, detections: Sequence[Detection]) -> dict[int, Reason]:
        """Cut one crop per detection, at most `capacity`, of objects that this batch knows.

        Returns the index of each detection of which none can be cut, with the reason; the batch is of the others.
        """
        with self._alone:
            self.crops, self.detections, uncut = [], [], dict[int, Reason]()
            for i, detection in enumerate(detections):
                free = self._pixels[len(self.crops)]
                try:
                    self.crops.append(crop(image_rgb_u8, detection.box_xyxy_px, intrinsics, self.preset, out=free))
                    self.detections.append(detection)
                except BoxError as error:
                    uncut[i] = error.reason
            self.intrinsics = intrinsics
            self.labels = [self._label_of[detection.object_id] for detection in self.detections]
            return uncut

    def feed(self, specs: Sequence[TensorSpec]) -> dict[str, npt.NDArray[np.generic]]:
        """Views of the last cut for a graph's inputs, which `check_feedable` has passed."""
        return {spec.name: self._filled(spec.name) for spec in specs}

    def _filled(self, name: str) -> npt.NDArray[np.generic]:
        """Only what a graph asks for is worked out."""
        view = self._arrays[name][: len(self.crops)]
        if self.crops and name != "crops":
            view[...] = VALUES[name](self)
        return view


# Where the values of a feed come from, one per crop or one for all.
VALUES: dict[str, Callable[[CropBatch], npt.ArrayLike]] = {
    "box": lambda batch: [one.box_xyxy_px for one in batch.crops],
    "warp": lambda batch: [one.warp for one in batch.crops],
    "K": lambda batch: batch.intrinsics.ideal.K,
    "image_wh": lambda batch: (batch.intrinsics.ideal.width_px, batch.intrinsics.ideal.height_px),
    "label": lambda batch: batch.labels,
    "bbox_m": lambda batch: batch.bbox_m[batch.labels],
}


def check_feedable(specs: Sequence[TensorSpec]) -> None:
    """SpecError for a graph input that no frame can give."""
    unknown = [spec.name for spec in specs if spec.name not in ("crops", *FEEDS)]
    if unknown:
        raise SpecError(
            f"graph input {unknown[0]!r}",
            got="a name that posekit cannot feed",
            expected=f"inputs among crops, {', '.join(FEEDS)}",
            remedy="Rename the input in the exported network.",
        )
