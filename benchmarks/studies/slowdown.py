"""Does `posekit compare` catch a planted slowdown of 5 %, and leave equal runs alone, at the noise of this machine?

    python -m posekit.benchmarks.studies.slowdown X.posekit FRAMES     # measures and simulates, into benchmarks/results/
    python -m posekit.benchmarks.studies.slowdown --again RESULT.json  # simulates anew from the runs of a result

Runs are fresh processes, each from frames in memory to poses. Those beside which others used more of the processors than
`posekit bench` allows would be INVALID and never be compared: they are kept apart. Every comparison draws its runs with
replacement, so that both sides are equally noisy; NEW's passes are then made 5 % longer, or left alone. What other
noises need is simulated from log-normal runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter_ns
from typing import TypeVar

import numpy as np

from posekit.benchmarks.bench.bootstrap import block_length
from posekit.benchmarks.bench.validity import OTHERS_SHARE
from posekit.benchmarks.studies.machine import RESULTS, busy_cpu_s, commit_of, this_machine
from posekit.benchmarks.studies.precision_result import read
from posekit.benchmarks.studies.slowdown_power import FreshRun, Result, markdown, simulations
from posekit.runtime.atomic import write_whole
from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import PosekitError
from posekit.runtime.estimator import PoseEstimator
from posekit.runtime.records import plain_from
from posekit.runtime.sources import Frame, frames_from

ROOT = Path(__file__).resolve().parents[2]
THIS = "posekit.benchmarks.studies.slowdown"
FRAMES, WARM_UPS = 20, 40
LOOK_S = 2.0  # how long others are watched before a run
Advance = Callable[[int, int], None]
T = TypeVar("T")


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


def fresh_runs(
    bundle: Path, source: str, runs: int, passes: int, patience_s: float, advance: Advance
) -> Iterator[FreshRun]:
    """Each in a process of its own; waits for others to be quiet, patience_s in all, then measures beside them.

    Raises CalledProcessError where one fails; its message is on stderr.
    """
    for done in range(runs):
        while patience_s > 0 and others_cpu(lambda: time.sleep(LOOK_S))[1] > OTHERS_SHARE:
            patience_s -= LOOK_S
        code = f"import sys; from {THIS} import worker; worker(*sys.argv[1:])"
        command = [sys.executable, "-c", code, str(bundle), source, str(passes)]
        run = partial(subprocess.run, command, stdout=subprocess.PIPE, check=True)
        printed, others = others_cpu(run)
        yield FreshRun(tuple(round(ns / 1000) for ns in json.loads(printed.stdout)), round(others, 3))
        advance(done + 1, runs)


def others_cpu(work: Callable[[], T]) -> tuple[T, float]:
    """What it gives, and the share of all processors that others used meanwhile: neither this process nor its children."""
    begin_s, busy_s, mine_s = time.monotonic(), busy_cpu_s(), _mine_cpu_s()
    given = work()
    others_s = busy_cpu_s() - busy_s - (_mine_cpu_s() - mine_s)
    return given, max(0.0, others_s) / ((time.monotonic() - begin_s) * (os.cpu_count() or 1))


def worker(bundle: str, source: str, passes: str) -> None:
    """Prints what it measured."""
    print(json.dumps(measured(Path(bundle), source, int(passes))))


def study(
    bundle: Path, source: str, runs: int, passes: int, patience_s: float, command: str, advance: Advance
) -> Result:
    """Measure, then simulate."""
    commit = commit_of(ROOT)
    fresh = list(fresh_runs(bundle, source, runs, passes, patience_s, advance))
    return Result(
        command=command,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        commit=commit,
        machine=this_machine(),
        workload=f"{runs} runs of {passes} passes, {bundle.name}, frames of {Path(source).name}, to poses",
        block_passes=int(np.median([block_length(np.asarray(run.us, np.float64)) for run in fresh])),
        fresh_runs=tuple(fresh),
        **simulations(fresh),
    )


def _mine_cpu_s() -> float:
    return sum(os.times()[:4])


def main(arguments: Sequence[str]) -> int:
    """The command line; exit code 2 for what cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("frames", nargs="?")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--passes", type=int, default=250)
    parser.add_argument("--patience", type=float, default=0.0, metavar="S", help="to wait for a quiet machine, in all")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/slowdown-PROCESSOR.json")
    parser.add_argument("--again", type=Path, metavar="RESULT.json")
    asked = parser.parse_args(arguments)
    if asked.again:
        try:
            kept = read(asked.again, Result)
        except PosekitError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return _written(replace(kept, **simulations(kept.fresh_runs)), asked.again)
    if asked.frames is None:
        parser.error("X.posekit and FRAMES")
    names = f"{asked.bundle.name} {Path(asked.frames).name}"
    command = f"python -m {THIS} {names} --runs {asked.runs} --passes {asked.passes}" + (
        f" --patience {asked.patience:g}" if asked.patience else ""
    )
    out = asked.out or ROOT / RESULTS / f"slowdown-{this_machine().slug}.json"

    def advance(done: int, total: int) -> None:
        print(f"run {done} of {total}", file=sys.stderr, flush=True)

    try:
        result = study(asked.bundle, asked.frames, asked.runs, asked.passes, asked.patience, command, advance)
    except (PosekitError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return _written(result, out)


def _written(result: Result, out: Path) -> int:
    write_whole(out, (json.dumps(plain_from(result), sort_keys=True) + "\n").encode())
    write_whole(out.with_suffix(".md"), markdown(result).encode())
    print(markdown(result), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
