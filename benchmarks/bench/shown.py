"""What a report is made of: evidence with its readings, and the precision points of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from posekit.benchmarks.bench.baseline import Evidence, side_from
from posekit.benchmarks.bench.machine_line import machine_line
from posekit.benchmarks.bench.result import TOTAL, BenchResult, Readings, Samples, Stage, read_readings
from posekit.benchmarks.bench.statistics import NS_PER_MS
from posekit.runtime.errors import InputError


@dataclass(frozen=True)
class Shown:
    """One run. label: told apart from the others of the page."""

    label: str
    result: BenchResult
    samples: Samples
    readings: Readings

    @property
    def machine(self) -> str:
        return machine_line(self.result.machine)

    @property
    def mark(self) -> str:
        """The label, and that the run does not count."""
        return self.label if self.result.valid else f"{self.label} (INVALID)"

    @property
    def main_mode(self) -> str:
        """The first that was measured."""
        return self.result.runs[0].mode if self.result.runs else ""

    def ms(self, mode: str, stage: str = TOTAL) -> list[float]:
        """Every pass, in order; none where the mode was not measured."""
        return [ns / NS_PER_MS for ns in self.samples.get(mode, {}).get(stage, ())]

    def stages(self, mode: str) -> tuple[Stage, ...]:
        run = self.result.run(mode)
        return run.stages if run else ()


@dataclass(frozen=True)
class ParetoPoint:
    """One file of a graph, as its bundle reports it. cost: against fp32, smaller is better.  cost_name: with its unit."""

    graph: str
    variant: str
    latency_ms: float
    cost: float
    cost_name: str
    size_bytes: int
    passed: bool
    chosen: bool
    best: bool


def shown_from(folders: Sequence[Path]) -> tuple[Shown, ...]:
    """Every run in the folders, or in the folders inside them. Raises InputError where there is none, or one is damaged."""
    found: dict[Path, Evidence] = {}
    for folder in folders:
        runs = side_from(folder)
        found |= {run.folder: run for run in runs if run.folder}
        if not all(run.folder for run in runs):
            raise InputError(
                f"evidence {folder}",
                got="a baseline, which has figures alone and nothing to draw",
                expected="folders of `posekit bench`",
                remedy="Name the folders; posekit compare takes baselines.",
            )
    labels = _labels(list(found))
    return tuple(
        Shown(label, run.result, run.samples or {}, read_readings(folder))
        for (folder, run), label in zip(found.items(), labels, strict=True)
    )


def _labels(places: Sequence[Path]) -> list[str]:
    """Names of the folders, with as many of their parents' as tell them apart."""
    for depth in range(1, max(len(place.parts) for place in places) + 1):
        labels = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(labels)) == len(labels):
            break
    return labels
