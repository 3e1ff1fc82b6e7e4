"""How far off every true object's pose was, in order, so that two runs over the same frames can be compared in pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from posekit.benchmarks.accuracy import MM_PER_M, TruthScore


@dataclass(frozen=True)
class TruthErrors:
    """Equally long, one entry per true object that counts. rotation_deg, translation_mm: None for a miss."""

    object_ids: tuple[int, ...]
    rotation_deg: tuple[float | None, ...]
    translation_mm: tuple[float | None, ...]
    correct_add: tuple[bool, ...]


def truth_errors_from(scores: Iterable[TruthScore]) -> TruthErrors:
    """Of the scores that an `Accuracy` is folded from."""
    scores = list(scores)
    errors = [score.errors for score in scores]
    return TruthErrors(
        tuple(score.object_id for score in scores),
        tuple(math.degrees(e.rotation_rad) if e else None for e in errors),
        tuple(e.translation_m * MM_PER_M if e else None for e in errors),
        tuple(score.correct_add for score in scores),
    )
