"""Crops of one frame and the geometry that graphs may ask for, in buffers made once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from posekit.runtime.crop import Crop, CropPreset, Image, crop
from posekit.runtime.detection import Detection
from posekit.runtime.errors import SpecError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import ObjectEntry
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

    crops: the Crop records of the last cut, whose pixels look into the batch.
    """

    def __init__(self, preset: CropPreset, objects: Sequence[ObjectEntry], capacity: int) -> None:
        size = preset.size_px
        self.preset, self.capacity = preset, capacity
        self.crops: list[Crop] = []
        self._labels = {entry.id: label for label, entry in enumerate(objects)}
        self._bbox_m = np.array([[entry.bbox_min_m, entry.bbox_max_m] for entry in objects], dtype=np.float32)
        self._pixels = np.zeros((capacity, size, size, 3), dtype=np.uint8)
        self._arrays: dict[str, npt.NDArray[np.generic]] = {"crops": self._pixels}
        self._arrays |= {name: np.zeros((capacity, *shape), dtype) for name, (dtype, shape) in FEEDS.items()}

    def cut(self, image_rgb_u8: Image, intrinsics: Intrinsics, detections: Sequence[Detection]) -> None:
        """Cut one crop per detection, at most `capacity`, of objects that this batch knows."""
        if not detections:
            self.crops = []
            return
        self.crops = [
            crop(image_rgb_u8, detection.box_xyxy_px, intrinsics, self.preset, out=self._pixels[i])
            for i, detection in enumerate(detections)
        ]
        labels = [self._labels[detection.object_id] for detection in detections]
        values: dict[str, npt.ArrayLike] = {
            "box": [one.box_xyxy_px for one in self.crops],
            "warp": [one.warp for one in self.crops],
            "K": intrinsics.K,
            "image_wh": (intrinsics.width_px, intrinsics.height_px),
            "label": labels,
            "bbox_m": self._bbox_m[labels],
        }
        for name, value in values.items():
            self._arrays[name][: len(self.crops)] = value

    def feed(self, specs: Sequence[TensorSpec]) -> dict[str, npt.NDArray[np.generic]]:
        """Views of the last cut for a graph's inputs, which `check_feedable` has passed."""
        return {spec.name: self._arrays[spec.name][: len(self.crops)] for spec in specs}


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
