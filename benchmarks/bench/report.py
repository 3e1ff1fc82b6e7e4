"""`posekit report`: evidence folders as a page, as Markdown and as JUnit XML, each file whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from posekit.benchmarks.bench.junit import junit_from_runs
from posekit.benchmarks.bench.markdown import markdown_from_runs
from posekit.benchmarks.bench.page import page
from posekit.benchmarks.bench.shown import ParetoPoint, Shown
from posekit.runtime.atomic import write_whole


@dataclass(frozen=True)
class ReportFiles:
    """Where each form goes; None for one that is not wanted."""

    page: Path | None = None
    markdown: Path | None = None
    junit: Path | None = None

    @property
    def wanted(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.page, self.markdown, self.junit) if path)


def write_report(
    files: ReportFiles, runs: Sequence[Shown], pareto: Sequence[ParetoPoint] = (), pareto_from: str = ""
) -> None:
    """Raises OutputError; what stood there is then unchanged."""
    if files.page:
        write_whole(files.page, page(runs, pareto, pareto_from).encode())
    if files.markdown:
        write_whole(files.markdown, markdown_from_runs(runs).encode())
    if files.junit:
        write_whole(files.junit, junit_from_runs(runs))
