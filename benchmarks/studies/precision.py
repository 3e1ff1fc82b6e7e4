"""OpenVINO in three precisions against ONNX Runtime and PyTorch, of every system: latency, error, export and engines.

    python benchmarks/studies/precision.py                     # measures, into benchmarks/results/
    python benchmarks/studies/precision.py --table RESULT.json # the Markdown of it

Every system runs in a process of its own, and is in the result as soon as it is done: stopped at any time, the same
command goes on with the others. A result of another commit, machine or options is begun anew.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from posekit.benchmarks.studies.command import Advance, run_study
from posekit.benchmarks.studies.machine import RESULTS, commit_of, load_average, this_machine
from posekit.benchmarks.studies.precision_result import (
    PROGRESS_MARK,
    Measurement,
    Options,
    Result,
    Run,
    SystemResult,
    read,
    write,
)
from posekit.benchmarks.studies.precision_table import markdown
from posekit.runtime.errors import InputError, PosekitError

ROOT = Path(__file__).resolve().parents[2]
MEASURE = "posekit.benchmarks.studies.precision_measure"
SYSTEMS = ("tram3d", "template-pose", "gdr-net", "surfemb-regressor", "reference-gdr", "reference-bank")
MIN_ROUNDS, MIN_CROPS = 30, 64


@dataclass(frozen=True)
class Request:
    """frames: a BOP data set.  out: the result file."""

    systems: tuple[str, ...]
    frames: Path
    rounds: int
    crops: int
    out: Path
    command: str

    @property
    def options(self) -> Options:
        return Options(self.rounds, self.crops, self.frames.name)


Measure = Callable[[str, Request, Advance], Measurement]


class SystemFailed(PosekitError):
    """The process of one system ended without a result."""


def study(request: Request, measure: Measure, advance: Advance) -> tuple[Result, list[SystemFailed]]:
    """Measure what is not in the result file yet, one system after the other. Raises OutputError, InputError."""
    commit, load_before = commit_of(ROOT), load_average()
    result, failures = _begun(request, commit), []
    for system in request.systems:
        if any(row.system == system for row in result.systems):
            advance(f"{system}: measured before", 1, 1)
            continue
        try:
            found = measure(system, request, advance)
        except SystemFailed as error:
            failures.append(error)
            continue
        run = Run.ended(commit, request.command, load_before, load_average())
        result = replace(result, systems=_ordered((*result.systems, SystemResult(system, run, found))))
        write(request.out, result)
    return result, failures


def in_fresh_process(system: str, request: Request, advance: Advance) -> Measurement:
    """Measured where nothing else was imported or allocated before. SystemFailed with what it said last."""
    with tempfile.TemporaryDirectory(prefix="posekit-study-") as folder:
        out, said = Path(folder) / "measured.json", Path(folder) / "stderr"
        options = [f"--frames={request.frames}", f"--crops={request.crops}", f"--rounds={request.rounds}"]
        command = [sys.executable, "-m", MEASURE, system, str(out), *options]
        with (
            open(said, "w") as stderr,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
        ):
            try:
                _follow(process, lambda stage, done, total: advance(f"{system} {stage}", done, total))
            except BaseException:  # a stop, above all: nothing goes on measuring behind the caller's back
                process.terminate()
                raise
        if process.returncode:
            lines = said.read_text().strip().splitlines() or [f"exit status {process.returncode}"]
            raise SystemFailed(
                system, got=lines[-1], expected="a measurement", remedy="Correct it and give the same command again."
            )
        try:
            return read(out, Measurement)
        except InputError as error:  # the code was changed meanwhile
            raise SystemFailed(system, got=error.got, expected=error.expected, remedy="Measure it again.") from error


def _follow(process: subprocess.Popen[str], advance: Advance) -> None:
    """Until it has nothing more to say. Libraries print too: only marked lines are progress."""
    assert process.stdout is not None
    for line in process.stdout:
        mark, *cells = line.rstrip("\n").split("\t")
        if mark == PROGRESS_MARK:
            advance(cells[0], int(cells[1]), int(cells[2]))


def _begun(request: Request, commit: str) -> Result:
    """What the file has of this commit, machine and options; else nothing."""
    fresh = Result(this_machine(), request.options)
    if not request.out.exists():
        return fresh
    before = read(request.out, Result)
    if (before.machine, before.options) != (fresh.machine, fresh.options):
        return fresh
    return replace(before, systems=tuple(row for row in before.systems if row.run.commit == commit))


def _ordered(rows: Sequence[SystemResult]) -> tuple[SystemResult, ...]:
    return tuple(sorted(rows, key=lambda row: SYSTEMS.index(row.system)))


def requested(arguments: Sequence[str] | None = None) -> Request | Path:
    """What the command line asks for; a path is a result to print. InputError for too few rounds or crops."""
    data = Path(os.environ.get("POSEKIT_DATA", ROOT.parent / "shared" / "data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--rounds", type=int, default=MIN_ROUNDS, help="samples per contender")
    parser.add_argument("--crops", type=int, default=MIN_CROPS, help="calibrated on; as many others are verified on")
    parser.add_argument("--frames", type=Path, default=data / "ycbv", help="BOP data set with true boxes")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--table", type=Path, metavar="RESULT", help="print the Markdown of a result and stop")
    given = parser.parse_args(arguments)
    if given.table:
        return Path(given.table)
    for name, least in (("rounds", MIN_ROUNDS), ("crops", MIN_CROPS)):
        if getattr(given, name) < least:
            raise InputError(
                f"--{name}", got=getattr(given, name), expected=f"at least {least}", remedy="Medians need them."
            )
    out = given.out or ROOT / RESULTS / f"precision-{this_machine().slug}.json"
    command = shlex.join(
        ["python", "benchmarks/studies/precision.py", *(sys.argv[1:] if arguments is None else arguments)]
    )
    return Request(tuple(given.systems), given.frames, given.rounds, given.crops, out, command)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when everything is measured, 1 when a system failed, 2 for invalid input, 130 when stopped."""
    return run_study(
        "benchmarks/studies/precision.py",
        "Systems",
        lambda: requested(arguments),
        lambda result: markdown(read(result, Result)),
        lambda wanted, advance: study(wanted, in_fresh_process, advance)[1],
    )


if __name__ == "__main__":
    sys.exit(main())
