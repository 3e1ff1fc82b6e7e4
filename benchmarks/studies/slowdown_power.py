"""What `slowdown.py` simulates: comparisons with a planted slowdown and without, drawn from runs, and their table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posekit.benchmarks.bench.baseline import Evidence
from posekit.benchmarks.bench.change import change_of
from posekit.benchmarks.bench.compare import judged
from posekit.benchmarks.bench.gate_text import Gate, gate_from
from posekit.benchmarks.bench.result import FORMAT, TOTAL, BenchResult, Run, Stage, WarmUp
from posekit.benchmarks.bench.statistics import summary_from
from posekit.benchmarks.bench.validity import OTHERS_SHARE
from posekit.benchmarks.studies.machine import Machine
from posekit.runtime.machine import machine_from_root

GATES = ("total.p50<+5%", "total.p95<+5%")
SLOWER, COMPARISONS = 1.05, 200
CAUGHT, ALARMS = 0.95, 0.05  # of the comparisons
RUNS_PER_SIDE = (1, 2, 3, 4, 5, 6, 8, 12, 20, 30, 50)
NOISES, POOL = (0.005, 0.01, 0.02, 0.03, 0.05), 200
MODE = "back-to-back"
LEAST_RUNS = 6  # from which to draw


@dataclass(frozen=True)
class Verdicts:
    """How many of the comparisons ended so."""

    held: int
    missed: int
    undecided: int


@dataclass(frozen=True)
class Row:
    """runs: which were drawn from.  planted: NEW is slower by 5 %.  alike: it is not."""

    runs: str
    gate: str
    per_side: int
    planted: Verdicts
    alike: Verdicts

    @property
    def never_wrong(self) -> bool:
        """A slowdown passes, and noise is called a regression, 5 times in 100 at most; the rest may be undecided."""
        return max(self.planted.held, self.alike.missed) <= ALARMS * COMPARISONS

    @property
    def decisive(self) -> bool:
        """A slowdown is called one, and no change passes, 95 times in 100."""
        return min(self.planted.missed, self.alike.held) >= CAUGHT * COMPARISONS


@dataclass(frozen=True)
class Noise:
    """Of one figure, between the runs: the standard deviation of its logarithm, so about its share."""

    runs: str
    gate: str
    between_runs: float


@dataclass(frozen=True)
class FreshRun:
    """us: every pass, in order.  others_cpu: share of the processors that neither idled nor worked for this run."""

    us: tuple[int, ...]
    others_cpu: float

    @property
    def valid(self) -> bool:
        """As `posekit bench` would have it."""
        return self.others_cpu <= OTHERS_SHARE


@dataclass(frozen=True)
class Result:
    """block_passes: median over the runs."""

    command: str
    date: str
    commit: str
    machine: Machine
    workload: str
    block_passes: int
    noise: tuple[Noise, ...]
    rows: tuple[Row, ...]
    fresh_runs: tuple[FreshRun, ...]


def simulated(name: str, runs: Sequence[Evidence], gate: Gate, per_side: int) -> Row:
    """COMPARISONS with the slowdown and as many without, of the same draws."""
    random = np.random.default_rng(per_side)
    slow = [_evidence(run.name, [round(ns * SLOWER) for ns in _totals(run)]) for run in runs]
    planted: Counter[str] = Counter()
    alike: Counter[str] = Counter()
    for _ in range(COMPARISONS):
        base, new = (random.integers(len(runs), size=per_side) for _ in range(2))
        for pool, counts in ((slow, planted), (runs, alike)):
            change = change_of(gate.figure, MODE, gate.kind, [runs[k] for k in base], [pool[k] for k in new])
            counts[judged(gate, change).verdict] += 1
    return Row(name, gate.text, per_side, *(Verdicts(c["held"], c["missed"], c["undecided"]) for c in (planted, alike)))


def noise(name: str, runs: Sequence[Evidence], gate: Gate) -> Noise:
    """Between these runs."""
    values = [gate.figure.value(run.result, run.result.runs[0]) for run in runs]
    return Noise(name, gate.text, float(np.std(np.log([value for value in values if value]), ddof=1)))


def lognormal_runs(between: float, count: int = POOL) -> list[Evidence]:
    """Runs of one pass each, that differ by this."""
    middles_ns = 1e7 * np.exp(between * np.random.default_rng(0).normal(size=count))
    return [_evidence(f"run {k}", [round(ns)]) for k, ns in enumerate(middles_ns)]


def simulations(fresh: Sequence[FreshRun]) -> dict[str, Any]:
    """noise and rows: of the valid runs, of all, and of noises as they might be elsewhere."""
    gates = [gate_from(text) for text in GATES]
    runs = [_evidence(f"run {k}", [us * 1000 for us in run.us]) for k, run in enumerate(fresh, 1)]
    valid = [run for run, of in zip(runs, fresh, strict=True) if of.valid]
    pools = {f"{len(valid)} valid": (valid, gates), f"all {len(runs)}": (runs, gates)}
    pools |= {f"noise {between:.1%}": (lognormal_runs(between), gates[:1]) for between in NOISES}
    enough = {name: pool for name, pool in pools.items() if len(pool[0]) >= LEAST_RUNS}
    return {
        "noise": tuple(noise(name, pool, gate) for name, (pool, asked) in enough.items() for gate in asked),
        "rows": tuple(
            simulated(name, pool, gate, per_side)
            for name, (pool, asked) in enough.items()
            for gate in asked
            for per_side in RUNS_PER_SIDE
            if per_side > 1 or len(_totals(pool[0])) > 1  # a run of one pass has no spread
        ),
    }


def markdown(result: Result) -> str:
    """What it takes, then every simulation."""
    where = f"{result.machine.cpu}, {result.machine.cores} cores, {result.machine.system}"
    valid = [run for run in result.fresh_runs if run.valid]
    busy = np.mean([run.others_cpu for run in result.fresh_runs])
    used = f"others used {busy:.0%} of the processors meanwhile"
    valid_text = f"{len(valid)} runs are valid, that is, had others use at most {OTHERS_SHARE:.0%}"
    verdicts = "slowdown: missed | undecided | held (wrong) | no change: held | undecided | missed (wrong)"
    lines = [
        "# A planted slowdown of 5 %",
        "",
        f"{result.workload}. {where}; {used}. {valid_text}. {result.date}, commit {result.commit}, `{result.command}`.",
        "",
        f"Decides: {CAUGHT:.0%} of {COMPARISONS} comparisons or more call the slowdown missed, and as many let no change pass.",
        "",
        "| runs drawn from | gate | runs differ by (standard deviation) | runs per side that decide |",
        "| --- " * 4 + "|",
        *(f"| {n.runs} | {n.gate} | {n.between_runs:.1%} | {needed(result, n)} |" for n in result.noise),
        "",
        f"| runs drawn from | gate | runs per side | {verdicts} | |",
        "| --- " * 10 + "|",
    ]
    for row in result.rows:
        p, a = row.planted, row.alike
        says = "decides" if row.decisive else "never wrong" if row.never_wrong else "**wrong too often**"
        cells = (row.runs, row.gate, row.per_side, p.missed, p.undecided, p.held, a.held, a.undecided, a.missed, says)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def needed(result: Result, found: Noise) -> str:
    """The fewest runs per side that decide."""
    rows = [row for row in result.rows if (row.runs, row.gate) == (found.runs, found.gate)]
    return next((str(row.per_side) for row in rows if row.decisive), f"more than {rows[-1].per_side}")


def _evidence(name: str, total_ns: Sequence[int]) -> Evidence:
    seconds = sum(total_ns) / 1e9
    stages = (Stage(TOTAL, "host", summary_from(total_ns)),)
    run = Run(MODE, {}, len(total_ns), seconds, 0.0, len(total_ns) / seconds, stages)
    result = BenchResult(
        FORMAT, "", "", "", "", "", "", None, (), "", (0, 0), "", machine_from_root(), {}, True, (), None,
        WarmUp(0, 0.0, True, 0.0), (run,),
    )  # fmt: skip
    return Evidence(name, result, {MODE: {TOTAL: tuple(total_ns)}})


def _totals(run: Evidence) -> tuple[int, ...]:
    assert run.samples is not None
    return run.samples[MODE][TOTAL]
