"""What `overhead.py` measures, as records, and the table of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from posekit.benchmarks.markdown_table import markdown_table
from posekit.benchmarks.studies.machine import Machine
from posekit.benchmarks.studies.precision_result import Run

Microseconds = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One sample per frame. total_us: from pixels to poses.  network_us: of it, within sessions' runs.  solver_us: of
    it, the solver and its refinement.  floor_us: the OpenCV calls alone that a frame cannot do without.
    """

    name: str
    crops_per_frame: float
    total_us: Microseconds
    network_us: Microseconds
    solver_us: Microseconds
    floor_us: Microseconds

    @property
    def overhead_us(self) -> Microseconds:
        """Per frame, the floor included."""
        columns = zip(self.total_us, self.network_us, self.solver_us, strict=True)
        return tuple(total - network - solver for total, network, solver in columns)


@dataclass(frozen=True)
class Result:
    machine: Machine
    run: Run
    cases: tuple[Case, ...]


def markdown(result: Result) -> str:
    """Medians in milliseconds; the share is that of the median overhead in the median total."""
    machine, run = result.machine, result.run
    columns = ["case", "crops", "total", "network", "solver", "overhead", "floor", "gap", "share of total"]
    busy = f" The machine was busy: load {run.load_before:g} before." if run.busy else ""
    return (
        f"{machine.cpu}, {machine.cores} cores, {machine.system}, commit {run.commit}, `{run.command}`.{busy} "
        f"Medians of {len(result.cases[0].total_us)} frames, milliseconds.\n\n"
        + markdown_table(columns, map(_row, result.cases))
    )


def _row(case: Case) -> list[str]:
    parts = (case.total_us, case.network_us, case.solver_us, case.overhead_us, case.floor_us)
    total, network, solver, overhead, floor = (float(np.median(part)) / 1000 for part in parts)
    cells = [f"{ms:.3f}" for ms in (total, network, solver, overhead, floor, overhead - floor)]
    return [case.name, f"{case.crops_per_frame:.1f}", *cells, f"{overhead / total:.1%}"]
