"""`posekit compare` and `posekit baseline`: two sides judged, a side kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posekit.benchmarks.bench.alike import Allowed, check_baseline
from posekit.benchmarks.bench.baseline import Evidence, side_from, write_baseline
from posekit.benchmarks.bench.compare import Comparison, compare
from posekit.benchmarks.bench.gate_text import gate_from
from posekit.benchmarks.bench.junit import junit_from_comparison
from posekit.benchmarks.bench.machine_line import machine_line
from posekit.benchmarks.bench.markdown import (
    CHANGE_COLUMNS,
    GATE_COLUMNS,
    VERDICTS,
    change_row,
    gate_row,
    markdown_from_comparison,
    method_notes,
)
from posekit.render import show_rows
from posekit.runtime.atomic import write_whole
from posekit.runtime.records import plain_from


@dataclass(frozen=True)
class CompareRequest:
    """base, new: an evidence folder, a folder of such folders, or a baseline file.   gates: as they are written."""

    base: Path
    new: Path
    gates: tuple[str, ...] = ()
    allow: tuple[Allowed, ...] = ()
    markdown: Path | None = None
    junit: Path | None = None


def run_compare(request: CompareRequest) -> Comparison:
    """Judge, and write the reports. Raises InputError for what is no gate, no evidence, or not alike; OutputError."""
    gates = [gate_from(text) for text in request.gates]
    found = compare(side_from(request.base), side_from(request.new), gates, request.allow)
    if request.markdown:
        write_whole(request.markdown, markdown_from_comparison(found).encode())
    if request.junit:
        write_whole(request.junit, junit_from_comparison(found))
    return found


def run_baseline(folders: Sequence[Path], output: Path) -> tuple[Evidence, ...]:
    """Keep all runs of these folders as one small file. Raises InputError for runs that are not alike, OutputError."""
    runs = tuple(run for folder in folders for run in side_from(folder))
    check_baseline(runs)
    write_baseline(output, runs)
    return runs


def comparison_json(found: Comparison) -> dict[str, Any]:
    """For a program."""
    return {"verdict": found.verdict, **plain_from(found)}


def show_comparison(found: Comparison, request: CompareRequest) -> None:
    """For a person: gates, every stage, what differs, the verdict."""
    print(found.machine)
    print(f"BASE: {', '.join(found.base)}; NEW: {', '.join(found.new)}")
    show_rows("gates", GATE_COLUMNS, [gate_row(gate) for gate in found.gates])
    show_rows("every stage", CHANGE_COLUMNS, [change_row(change) for change in found.changes])
    for note in (*found.notes, *method_notes(found)):
        print(f"note: {note}")
    print(VERDICTS[found.verdict] if found.gates else 'no gates: ask for one with --gate "total.p95<+5%"')
    show_rows("", (), (), then=[f"posekit report {request.base} {request.new}"] if request.base.is_dir() else [])


def baseline_summary(runs: Sequence[Evidence], output: Path) -> dict[str, Any]:
    """For a program."""
    return {"path": str(output), "size_bytes": output.stat().st_size, "runs": [run.name for run in runs]}


def show_baseline(runs: Sequence[Evidence], output: Path) -> None:
    """For a person."""
    print(machine_line(runs[0].result.machine))
    print(f"wrote {output}, {len(runs)} runs, {output.stat().st_size / 1000:.0f} kB")
    show_rows("", (), (), then=[f'posekit compare {output} NEW --gate "total.p95<+5%"'])
