"""A verification for people (Markdown) and programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from posekit.benchmarks.markdown_table import markdown_table
from posekit.export.verify.box_figures import BoxFigures
from posekit.export.verify.figures import SETTLED_DEG, SETTLED_OF_DIAMETER, Figures, Spread
from posekit.export.verify.gates import MIN_FRAMES, MIN_JUDGED, GateResult, Outcome
from posekit.export.verify.reference import FLOOR_GREY_LEVELS
from posekit.export.verify.verify import Verdict, Verification
from posekit.runtime.atomic import make_folder, write_whole
from posekit.runtime.records import plain_from

COLUMNS = (
    "path", "precision", "backend", "crops / frames (settled)", "rotation deg p50 / p95", "translation mm p50 / p95",
    "ADD(-S) recall (drop)", "lost", "score p95", "top-1 / top-5", "cosine p1", "outputs p95", "batches deg p95", "float16",
    "lint", "verdict",
)  # fmt: skip
BOX_COLUMNS = (
    "detector", "backend", "frames", "boxes (settled)", "lost", "gained", "IoU p50 / p5", "score p95", "recall (drop)",
    "float16", "lint", "verdict",
)  # fmt: skip
GATE_COLUMNS = ("path", "precision", "backend", "gate", "value", "limit", "noise alone", "judged on", "verdict")
ABSENT = "-"
WORDS: dict[Outcome, str] = {"held": "pass", "missed": "MISSED", "undecided": "UNDECIDED"}
Table = tuple[Sequence[str], Sequence[tuple[str, ...]]]  # columns, rows


def json_from_verification(verification: Verification) -> str:
    """Everything, reproducibly; `outcome` and `passed` of each verdict and of all beside it."""
    plain = plain_from(verification)
    for row, verdict in zip(plain["verdicts"], verification.verdicts, strict=True):
        row |= {"outcome": verdict.outcome, "passed": verdict.passed}
    plain |= {"outcome": verification.outcome, "passed": verification.passed}
    return json.dumps(plain, indent=1, sort_keys=True) + "\n"


def markdown_from_verification(verification: Verification) -> str:
    """A table of all variants, a sentence per gate that is missed or undecided, what was not run, and every gate."""
    tables = [markdown_table(*table) for table in (pose_table(verification), box_table(verification)) if table[1]]
    told = [f"- {word}: {sentence}" for word, sentence in sentences(verification)]
    gates = ["## Gates", "", markdown_table(GATE_COLUMNS, gate_rows(verification))]
    return "\n".join(["# Verification", "", *tables, *told, "", reading(verification), "", *gates, ""])


def write_reports(folder: Path, reports: Mapping[str, bytes]) -> None:
    """Write files into a folder, made if need be, each whole or not at all. Raises OutputError."""
    make_folder(folder, "reports")
    for name, content in reports.items():
        write_whole(folder / name, content)


def pose_table(verification: Verification) -> Table:
    """COLUMNS, less those that nothing is in: a row per variant, and per path what noise alone does to fp32."""
    floors = [
        (path, "fp32", f"noise {k + 1}", *_cells(figures), ABSENT, ABSENT, ABSENT)
        for path, draws in verification.floors.items()
        for k, figures in enumerate(draws)
        if isinstance(figures, Figures)
    ]
    rows = [
        (v.path, v.precision, v.backend, *_cells(v.figures), *_file_cells(v), verdict_word(v))
        for v in verification.verdicts
        if isinstance(v.figures, Figures)
    ]
    return _filled(COLUMNS, sorted(rows + floors, key=lambda row: row[0]))


def box_table(verification: Verification) -> Table:
    """BOX_COLUMNS, less those that nothing is in: a row per variant of the detector, and what noise alone does to fp32."""
    floors = [
        ("fp32", f"noise {k + 1}", *_box_cells(figures), ABSENT, ABSENT, ABSENT)
        for draws in verification.floors.values()
        for k, figures in enumerate(draws)
        if isinstance(figures, BoxFigures)
    ]
    verdicts = [(v, v.figures) for v in verification.verdicts]
    rows = [
        (v.precision, v.backend, *_box_cells(figures), *_file_cells(v), verdict_word(v))
        for v, figures in verdicts
        if isinstance(figures, BoxFigures)
    ]
    return _filled(BOX_COLUMNS, floors + rows)


def gate_rows(verification: Verification) -> list[tuple[str, ...]]:
    """GATE_COLUMNS per gate of every verdict that binds."""
    return [
        (
            v.path, v.precision, v.backend, gate.gate, _short(gate.value), _short(gate.limit), _short(gate.floor),
            judged_on(gate), gate.verdict,
        )
        for v in verification.verdicts
        if v.binding
        for gate in v.gates
    ]  # fmt: skip


def missed_gates(verification: Verification) -> list[str]:
    """One sentence per gate that was missed, and after those of a variant one per cause."""
    return [sentence for word, sentence in sentences(verification) if word == "missed"]


def sentences(verification: Verification) -> list[tuple[str, str]]:
    """What keeps the verification from being held, each with a word before it: missed, undecided, or not run."""
    found: list[tuple[str, str]] = []
    for verdict in verification.verdicts:
        if verdict.binding:
            where = f"{verdict.path} {verdict.precision} on {verdict.backend}"
            open_ = [gate for gate in verdict.gates if not gate.passed]
            found += [(gate.verdict, f"{where}: {gate_sentence(gate)}") for gate in open_]
            found += [("missed", f"{where}: {cause}") for cause in verdict.causes]
    for each in verification.unjudged:
        where = " ".join(filter(None, (each.path, each.precision)))
        found.append(("undecided" if each.binding else "not run", f"{where}: {each.why}"))
    return found + [("not run", sentence) for sentence in verification.skipped]


def gate_sentence(gate: GateResult) -> str:
    if gate.verdict == "undecided":
        return f"{gate.gate} is {_short(gate.value)}, limit {gate.limit:.4g}: {gate.why}"
    noise = "" if gate.floor is None else f" (noise alone gives {gate.floor:.4g})"
    return f"{gate.gate} is {_short(gate.value)}, limit {gate.limit:.4g}{noise}, judged on {judged_on(gate)}"


def judged_on(gate: GateResult) -> str:
    """How much the gate was judged on."""
    return f"{gate.n} {gate.unit}" + (f" in {gate.frames} frames" if gate.frames else "")


def verdict_word(verdict: Verdict) -> str:
    kind = "" if verdict.trained else ", random weights: numbers only"
    if not verdict.binding:
        return f"on request only{kind}"
    return WORDS[verdict.outcome] + kind


def reading(verification: Verification) -> str:
    """How to read the table."""
    return (
        f"Differences to fp32 on ONNX Runtime over {verification.n_samples} real crops, to the nearest symmetric copy; "
        f"p95 is the 95th percentile, of poses over the settled crops. Fewer than {MIN_JUDGED} of what a gate is judged on, or "
        f"fewer than {MIN_FRAMES} frames, are no verdict. Rows of noise: fp32 against itself with "
        f"{FLOOR_GREY_LEVELS} grey level of noise; crops whose pose that moves by {SETTLED_DEG:g} degrees or "
        f"{SETTLED_OF_DIAMETER:.0%} of the diameter are not settled, nor are boxes that noise takes away."
    )


def _cells(figures: Figures) -> tuple[str, ...]:
    outputs = max((spread.p95 for spread in figures.outputs.values()), default=None)
    ranking = ABSENT if figures.top1 is None else f"{figures.top1:.1%} / {figures.top5:.1%}"
    batches = figures.batch.rotation_deg if figures.batch else None
    return (
        f"{figures.n} / {figures.evidence['crops'].frames} ({figures.settled:.0%})", _spread(figures.rotation_deg),
        _spread(figures.translation_mm), _recall(figures.add_recall, figures.add_recall_drop), _percent(figures.lost),
        _number(figures.score_p95), ranking, _number(figures.cosine_p1), _number(outputs),
        ABSENT if batches is None else f"{batches.p95:.2f}",
    )  # fmt: skip


def _box_cells(figures: BoxFigures) -> tuple[str, ...]:
    overlap = ABSENT if figures.iou_p5 is None else f"{figures.iou_p50:.3f} / {figures.iou_p5:.3f}"
    return (
        str(figures.n), f"{figures.boxes} ({figures.settled:.0%})", _percent(figures.lost), _percent(figures.gained),
        overlap, _number(figures.score_p95), _recall(figures.recall, figures.recall_drop),
    )  # fmt: skip


def _file_cells(verdict: Verdict) -> tuple[str, str]:
    """What true float16 does to the outputs, and how many errors lint finds."""
    values = {gate.gate: gate.value for gate in verdict.gates}
    return _number(values.get("half_output")), _short(values.get("lint_errors"))


def _filled(columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Table:
    used = [k for k in range(len(columns)) if any(row[k] != ABSENT for row in rows)]
    return [columns[k] for k in used], [tuple(row[k] for k in used) for row in rows]


def _recall(recall: float | None, drop: float | None) -> str:
    return ABSENT if recall is None or drop is None else f"{recall:.1%} ({drop:+.1%})"


def _spread(spread: Spread | None) -> str:
    return ABSENT if spread is None else f"{spread.p50:.2f} / {spread.p95:.2f}"


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4f}"


def _short(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4g}"
