"""What `precision.py` measures, as records: read strictly, written whole."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from posekit.benchmarks.studies.machine import Machine
from posekit.runtime.atomic import write_whole
from posekit.runtime.errors import InputError
from posekit.runtime.records import RecordProblem, plain_from, record_from

EAGER, ORT = "PyTorch eager fp32", "ONNX Runtime fp32"
OPENVINO_FP32, OPENVINO_FP16, OPENVINO_INT8 = "OpenVINO fp32", "OpenVINO fp16", "OpenVINO int8"
CONTENDERS = (EAGER, ORT, OPENVINO_FP32, OPENVINO_FP16, OPENVINO_INT8)
NOISE = "one grey level of noise"  # fp32 on ONNX Runtime against itself
BUSY_LOAD, BUSY_SHARE = 1.5, 0.1
PROGRESS_MARK = "@"  # begins a line of progress between the two processes
R = TypeVar("R")


@dataclass(frozen=True)
class Options:
    """rounds: samples per contender.  crops: calibrated on, and as many others verified on.  frames: a BOP data set's name."""

    rounds: int
    crops: int
    frames: str


@dataclass(frozen=True)
class Step:
    """One piece of work. peak_rss_mb: of the process meanwhile, what earlier steps left behind included."""

    name: str
    seconds: float
    peak_rss_mb: float


@dataclass(frozen=True)
class Timing:
    """samples_ms: wall clock of one run with that many crops, in the order of the rounds."""

    contender: str
    crops: int
    median_ms: float
    min_ms: float
    samples_ms: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """Of one contender to fp32 on ONNX Runtime, on the same crops.

    outputs_p95: per float output the RMS of the difference over the RMS of the output, 95th percentile of crops.
    of_variation: the same over all crops, over the RMS of what the output varies by from crop to crop; of networks with
    random weights, whose outputs are nearly constants. Constants themselves are left out.
    cosine_p1: of an embedder's descriptors.   The rest only of trained networks: between poses, to the nearest symmetric
    copy.  settled: share of crops whose pose the picture determines, over which these are.  recall_drop: ADD(-S) at 0.1
    diameters, over all.
    """

    contender: str
    outputs_p95: dict[str, float]
    of_variation: dict[str, float] = field(default_factory=dict)
    cosine_p1: float | None = None
    settled: float | None = None
    rotation_p50_deg: float | None = None
    rotation_p95_deg: float | None = None
    translation_p95_of_diameter: float | None = None
    recall_drop: float | None = None

    @property
    def worst_output(self) -> tuple[str, float]:
        """Of its variation where that is known."""
        return max((self.of_variation or self.outputs_p95).items(), key=lambda row: row[1])


@dataclass(frozen=True)
class Engine:
    """One plan by TensorRT-RTX. kernels: convolutions and products by the type that they multiply.

    problem: why there is none, or why its kernels are not what the graph says; else None.
    """

    precision: str
    compute_capability: int
    seconds: float
    size_bytes: int
    kernels: dict[str, int]
    problem: str | None = None


@dataclass(frozen=True)
class GraphResult:
    """sizes_bytes: of the ONNX files.  ran_on: contender -> what really ran.  layer_shares: of the int8 file's time on
    OpenVINO.  others_cpu: share of the machine's processor time that other processes took during the rounds.
    engines_skipped: why there are no engines.
    """

    graph: str
    sizes_bytes: dict[str, int]
    ran_on: dict[str, str]
    steps: tuple[Step, ...]
    timings: tuple[Timing, ...]
    differences: tuple[Difference, ...]
    layer_shares: dict[str, float]
    others_cpu: float
    engines: tuple[Engine, ...] = ()
    engines_skipped: str | None = None

    def median_ms(self, contender: str, crops: int = 1) -> float:
        return next(t.median_ms for t in self.timings if (t.contender, t.crops) == (contender, crops))

    def speed_up(self, over: str, crops: int = 1) -> float:
        """How many times as fast as `over` OpenVINO's int8 is, by medians."""
        return self.median_ms(over, crops) / self.median_ms(OPENVINO_INT8, crops)

    def difference(self, contender: str) -> Difference:
        return next(d for d in self.differences if d.contender == contender)


@dataclass(frozen=True)
class Measurement:
    """What the fresh process of one system gives back. weights: trained, or random with their seed.  pictures: that crops
    are from.  steps: before the graphs: the network is built, and for trained ones scenes rendered and a bundle exported.
    """

    weights: str
    pictures: str
    trained: bool
    convolutional: bool
    calibration_crops: int
    verification_crops: int
    steps: tuple[Step, ...]
    graphs: tuple[GraphResult, ...]


@dataclass(frozen=True)
class Run:
    """date: UTC.  load_before: before the study began; load_after: when this system was done, its own load included."""

    date: str
    commit: str
    command: str
    load_before: float
    load_after: float
    busy: bool

    @staticmethod
    def ended(commit: str, command: str, load_before: float, load_after: float) -> Run:
        """One that is over now. commit: read before it began, for that is the code which ran."""
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return Run(date, commit, command, load_before, load_after, load_before > BUSY_LOAD)


@dataclass(frozen=True)
class SystemResult:
    system: str
    run: Run
    measured: Measurement

    @property
    def others_cpu(self) -> float:
        return max((graph.others_cpu for graph in self.measured.graphs), default=0.0)

    @property
    def busy(self) -> bool:
        """Before it began or while it ran."""
        return self.run.busy or self.others_cpu > BUSY_SHARE


@dataclass(frozen=True)
class Result:
    machine: Machine
    options: Options
    systems: tuple[SystemResult, ...] = field(default=())


def timing(contender: str, crops: int, samples_ms: tuple[float, ...]) -> Timing:
    rounded = tuple(round(sample, 4) for sample in samples_ms)
    return Timing(contender, crops, statistics.median(rounded), min(rounded), rounded)


def read(path: Path, kind: type[R]) -> R:
    """InputError for a file that is no such record."""
    try:
        return record_from(kind, json.loads(path.read_text()))
    except (OSError, ValueError) as error:  # RecordProblem is a ValueError
        where = error.where if isinstance(error, RecordProblem) else type(error).__name__
        raise InputError(
            f"result {path}",
            got=f"{where}: {error}",
            expected=f"a {kind.__name__} as this version of the study writes it",
            remedy="Read it with the commit that wrote it; to measure anew, move it away or name another file with -o.",
        ) from error


def write(path: Path, record: object) -> None:
    """OutputError where it cannot be written; never half."""
    write_whole(path, (json.dumps(plain_from(record), indent=1) + "\n").encode())
