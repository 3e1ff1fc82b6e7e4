"""Estimates against ground truth over a data set: recalls, average recalls, medians, per object and in total.

What was not estimated is a miss. An estimate counts for one true object at most, and the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from posekit.benchmarks.pose_error import PoseErrors, ScoredObject, pose_errors
from posekit.runtime.bop import TrueObject
from posekit.runtime.detection import PoseEstimate, Unposed
from posekit.runtime.errors import InputError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Array

ADD_SHARE_OF_DIAMETER = 0.1  # Hinterstoisser et al. 2012
UNOCCLUDED = 0.95
MSSD_SHARES_OF_DIAMETER = tuple(np.arange(0.05, 0.51, 0.05).round(2).tolist())  # BOP 2019 and later
MSPD_LIMITS_PX = tuple(range(5, 51, 5))  # for images 640 px wide, scaled with the width
MSPD_WIDTH_PX = 640
DETECTED_IOU = 0.5
MM_PER_M = 1000.0


@dataclass(frozen=True)
class TruthScore:
    """How one true object fared.

    correct_add: an estimate within 0.1 diameters by ADD, or by ADD-S for a symmetric object.  ar_mssd, ar_mspd: share of
    BOP's thresholds under which an estimate is correct.  errors: of the estimate matched to it without any threshold,
    None for a miss.  detected: a box of its class, with a pose or without one, overlaps it by half; None where no true
    box is known.
    visible_fraction: of its silhouette, None where the data set does not say.
    """

    object_id: int
    correct_add: bool
    ar_mssd: float
    ar_mspd: float
    errors: PoseErrors | None
    detected: bool | None
    visible_fraction: float | None = None


@dataclass(frozen=True)
class ObjectAccuracy:
    """One row of the table. Medians are over matched estimates, None without any; detection_recall None without boxes."""

    object_id: int | None
    name: str
    n_true: int
    n_matched: int
    recall_add: float
    ar_mssd: float
    ar_mspd: float
    rotation_p50_deg: float | None
    translation_p50_mm: float | None
    mssd_p50_mm: float | None
    detection_recall: float | None


@dataclass(frozen=True)
class Accuracy:
    """per_object: in order of id.   total: over all true objects alike; its object_id is None.
    unoccluded: over those that are visible by UNOCCLUDED or more, None where the data set does not say.
    """

    per_object: tuple[ObjectAccuracy, ...]
    total: ObjectAccuracy
    unoccluded: ObjectAccuracy | None


def image_scores(
    truth: Sequence[TrueObject],
    outcomes: Sequence[PoseEstimate | Unposed],
    objects: Mapping[int, ScoredObject],
    intrinsics: Intrinsics,
) -> list[TruthScore]:
    """Score one image. True objects that `objects` does not know, or that are nearly hidden (BOP), are left out."""
    scores: list[TruthScore] = []
    for object_id, scored in objects.items():
        trues = [true for true in truth if true.object_id == object_id and true.counts]
        mine = [outcome for outcome in outcomes if outcome.detection.object_id == object_id]
        found = sorted((o for o in mine if isinstance(o, PoseEstimate)), key=lambda e: -e.score)[: len(trues)]
        boxes = [e.detection.box_xyxy_px for e in found]
        boxes += [o.detection.box_xyxy_px for o in mine if isinstance(o, Unposed)]
        if trues:
            scores += _object_scores(trues, found, boxes, scored, intrinsics)
    return scores


def accuracy_from(scores: Iterable[TruthScore], names: Mapping[int, str]) -> Accuracy:
    """Fold the scores of all images. names: object id -> name for the table. InputError when nothing was scored."""
    scores = list(scores)
    if not scores:
        raise InputError(
            "accuracy",
            got="no true object that counts",
            expected="ground truth of the objects in question",
            remedy="Compare the object ids of the bundle (posekit inspect) with those of scene_gt.json.",
        )
    rows = []
    for object_id in sorted({score.object_id for score in scores}):
        mine = [score for score in scores if score.object_id == object_id]
        rows.append(_accuracy(object_id, names.get(object_id, str(object_id)), mine))
    clear = [score for score in scores if (score.visible_fraction or 0.0) >= UNOCCLUDED]
    unoccluded = _accuracy(None, f"{UNOCCLUDED:.0%} visible", clear) if clear else None
    return Accuracy(tuple(rows), _accuracy(None, "all", scores), unoccluded)


def matches(errors: Array, limit: float = np.inf) -> list[tuple[int, int]]:
    """Greedy pairs (estimate, truth): estimates in row order each take the free truth with the least error below limit.

    errors: (E, T), rows by descending score. BOP's matching.
    """
    free = list(range(errors.shape[1]))
    pairs = []
    for i, row in enumerate(errors):
        if not free:
            break
        j = min(free, key=lambda column: float(row[column]))
        if row[j] < limit:
            pairs.append((i, j))
            free.remove(j)
    return pairs


def box_iou(a_xyxy_px: Array, b_xyxy_px: Array) -> float:
    """Intersection over union of two boxes, (4,) each."""
    sides = np.minimum(a_xyxy_px[2:], b_xyxy_px[2:]) - np.maximum(a_xyxy_px[:2], b_xyxy_px[:2])
    shared = float(np.clip(sides, 0, None).prod())
    areas = [float((box[2:] - box[:2]).prod()) for box in (a_xyxy_px, b_xyxy_px)]
    return shared / (sum(areas) - shared)


def _object_scores(
    trues: Sequence[TrueObject],
    found: Sequence[PoseEstimate],
    boxes: Sequence[Array],
    scored: ScoredObject,
    intrinsics: Intrinsics,
) -> list[TruthScore]:
    pairs = [[pose_errors(e.cam_from_obj, t.cam_from_obj, scored, intrinsics) for t in trues] for e in found]

    def table(measure: str) -> Array:
        return np.array([[getattr(errors, measure) for errors in row] for row in pairs]).reshape(-1, len(trues))

    d, width_scale = scored.diameter_m, intrinsics.width_px / MSPD_WIDTH_PX
    add, mssd, mspd = (table(m) for m in ("adds_m" if scored.is_symmetric else "add_m", "mssd_m", "mspd_px"))
    correct = {j for _, j in matches(add, ADD_SHARE_OF_DIAMETER * d)}
    ar_mssd = _shares(mssd, [share * d for share in MSSD_SHARES_OF_DIAMETER])
    ar_mspd = _shares(mspd, [limit * width_scale for limit in MSPD_LIMITS_PX])
    matched = {j: pairs[i][j] for i, j in matches(mssd)}
    return [
        TruthScore(
            scored.object_id,
            j in correct,
            ar_mssd[j],
            ar_mspd[j],
            matched.get(j),
            _detected(true, boxes),
            true.visible_fraction,
        )
        for j, true in enumerate(trues)
    ]


def _shares(errors: Array, limits: Sequence[float]) -> list[float]:
    """Per truth, the share of limits under which it is matched."""
    hits = np.zeros(errors.shape[1])
    for limit in limits:
        hits[[j for _, j in matches(errors, limit)]] += 1
    return list((hits / len(limits)).tolist())


def _detected(true: TrueObject, found: Sequence[Array]) -> bool | None:
    boxes = [box for box in (true.visible_box_xyxy_px, true.amodal_box_xyxy_px) if box is not None]
    if not boxes:
        return None
    return any(box_iou(one, box) >= DETECTED_IOU for one in found for box in boxes)


def _accuracy(object_id: int | None, name: str, scores: Sequence[TruthScore]) -> ObjectAccuracy:
    errors = [score.errors for score in scores if score.errors is not None]
    boxed = [score.detected for score in scores if score.detected is not None]
    return ObjectAccuracy(
        object_id=object_id,
        name=name,
        n_true=len(scores),
        n_matched=len(errors),
        recall_add=_mean([score.correct_add for score in scores]),
        ar_mssd=_mean([score.ar_mssd for score in scores]),
        ar_mspd=_mean([score.ar_mspd for score in scores]),
        rotation_p50_deg=_median([math.degrees(e.rotation_rad) for e in errors]),
        translation_p50_mm=_median([e.translation_m * MM_PER_M for e in errors]),
        mssd_p50_mm=_median([e.mssd_m * MM_PER_M for e in errors]),
        detection_recall=_mean(boxed) if boxed else None,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
