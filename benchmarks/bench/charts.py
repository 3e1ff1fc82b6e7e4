"""The charts of a report, each an SVG from runs; None where no run has what it shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np

from posekit.benchmarks.bench import svg
from posekit.benchmarks.bench.bootstrap import Values
from posekit.benchmarks.bench.result import TOTAL
from posekit.benchmarks.bench.shown import ParetoPoint, Shown

BINS, QUANTILES = 60, 400
LONG_TAIL = 4.0  # most over least: from there on a logarithmic axis shows more
BEFORE = ("capture",)  # the total begins where the pixels are in memory
SWEEP = "objects-"
PACED = "paced"
ROW_PX, LABEL_PX, BAR_PX = 24, 150, 14
LEAST_COST_SCALE = 0.01


def waterfall(run: Shown, longest_ms: float) -> str | None:
    """Stage after stage, means of the first mode: those of the host add up to the total. longest_ms: of the common axis."""
    stages = run.stages(run.main_mode)
    total = next((stage for stage in stages if stage.name == TOTAL), None)
    if total is None:
        return None
    parts = [s for s in stages if s.clock == "host" and s.name not in (TOTAL, *BEFORE)]
    rest_ms = total.summary.mean_ms - sum(s.summary.mean_ms for s in parts)
    starts = [0.0, *accumulate(s.summary.mean_ms for s in parts)]
    rows = [(s.name, start, s.summary.mean_ms, "host") for s, start in zip(parts, starts, strict=False)]
    rows += [("rest", starts[-1], max(rest_ms, 0.0), "rest"), (TOTAL, 0.0, total.summary.mean_ms, "total")]
    rows += [(s.name, 0.0, s.summary.mean_ms, "device") for s in stages if s.clock == "device"]
    return _rows(f"stages of {run.mark}", rows, longest_ms, "ms, mean")


def longest_ms(runs: Sequence[Shown]) -> float:
    """Of the waterfalls' common axis."""
    means = [s.summary.mean_ms for run in runs for s in run.stages(run.main_mode) if s.name not in BEFORE]
    return max(means, default=1.0)


def cold_start(run: Shown, longest: float) -> str | None:
    """What a fresh process does until its first pose."""
    cold = run.result.cold_start
    if cold is None:
        return None
    steps = {
        "Python, imports": cold.import_ms,
        "open the bundle": cold.open_bundle_ms,
        "sessions, engines": cold.sessions_ms,
        "first frame": cold.first_frame_ms,
    }
    starts = [0.0, *accumulate(steps.values())]
    rows = [(name, start, ms, "host") for (name, ms), start in zip(steps.items(), starts, strict=False)]
    return _rows(f"cold start of {run.mark}", [*rows, (TOTAL, 0.0, cold.total_ms, "total")], longest, "ms")


def histogram(runs: Sequence[Shown], mode: str) -> str | None:
    """Shares of all passes per bin, none left out."""
    series = {k: run.ms(mode) for k, run in enumerate(runs) if run.ms(mode)}
    if not series:
        return None
    low, high = _ends(series.values())
    log = high > LONG_TAIL * low > 0
    edges = np.geomspace(low, high, BINS + 1) if log else np.linspace(low, high, BINS + 1)
    shares = {k: np.histogram(np.clip(values, low, high), edges)[0] / len(values) for k, values in series.items()}
    place = svg.area((low, high), (0, 100 * max(float(s.max()) for s in shares.values())), log_x=log)
    body = svg.axes(place, f"latency of a frame, ms{', logarithmic' if log else ''}", "% of passes")
    for k, share in shares.items():
        steps = [(edges[0], 0.0)]
        for i, value in enumerate(share):
            steps += [(edges[i], 100 * value), (edges[i + 1], 100 * value)]
        body += svg.line(place, [*steps, (edges[-1], 0.0)], f"filled {svg.series_css(k)}", runs[k].mark)
    return svg.picture(place.width_px, place.height_px, f"histogram of latency, {mode}", body)


def ecdf(runs: Sequence[Shown], mode: str) -> str | None:
    """Share of passes that took no longer."""
    series = {k: np.sort(run.ms(mode)) for k, run in enumerate(runs) if run.ms(mode)}
    if not series:
        return None
    low, high = _ends(series.values())
    log = high > LONG_TAIL * low > 0
    place = svg.area((low, high), (0, 100), log_x=log)
    body = svg.axes(place, f"latency of a frame, ms{', logarithmic' if log else ''}", "% no slower")
    for k, values in series.items():
        ranks = np.unique(np.linspace(0, len(values) - 1, min(len(values), QUANTILES)).round().astype(int))
        points = [(float(values[0]), 0.0)]
        for rank in ranks.tolist():
            points += [(float(values[rank]), points[-1][1]), (float(values[rank]), 100 * (rank + 1) / len(values))]
        body += svg.line(place, points, svg.series_css(k), runs[k].mark)
    return svg.picture(place.width_px, place.height_px, f"cumulative distribution of latency, {mode}", body)


def timeline(runs: Sequence[Shown], mode: str) -> str | None:
    """Every pass in order; of a paced run with what a camera's period allows, misses as dots."""
    series = {k: run.ms(mode) for k, run in enumerate(runs) if run.ms(mode)}
    if not series:
        return None
    found = [run.result.run(mode) for run in runs]
    periods = {1000 / run.deadlines.rate_hz for run in found if run and run.deadlines}
    most = 1.05 * max([*(max(values) for values in series.values()), *periods])
    place = svg.area((0, max(len(values) for values in series.values())), (0, most), width_px=1140)
    body = svg.axes(place, "pass", "latency, ms")
    for k, values in series.items():
        body += svg.line(place, list(svg.thinned(values)), f"thin {svg.series_css(k)}", runs[k].mark)
        run = found[k]
        if run and run.deadlines:
            period = 1000 / run.deadlines.rate_hz
            body += "".join(
                svg.dot(
                    place.x(i),
                    place.y(value),
                    2,
                    f"late {svg.series_css(k)}",
                    f"{runs[k].label}: pass {i}, {value:.2f} ms",
                )
                for i, value in svg.thinned(values)
                if value > period
            )
    for period in sorted(periods):
        body += svg.rule(place, period, f"the next frame is due: {period:.1f} ms")
    return svg.picture(place.width_px, place.height_px, f"latency pass by pass, {mode}", body)


def sweep(runs: Sequence[Shown]) -> str | None:
    """p50 and p95 against the number of boxes in a frame."""
    points: dict[int, list[tuple[float, float, float]]] = {}
    for k, run in enumerate(runs):
        for mode in run.result.runs:
            total = next((s.summary for s in mode.stages if s.name == TOTAL), None)
            if mode.mode.startswith(SWEEP) and total:
                points.setdefault(k, []).append((mode.settings["objects"], total.p50_ms, total.p95_ms))
    if not points:
        return None
    every = [point for row in points.values() for point in row]
    place = svg.area((0, 1.05 * max(p[0] for p in every)), (0, 1.05 * max(p[2] for p in every)))
    body = svg.axes(place, "boxes per frame", "latency of a frame, ms")
    for k, row in points.items():
        for column, css in ((1, ""), (2, " dashed")):
            ordered = [(p[0], p[column]) for p in sorted(row)]
            tip = f"{runs[k].mark} {'p95' if css else 'p50'}"
            body += svg.line(place, ordered, svg.series_css(k) + css, tip)
            body += "".join(svg.dot(place.x(a), place.y(b), 3, f"mark {svg.series_css(k)}", tip) for a, b in ordered)
    return svg.picture(place.width_px, place.height_px, "latency against the number of boxes: p50, dashed p95", body)


def readings(runs: Sequence[Shown], unit: str) -> str | None:
    """What was read of the machines meanwhile, of one unit."""
    series = [
        (k, source, run.readings[source])
        for k, run in enumerate(runs)
        for source in (watched.source for watched in run.result.watched if watched.unit == unit)
        if run.readings.get(source)
    ]
    if not series:
        return None
    values = [value for _, _, rows in series for _, value in rows]
    seconds = [at for _, _, rows in series for at, _ in rows]
    pad = 0.08 * (max(values) - min(values)) or 0.05 * abs(max(values)) or 1.0
    low = 0.0 if 0 <= min(values) <= pad else min(values) - pad
    place = svg.area((min(0.0, *seconds), max(*seconds, 1e-9)), (low, max(values) + pad), height_px=190)
    body = svg.axes(place, "seconds", unit)
    for k, source, rows in series:
        points = [(rows[i][0], value) for i, value in svg.thinned([value for _, value in rows])]
        body += svg.line(place, points, f"thin {svg.series_css(k)}", f"{runs[k].mark}: {source}")
        body += svg.dot(place.x(points[-1][0]), place.y(points[-1][1]), 2, f"mark {svg.series_css(k)}", source)
    return svg.picture(place.width_px, place.height_px, f"readings in {unit}", body)


def units(runs: Sequence[Shown]) -> dict[str, list[str]]:
    """Unit -> the sources that have it, those with most sources first."""
    found: dict[str, list[str]] = {}
    for source, unit in dict.fromkeys((w.source, w.unit) for run in runs for w in run.result.watched):
        found.setdefault(unit, []).append(source)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def pareto(points: Sequence[ParetoPoint]) -> str:
    """One graph: cost against latency, circles by file size. Outlined: nothing is both nearer to fp32 and faster."""
    slowest, worst = max(p.latency_ms for p in points), max(*(p.cost for p in points), LEAST_COST_SCALE)
    largest = max(p.size_bytes for p in points)
    place = svg.area((0, 1.3 * slowest), (-0.08 * worst, 1.2 * worst))
    body = svg.axes(place, "latency of one picture, ms", points[0].cost_name)
    named = []
    for p in sorted(points, key=lambda p: (p.latency_ms, p.cost)):
        css = f"point {'good' if p.passed else 'bad'}{'' if p.chosen else ' pale'}{' best' if p.best else ''}"
        x, y = place.x(p.latency_ms), place.y(p.cost)
        tip = f"{p.variant}: {p.latency_ms:.2f} ms, {p.cost:.3g}, {p.size_bytes / 1e6:.1f} MB"
        body += svg.dot(x, y, 3 + 7 * (p.size_bytes / largest) ** 0.5, css, tip)
        if p.chosen or p.best:
            named.append((x, y, p.variant))
    body += svg.labels(place, named, [(place.x(p.latency_ms), place.y(p.cost)) for p in points])
    return svg.picture(place.width_px, place.height_px, f"precision of {points[0].graph}: {points[0].cost_name}", body)


def _rows(title: str, rows: Sequence[tuple[str, float, float, str]], longest: float, unit: str) -> str:
    """(name, start, length, css) below each other, with lengths in figures."""
    width_px, height_px = 560, ROW_PX * len(rows) + 34
    scale = svg.Scale(0, longest, LABEL_PX, width_px - 70)
    body = "".join(
        f'<line class="grid" x1="{svg.n(scale(t))}" x2="{svg.n(scale(t))}" y1="0" y2="{height_px - 34}"/>'
        + svg.text(scale(t), height_px - 20, svg.number(t), "tick", "middle")
        for t in scale.ticks()
    )
    for i, (name, start, length, css) in enumerate(rows):
        y = i * ROW_PX + 4
        body += svg.text(LABEL_PX - 8, y + 12, name, "row", "end")
        width_px_of = scale(start + length) - scale(start)
        body += svg.bar(scale(start), y, width_px_of, BAR_PX, f"bar {css}", f"{name}: {length:.3f} {unit}")
        body += svg.text(scale(start) + width_px_of + 5, y + 12, f"{length:.2f}", "row")
    body += svg.text((LABEL_PX + width_px - 70) / 2, height_px - 4, unit, "name", "middle")
    return svg.picture(width_px, height_px, title, body)


def _ends(series: Iterable[Sequence[float] | Values]) -> tuple[float, float]:
    """Of all values; apart, even where they are all equal."""
    values = np.concatenate([np.asarray(values, float) for values in series])
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low * 0.95, high * 1.05 or 1.0)
