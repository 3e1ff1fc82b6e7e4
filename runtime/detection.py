"""What goes into pose estimation and what comes out: detections and estimates."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import isfinite

import numpy as np
import numpy.typing as npt

from posekit.runtime.errors import InputError
from posekit.runtime.pose import Array, Pose, numbers_from

MIN_BOX_SIDE_PX = 1.0
FARTHEST_PX = 1e6  # beyond this float32 no longer tells pixels apart


@dataclass(frozen=True, eq=False)
class Detection:
    """One object in one image.

    box_xyxy_px: (4,) float64, x0 <= x1, y0 <= y1, pixel centres at integers.
    mask: (H, W) bool over the whole image, where the detector gives one.
    """

    object_id: int
    score: float
    box_xyxy_px: Array
    mask: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "box_xyxy_px", checked_box(self.box_xyxy_px))
        if not isinstance(self.object_id, (int, np.integer)) or isinstance(self.object_id, bool):
            raise InputError(
                "detection",
                got=f"object id {self.object_id!r}",
                expected="a whole number",
                remedy="Give the object's id.",
            )
        if not isinstance(self.score, (int, float, np.number)) or not isfinite(self.score):
            raise InputError("detection score", got=repr(self.score), expected="a finite number", remedy="Drop it.")
        object.__setattr__(self, "object_id", int(self.object_id))  # NumPy's numbers are none in JSON
        object.__setattr__(self, "score", float(self.score))


class Reason(Enum):
    """Why a detection has no pose; the value is what results and JSON say."""

    BOX_OUTSIDE_IMAGE = "box_outside_image"
    BOX_TOO_THIN = "box_too_thin"  # less than a pixel, in the image or where the lens puts it
    BOX_BEYOND_LENS = "box_beyond_lens"  # the lens model takes no ideal pixel there
    OUTPUT_NOT_FINITE = "output_not_finite"
    OUTPUT_NO_ROTATION = "output_no_rotation"
    TOO_FEW_CORRESPONDENCES = "too_few_correspondences"
    DEGENERATE_CORRESPONDENCES = "degenerate_correspondences"  # on one line, or in one pixel
    NO_CONSENSUS = "no_consensus"
    BEHIND_CAMERA = "behind_camera"
    NOTHING_ALIKE = "nothing_alike"  # no template of the bank
    SCORE_BELOW_THRESHOLD = "score_below_threshold"


class BoxError(InputError):
    """A box of which no crop can be cut, although it is a box; `reason` says why, for a detection without a pose."""

    def __init__(self, reason: Reason, *, got: object, expected: object, remedy: str) -> None:
        self.reason = reason
        super().__init__("box", got=got, expected=expected, remedy=remedy)


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """One pose that a path proposes for one detection.

    score: confidence in 0..1 as the path computes it.   alternative: another pose that explains the same evidence as
    well, as a flat object far away has two; None where the pose is the only one.
    """

    cam_from_obj: Pose
    score: float
    alternative: Pose | None = None


@dataclass(frozen=True, eq=False)
class PoseEstimate:
    """One found pose. An object whose pose was not found has no estimate.

    score: confidence in 0..1 as the pose path computes it; comparable within one path only.
    alternative: see `Hypothesis`.
    """

    object_id: int
    score: float
    cam_from_obj: Pose
    detection: Detection
    alternative: Pose | None = None


@dataclass(frozen=True, eq=False)
class Unposed:
    """A detection whose pose was not found, and why."""

    detection: Detection
    reason: Reason


def checked_box(box_xyxy_px: npt.ArrayLike) -> Array:
    """A (4,) float64 box, or InputError for what is none: no numbers, NaN, inverted. It may lie anywhere and be thin."""
    box = numbers_from(box_xyxy_px)
    if box is None:
        problem = repr(box_xyxy_px)[:60]
    elif box.shape != (4,):
        problem = f"shape {box.shape}"
    elif not all(abs(edge) <= FARTHEST_PX for edge in box.tolist()):  # NaN too
        problem = f"{box.tolist()}"
    elif box[2] < box[0] or box[3] < box[1]:
        problem = f"{box.tolist()} ({box[2] - box[0]:g} x {box[3] - box[1]:g} px)"
    else:
        return box
    raise InputError(
        "box",
        got=problem,
        expected="x0, y0, x1, y1 in pixels, finite, within a million, x0 <= x1, y0 <= y1",
        remedy="Boxes are corners, not x, y, width, height.",
    )


def box_from_mask(mask: npt.NDArray[np.bool_]) -> Array:
    """(4,) box around a mask (H, W): columns a..b give a - 0.5, b + 0.5. InputError for an empty mask."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        raise InputError("mask", got="no pixel", expected="a mask that is not empty", remedy="Drop this object.")
    return np.array([columns[0] - 0.5, rows[0] - 0.5, columns[-1] + 0.5, rows[-1] + 0.5])


def overlaps_image(box_xyxy_px: Array, width_px: int, height_px: int) -> bool:
    """Whether any pixel centre of the image lies in the box."""
    x0, y0, x1, y1 = box_xyxy_px
    return bool(x0 < width_px - 1 and y0 < height_px - 1 and x1 > 0 and y1 > 0)
