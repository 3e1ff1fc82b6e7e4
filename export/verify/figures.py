"""How far a variant is from the reference, in the units that its user thinks in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from posekit.benchmarks.accuracy import ADD_SHARE_OF_DIAMETER
from posekit.benchmarks.pose_error import ScoredObject, add_m, adds_m, rotation_translation_errors
from posekit.export.verify.observe import Observation
from posekit.export.verify.samples import Sample
from posekit.runtime.pose import Pose

MM_PER_M = 1000.0
DESCRIPTORS, RANKING = "descriptors", "index"
TOP_K = 5
SETTLED_DEG, SETTLED_OF_DIAMETER = 5.0, 0.1


@dataclass(frozen=True)
class Spread:
    """Median and 95th percentile."""

    p50: float
    p95: float


@dataclass(frozen=True)
class Figures:
    """A variant against the reference on n samples.

    settled: share of samples whose pose the picture determines (`settled_samples`); the spreads of pose are over these.
    lost, gained: share of samples where only the reference, or only the variant, found a pose.
    rotation_deg, translation_mm, translation_of_diameter: between the two poses where both were found, to the nearest
    symmetric copy.   add_recall_drop: ADD(-S) recall at 0.1 diameters of the reference minus the variant's, over samples
    whose truth is known (n_true).   cosine_p1, cosine_p50: of embedder descriptors.   top1, top5: share of samples with the
    same best view, and mean share of the reference's five best views among the variant's.
    outputs: per float output, RMS of the difference over RMS of the reference, per sample.
    What a path does not have is None, or missing in outputs.
    """

    n: int
    settled: float
    lost: float
    gained: float
    rotation_deg: Spread | None
    translation_mm: Spread | None
    translation_of_diameter: Spread | None
    n_true: int
    add_recall_drop: float | None
    cosine_p1: float | None
    cosine_p50: float | None
    top1: float | None
    top5: float | None
    outputs: dict[str, Spread]


def figures_of(
    reference: Observation,
    variant: Observation,
    samples: Sequence[Sample],
    objects: Mapping[int, ScoredObject],
    settled: Sequence[bool] | None = None,
) -> Figures:
    """Compare two observations of the same samples. objects: by id, those of the samples.  settled: all if None."""
    pairs = list(zip(reference.poses, variant.poses, samples, strict=True))
    found = _differences(reference, variant, samples, objects)
    errors = [e for e, counts in zip(found, settled or [True] * len(found), strict=True) if e is not None and counts]
    recalls = [_recalled(samples, observed.poses, objects) for observed in (reference, variant)]
    n_true = len(recalls[0])
    cosines = [_cosine(a, b) for a, b in _outputs_of(DESCRIPTORS, reference, variant)]
    rankings = _outputs_of(RANKING, reference, variant)
    floats = [name for name, array in (reference.outputs[0] if samples else {}).items() if array.dtype.kind == "f"]
    return Figures(
        n=len(samples),
        settled=_share(settled) if settled is not None else 1.0,
        lost=_share(a is not None and b is None for a, b, _ in pairs),
        gained=_share(a is None and b is not None for a, b, _ in pairs),
        rotation_deg=spread_of([math.degrees(rotation) for rotation, _, _ in errors]),
        translation_mm=spread_of([t_m * MM_PER_M for _, t_m, _ in errors]),
        translation_of_diameter=spread_of([t_m / diameter_m for _, t_m, diameter_m in errors]),
        n_true=n_true,
        add_recall_drop=float(np.mean(recalls[0]) - np.mean(recalls[1])) if n_true else None,
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


def settled_samples(
    reference: Observation,
    shaken: Sequence[Observation],
    samples: Sequence[Sample],
    objects: Mapping[int, ScoredObject],
) -> tuple[bool, ...]:
    """Whether noise that any camera makes leaves the pose where it is: found each time, within SETTLED_DEG and
    SETTLED_OF_DIAMETER of the reference. A pose that noise moves farther says nothing about precision.
    """
    moved = [_differences(reference, observed, samples, objects) for observed in shaken]
    return tuple(all(row is not None and _is_still(*row) for row in rows) for rows in zip(*moved, strict=True))


def _is_still(rotation_rad: float, translation_m: float, diameter_m: float) -> bool:
    return math.degrees(rotation_rad) <= SETTLED_DEG and translation_m <= SETTLED_OF_DIAMETER * diameter_m


def _differences(
    reference: Observation, variant: Observation, samples: Sequence[Sample], objects: Mapping[int, ScoredObject]
) -> list[tuple[float, float, float] | None]:
    """Per sample rotation, radians, translation, metres, and the object's diameter; None unless both found a pose."""
    rows: list[tuple[float, float, float] | None] = []
    for a, b, sample in zip(reference.poses, variant.poses, samples, strict=True):
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
