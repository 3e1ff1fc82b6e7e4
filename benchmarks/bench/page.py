"""The report as one HTML file: no script, no network (its own policy forbids both), light and dark, figures with machines."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

from posekit.benchmarks.bench import charts, page_tables, svg
from posekit.benchmarks.bench.page_parts import definitions, figure, first_open, name, section, side_by_side
from posekit.benchmarks.bench.page_style import STYLE
from posekit.benchmarks.bench.shown import ParetoPoint, Shown

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
HASH_DIGITS, NAMED = 16, 3
STAGES_NOTE = (
    "Means of the first mode, so that the stages add up to the total; “rest” is what no stage has. "
    "Device times are the GPU's own events and part of no sum; capture comes before a frame's time begins."
)
PERCENTILES_NOTE = "Nearest rank: values that were measured. p99 from 100 passes on, p99.9 from 1000."
LATE_NOTE = "A red dot is a frame that was late: the next one was already due."
PARETO_NOTE = "Green holds its gates, outlined is Pareto-optimal, pale is not in the bundle; area is file size."


def page(runs: Sequence[Shown], pareto: Sequence[ParetoPoint] = (), pareto_from: str = "") -> str:
    """The HTML. pareto_from: where the precision points are from, a sentence."""
    sections = (
        section("Runs", _cards(runs) + page_tables.overview(runs)),
        section("Where the time goes", _waterfalls(runs), STAGES_NOTE),
        section("Distribution", _distributions(runs), "Every pass; nothing is clipped."),
        section("Latency by stage", _percentiles(runs), PERCENTILES_NOTE),
        section("Paced, as a camera would", _paced(runs), LATE_NOTE),
        section("Pass by pass", _timelines(runs)),
        section("More boxes in a frame", _sweep(runs)),
        section("Cold start", _cold_starts(runs), "A fresh process, wall clock."),
        section("Accuracy", page_tables.accuracy(runs)),
        section("Precision", _pareto(pareto), f"{pareto_from} {PARETO_NOTE}"),
        section("The machine meanwhile", _readings(runs)),
        section("Machines and software", page_tables.machines(runs)),
    )
    title = f"posekit bench: {', '.join(run.label for run in runs)}"
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><header><h1>posekit bench</h1>"
        f"{_legend(runs)}</header><main>{''.join(sections)}</main></body></html>\n"
    )


def _legend(runs: Sequence[Shown]) -> str:
    rows = "".join(
        f"<li>{_swatch(k)}{name(run)} <small>{escape(run.machine)}</small></li>" for k, run in enumerate(runs)
    )
    return f'<ul class="legend">{rows}</ul>'


def _swatch(index: int) -> str:
    return f'<span class="swatch {svg.series_css(index)}"></span>'


def _cards(runs: Sequence[Shown]) -> str:
    return f'<div class="cards">{"".join(_card(k, run) for k, run in enumerate(runs))}</div>'


def _card(index: int, run: Shown) -> str:
    r, warm = run.result, run.result.warm_up
    badge = '<span class="valid">VALID</span>' if r.valid else '<span class="invalid">INVALID</span>'
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in r.reasons)
    rows = {
        "machine": run.machine,
        "bundle": f"{r.bundle}, sha256 {r.bundle_sha256[:HASH_DIGITS]}…",
        "path": f"{r.path}, {r.precision or 'each backend its own precision'}",
        "runs on": "; ".join(r.backends),
        "frames": f"{r.frames_source}, {r.frame_wh_px[0]} x {r.frame_wh_px[1]} px; boxes: {r.boxes}",
        "warm-up": f"{warm.frames} frames, {warm.seconds:.1f} s, CoV {warm.cov:.1%}"
        + ("" if warm.stable else ", not stable in the time allowed"),
        "measured": f"{r.date}, posekit {r.posekit}",
        "command": r.command,
        "notes": " ".join(r.notes),
    }
    return (
        f'<article class="{"" if r.valid else "bad"}"><h3>{_swatch(index)}{escape(run.label)} {badge}</h3>'
        + (f'<ul class="reasons">{reasons}</ul>' if reasons else "")
        + definitions({key: value for key, value in rows.items() if value})
        + "</article>"
    )


def _modes(runs: Sequence[Shown]) -> list[str]:
    return list(dict.fromkeys(mode.mode for run in runs for mode in run.result.runs))


def _having(runs: Sequence[Shown], mode: str) -> list[Shown]:
    return [run for run in runs if run.result.run(mode)]


def _sweep(runs: Sequence[Shown]) -> str:
    swept = [run for run in runs if any(mode.mode.startswith(charts.SWEEP) for mode in run.result.runs)]
    return side_by_side([figure(charts.sweep(runs), "p50; dashed: p95", swept)])


def _waterfalls(runs: Sequence[Shown]) -> str:
    longest = charts.longest_ms(runs)
    return side_by_side(figure(charts.waterfall(run, longest), f"{run.mark}, {run.main_mode}", [run]) for run in runs)


def _distributions(runs: Sequence[Shown]) -> str:
    both = (charts.histogram, charts.ecdf)
    return first_open(
        {
            mode: side_by_side(figure(draw(runs, mode), mode, _having(runs, mode)) for draw in both)
            for mode in _modes(runs)
        }
    )


def _percentiles(runs: Sequence[Shown]) -> str:
    return first_open({mode: page_tables.percentiles(runs, mode) for mode in _modes(runs)})


def _paced(runs: Sequence[Shown]) -> str:
    said = ""
    for run in runs:
        mode = run.result.run(charts.PACED)
        if mode and mode.deadlines:
            late = mode.deadlines
            worst = f", the worst by {late.worst_late_ms:.2f} ms" if late.missed else ""
            text = f"{late.missed} of {late.of} frames late at {late.rate_hz:g} Hz{worst}"
            said += f"<li>{name(run)}: {text}. <small>{escape(run.machine)}</small></li>"
    paced = _having(runs, charts.PACED)
    return figure(charts.timeline(runs, charts.PACED), charts.PACED, paced) + (f"<ul>{said}</ul>" if said else "")


def _timelines(runs: Sequence[Shown]) -> str:
    modes = [mode for mode in _modes(runs) if mode != charts.PACED]
    return first_open(
        {mode: figure(charts.timeline(runs, mode), mode, _having(runs, mode)) + _drifts(runs, mode) for mode in modes}
    )


def _drifts(runs: Sequence[Shown], mode: str) -> str:
    """Of a soak."""
    said = ""
    for run in runs:
        measured = run.result.run(mode)
        if measured and measured.drift:
            drift = measured.drift
            said += (
                f"<p>{name(run)}: first minute p50 {drift.first_p50_ms:.2f} ms, last {drift.last_p50_ms:.2f} ms; memory "
                f"{drift.first_rss_mb:.0f} MB, then {drift.last_rss_mb:.0f} MB. <small>{escape(run.machine)}</small></p>"
            )
    return said


def _cold_starts(runs: Sequence[Shown]) -> str:
    cold = [(run, run.result.cold_start) for run in runs]
    longest = max((start.total_ms for _, start in cold if start), default=1.0)
    return side_by_side(
        figure(charts.cold_start(run, longest), f"{run.mark}; engine: {start.engine}", [run])
        for run, start in cold
        if start
    )


def _readings(runs: Sequence[Shown]) -> str:
    drawn = side_by_side(
        figure(charts.readings(runs, unit), f"{_some(sources)}, {unit}", runs)
        for unit, sources in charts.units(runs).items()
    )
    return first_open({"": drawn, "all readings": page_tables.readings(runs)})


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _pareto(points: Sequence[ParetoPoint]) -> str:
    graphs = [(graph, list(mine)) for graph, mine in groupby(points, lambda point: point.graph)]
    return side_by_side(figure(charts.pareto(mine), graph, ()) for graph, mine in graphs)
