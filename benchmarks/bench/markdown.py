"""Runs and comparisons as Markdown, for the summary of a CI job. Every table has its machine above it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from posekit.benchmarks.bench.change import METHODS, Change
from posekit.benchmarks.bench.compare import Comparison, GateResult
from posekit.benchmarks.bench.gate_text import Kind
from posekit.benchmarks.bench.result import TOTAL, Run
from posekit.benchmarks.bench.shown import Shown

RUN_COLUMNS = ("mode", "frames", "p50 ms", "p95 ms", "p99 ms", "max ms", "frames/s", "late", "J/pose")
GATE_COLUMNS = ("gate", "verdict", "BASE", "NEW", "change", "95 % interval")
CHANGE_COLUMNS = ("mode", "figure", "BASE", "NEW", "change", "95 % interval")
MARKS = {"held": "✅ held", "missed": "❌ missed", "undecided": "❔ undecided"}
VERDICTS = {
    "held": "Every gate is held.",
    "missed": "A gate is missed.",
    "undecided": "The noise of these runs is too large to decide: measure more runs of both sides, or a quieter machine.",
}
ABSENT = "-"


def markdown_from_runs(runs: Sequence[Shown]) -> str:
    """One heading and table per run."""
    parts = ["# posekit bench"]
    for run in runs:
        r = run.result
        valid = [] if r.valid else [f"**INVALID**: {_escaped('; '.join(r.reasons))}"]
        subject = f"{r.bundle} ({r.bundle_sha256[:16]}), {r.path}, {'; '.join(r.backends)}. {r.frames_source}"
        parts += [f"## {_escaped(run.mark)}", *valid, f"{_escaped(run.machine)}. {_escaped(subject)}."]
        parts.append(_table(RUN_COLUMNS, [_run_row(mode) for mode in r.runs]))
        if r.accuracy:
            total = r.accuracy.total
            found = f"{total.n_matched} of {total.n_true} true objects found, ADD(-S) recall {total.recall_add:.1%}"
            errors = f", rotation p50 {total.rotation_p50_deg:.2f} deg" if total.rotation_p50_deg is not None else ""
            parts.append(f"Accuracy: {found}{errors}.")
        parts.append(f"`{r.command.replace('`', '')}`")
    return "\n\n".join(parts) + "\n"


def markdown_from_comparison(found: Comparison) -> str:
    """The verdict first, then gates, then every stage."""
    sides = f"BASE: {', '.join(found.base)}; NEW: {', '.join(found.new)}"
    parts = [
        f"# posekit compare: {found.verdict if found.gates else 'no gates'}",
        f"{_escaped(found.machine)}. {_escaped(sides)}.",
    ]
    if found.gates:
        parts += [VERDICTS[found.verdict], _table(GATE_COLUMNS, map(gate_row, found.gates))]
    parts.append(_table(CHANGE_COLUMNS, map(change_row, found.changes)))
    parts += [f"- {_escaped(note)}" for note in [*found.notes, *method_notes(found)]]
    return "\n\n".join(parts) + "\n"


def gate_row(result: GateResult) -> tuple[str, ...]:
    """GATE_COLUMNS."""
    return (result.gate, MARKS[result.verdict], *_figures(result.measured))


def change_row(change: Change) -> tuple[str, ...]:
    """CHANGE_COLUMNS."""
    return (change.mode, change.figure, *_figures(change))


def method_notes(found: Comparison) -> list[str]:
    """How the intervals were made, each way once."""
    every = [*(gate.measured for gate in found.gates), *found.changes]
    return [f"intervals: {METHODS[method]}" for method in dict.fromkeys(change.method for change in every)]


def _figures(change: Change) -> tuple[str, ...]:
    kind, unit = change.kind, change.unit
    old = ABSENT if change.base is None else _value(change.base, unit)
    between = f"{_amount(change.low, kind, unit)} to {_amount(change.high, kind, unit)}"
    return (
        old,
        _value(change.new, unit),
        _amount(change.change, kind, unit),
        ABSENT if change.method == "none" else between,
    )


def _value(value: float, unit: str) -> str:
    return f"{value:.4g} {unit}".strip()


def _amount(value: float, kind: Kind, unit: str) -> str:
    if kind == "ratio":
        return f"{value:+.1%}"
    return f"{value:+.4g} {unit}".strip() if kind == "change" else _value(value, unit)


def _run_row(mode: Run) -> tuple[str, ...]:
    total = next((stage.summary for stage in mode.stages if stage.name == TOTAL), None)
    times = [getattr(total, of, None) for of in ("p50_ms", "p95_ms", "p99_ms", "max_ms")]
    late = f"{mode.deadlines.missed} of {mode.deadlines.of}" if mode.deadlines else ABSENT
    energy = ABSENT if mode.energy_j_per_pose is None else f"{mode.energy_j_per_pose:.3f}"
    shown = (ABSENT if time is None else f"{time:.2f}" for time in times)
    return (mode.mode, str(mode.frames), *shown, f"{mode.throughput_hz:.1f}", late, energy)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ("---",) * len(columns), *(tuple(map(_escaped, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _escaped(text: str) -> str:
    """So that no name breaks a table or becomes HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
