"""Does `posekit compare` catch a planted slowdown of 5 %, and leave equal runs alone, at the noise of this machine?

    python benchmarks/studies/slowdown.py X.posekit FRAMES     # measures and simulates, into benchmarks/results/
    python benchmarks/studies/slowdown.py --table RESULT.json  # the Markdown of it

Runs are fresh processes, one after the other, each from frames in memory to poses. Every comparison draws its runs from
them with replacement, so that both sides are equally noisy; NEW's passes are then made 5 % longer, or left alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from posekit.benchmarks.bench.baseline import Evidence
from posekit.benchmarks.bench.bootstrap import block_length
from posekit.benchmarks.bench.change import change_of
from posekit.benchmarks.bench.compare import judged
from posekit.benchmarks.bench.gate_text import Gate, gate_from
from posekit.benchmarks.bench.result import FORMAT, TOTAL, BenchResult, Run, Stage, WarmUp
from posekit.benchmarks.bench.statistics import summary_from
from posekit.benchmarks.studies.machine import RESULTS, Machine, busy_cpu_s, commit_of, load_average, this_machine
from posekit.runtime.atomic import write_whole
from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import PosekitError
from posekit.runtime.estimator import PoseEstimator
from posekit.runtime.machine import machine_from_root
from posekit.runtime.records import plain_from, record_from
from posekit.runtime.sources import Frame, frames_from

ROOT = Path(__file__).resolve().parents[2]
THIS = "posekit.benchmarks.studies.slowdown"
GATES = ("total.p50<+5%", "total.p90<+5%", "total.p95<+5%")
SLOWER, COMPARISONS = 1.05, 100
CAUGHT, ALARMS = 95, 5
RUNS_PER_SIDE = (1, 2, 3, 5, 8, 12, 20, 30, 50)
MODE, FRAMES, WARM_UPS = "back-to-back", 20, 40
Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Verdicts:
    """How many of the comparisons ended so."""

    held: int
    missed: int
    undecided: int


@dataclass(frozen=True)
class Row:
    """planted: NEW is slower by 5 %.  alike: it is not."""

    gate: str
    runs_per_side: int
    planted: Verdicts
    alike: Verdicts

    @property
    def never_wrong(self) -> bool:
        """A slowdown passes, and noise is called a regression, 5 times in 100 at most; the rest may be undecided."""
        return self.planted.held <= COMPARISONS - CAUGHT and self.alike.missed <= ALARMS

    @property
    def decisive(self) -> bool:
        """A slowdown is called one, and no change passes, 95 times in 100."""
        return self.planted.missed >= CAUGHT and self.alike.held >= CAUGHT


@dataclass(frozen=True)
class Noise:
    """Of one figure, between the runs: the standard deviation of its logarithm, so about its share."""

    gate: str
    between_runs: float


@dataclass(frozen=True)
class Result:
    """run_us: every pass of every run, in order.  block_passes: median over the runs.

    others_cpu: of all processors while it measured, the share that neither idled nor worked for this study.
    """

    command: str
    date: str
    commit: str
    machine: Machine
    workload: str
    load_average: float
    others_cpu: float
    block_passes: int
    noise: tuple[Noise, ...]
    rows: tuple[Row, ...]
    run_us: tuple[tuple[int, ...], ...]


def simulated(runs: Sequence[Evidence], gate: Gate, per_side: int, seed: int) -> Row:
    """COMPARISONS with the slowdown and as many without, of the same draws."""
    random = np.random.default_rng(seed)
    slow = [_evidence(run.name, [round(ns * SLOWER) for ns in _totals(run)]) for run in runs]
    planted: Counter[str] = Counter()
    alike: Counter[str] = Counter()
    for _ in range(COMPARISONS):
        base, new = (random.integers(len(runs), size=per_side) for _ in range(2))
        for pool, counts in ((slow, planted), (runs, alike)):
            change = change_of(gate.figure, MODE, gate.kind, [runs[k] for k in base], [pool[k] for k in new])
            counts[judged(gate, change).verdict] += 1
    return Row(gate.text, per_side, *(Verdicts(c["held"], c["missed"], c["undecided"]) for c in (planted, alike)))


def noise(runs: Sequence[Evidence], gate: Gate) -> Noise:
    values = [gate.figure.value(run.result, run.result.runs[0]) for run in runs]
    return Noise(gate.text, float(np.std(np.log([value for value in values if value]), ddof=1)))


def measured(bundle: Path, source: str, passes: int) -> list[int]:
    """One run in this process: nanoseconds from a frame in memory to its poses, detector included."""
    with Bundle(bundle) as opened, PoseEstimator(opened) as estimator:
        frames = list(islice(frames_from(source), FRAMES))

        def one(frame: Frame) -> int:
            begin_ns = perf_counter_ns()
            estimator.estimate(frame.image_rgb_u8, frame.intrinsics)
            return perf_counter_ns() - begin_ns

        for k in range(WARM_UPS):
            one(frames[k % len(frames)])
        return [one(frames[k % len(frames)]) for k in range(passes)]


def fresh_runs(bundle: Path, source: str, runs: int, passes: int, advance: Advance) -> list[list[int]]:
    """Each in a process of its own. Raises CalledProcessError where one fails; its message is on stderr."""
    found = []
    for done in range(runs):
        code = f"import sys; from {THIS} import worker; worker(*sys.argv[1:])"
        arguments = [sys.executable, "-c", code, str(bundle), source, str(passes)]
        printed = subprocess.run(arguments, stdout=subprocess.PIPE, check=True).stdout
        found.append([int(ns) for ns in json.loads(printed)])
        advance(done + 1, runs)
    return found


def worker(bundle: str, source: str, passes: str) -> None:
    """Prints what it measured."""
    print(json.dumps(measured(Path(bundle), source, int(passes))))


def study(bundle: Path, source: str, runs: int, passes: int, command: str, advance: Advance) -> Result:
    load, commit = load_average(), commit_of(ROOT)
    before, mine_before, begin_ns = busy_cpu_s(), _children_cpu_s(), perf_counter_ns()
    run_ns = fresh_runs(bundle, source, runs, passes, advance)
    all_cpu_s = (perf_counter_ns() - begin_ns) / 1e9 * (os.cpu_count() or 1)
    others = max(0.0, busy_cpu_s() - before - (_children_cpu_s() - mine_before)) / all_cpu_s
    evidence = [_evidence(f"run {k}", ns) for k, ns in enumerate(run_ns, 1)]
    gates = [gate_from(text) for text in GATES]
    rows = [simulated(evidence, gate, count, count) for gate in gates for count in RUNS_PER_SIDE]
    return Result(
        command=command,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        commit=commit,
        machine=this_machine(),
        workload=f"{runs} runs of {passes} passes, {bundle.name}, {FRAMES} frames of {Path(source).name}, to poses",
        load_average=load,
        others_cpu=round(others, 3),
        block_passes=int(np.median([block_length(np.asarray(ns, np.float64)) for ns in run_ns])),
        noise=tuple(noise(evidence, gate) for gate in gates),
        rows=tuple(rows),
        run_us=tuple(tuple(round(ns / 1000) for ns in run) for run in run_ns),
    )


def markdown(result: Result) -> str:
    """The table, and what it says."""
    where = f"{result.machine.cpu}, {result.machine.cores} cores, {result.machine.system}"
    busy = f"others used {result.others_cpu:.0%} of the processors meanwhile"
    wrong = "slowdown: missed | undecided | held (wrong) | no change: held | undecided | missed (wrong)"
    lines = [
        "# A planted slowdown of 5 %",
        "",
        f"{result.workload}. {where}; {busy}. {result.date}, commit {result.commit}.",
        "",
        f"Of {COMPARISONS} comparisons each, drawn from these runs:",
        "",
        f"| gate | runs per side | {wrong} | |",
        "| --- " * 9 + "|",
    ]
    for row in result.rows:
        p, a = row.planted, row.alike
        says = "decides" if row.decisive else "never wrong" if row.never_wrong else "too noisy"
        cells = (row.gate, row.runs_per_side, p.missed, p.undecided, p.held, a.held, a.undecided, a.missed, says)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", *(verdict(result, found) for found in result.noise)]
    return "\n".join(lines) + "\n"


def verdict(result: Result, found: Noise) -> str:
    """One sentence per gate."""
    rows = [row for row in result.rows if row.gate == found.gate]
    decisive = next((str(row.runs_per_side) for row in rows if row.decisive), None)
    enough = (
        f"{decisive} runs per side decide" if decisive else f"more than {rows[-1].runs_per_side} runs per side needed"
    )
    return f"- {found.gate}: runs differ by {found.between_runs:.1%} (standard deviation); {enough}."


def _evidence(name: str, total_ns: Sequence[int]) -> Evidence:
    seconds = sum(total_ns) / 1e9
    stages = (Stage(TOTAL, "host", summary_from(total_ns)),)
    run = Run(MODE, {}, len(total_ns), seconds, 0.0, len(total_ns) / seconds, stages)
    result = BenchResult(
        FORMAT, "", "", "", "", "", "", None, (), "", (0, 0), "", machine_from_root(), {}, True, (), None,
        WarmUp(WARM_UPS, 0.0, True, 0.0), (run,),
    )  # fmt: skip
    return Evidence(name, result, {MODE: {TOTAL: tuple(total_ns)}})


def _totals(run: Evidence) -> tuple[int, ...]:
    assert run.samples is not None
    return run.samples[MODE][TOTAL]


def _children_cpu_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def main(arguments: Sequence[str]) -> int:
    """The command line; exit code 2 for what cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("frames", nargs="?")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--passes", type=int, default=250)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/slowdown-PROCESSOR.json")
    parser.add_argument("--table", type=Path)
    asked = parser.parse_args(arguments)
    if asked.table:
        print(markdown(record_from(Result, json.loads(asked.table.read_bytes()))), end="")
        return 0
    if asked.frames is None:
        parser.error("X.posekit and FRAMES")
    names = f"{asked.bundle.name} {Path(asked.frames).name}"
    command = f"python benchmarks/studies/slowdown.py {names} --runs {asked.runs} --passes {asked.passes}"
    out = asked.out or ROOT / RESULTS / f"slowdown-{this_machine().slug}.json"

    def advance(done: int, total: int) -> None:
        print(f"run {done} of {total}", file=sys.stderr, flush=True)

    try:
        result = study(asked.bundle, asked.frames, asked.runs, asked.passes, command, advance)
    except (PosekitError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_whole(out, (json.dumps(plain_from(result), sort_keys=True) + "\n").encode())
    write_whole(out.with_suffix(".md"), markdown(result).encode())
    print(markdown(result), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
