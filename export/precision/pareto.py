"""What precision costs and gives, graph by graph: a table and a plot of pose difference against latency and size."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posekit.benchmarks.markdown_table import markdown_table
from posekit.export.precision.judge import Measured
from posekit.export.precision.variants import GraphVariants
from posekit.export.verify.box_figures import BoxFigures
from posekit.export.verify.figures import Figures, Spread
from posekit.export.verify.gates import AnyFigures

COLUMNS = (
    "graph", "variant", "rotation deg p95", "translation mm p95", "box IoU p5", "worst output p95", "latency ms", "MB",
    "gates",
)  # fmt: skip
BYTES_PER_MB = 1e6
ABSENT = "-"
PANELS_IN_A_ROW = 2
LEAST_SCALE = 0.01  # of a plot's cost axis: below that there is nothing to see


@dataclass(frozen=True)
class Point:
    """One file of a graph. chosen: it is in the bundle.  best: no other file is both nearer to fp32 and faster."""

    graph: str
    variant: str
    measured: Measured
    chosen: bool
    best: bool


def pareto_points(variants: Sequence[GraphVariants]) -> list[Point]:
    """fp32, fp16 and every int8 candidate of each graph."""
    points = []
    for entry in variants:
        rows = [(name, measured, True) for name, measured in entry.points.items()]
        if entry.int8:
            search = entry.int8.search
            rows += [
                (
                    f"int8 {entry.int8.blocks - len(c.kept)}/{entry.int8.blocks} {c.measured.backend}",
                    c.measured,
                    c == search.chosen,
                )
                for c in search.tried
            ]
        costs = [(cost_of(measured), measured.latency_ms) for _, measured, _ in rows]
        points += [
            Point(entry.graph, name, measured, chosen, not any(_beats(other, costs[i]) for other in costs))
            for i, (name, measured, chosen) in enumerate(rows)
        ]
    return points


def table_rows(points: Sequence[Point]) -> list[tuple[str, ...]]:
    """COLUMNS per point; a star marks the best, brackets what is not in the bundle."""
    return [
        (
            point.graph,
            (point.variant if point.chosen else f"({point.variant})") + " *" * point.best,
            *_answers(point.measured.figures),
            f"{_worst_output(point.measured):.4f}",
            f"{point.measured.latency_ms:.2f}",
            f"{point.measured.size_bytes / BYTES_PER_MB:.1f}",
            "hold" if point.measured.passed else "missed",
        )
        for point in points
    ]


def markdown_from_points(points: Sequence[Point]) -> str:
    return markdown_table(COLUMNS, table_rows(points))


def plot_png(points: Sequence[Point], title: str) -> bytes:
    """One panel per graph: p95 difference of rotation, boxes or (random weights) outputs over latency; circles by file size.

    Equal points give equal bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    graphs = list(dict.fromkeys(point.graph for point in points))
    columns = min(len(graphs), PANELS_IN_A_ROW)
    rows = math.ceil(len(graphs) / columns)
    figure = Figure(figsize=(7 * columns, 5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in panels[len(graphs) :]:
        unused.remove()
    for panel, graph in zip(panels, graphs, strict=False):
        mine = [point for point in points if point.graph == graph]
        largest = max(point.measured.size_bytes for point in mine)
        for point in mine:
            measured = point.measured
            panel.scatter(
                measured.latency_ms,
                cost_of(measured),
                s=40 + 400 * measured.size_bytes / largest,
                color="tab:green" if measured.passed else "tab:red",
                alpha=0.6 if point.chosen else 0.25,
                edgecolors="black" if point.best else "none",
            )
        _label(panel, [point for point in mine if point.chosen or point.best])
        slowest, worst = (
            max(column) for column in zip(*((p.measured.latency_ms, cost_of(p.measured)) for p in mine), strict=True)
        )
        panel.set(title=graph, xlabel="latency of one picture, ms (this machine)", xlim=(0, 1.3 * slowest))
        panel.set_ylim(-0.25 * max(worst, LEAST_SCALE), 1.25 * max(worst, LEAST_SCALE))
        panel.set_ylabel(cost_name([point.measured.figures for point in mine]))
        panel.grid(alpha=0.3)
    figure.suptitle(
        f"{title}: green holds its gates, outlined is Pareto-optimal, pale is not in the bundle; area is file size"
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def _label(panel: Any, points: Sequence[Point]) -> None:
    """What is in the bundle or Pareto-optimal, by name; labels of near points go up and down in turn."""
    for k, point in enumerate(sorted(points, key=lambda point: point.measured.latency_ms)):
        panel.annotate(
            point.variant,
            (point.measured.latency_ms, cost_of(point.measured)),
            xytext=(-6, 10 + 13 * (k % 3) if k % 2 else -18 - 13 * (k % 3)),
            textcoords="offset points",
            ha="right" if k == len(points) - 1 else "left",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "lw": 0.5},
        )


def _answers(figures: AnyFigures) -> tuple[str, str, str]:
    """Rotation, translation, overlap; a path has the first two, a detector the last."""
    if isinstance(figures, BoxFigures):
        return ABSENT, ABSENT, ABSENT if figures.iou_p5 is None else f"{figures.iou_p5:.3f}"
    return _p95(figures.rotation_deg), _p95(figures.translation_mm), ABSENT


def cost_of(measured: Measured) -> float:
    """What a plot shows: degrees; 1 - IoU of a detector; of what gives neither, the outputs' difference."""
    figures = measured.figures
    if isinstance(figures, BoxFigures):
        return _worst_output(measured) if figures.iou_p5 is None else 1 - figures.iou_p5
    return figures.rotation_deg.p95 if figures.rotation_deg else _worst_output(measured)


def cost_name(every: Sequence[AnyFigures]) -> str:
    if all(isinstance(figures, BoxFigures) and figures.iou_p5 is not None for figures in every):
        return "boxes against fp32, 1 - IoU, p95"
    if all(isinstance(figures, Figures) and figures.rotation_deg for figures in every):
        return "rotation against fp32, p95, degrees"
    return "outputs against fp32, p95, relative RMS"


def _worst_output(measured: Measured) -> float:
    return max((spread.p95 for spread in measured.figures.outputs.values()), default=0.0)


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] <= other[1] and one != other


def _p95(spread: Spread | None) -> str:
    return ABSENT if spread is None else f"{spread.p95:.2f}"
