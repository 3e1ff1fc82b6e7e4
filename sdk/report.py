"""`posekit report`: what `posekit bench` left, and the precision points of a bundle, on one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posekit.benchmarks.bench.report import ReportFiles, write_report
from posekit.benchmarks.bench.shown import ParetoPoint, Shown, shown_from
from posekit.export.precision.pareto import cost_name, cost_of, pareto_points
from posekit.export.precision.variants import GraphVariants
from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import BundleError
from posekit.runtime.records import RecordProblem, record_from

PRECISION_REPORT = "reports/precision.json"


@dataclass(frozen=True)
class ReportRequest:
    """folders: of evidence, or of such folders.   bundle: whose precision report is shown too."""

    folders: tuple[Path, ...]
    files: ReportFiles
    bundle: Path | None = None


def run_report(request: ReportRequest) -> tuple[Shown, ...]:
    """Write every file that is wanted. Raises InputError and BundleError for what cannot be read, OutputError."""
    runs = shown_from(request.folders)
    points = precision_points(request.bundle) if request.bundle else ()
    where = (
        f"As measured when {request.bundle.name} was exported, on the machine that exported it."
        if request.bundle
        else ""
    )
    write_report(request.files, runs, points, where)
    return runs


def precision_points(path: Path) -> Sequence[ParetoPoint]:
    """Of a bundle that was exported with variants. BundleError for one that was not."""
    with Bundle(path) as bundle:
        if PRECISION_REPORT not in bundle.manifest.files:
            raise BundleError(
                f"bundle {path}",
                got="no precision report in it",
                expected=PRECISION_REPORT,
                remedy='Export it with variants = ["fp16", "int8"] in [precision], or leave --bundle out.',
            )
        content = bytes(bundle.read(PRECISION_REPORT))
    try:
        plain = json.loads(content)
        variants = record_from(tuple[GraphVariants, ...], plain)
    except (ValueError, RecursionError, RecordProblem) as error:
        raise BundleError(
            f"{PRECISION_REPORT} of {path}",
            got=str(error)[:300],
            expected="the report of this version of posekit",
            remedy="Export the bundle again.",
        ) from error
    points = pareto_points(variants)
    names = {
        entry.graph: cost_name([p.measured.figures for p in points if p.graph == entry.graph]) for entry in variants
    }
    return [
        ParetoPoint(
            p.graph, p.variant, p.measured.latency_ms, cost_of(p.measured), names[p.graph], p.measured.size_bytes,
            p.measured.passed, p.chosen, p.best,
        )
        for p in points
    ]  # fmt: skip


def report_summary(runs: Sequence[Shown], request: ReportRequest) -> dict[str, Any]:
    """For a program: what was shown, and where it is."""
    return {
        "runs": [{"label": run.label, "valid": run.result.valid, "machine": run.machine} for run in runs],
        "written": [str(path) for path in request.files.wanted],
    }


def show_report(runs: Sequence[Shown], request: ReportRequest) -> None:
    """For a person."""
    for run in runs:
        print(f"{run.mark}: {run.machine}")
        for reason in run.result.reasons:
            print(f"  {reason}")
    for path in request.files.wanted:
        print(f"wrote {path}")
