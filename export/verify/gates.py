"""What a variant may cost, and whether it costs more. Each gate is a row: which figure, of what, which way, its default.

A gate is held or missed only where there is evidence: enough poses or boxes, of enough frames, that can be told from noise.
Everywhere else it is undecided, which passes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from posekit.export.verify.box_figures import BoxFigures
from posekit.export.verify.figures import Evidence, Figures, Spread

AnyFigures = Figures | BoxFigures
Outcome = Literal["held", "missed", "undecided"]
# Of a few draws of noise, the next one goes beyond the largest often (in one of four cases after three); by more than
# this, rarely.
FLOOR_MARGIN = 1.25
NOISE_CAP = (
    2.0  # times the limit: where noise alone costs more, the recording cannot tell a good variant from a bad one
)
# The 95th percentile of 32 values lies between its second and third largest: one outlier decides nothing. Poses of one
# frame share its light, camera and clutter: in 8 frames none is more than an eighth of the evidence, on average.
MIN_JUDGED, MIN_FRAMES = 32, 8


@dataclass(frozen=True)
class Gates:
    """Limits against fp32 on the same samples; a recipe's [gates]. None: not asked.

    The p95 gates are of the difference between the two poses. output_p95 is for networks with random weights, whose poses
    mean nothing: the relative RMS difference of their float outputs. box_*: of a detector.  batch_*: of poses in batches
    against crop by crop.   true_rotation_p50_deg: against the truth, of fp32 itself as well: any rotations are 120 degrees
    apart, as those are whose R is transposed, while shares of symmetric objects are right by chance.
    *_min: of fp32 itself as well: recall of true poses or boxes, the median score, and the shares of crops (or boxes) that
    noise leaves in place, and of crops (or frames) that are neither black, burnt out nor (crops) noise.
    lint_errors: of the file, on any target.   half_output: what true float16 arithmetic does to the outputs of a file, relative RMS, on a few pictures.
    """

    rotation_p95_deg: float | None = 2.0
    translation_p95_of_diameter: float | None = 0.05
    score_p95: float | None = 0.1
    score_p50_min: float | None = 0.02
    add_recall_drop: float | None = 0.02
    add_recall_min: float | None = 0.1
    true_rotation_p50_deg: float | None = 45.0
    lost: float | None = 0.02
    cosine_p1: float | None = 0.95
    top1: float | None = None
    batch_rotation_p95_deg: float | None = 0.5
    batch_translation_p95_of_diameter: float | None = 0.01
    output_p95: float | None = 0.1
    lint_errors: float | None = 0
    half_output: float | None = 0.2
    settled_min: float | None = 0.5
    exposed_min: float | None = 0.9
    box_lost: float | None = 0.02
    box_iou_p5: float | None = 0.8
    box_score_p95: float | None = 0.1
    box_recall_drop: float | None = 0.02
    box_recall_min: float | None = 0.1


@dataclass(frozen=True)
class GateResult:
    """One gate of one variant. value: measured, None for nothing to measure.  limit: the recipe's.

    floor: what one grey level of noise costs the reference itself, None where noise has no say.
    verdict: held within the limit, or no worse than FLOOR_MARGIN times the floor, which NOISE_CAP bounds.
    strain: share of what is allowed that is used up, more than 1 where the gate is missed.
    n, frames: judged on so many `unit` from so many frames (0 where frames have no part in it).  why: it is undecided, "" otherwise.
    """

    gate: str
    verdict: Outcome
    value: float | None
    limit: float
    floor: float | None
    strain: float
    n: int
    frames: int
    unit: str
    why: str = ""

    @property
    def passed(self) -> bool:
        return self.verdict == "held"


@dataclass(frozen=True)
class _Row:
    """of: the figure, None where there is none.  judged: the evidence that it is of.  unit: of that.

    at_least: a smaller value is worse.  optional: not asked where there is no figure: no truth, no descriptors.
    absolute: asked of the reference itself as well, and noise does not widen it.   recording: it says of the recording, not
    of the variant, whether it can be judged on: beyond the limit it is undecided.
    """

    of: Callable[[Any], float | None]
    judged: Callable[[Any], Evidence | None]
    unit: str
    at_least: bool = False
    optional: bool = False
    absolute: bool = False
    recording: bool = False


def _p95(spread: Spread | None) -> float | None:
    return spread.p95 if spread else None


def _evidence(name: str) -> Callable[[AnyFigures], Evidence | None]:
    return lambda figures: figures.evidence[name]


def _batched(figures: Figures) -> Evidence | None:
    return figures.batch.judged if figures.batch else None


_CROPS, _FOUND, _SETTLED, _TRUE = map(_evidence, ("crops", "found", "settled", "true"))
_IMAGES, _PARTNERS = map(_evidence, ("images", "partners"))
_SETTLED_POSES, _CROP_UNIT, _BATCHED = "settled poses", "crops", "settled crops in batches"

_EXPOSED_CROPS = _Row(lambda f: f.exposed, _CROPS, _CROP_UNIT, at_least=True, absolute=True, recording=True)
_POSE_ROWS: dict[str, _Row] = {
    "rotation_p95_deg": _Row(lambda f: _p95(f.rotation_deg), _SETTLED, _SETTLED_POSES),
    "translation_p95_of_diameter": _Row(lambda f: _p95(f.translation_of_diameter), _SETTLED, _SETTLED_POSES),
    "score_p95": _Row(lambda f: f.score_p95, _SETTLED, _SETTLED_POSES),
    "score_p50_min": _Row(lambda f: f.score_p50, _SETTLED, _SETTLED_POSES, at_least=True, optional=True, absolute=True),
    "add_recall_drop": _Row(lambda f: f.add_recall_drop, _TRUE, "true poses", optional=True),
    "add_recall_min": _Row(lambda f: f.add_recall, _TRUE, "true poses", at_least=True, optional=True, absolute=True),
    "true_rotation_p50_deg": _Row(lambda f: f.true_rotation_p50_deg, _TRUE, "true poses", optional=True, absolute=True),
    "lost": _Row(lambda f: f.lost, _FOUND, "found poses"),
    "cosine_p1": _Row(lambda f: f.cosine_p1, _CROPS, _CROP_UNIT, at_least=True, optional=True),
    "top1": _Row(lambda f: f.top1, _CROPS, _CROP_UNIT, at_least=True, optional=True),
    "batch_rotation_p95_deg": _Row(
        lambda f: _p95(f.batch.rotation_deg), _batched, _BATCHED, optional=True, absolute=True
    ),
    "batch_translation_p95_of_diameter": _Row(
        lambda f: _p95(f.batch.translation_of_diameter), _batched, _BATCHED, optional=True, absolute=True
    ),
    "settled_min": _Row(lambda f: f.settled, _CROPS, _CROP_UNIT, at_least=True, absolute=True, recording=True),
    "exposed_min": _EXPOSED_CROPS,
}
_RANDOM_ROWS: dict[str, _Row] = {
    "output_p95": _Row(
        lambda f: max((spread.p95 for spread in f.outputs.values()), default=None),
        lambda f: f.evidence["crops" if isinstance(f, Figures) else "images"],
        "pictures",
    ),
}
_BOX_ROWS: dict[str, _Row] = {
    "box_lost": _Row(lambda f: f.lost, _SETTLED, "settled boxes"),
    "box_iou_p5": _Row(lambda f: f.iou_p5, _PARTNERS, "settled boxes that both found", at_least=True),
    "box_score_p95": _Row(lambda f: f.score_p95, _PARTNERS, "settled boxes that both found"),
    "box_recall_drop": _Row(lambda f: f.recall_drop, _TRUE, "true boxes", optional=True),
    "box_recall_min": _Row(lambda f: f.recall, _TRUE, "true boxes", at_least=True, optional=True, absolute=True),
    "settled_min": _Row(lambda f: f.settled, _FOUND, "boxes", at_least=True, absolute=True, recording=True),
    "exposed_min": _Row(lambda f: f.exposed, _IMAGES, "frames", at_least=True, absolute=True, recording=True),
}
_ROWS: dict[type, dict[str, _Row]] = {Figures: _POSE_ROWS, BoxFigures: _BOX_ROWS}
_OF_FILES = ("lint_errors", "half_output")  # whatever the recording shows
assert {*_POSE_ROWS, *_BOX_ROWS, *_RANDOM_ROWS, *_OF_FILES} == {field.name for field in fields(Gates)}


def judged(
    figures: AnyFigures, floors: Sequence[AnyFigures], gates: Gates, trained: bool, itself: bool = False
) -> tuple[GateResult, ...]:
    """Every gate that applies. A network with random weights is judged by its numbers, a trained one by poses or boxes.

    floors: what noise does to the reference, in several draws. A figure that they nearly reach is passed: no precision can
    be told from the camera's noise there.   itself: the figures are of the reference, which is held against nothing.
    """
    results = []
    for name, row in (_ROWS[type(figures)] if trained else _RANDOM_ROWS).items():
        limit, judged_on = getattr(gates, name), row.judged(figures)
        value = row.of(figures) if judged_on else None
        if judged_on is None or limit is None or (row.optional and value is None) or (itself and not row.absolute):
            continue
        drawn = [] if row.absolute else [own for own in map(row.of, floors) if own is not None]
        results.append(_judged(name, row, value, limit, drawn, judged_on))
    return tuple(results)


def _judged(
    name: str, row: _Row, value: float | None, limit: float, drawn: Sequence[float], judged_on: Evidence
) -> GateResult:
    """drawn: the same figure of noise alone."""
    floor = (min(drawn) if row.at_least else max(drawn)) if drawn else None

    def result(verdict: Outcome, strain: float, why: str = "") -> GateResult:
        n, frames = judged_on.n, judged_on.frames
        return GateResult(name, verdict, value, limit, floor, strain, n, frames, row.unit, why)

    few = judged_on.n < MIN_JUDGED or judged_on.frames < MIN_FRAMES
    found = f"{judged_on.n} {row.unit} in {judged_on.frames} frames, at least {MIN_JUDGED} in {MIN_FRAMES} are needed"
    if value is None:
        return result("undecided", 0.0, found)
    # As costs, of which less is better: what the limit allows, what noise costs, and the most that noise may allow.
    cost, asked = (1 - value, 1 - limit) if row.at_least else (value, limit)
    noise = 0.0 if floor is None else FLOOR_MARGIN * (1 - floor if row.at_least else floor)
    allowed = max(asked, min(noise, NOISE_CAP * asked))
    strain = _share(cost, allowed)
    if few:
        return result("undecided", strain, found)
    if cost <= allowed:
        return result("held", strain)
    if row.recording:
        return result("undecided", strain, "the recording is no test: give other frames")
    if cost <= noise:
        return result("undecided", strain, "noise alone gives as much: give frames on which fp32 stands firmer")
    return result("missed", strain)


def file_result(name: str, value: float, limit: float | None, n: int, unit: str) -> GateResult | None:
    """A gate of a file's own, which few pictures or none decide. None for one that is not asked."""
    if limit is None:
        return None
    verdict: Outcome = "held" if value <= limit else "missed"
    return GateResult(name, verdict, value, limit, None, _share(value, limit), n, 0, unit)


def outcome_of(results: Iterable[GateResult]) -> Outcome:
    """Of a variant: missed by its gates, or undecided, or held by all of them; by none at all it is undecided."""
    verdicts = [result.verdict for result in results]
    if "missed" in verdicts:
        return "missed"
    return "undecided" if "undecided" in verdicts or not verdicts else "held"


def of_differences(gate: str) -> bool:
    """Whether a gate holds a variant's answers against the reference's."""
    rows = _POSE_ROWS | _BOX_ROWS | _RANDOM_ROWS
    return gate in rows and not rows[gate].absolute


def worst_strain(results: tuple[GateResult, ...]) -> float:
    """Of all gates, 0 without any."""
    return max((result.strain for result in results), default=0.0)


def _share(used: float, allowed: float) -> float:
    if allowed > 0:
        return max(used, 0.0) / allowed
    return math.inf if used > 0 else 0.0
