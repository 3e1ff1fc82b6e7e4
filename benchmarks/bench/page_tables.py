"""The tables of the report: every run and mode, every stage, accuracy, readings, machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from html import escape

from posekit.benchmarks.bench.page_parts import ABSENT, Cell, Row, table, table_by_run
from posekit.benchmarks.bench.result import TOTAL, Run, Summary
from posekit.benchmarks.bench.shown import Shown

SUMMARY = {
    "n": "n", "mean_ms": "mean", "min_ms": "min", "p50_ms": "p50", "p90_ms": "p90", "p95_ms": "p95", "p99_ms": "p99",
    "p999_ms": "p99.9", "max_ms": "max", "cov": "CoV",
}  # fmt: skip
MODE = {
    "frames": "frames", "objects": "boxes", "throughput_hz": "frames/s", "energy_j_per_pose": "J/pose",
    "energy_above_idle_j_per_pose": "J/pose above idle",
}  # fmt: skip
ACCURACY = {
    "n_true": "true objects", "n_matched": "found", "recall_add": "ADD(-S) recall", "ar_mssd": "AR MSSD",
    "ar_mspd": "AR MSPD", "rotation_p50_deg": "rotation p50, deg", "translation_p50_mm": "translation p50, mm",
    "detection_recall": "detection recall",
}  # fmt: skip
WATCHED = ("first", "least", "mean", "most", "last")
SHOWN_OF_TOTAL = ("p50_ms", "p95_ms", "p99_ms")


def overview(runs: Sequence[Shown]) -> str:
    """One row per run and mode."""
    heads = ("mode", *(f"{SUMMARY[of]}, ms" for of in SHOWN_OF_TOTAL), "late", *MODE.values())
    groups = [(run, [_mode_row(k, i, mode) for i, mode in enumerate(run.result.runs)]) for k, run in enumerate(runs)]
    return table_by_run(heads, groups, "a whole frame, from pixels in memory to poses")


def _mode_row(run: int, index: int, mode: Run) -> Row:
    at = f"runs.{index}"
    total = next((j for j, stage in enumerate(mode.stages) if stage.name == TOTAL), None)
    summary = mode.stages[total].summary if total is not None else None
    return (
        escape(mode_name(mode)),
        *(Cell(run, f"{at}.stages.{total}.summary.{of}", getattr(summary, of, None)) for of in SHOWN_OF_TOTAL),
        Cell(run, f"{at}.deadlines.missed", mode.deadlines.missed if mode.deadlines else None),
        *(Cell(run, f"{at}.{of}", getattr(mode, of)) for of in MODE),
    )


def mode_name(mode: Run) -> str:
    """ "paced (rate hz 30)"."""
    settings = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in mode.settings.items())
    return f"{mode.mode} ({settings})" if settings else mode.mode


def percentiles(runs: Sequence[Shown], mode: str) -> str:
    """Every stage of one mode."""
    groups = [(run, _stage_rows(k, run, mode)) for k, run in enumerate(runs)]
    return table_by_run(("stage", "clock", *SUMMARY.values(), "95 % intervals"), groups, f"{mode}, ms")


def _stage_rows(index: int, run: Shown, mode: str) -> list[Row]:
    rows: list[Row] = []
    for i, measured in enumerate(run.result.runs):
        for j, stage in enumerate(measured.stages if measured.mode == mode else ()):
            at = f"runs.{i}.stages.{j}.summary"
            cells = (Cell(index, f"{at}.{of}", getattr(stage.summary, of)) for of in SUMMARY)
            name = f"<b>{escape(stage.name)}</b>" if stage.name == TOTAL else escape(stage.name)
            rows.append((name, stage.clock, *cells, _intervals(stage.summary)))
    return rows


def _intervals(summary: Summary) -> str:
    spans = {"p50": summary.p50_interval_ms, "p95": summary.p95_interval_ms, "p99": summary.p99_interval_ms}
    said = (f"{of} {span.low:.2f} to {span.high:.2f}" for of, span in spans.items() if span)
    return f'<span class="spans">{"; ".join(said)}</span>'


def accuracy(runs: Sequence[Shown]) -> str:
    """Every object and their total, of runs with ground truth."""
    groups: list[tuple[Shown, list[Row]]] = []
    for k, run in enumerate(runs):
        found = run.result.accuracy
        if found:
            named = [(f"accuracy.per_object.{i}", row) for i, row in enumerate(found.per_object)]
            rows: list[Row] = []
            for at, row in [*named, ("accuracy.total", found.total)]:
                rows.append((escape(row.name), *(Cell(k, f"{at}.{of}", getattr(row, of)) for of in ACCURACY)))
            groups.append((run, rows))
    return table_by_run(("object", *ACCURACY.values()), groups, "against ground truth")


def readings(runs: Sequence[Shown]) -> str:
    """Every source that was read meanwhile."""
    groups: list[tuple[Shown, list[Row]]] = []
    for k, run in enumerate(runs):
        rows: list[Row] = []
        for i, watched in enumerate(run.result.watched):
            cells = (Cell(k, f"watched.{i}.{of}", getattr(watched, of)) for of in WATCHED)
            rows.append((escape(watched.source), escape(watched.unit), *cells))
        if rows:
            groups.append((run, rows))
    return table_by_run(("reading", "unit", *WATCHED), groups, "readings of the machine while it ran")


def machines(runs: Sequence[Shown]) -> str:
    """Side by side, what is known of each."""
    tables = [_flat(asdict(run.result.machine)) | run.result.packages for run in runs]
    keys = dict.fromkeys(key for found in tables for key in found)
    rows = [(escape(key), *(escape(found.get(key, ABSENT)) for found in tables)) for key in keys]
    return table(("", *(run.label for run in runs)), rows, "machine and packages of each run")


def _flat(nested: dict[str, object], name: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in nested.items():
        where = f"{name} {key.replace('_', ' ')}".strip()
        if isinstance(value, dict):
            found |= _flat(value, where)
        elif value not in (None, ()):
            found[where] = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return found
