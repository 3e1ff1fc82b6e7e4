"""Figures of a run that a gate can ask for, by name: where each is in a result, its unit, and which way is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posekit.benchmarks.bench.result import BenchResult, Run
from posekit.benchmarks.bench.statistics import nearest_rank

Samples1d = NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """name: as a gate writes it.  stage, of: of a latency, its stage and what of its samples.

    errors: of a pose figure, which column of the truth errors, and `level` the share of them that lies below.
    """

    name: str
    unit: str
    value: Callable[[BenchResult, Run], float | None]
    more_is_better: bool = False
    stage: str | None = None
    of: str | None = None
    errors: str | None = None
    level: float | None = None


def _percentile(share: float) -> Callable[[Samples1d], Samples1d]:
    def of(samples: Samples1d) -> Samples1d:
        found: Samples1d = samples[..., nearest_rank(samples.shape[-1], share) - 1]
        return found

    return of


def _cov(samples: Samples1d) -> Samples1d:
    found: Samples1d = samples.std(-1) / samples.mean(-1)
    return found


# What of a stage's sorted samples -> how. The field of `Summary` has the same name, with _ms behind it.
OF_SAMPLES: dict[str, Callable[[Samples1d], Any]] = {
    "mean": lambda s: s.mean(-1),
    "min": lambda s: s[..., 0],
    "p50": _percentile(0.5),
    "p90": _percentile(0.9),
    "p95": _percentile(0.95),
    "p99": _percentile(0.99),
    "p999": _percentile(0.999),
    "max": lambda s: s[..., -1],
    "cov": _cov,
}


def stage_figure(stage: str, of: str) -> Figure:
    """Of one stage's latency, in ms; "cov" has no unit."""
    field, unit = ("cov", "") if of == "cov" else (f"{of}_ms", "ms")

    def value(result: BenchResult, run: Run) -> float | None:
        summary = next((s.summary for s in run.stages if s.name == stage), None)
        found: float | None = getattr(summary, field) if summary else None
        return found

    return Figure(f"{stage}.{of}", unit, value, stage=stage, of=of)


def _cold(field: str) -> Figure:
    def value(result: BenchResult, run: Run) -> float | None:
        found: float | None = getattr(result.cold_start, f"{field}_ms", None)
        return found

    return Figure(f"cold_start.{field}", "ms", value)


def _pose(name: str, unit: str, column: str, level: float) -> Figure:
    def value(result: BenchResult, run: Run) -> float | None:
        if result.truth_errors is None:
            return None
        errors = [e for e in getattr(result.truth_errors, column) if e is not None]
        return float(np.quantile(errors, level)) if errors else None

    return Figure(name, unit, value, errors=column, level=level)


def pose_figure(figure: Figure, errors: Samples1d) -> Samples1d:
    """Of errors along the last axis: their quantile, or (recall) their mean."""
    found: Samples1d = errors.mean(-1) if figure.level is None else np.quantile(errors, figure.level, axis=-1)
    return found


def _accuracy(field: str) -> Figure:
    def value(result: BenchResult, run: Run) -> float | None:
        found: float | None = getattr(result.accuracy.total, field) if result.accuracy else None
        return found

    errors = "correct_add" if field == "recall_add" else None
    return Figure(field, "", value, more_is_better=True, errors=errors)


def _missed(result: BenchResult, run: Run) -> float | None:
    return run.deadlines.missed / run.deadlines.of if run.deadlines and run.deadlines.of else None


_ROWS = (
    *(_cold(field) for field in ("import", "open_bundle", "sessions", "first_frame", "total")),
    *(_pose(f"rotation.p{level}", "deg", "rotation_deg", level / 100) for level in (50, 95)),
    *(_pose(f"translation.p{level}", "mm", "translation_mm", level / 100) for level in (50, 95)),
    *(_accuracy(field) for field in ("recall_add", "ar_mssd", "ar_mspd", "detection_recall")),
    Figure("throughput", "Hz", lambda result, run: run.throughput_hz, more_is_better=True),
    Figure("energy", "J", lambda result, run: run.energy_j_per_pose),
    Figure("missed_deadlines", "", _missed),
)
FIGURES = {figure.name: figure for figure in _ROWS}
FIGURE_NAMES = f"STAGE.{{{','.join(OF_SAMPLES)}}}, {', '.join(FIGURES)}"


def figure_named(name: str) -> Figure | None:
    """None for a name that is none. Any stage may be named; whether it was measured is known from a result alone."""
    if name in FIGURES:
        return FIGURES[name]
    stage, _, of = name.rpartition(".")
    return stage_figure(stage, of) if stage and of in OF_SAMPLES else None
