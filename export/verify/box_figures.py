"""How far a detector's variant is from its reference: boxes lost and gained, overlap, and recall of true objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posekit.benchmarks.accuracy import DETECTED_IOU, box_iou
from posekit.calibration.fitness import first_of_their_kind
from posekit.export.verify.figures import Evidence, Spread, relative_rms, score_p95, spread_of
from posekit.export.verify.observe import Boxes, BoxObservation
from posekit.export.verify.samples import FrameSample
from posekit.runtime.detector import iou

RANKED = {"boxes", "labels"}  # of a graph that ends in a ranking: equal scores change places, and these with them


@dataclass(frozen=True)
class BoxFigures:
    """A variant's boxes against the reference's on n frames. Two boxes are partners that overlap by DETECTED_IOU.

    evidence: what there was to judge on, by name: images; found (by the reference), settled, and partners of settled boxes;
    true (objects).   boxes: of the reference.   settled: share of them that noise leaves where they are (`settled_boxes`).
    exposed: share of the frames, as in `Figures`.
    lost: share of the settled boxes without a partner.   gained: boxes of the variant without one, over `boxes`.
    iou_p50, iou_p5: of settled partners.   score_p95: of the difference of their scores, over the reference's median score.
    recall: of true objects (n_true).   recall_drop: the reference's minus the variant's.   outputs: as in `Figures`.
    """

    n: int
    evidence: dict[str, Evidence]
    boxes: int
    settled: float
    exposed: float
    lost: float
    gained: float
    iou_p50: float | None
    iou_p5: float | None
    score_p95: float | None
    n_true: int
    recall: float | None
    recall_drop: float | None
    outputs: dict[str, Spread]


def box_figures(
    reference: BoxObservation,
    variant: BoxObservation,
    frames: Sequence[FrameSample],
    settled: Sequence[Sequence[bool]] | None = None,
) -> BoxFigures:
    """Compare two observations of the same frames. settled: per frame and box of the reference; all if None."""
    counted = settled or [[True] * len(found) for found in reference.boxes]
    partners = [_partners(a, b) for a, b in zip(reference.boxes, variant.boxes, strict=True)]
    paired = [
        [(a[i], b[j]) for i, j in found.items() if counts[i]]
        for a, b, found, counts in zip(reference.boxes, variant.boxes, partners, counted, strict=True)
    ]
    pairs = [pair for frame in paired for pair in frame]
    total, n_settled = sum(map(len, reference.boxes)), sum(map(sum, counted))
    unpaired = sum(len(b) - len(found) for b, found in zip(variant.boxes, partners, strict=True))
    overlaps = [box_iou(a.box_xyxy_px, b.box_xyxy_px) for a, b in pairs]
    is_new = first_of_their_kind([frame.thumbnail for frame in frames])
    recalls = [_recalled(observed.boxes, frames) for observed in (reference, variant)]
    return BoxFigures(
        n=len(frames),
        evidence={
            "images": _evidence(is_new, [1] * len(frames)),
            "found": _evidence(is_new, list(map(len, reference.boxes))),
            "settled": _evidence(is_new, list(map(sum, counted))),
            "partners": _evidence(is_new, list(map(len, paired))),
            "true": _evidence(is_new, [len(frame.true_boxes) for frame in frames]),
        },
        boxes=total,
        settled=n_settled / total if total else 1.0,
        exposed=float(np.mean(reference.exposed)) if reference.exposed else 0.0,
        lost=1 - len(pairs) / n_settled if n_settled else 0.0,
        gained=unpaired / total if total else float(unpaired > 0),
        iou_p50=_percentile(overlaps, 50),
        iou_p5=_percentile(overlaps, 5),
        score_p95=score_p95([(a.score, b.score) for a, b in pairs]),
        n_true=len(recalls[0]),
        recall=float(np.mean(recalls[1])) if recalls[0] else None,
        recall_drop=float(np.mean(recalls[0]) - np.mean(recalls[1])) if recalls[0] else None,
        outputs=_outputs(reference, variant),
    )


def settled_boxes(reference: BoxObservation, shaken: Sequence[BoxObservation]) -> list[list[bool]]:
    """Per frame and box of the reference: whether it has a partner under every draw of noise."""
    found = [[_partners(a, b) for a, b in zip(reference.boxes, one.boxes, strict=True)] for one in shaken]
    return [
        [all(draw[frame].get(i) is not None for draw in found) for i in range(len(boxes))]
        for frame, boxes in enumerate(reference.boxes)
    ]


def _evidence(is_new: Sequence[bool], per_frame: Sequence[int]) -> Evidence:
    """Of so many things per frame. is_new: frames that are no near copies of earlier ones, which alone are counted."""
    return Evidence(sum(per_frame), sum(new and count > 0 for new, count in zip(is_new, per_frame, strict=True)))


def _partners(a: Boxes, b: Boxes) -> dict[int, int]:
    """Index of a -> index of b: boxes of b, best first, each take the free one of the same object that overlaps most."""
    if not a or not b:
        return {}
    boxes, ids = _corners(a), np.array([box.object_id for box in a])
    free, pairs = np.ones(len(a), bool), {}
    for i, (box, corners) in enumerate(zip(b, _corners(b), strict=True)):
        overlaps = np.where(free & (ids == box.object_id), iou(corners, boxes), 0.0)
        best = int(overlaps.argmax())
        if overlaps[best] >= DETECTED_IOU:
            pairs[best], free[best] = i, False
    return pairs


def _corners(boxes: Boxes) -> npt.NDArray[np.float32]:
    return np.stack([box.box_xyxy_px for box in boxes]).astype(np.float32)


def _recalled(found: Sequence[Boxes], frames: Sequence[FrameSample]) -> list[bool]:
    """Per true box of the frames, whether it was found."""
    hits = []
    for boxes, frame in zip(found, frames, strict=True):
        partners = _partners(frame.true_boxes, boxes)
        hits += [i in partners for i in range(len(frame.true_boxes))]
    return hits


def _outputs(reference: BoxObservation, variant: BoxObservation) -> dict[str, Spread]:
    first = reference.outputs[0] if reference.outputs else {}
    ranked = RANKED if set(first) >= RANKED else set()
    spreads = {}
    for name, array in first.items():
        if array.dtype.kind == "f" and name not in ranked:
            rows = zip(reference.outputs, variant.outputs, strict=True)
            spreads[name] = spread_of([relative_rms(a[name], b[name]) for a, b in rows])
    return {name: spread for name, spread in spreads.items() if spread}


def _percentile(values: Sequence[float], q: float) -> float | None:
    return float(np.percentile(values, q)) if len(values) else None
