"""What a variant may cost, and whether it costs more. Each gate is a row: which figure, which way, and its default."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from posekit.export.verify.box_figures import BoxFigures
from posekit.export.verify.figures import Figures, Spread

AnyFigures = Figures | BoxFigures
# Of a few draws of noise, the next one goes beyond the largest often (in one of four cases after three); by more than
# this, rarely.
FLOOR_MARGIN = 1.25


@dataclass(frozen=True)
class Gates:
    """Limits against fp32 on the same samples; a recipe's [gates]. None: not asked.

    The p95 gates are of the difference between the two poses. output_p95 is for networks with random weights, whose poses
    mean nothing: the relative RMS difference of their float outputs. box_*: of a detector.
    """

    rotation_p95_deg: float | None = 2.0
    translation_p95_of_diameter: float | None = 0.05
    add_recall_drop: float | None = 0.02
    lost: float | None = 0.02
    cosine_p1: float | None = 0.95
    top1: float | None = None
    output_p95: float | None = 0.1
    box_lost: float | None = 0.02
    box_iou_p5: float | None = 0.8
    box_recall_drop: float | None = 0.02


@dataclass(frozen=True)
class GateResult:
    """One gate of one variant. value: measured.  floor: what one grey level of noise costs the reference itself.

    limit: the recipe's.  passed: within the limit, or no worse than FLOOR_MARGIN times the floor.
    strain: share of what is allowed that is used up, more than 1 where the gate is missed.
    """

    gate: str
    value: float
    limit: float
    floor: float
    passed: bool
    strain: float


@dataclass(frozen=True)
class _Row:
    """of: the figure, None where the path does not have it.  at_least: a smaller value is worse."""

    of: Callable[[Any], float | None]
    at_least: bool = False


def _p95(spread: Spread | None) -> float | None:
    return spread.p95 if spread else None


_POSE_ROWS: dict[str, _Row] = {
    "rotation_p95_deg": _Row(lambda f: _p95(f.rotation_deg)),
    "translation_p95_of_diameter": _Row(lambda f: _p95(f.translation_of_diameter)),
    "add_recall_drop": _Row(lambda f: f.add_recall_drop),
    "lost": _Row(lambda f: f.lost),
    "cosine_p1": _Row(lambda f: f.cosine_p1, at_least=True),
    "top1": _Row(lambda f: f.top1, at_least=True),
}
_RANDOM_ROWS: dict[str, _Row] = {
    "output_p95": _Row(lambda f: max((spread.p95 for spread in f.outputs.values()), default=None)),
}
_BOX_ROWS: dict[str, _Row] = {
    "box_lost": _Row(lambda f: f.lost),
    "box_iou_p5": _Row(lambda f: f.iou_p5, at_least=True),
    "box_recall_drop": _Row(lambda f: f.recall_drop),
}
_ROWS: dict[type, dict[str, _Row]] = {Figures: _POSE_ROWS, BoxFigures: _BOX_ROWS}
assert {*_POSE_ROWS, *_BOX_ROWS, *_RANDOM_ROWS} == {field.name for field in fields(Gates)}


def judged(figures: AnyFigures, floors: Sequence[AnyFigures], gates: Gates, trained: bool) -> tuple[GateResult, ...]:
    """Every gate that applies. A network with random weights is judged by its numbers, a trained one by poses or boxes.

    floors: what noise does to the reference, in several draws. A figure that they nearly reach is passed: no precision can
    be told from the camera's noise there.
    """
    results = []
    for name, row in (_ROWS[type(figures)] if trained else _RANDOM_ROWS).items():
        value, limit = row.of(figures), getattr(gates, name)
        drawn = [own for own in map(row.of, floors) if own is not None]
        if value is None or limit is None or not drawn:
            continue
        own = min(drawn) if row.at_least else max(drawn)
        reached = 1 - FLOOR_MARGIN * (1 - own) if row.at_least else FLOOR_MARGIN * own
        allowed = min(limit, reached) if row.at_least else max(limit, reached)
        used = _share(1 - value, 1 - allowed) if row.at_least else _share(value, allowed)
        passed = value >= allowed if row.at_least else value <= allowed
        results.append(GateResult(name, value, limit, own, bool(passed), used))
    return tuple(results)


def worst_strain(results: tuple[GateResult, ...]) -> float:
    """Of all gates, 0 without any."""
    return max((result.strain for result in results), default=0.0)


def _share(used: float, allowed: float) -> float:
    if allowed > 0:
        return max(used, 0.0) / allowed
    return math.inf if used > 0 else 0.0
