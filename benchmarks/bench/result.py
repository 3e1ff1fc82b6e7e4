"""What `posekit bench` measured: one record per evidence folder, read strictly and written whole.

The folder: `result.json` (a `BenchResult`), `samples.json` (stage times of every pass: mode -> stage -> nanoseconds) and
`watch.json` (readings of the machine while it ran: source -> list of [seconds since the start, value]).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from posekit.benchmarks.accuracy import Accuracy
from posekit.benchmarks.bench.truth_errors import TruthErrors
from posekit.runtime.atomic import write_whole
from posekit.runtime.errors import InputError
from posekit.runtime.machine import Machine
from posekit.runtime.records import RecordProblem, plain_from, record_from

FORMAT = 1
RESULT, SAMPLES, WATCH = "result.json", "samples.json", "watch.json"
Clock = Literal["host", "device"]
TOTAL = "total"  # the stage that is a whole frame: from pixels in memory to poses
Samples = dict[str, dict[str, tuple[int, ...]]]  # mode -> stage -> nanoseconds, one per pass, in order
Readings = dict[str, tuple[tuple[float, float], ...]]  # source -> (seconds since the start, value)
R = TypeVar("R")


@dataclass(frozen=True)
class Interval:
    """95 %, by bootstrap."""

    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """Of all samples of one stage, none left out. Percentiles are nearest-rank: a value that was measured.

    p99 is None for fewer than 100 samples, p99.9 for fewer than 1000.  cov: standard deviation over mean.
    """

    n: int
    mean_ms: float
    min_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    max_ms: float
    cov: float
    p50_interval_ms: Interval
    p95_interval_ms: Interval
    p99_ms: float | None = None
    p99_interval_ms: Interval | None = None
    p999_ms: float | None = None


@dataclass(frozen=True)
class Stage:
    """clock: "host" is perf_counter around the call, "device" is the GPU's own events; the two are never added up."""

    name: str
    clock: Clock
    summary: Summary


@dataclass(frozen=True)
class Deadlines:
    """Of a paced run. missed: frames whose poses came after the next frame was due, or never.  worst_late_ms: of those.

    of: all that the camera gave.  dropped: those that were never estimated, because newer ones were there.
    """

    rate_hz: float
    missed: int
    of: int
    worst_late_ms: float
    dropped: int = 0


@dataclass(frozen=True)
class Drift:
    """Of a soak: its first minute against its last. rss: resident memory of the process."""

    first_p50_ms: float
    last_p50_ms: float
    first_rss_mb: float
    last_rss_mb: float


@dataclass(frozen=True)
class Run:
    """One mode. settings: what was asked, by name.  objects: boxes that went through the pose path, mean per frame.
    reasons: how many boxes of all frames have no pose, by why.

    throughput_hz: frames per second of wall clock, pauses of a paced run included.
    energy_j_per_pose: where power is readable, idle included and subtracted.
    """

    mode: str
    settings: dict[str, float]
    frames: int
    seconds: float
    objects: float
    throughput_hz: float
    stages: tuple[Stage, ...]
    deadlines: Deadlines | None = None
    drift: Drift | None = None
    energy_j_per_pose: float | None = None
    energy_above_idle_j_per_pose: float | None = None
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ColdStart:
    """A fresh process, wall clock. engine: found, built or none, in a sentence.

    import_ms: from the start of the process, of what posekit itself imports.  sessions_ms: the backend's library is
    imported and engines are loaded or built here.  total_ms: of all four.
    """

    import_ms: float
    open_bundle_ms: float
    sessions_ms: float
    first_frame_ms: float
    total_ms: float
    engine: str


@dataclass(frozen=True)
class WarmUp:
    """Frames that count nothing. stable: the last ones varied by less than asked, within the time that was allowed."""

    frames: int
    seconds: float
    stable: bool
    cov: float


@dataclass(frozen=True)
class Watched:
    """One source over the run, as `watch.json` has it in full. unit: of the values."""

    source: str
    unit: str
    first: float
    least: float
    mean: float
    most: float
    last: float


@dataclass(frozen=True)
class BenchResult:
    """result.json. command: exactly as given.  date: UTC, ISO 8601.  bundle_sha256: of the file's bytes.

    backends: what ran each graph.  packages: name -> version.  frames_source: where the pictures are from; they are real.
    valid: whether the figures may be compared; reasons: why not, sentences.
    truth_errors: what `accuracy` was folded from.
    """

    format: int
    posekit: str
    command: str
    date: str
    bundle: str
    bundle_sha256: str
    path: str
    precision: str | None
    backends: tuple[str, ...]
    frames_source: str
    frame_wh_px: tuple[int, int]
    boxes: str
    machine: Machine
    packages: dict[str, str]
    valid: bool
    reasons: tuple[str, ...]
    cold_start: ColdStart | None
    warm_up: WarmUp
    runs: tuple[Run, ...]
    watched: tuple[Watched, ...] = ()
    accuracy: Accuracy | None = None
    notes: tuple[str, ...] = ()
    truth_errors: TruthErrors | None = None

    def run(self, mode: str) -> Run | None:
        """The run of that mode, or None."""
        return next((run for run in self.runs if run.mode == mode), None)


@dataclass(frozen=True)
class _SamplesFile:
    modes: Samples


@dataclass(frozen=True)
class _WatchFile:
    sources: Readings


def write_evidence(folder: Path, result: BenchResult, samples: Samples, readings: Readings) -> None:
    """The three files, each whole; result.json last, so that a folder with it is complete. Raises OutputError."""
    write_whole(folder / SAMPLES, _text(_SamplesFile(samples)))
    write_whole(folder / WATCH, _text(_WatchFile(readings)))
    write_whole(folder / RESULT, _text(result, indent=1))


def read_result(path: Path) -> BenchResult:
    """A result.json, or the folder that has it. InputError for anything else, of another FORMAT above all."""
    return _read(path / RESULT if path.is_dir() else path, BenchResult)


def read_samples(folder: Path) -> Samples:
    """InputError where they are missing or damaged."""
    return _read(folder / SAMPLES, _SamplesFile).modes


def read_readings(folder: Path) -> Readings:
    """InputError where they are missing or damaged."""
    return _read(folder / WATCH, _WatchFile).sources


def _read(path: Path, kind: type[R]) -> R:
    try:
        plain = json.loads(path.read_bytes())
        if kind is BenchResult and isinstance(plain, Mapping) and plain.get("format") != FORMAT:
            raise RecordProblem("format", plain.get("format"), str(FORMAT))
        return record_from(kind, plain)
    except (OSError, ValueError, RecursionError) as error:  # RecordProblem is a ValueError
        raise InputError(
            f"result {path}",
            got=str(error)[:300],
            expected=f"a file of `posekit bench`, format {FORMAT}",
            remedy="Run the benchmark again with this version of posekit.",
        ) from error


def _text(record: object, indent: int | None = None) -> bytes:
    return (json.dumps(plain_from(record), indent=indent, sort_keys=True) + "\n").encode()
