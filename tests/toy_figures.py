"""Figures of a variant without any difference, on as much evidence as a gate needs; what a test is about is changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from posekit.export.verify.box_figures import BoxFigures
from posekit.export.verify.figures import Evidence, Figures, Spread

ENOUGH = Evidence(40, 40)
NONE = Spread(0, 0)


def pose_figures(**changes: Any) -> Figures:
    """Of a path without truth and descriptors."""
    evidence = {"crops": ENOUGH, "found": ENOUGH, "settled": ENOUGH, "true": Evidence(0, 0)}
    plain = Figures(
        40, evidence, 1.0, 1.0, 0.0, 0.0, NONE, NONE, NONE, 0.0, 0.9, 0, None, None, None, None, None, None, None, {}
    )
    return replace(plain, **changes)


def boxes_of(n: int, frames: int, **changes: Any) -> BoxFigures:
    """Of a detector that finds n boxes and knows no truth."""
    evidence = dict.fromkeys(("found", "settled", "partners"), Evidence(n, min(n, frames)))
    evidence |= {"images": Evidence(frames, frames), "true": Evidence(0, 0)}
    plain = BoxFigures(frames, evidence, n, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0, None, None, {})
    return replace(plain, **changes)
