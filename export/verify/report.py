"""A verification for people (Markdown) and programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from posekit.benchmarks.markdown_table import markdown_table
from posekit.export.verify.box_figures import BoxFigures
from posekit.export.verify.figures import SETTLED_DEG, SETTLED_OF_DIAMETER, Figures, Spread
from posekit.export.verify.gates import GateResult
from posekit.export.verify.reference import FLOOR_GREY_LEVELS
from posekit.export.verify.verify import Verdict, Verification
from posekit.runtime.atomic import make_folder, write_whole
from posekit.runtime.records import plain_from

COLUMNS = (
    "path", "precision", "backend", "crops (settled)", "rotation deg p50 / p95", "translation mm p50 / p95", "ADD(-S) drop",
    "lost", "top-1 / top-5", "cosine p1", "outputs p95", "verdict",
)  # fmt: skip
BOX_COLUMNS = (
    "detector", "backend", "frames", "boxes (settled)", "lost", "gained", "IoU p50 / p5", "score p95", "recall drop",
    "verdict",
)  # fmt: skip
ABSENT = "-"


def json_from_verification(verification: Verification) -> str:
    """Everything, reproducibly; `passed` of each verdict and of all beside it."""
    plain = plain_from(verification)
    for row, verdict in zip(plain["verdicts"], verification.verdicts, strict=True):
        row["passed"] = verdict.passed
    return json.dumps(plain | {"passed": verification.passed}, indent=1, sort_keys=True) + "\n"


def markdown_from_verification(verification: Verification) -> str:
    """A table of all variants, a sentence per missed gate, and what was not run."""
    tables = [
        table
        for table in (
            markdown_table(COLUMNS, table_rows(verification)),
            markdown_table(BOX_COLUMNS, box_rows(verification)),
        )
        if table
    ]
    missed = [f"- {sentence}" for sentence in missed_gates(verification)]
    skipped = [f"- not run: {sentence}" for sentence in verification.skipped]
    return "\n".join(["# Verification", "", *tables, *missed, *skipped, "", reading(verification), ""])


def write_reports(folder: Path, reports: Mapping[str, bytes]) -> None:
    """Write files into a folder, made if need be, each whole or not at all. Raises OutputError."""
    make_folder(folder, "reports")
    for name, content in reports.items():
        write_whole(folder / name, content)


def table_rows(verification: Verification) -> list[tuple[str, ...]]:
    """COLUMNS per variant, and per path what noise alone does to fp32."""
    floors = [
        (path, "fp32", f"noise {k + 1}", *_cells(figures), ABSENT)
        for path, draws in verification.floors.items()
        for k, figures in enumerate(draws)
        if isinstance(figures, Figures)
    ]
    rows = [
        (v.path, v.precision, v.backend, *_cells(v.figures), verdict_word(v))
        for v in verification.verdicts
        if isinstance(v.figures, Figures)
    ]
    return sorted(rows + floors, key=lambda row: row[0])


def box_rows(verification: Verification) -> list[tuple[str, ...]]:
    """BOX_COLUMNS per variant of the detector, and what noise alone does to fp32."""
    floors = [
        ("fp32", f"noise {k + 1}", *_box_cells(figures), ABSENT)
        for draws in verification.floors.values()
        for k, figures in enumerate(draws)
        if isinstance(figures, BoxFigures)
    ]
    verdicts = [(v, v.figures) for v in verification.verdicts]
    return floors + [
        (v.precision, v.backend, *_box_cells(figures), verdict_word(v))
        for v, figures in verdicts
        if isinstance(figures, BoxFigures)
    ]


def missed_gates(verification: Verification) -> list[str]:
    """One sentence per gate that was missed, and after those of a variant one per cause."""
    sentences = []
    for verdict in verification.verdicts:
        if verdict.binding:
            missed = [gate_sentence(gate) for gate in verdict.gates if not gate.passed]
            where = f"{verdict.path} {verdict.precision} on {verdict.backend}"
            sentences += [f"{where}: {sentence}" for sentence in (*missed, *verdict.causes)]
    return sentences


def gate_sentence(gate: GateResult) -> str:
    return f"{gate.gate} is {gate.value:.4g}, allowed {gate.limit:.4g} (noise alone gives {gate.floor:.4g})"


def verdict_word(verdict: Verdict) -> str:
    kind = "" if verdict.trained else ", random weights: numbers only"
    if not verdict.binding:
        return f"on request only{kind}"
    return ("pass" if verdict.passed else "MISSED") + kind


def reading(verification: Verification) -> str:
    """How to read the table."""
    return (
        f"Differences to fp32 on ONNX Runtime over {verification.n_samples} real crops, to the nearest symmetric copy; "
        f"p95 is the 95th percentile, of poses over the settled crops. Rows of noise: fp32 against itself with "
        f"{FLOOR_GREY_LEVELS} grey level of noise; crops whose pose that moves by {SETTLED_DEG:g} degrees or "
        f"{SETTLED_OF_DIAMETER:.0%} of the diameter are not settled, nor are boxes that noise takes away."
    )


def _cells(figures: Figures) -> tuple[str, ...]:
    outputs = max((spread.p95 for spread in figures.outputs.values()), default=None)
    ranking = ABSENT if figures.top1 is None else f"{figures.top1:.1%} / {figures.top5:.1%}"
    return (
        f"{figures.n} ({figures.settled:.0%})", _spread(figures.rotation_deg), _spread(figures.translation_mm), _percent(figures.add_recall_drop),
        _percent(figures.lost), ranking, _number(figures.cosine_p1), _number(outputs),
    )  # fmt: skip


def _box_cells(figures: BoxFigures) -> tuple[str, ...]:
    overlap = ABSENT if figures.iou_p5 is None else f"{figures.iou_p50:.3f} / {figures.iou_p5:.3f}"
    return (
        str(figures.n), f"{figures.boxes} ({figures.settled:.0%})", _percent(figures.lost), _percent(figures.gained),
        overlap, _number(figures.score_p95), _percent(figures.recall_drop),
    )  # fmt: skip


def _spread(spread: Spread | None) -> str:
    return ABSENT if spread is None else f"{spread.p50:.2f} / {spread.p95:.2f}"


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4f}"
