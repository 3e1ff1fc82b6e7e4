"""The glue that a user writes around exported networks: OpenCV and NumPy from a frame to poses, without posekit's runtime.

What the systems define is not written again: crop and box rules come with the bundle, the solver and the pose that a
bank's candidates agree on from posekit.runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from posekit.runtime.bank import TemplateBank
from posekit.runtime.detection import Hypothesis
from posekit.runtime.manifest import DetectorEntry, ObjectEntry, PathEntry, SolverEntry
from posekit.runtime.paths import template_pose
from posekit.runtime.pose import Array, Pose
from posekit.runtime.solvers import pose_from_correspondences

Image = npt.NDArray[np.uint8]
Arrays = dict[str, npt.NDArray[Any]]
Net = Callable[[Arrays], Arrays]  # uint8 pixels and geometry in, arrays out, by the names of the graph
Best = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]  # index and score (k,) of the most alike views, best first
Match = Callable[[npt.NDArray[Any], int], Best]  # descriptors of one crop, object id -> views


@dataclass(frozen=True)
class Posed:
    object_id: int
    score: float
    cam_from_obj: Pose


@dataclass(frozen=True, eq=False)
class Cut:
    """Crops of one frame. feed: what graphs may ask for, one row per crop.   K_crops: (B, 3, 3)."""

    object_ids: tuple[int, ...]
    feed: Arrays
    K_crops: Array


Finish = Callable[[Arrays, Cut, Array], Sequence["tuple[Pose, float] | None"]]


@dataclass(frozen=True, eq=False)
class Pipeline:
    """Frame to poses. detect, network: the two networks.   finish: outputs, crops and K of the image -> per crop a pose."""

    detector: DetectorEntry
    path: PathEntry
    objects: Mapping[int, ObjectEntry]
    detect: Net
    network: Net
    finish: Finish

    def __call__(self, image_rgb_u8: Image, K: Array) -> list[Posed]:
        found = detected(self.detect, self.detector, image_rgb_u8)
        boxes = [(object_id, box) for object_id, box in found if object_id in self.path.object_ids]
        if not boxes:
            return []
        cut = crops_of(image_rgb_u8, K, boxes, self.path, self.objects)
        poses = self.finish(self.network(cut.feed), cut, K)
        return [Posed(i, p[1], p[0]) for i, p in zip(cut.object_ids, poses, strict=True) if p is not None]


def detected(detect: Net, entry: DetectorEntry, image_rgb_u8: Image) -> list[tuple[int, Array]]:
    """Letterbox, network, threshold, and boxes back in the image, pixel centres at integers, best first."""
    height, width = image_rgb_u8.shape[:2]
    to_width, to_height = entry.input_wh_px
    ratio = min(to_width / width, to_height / height)
    inner = round(width * ratio), round(height * ratio)
    left, top = (to_width - inner[0]) // 2, (to_height - inner[1]) // 2
    boxed = np.full((to_height, to_width, 3), entry.letterbox_value, np.uint8)
    boxed[top : top + inner[1], left : left + inner[0]] = cv2.resize(image_rgb_u8, inner)
    out = detect({"image": boxed[None]})
    kept = out["scores"][0] > entry.score_threshold
    scale = np.tile([inner[0] / width, inner[1] / height], 2)
    edges = (out["boxes"][0][kept].astype(np.float64) - [left, top, left, top]) / scale
    boxes = np.clip(edges, 0, [width, height, width, height]) - 0.5
    ids = np.array(entry.class_object_ids)[out["labels"][0][kept]]
    thick = (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)
    return [(int(i), box) for i, box in zip(ids[thick], boxes[thick], strict=True)]


def crops_of(
    image_rgb_u8: Image,
    K: Array,
    boxes: Sequence[tuple[int, Array]],
    path: PathEntry,
    objects: Mapping[int, ObjectEntry],
) -> Cut:
    """A square about each box, warped to the network's size, and the geometry beside it."""
    size, wh = path.crop.side_px, image_rgb_u8.shape[1::-1]
    pixels, warps = [], []
    for _, (x0, y0, x1, y1) in boxes:
        side = path.crop.pad * max(x1 - x0, y1 - y0)
        if path.crop.rule == "dzi":
            side = min(side, max(wh))
        scale, centre = size / side, np.array([(x0 + x1) / 2, (y0 + y1) / 2])
        shift = (size - 1) / 2 - scale * centre
        warps.append(np.array([[scale, 0, shift[0]], [0, scale, shift[1]]]))
        pixels.append(cv2.warpAffine(image_rgb_u8, warps[-1], (size, size), flags=cv2.INTER_LINEAR))
    ids = tuple(object_id for object_id, _ in boxes)
    feed: Arrays = {
        "crops": np.stack(pixels),
        "box": np.array([box for _, box in boxes], np.float32),
        "warp": np.array(warps, np.float32),
        "K": np.tile(K.astype(np.float32), (len(boxes), 1, 1)),
        "image_wh": np.tile(np.array(wh, np.float32), (len(boxes), 1)),
        "label": np.array([path.object_ids.index(i) for i in ids], np.int64),
        "bbox_m": np.array([(objects[i].bbox_min_m, objects[i].bbox_max_m) for i in ids], np.float32),
    }
    return Cut(ids, feed, np.array([np.vstack([warp, [0, 0, 1]]) @ K for warp in warps]))


def regressed(out: Arrays, cut: Cut, K: Array) -> list[tuple[Pose, float] | None]:
    """The network says it all."""
    rows = zip(out["R"], out["t"], out["score"], strict=True)
    return [(Pose(_orthonormal(R), t.astype(np.float64)), float(score)) if t[2] > 0 else None for R, t, score in rows]


def _orthonormal(R: npt.NDArray[Any]) -> Array:
    """float32 is not orthonormal enough for float64 arithmetic."""
    u, _, vt = np.linalg.svd(R.astype(np.float64))
    return np.asarray(u @ vt)


def solved(solver: SolverEntry) -> Finish:
    """Cells inside the mask, then the solver that the path names: another solver's poses would say nothing of the rest."""

    def finish(out: Arrays, cut: Cut, K: Array) -> list[tuple[Pose, float] | None]:
        poses: list[tuple[Pose, float] | None] = []
        crop_px = cut.feed["crops"].shape[1]
        for mask, coords_m, K_crop in zip(out["mask"], out["coords_m"], cut.K_crops, strict=True):
            rows, columns = np.nonzero(mask > solver.mask_threshold)
            cell_px = crop_px / mask.shape[0]
            pixels = (np.stack([columns, rows], axis=1) + 0.5) * cell_px - 0.5
            found = pose_from_correspondences(coords_m[rows, columns], pixels, K_crop, solver)
            poses.append(None if found is None else (found.cam_from_obj, float(mask[rows, columns].mean())))
        return poses

    return finish


def matched(banks: Mapping[int, TemplateBank], match: Match, least_scores: Mapping[int, float]) -> Finish:
    """Give the pose that the views most alike agree on, at the distance that the box says.

    None where it scores less than the object's least score.
    """

    def finish(out: Arrays, cut: Cut, K: Array) -> list[tuple[Pose, float] | None]:
        poses: list[tuple[Pose, float] | None] = []
        for descriptors, object_id, box in zip(out["descriptors"], cut.object_ids, cut.feed["box"], strict=True):
            index, scores = match(descriptors, object_id)
            found = template_pose(banks[object_id], index, scores, box, K)
            if isinstance(found, Hypothesis) and found.score >= least_scores.get(object_id, 0.0):
                poses.append((found.cam_from_obj, found.score))
            else:
                poses.append(None)
        return poses

    return finish
