"""How far a variant is from the reference, in the units that its user thinks in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from posekit.benchmarks.accuracy import ADD_SHARE_OF_DIAMETER
from posekit.benchmarks.pose_error import ScoredObject, add_m, adds_m, rotation_translation_errors
from posekit.calibration.fitness import first_of_their_kind
from posekit.export.verify.observe import Observation
from posekit.export.verify.samples import Sample
from posekit.runtime.pose import Pose

MM_PER_M = 1000.0
DESCRIPTORS, RANKING = "descriptors", "index"
TOP_K = 5
SETTLED_DEG, SETTLED_OF_DIAMETER = 5.0, 0.1
SCORE_ROUNDING = 1e-3  # of float16 above 1


@dataclass(frozen=True)
class Spread:
    """Median and 95th percentile."""

    p50: float
    p95: float


@dataclass(frozen=True)
class Evidence:
    """What a figure is of: n of something, from so many frames that differ: near copies of one, as a still camera records
    them, count once.
    """

    n: int
    frames: int


@dataclass(frozen=True)
class BatchFigures:
    """Poses in batches against those of the same file crop by crop (`posekit.export.verify.observe.poses_in_batches`).

    judged: settled crops, where one by one each has a pose.   rotation_deg, translation_of_diameter: between the two poses of one crop; half a turn
    and a whole diameter where the batch has none.
    """

    judged: Evidence
    rotation_deg: Spread | None
    translation_of_diameter: Spread | None


@dataclass(frozen=True)
class Figures:
    """A variant against the reference on n samples.

    evidence: what there was to judge on, by name: crops; found (by the reference), settled (and found by both), true (poses).
    settled: share of samples whose pose the picture determines (`settled_samples`); the spreads of pose are over these.
    exposed: share of samples that are neither black, burnt out (`posekit.calibration.fitness.is_exposed`) nor noise.
    lost, gained: share of samples where only the reference, or only the variant, found a pose.
    rotation_deg, translation_mm, translation_of_diameter: between the two poses where both were found, to the nearest
    symmetric copy.   score_p95: of the difference of their scores, over the reference's median score.
    score_p50: median score of the variant's settled poses; 0 where one is not within 0..1, which is no score.
    add_recall: ADD(-S) recall at 0.1 diameters, over samples whose truth is known (n_true).   add_recall_drop: the
    reference's minus the variant's.   true_rotation_p50_deg: median angle to the true pose, to the nearest symmetric copy; half a
    turn where none was found.   cosine_p1, cosine_p50: of embedder descriptors.   top1, top5: share of samples with the
    same best view, and mean share of the reference's five best views among the variant's.
    outputs: per float output, RMS of the difference over RMS of the reference, per sample.   batch: where it was run so.
    What a path does not have is None, or missing in outputs.
    """

    n: int
    evidence: dict[str, Evidence]
    settled: float
    exposed: float
    lost: float
    gained: float
    rotation_deg: Spread | None
    translation_mm: Spread | None
    translation_of_diameter: Spread | None
    score_p95: float | None
    score_p50: float | None
    n_true: int
    add_recall: float | None
    add_recall_drop: float | None
    true_rotation_p50_deg: float | None
    cosine_p1: float | None
    cosine_p50: float | None
    top1: float | None
    top5: float | None
    outputs: dict[str, Spread]
    batch: BatchFigures | None = None


def figures_of(
    reference: Observation,
    variant: Observation,
    samples: Sequence[Sample],
    objects: Mapping[int, ScoredObject],
    settled: Sequence[bool] | None = None,
) -> Figures:
    """Compare two observations of the same samples. objects: by id, those of the samples.  settled: all if None."""
    pairs = list(zip(reference.poses, variant.poses, samples, strict=True))
    found = _differences(reference.poses, variant.poses, samples, objects)
    counted = [e is not None and counts for e, counts in zip(found, settled or [True] * len(found), strict=True)]
    errors = [e for e, counts in zip(found, counted, strict=True) if e is not None and counts]
    scores = [pair for pair, counts in zip(_scores(reference, variant), counted, strict=False) if counts]
    recalls = [_recalled(samples, observed.poses, objects) for observed in (reference, variant)]
    n_true = len(recalls[0])
    cosines = [_cosine(a, b) for a, b in _outputs_of(DESCRIPTORS, reference, variant)]
    rankings = _outputs_of(RANKING, reference, variant)
    floats = [name for name, array in (reference.outputs[0] if samples else {}).items() if array.dtype.kind == "f"]
    return Figures(
        n=len(samples),
        evidence={
            "crops": evidence_of(samples),
            "found": evidence_of(samples, [a is not None for a in reference.poses]),
            "settled": evidence_of(samples, counted),
            "true": evidence_of(samples, [sample.true_pose is not None for sample in samples]),
        },
        settled=_share(settled) if settled is not None else 1.0,
        exposed=_share(reference.exposed),
        lost=_share(a is not None and b is None for a, b, _ in pairs),
        gained=_share(a is None and b is not None for a, b, _ in pairs),
        rotation_deg=spread_of([math.degrees(rotation) for rotation, _, _ in errors]),
        translation_mm=spread_of([t_m * MM_PER_M for _, t_m, _ in errors]),
        translation_of_diameter=spread_of([t_m / diameter_m for _, t_m, diameter_m in errors]),
        score_p95=score_p95(scores),
        score_p50=_score_p50([own for _, own in scores]),
        n_true=n_true,
        add_recall=float(np.mean(recalls[1])) if n_true else None,
        add_recall_drop=float(np.mean(recalls[0]) - np.mean(recalls[1])) if n_true else None,
        true_rotation_p50_deg=_true_rotation_p50_deg(samples, variant.poses, objects),
        cosine_p1=float(np.percentile(cosines, 1)) if cosines else None,
        cosine_p50=float(np.percentile(cosines, 50)) if cosines else None,
        top1=_share(a[0] == b[0] for a, b in rankings) if rankings else None,
        top5=float(np.mean([len(set(a[:TOP_K]) & set(b[:TOP_K])) / len(a[:TOP_K]) for a, b in rankings]))
        if rankings
        else None,
        outputs={
            name: spread
            for name in floats
            if (spread := spread_of([relative_rms(a, b) for a, b in _outputs_of(name, reference, variant)]))
        },
    )


def evidence_of(samples: Sequence[Sample], counted: Sequence[bool] | None = None) -> Evidence:
    """How many of the samples count (all if None), and in how many frames an object's box shows something else than before."""
    of_object: dict[int, list[Sample]] = {}
    for sample, counts in zip(samples, counted or [True] * len(samples), strict=True):
        if counts:
            of_object.setdefault(sample.detection.object_id, []).append(sample)
    new_frames = {
        id(sample.image_rgb_u8)
        for mine in of_object.values()
        for sample, is_new in zip(mine, first_of_their_kind([one.thumbnail for one in mine]), strict=True)
        if is_new
    }
    return Evidence(sum(map(len, of_object.values())), len(new_frames))


def batch_figures(
    alone: Sequence[Pose | None],
    batched: Sequence[Pose | None],
    samples: Sequence[Sample],
    objects: Mapping[int, ScoredObject],
) -> BatchFigures:
    """Poses of one file from one sample at a time, against those of the same samples in batches."""
    rows = []
    for sample, row in zip(samples, _differences(alone, batched, samples, objects), strict=True):
        diameter_m = objects[sample.detection.object_id].diameter_m
        rows.append(row or (math.pi, diameter_m, diameter_m))
    return BatchFigures(
        evidence_of(samples),
        spread_of([math.degrees(rotation) for rotation, _, _ in rows]),
        spread_of([t_m / diameter_m for _, t_m, diameter_m in rows]),
    )


def score_p95(pairs: Sequence[tuple[float, float]]) -> float | None:
    """95th percentile of the difference of two scores each, over the median of the first; None for no pairs."""
    spread = spread_of([abs(b - a) for a, b in pairs])
    if spread is None:
        return None
    usual = float(np.median([a for a, _ in pairs]))
    return spread.p95 / usual if usual > 0 else (math.inf if spread.p95 > 0 else 0.0)


def _score_p50(scores: Sequence[float]) -> float | None:
    """Give the median of scores, or 0 where one is no score at all; None for no scores."""
    if not scores:
        return None
    return float(np.median(scores)) if min(scores) >= 0 and max(scores) <= 1 + SCORE_ROUNDING else 0.0


def _scores(reference: Observation, variant: Observation) -> list[tuple[float, float]]:
    """Per sample; 0 where no pose was found. Empty for observations without scores."""
    return [(a or 0.0, b or 0.0) for a, b in zip(reference.scores, variant.scores, strict=True)]


def settled_samples(
    reference: Observation,
    shaken: Sequence[Observation],
    samples: Sequence[Sample],
    objects: Mapping[int, ScoredObject],
) -> tuple[bool, ...]:
    """Whether noise that any camera makes leaves the pose where it is: found each time, within SETTLED_DEG and
    SETTLED_OF_DIAMETER of the reference. A pose that noise moves farther says nothing about precision.
    """
    moved = [_differences(reference.poses, observed.poses, samples, objects) for observed in shaken]
    return tuple(all(row is not None and _is_still(*row) for row in rows) for rows in zip(*moved, strict=True))


def _is_still(rotation_rad: float, translation_m: float, diameter_m: float) -> bool:
    return math.degrees(rotation_rad) <= SETTLED_DEG and translation_m <= SETTLED_OF_DIAMETER * diameter_m


def _differences(
    reference: Sequence[Pose | None],
    variant: Sequence[Pose | None],
    samples: Sequence[Sample],
    objects: Mapping[int, ScoredObject],
) -> list[tuple[float, float, float] | None]:
    """Per sample rotation, radians, translation, metres, and the object's diameter; None unless both found a pose."""
    rows: list[tuple[float, float, float] | None] = []
    for a, b, sample in zip(reference, variant, samples, strict=True):
        scored = objects[sample.detection.object_id]
        if a is None or b is None:
            rows.append(None)
        else:
            rows.append((*rotation_translation_errors(b, a, scored.transforms), scored.diameter_m))
    return rows


def _outputs_of(name: str, reference: Observation, variant: Observation) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = zip(reference.outputs, variant.outputs, strict=True)
    return [(a[name], b[name]) for a, b in pairs if name in a and name in b]


def _recalled(
    samples: Sequence[Sample], poses: Sequence[Pose | None], objects: Mapping[int, ScoredObject]
) -> list[bool]:
    """Per sample of known truth: whether the pose is within 0.1 diameters by ADD, or ADD-S where symmetric."""
    return [
        pose is not None and _is_near(pose, sample.true_pose, objects[sample.detection.object_id])
        for sample, pose in zip(samples, poses, strict=True)
        if sample.true_pose is not None
    ]


def _true_rotation_p50_deg(
    samples: Sequence[Sample], poses: Sequence[Pose | None], objects: Mapping[int, ScoredObject]
) -> float | None:
    known = [(sample, pose) for sample, pose in zip(samples, poses, strict=True) if sample.true_pose is not None]
    trues = [sample.true_pose for sample, _ in known]
    rows = _differences(trues, [pose for _, pose in known], [sample for sample, _ in known], objects)
    spread = spread_of([math.degrees(row[0]) if row else 180.0 for row in rows])
    return spread.p50 if spread else None


def _is_near(pose: Pose, true: Pose, scored: ScoredObject) -> bool:
    distance_m = adds_m(pose, true, scored) if scored.is_symmetric else add_m(pose, true, scored.vertices_m)
    return distance_m <= ADD_SHARE_OF_DIAMETER * scored.diameter_m


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over places of the cosine between unit descriptors (L, C); zero rows (masked places) count nothing."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    used = lengths > 0
    return float(((x * y).sum(axis=-1)[used] / lengths[used]).mean()) if used.any() else 1.0


def relative_rms(a: np.ndarray, b: np.ndarray) -> float:
    """RMS of b - a over RMS of a; infinite where only one of them is finite."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    if not np.isfinite(y).all():
        return math.inf if np.isfinite(x).all() else 0.0
    scale = float(np.sqrt(np.mean(x**2)))
    off = float(np.sqrt(np.mean((y - x) ** 2)))
    return off / scale if scale else (math.inf if off else 0.0)


def spread_of(values: Sequence[float]) -> Spread | None:
    """None for no values."""
    if not len(values):
        return None
    between: Literal["linear", "higher"] = (
        "linear" if np.isfinite(values).all() else "higher"
    )  # between infinities there is nothing to interpolate
    return Spread(*(float(np.percentile(values, q, method=between)) for q in (50, 95)))


def _share(hits: object) -> float:
    flags = list(hits)  # type: ignore[call-overload]
    return float(np.mean(flags)) if flags else 0.0
