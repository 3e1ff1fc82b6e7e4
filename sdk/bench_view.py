"""What `posekit bench` shows: the machine, cold start, a table per mode, and in words what speaks against the figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posekit.render import show_accuracy, show_rows
from posekit.runtime.records import plain_from

if TYPE_CHECKING:
    from posekit.benchmarks.bench.result import BenchResult, ColdStart, Run, Summary

COLUMNS = (
    "stage", "clock", "n", "min", "p50", "p50, 95 %", "p90", "p95", "p99", "p99, 95 %", "p99.9", "max", "CoV",
)  # fmt: skip
SWEEP, TOTAL = "objects-", "total"


def bench_summary(result: BenchResult, folder: Path) -> dict[str, Any]:
    """For a program: result.json, and where it is."""
    return {"folder": str(folder), **plain_from(result)}


def show_bench(result: BenchResult, folder: Path) -> None:
    """For a person. Figures come with their machine, or not at all."""
    from posekit.benchmarks.bench.machine_line import machine_line

    print(f"path {result.path} on {'; '.join(result.backends)}")
    print(f"{machine_line(result.machine)}")
    print(f"{result.frames_source}; boxes: {result.boxes}")
    warm = result.warm_up
    print(f"warm-up: {warm.frames} frames, {warm.seconds:.1f} s, last {warm.cov:.1%} apart")
    if result.cold_start:
        _show_cold_start(result.cold_start)
    sweep = [run for run in result.runs if run.mode.startswith(SWEEP)]
    for run in result.runs:
        if run not in sweep:
            _show_run(run)
    _show_overlap(result)
    _show_sweep(sweep)
    if result.accuracy:
        show_accuracy(result.accuracy)
    for note in result.notes:
        print(f"note: {note}")
    print("VALID" if result.valid else "INVALID: these figures are not to be compared")
    for reason in result.reasons:
        print(f"  {reason}")
    print(f"wrote {folder}")
    show_rows("", (), (), then=[f"posekit report {folder}"])


def _show_cold_start(cold: ColdStart) -> None:
    steps = {
        "start of Python, imports": cold.import_ms,
        "open and verify the bundle": cold.open_bundle_ms,
        "sessions": cold.sessions_ms,
        "first frame": cold.first_frame_ms,
        "total": cold.total_ms,
    }
    rows = [(name, f"{ms:.0f}") for name, ms in steps.items()]
    show_rows(f"cold start, a fresh process; engine: {cold.engine}", ("step", "ms"), rows)


def _show_run(run: Run) -> None:
    title = f"{run.mode}: {run.frames} frames in {run.seconds:.1f} s, {run.throughput_hz:.1f} per second, {run.objects:.2f} boxes each; ms"
    show_rows(title, COLUMNS, [(stage.name, stage.clock, *_cells(stage.summary)) for stage in run.stages])
    if due := run.deadlines:
        late = f", the latest {due.worst_late_ms:.1f} ms late" if due.missed else ""
        print(f"{due.rate_hz:g} Hz: {due.missed} of {due.of} deadlines missed, {due.dropped} frames dropped{late}")
    if drift := run.drift:
        p50 = f"p50 {drift.first_p50_ms:.2f} to {drift.last_p50_ms:.2f} ms ({drift.last_p50_ms / drift.first_p50_ms - 1:+.1%})"
        print(f"first to last minute: {p50}, memory {drift.first_rss_mb:.1f} to {drift.last_rss_mb:.1f} MB")
    if run.energy_j_per_pose is not None:
        above = run.energy_above_idle_j_per_pose
        print(
            f"energy per pose: {run.energy_j_per_pose:.3f} J" + ("" if above is None else f", {above:.3f} J above idle")
        )


def _show_overlap(result: BenchResult) -> None:
    one_by_one, overlapping = result.run("sequential"), result.run("pipelined")
    if one_by_one and overlapping:
        ratio = overlapping.throughput_hz / one_by_one.throughput_hz
        print(f"pipelined: {ratio:.2f} times as many frames per second as sequential")


def _show_sweep(runs: Sequence[Run]) -> None:
    rows = []
    for run in runs:
        total = next(stage.summary for stage in run.stages if stage.name == TOTAL)
        each = f"{total.p50_ms / run.objects:.2f}" if run.objects else "-"
        rows.append(
            (
                f"{run.objects:g}",
                str(total.n),
                f"{total.p50_ms:.2f}",
                f"{total.p95_ms:.2f}",
                f"{total.max_ms:.2f}",
                each,
            )
        )
    show_rows("total by boxes per frame, ms", ("boxes", "n", "p50", "p95", "max", "p50 per box"), rows)


def _cells(found: Summary) -> tuple[str, ...]:
    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    p50, p99 = found.p50_interval_ms, found.p99_interval_ms
    return (
        str(found.n), ms(found.min_ms), ms(found.p50_ms), f"{ms(p50.low)} to {ms(p50.high)}", ms(found.p90_ms),
        ms(found.p95_ms), ms(found.p99_ms), f"{ms(p99.low)} to {ms(p99.high)}" if p99 else "-", ms(found.p999_ms),
        ms(found.max_ms), f"{found.cov:.1%}",
    )  # fmt: skip
