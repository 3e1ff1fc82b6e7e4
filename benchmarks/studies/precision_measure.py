"""One system in one process: export in three precisions, then errors, latency and engines. `precision.py` starts it."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from posekit.benchmarks.pose_error import ScoredObject
from posekit.benchmarks.studies.layer_times import layer_shares
from posekit.benchmarks.studies.machine import busy_cpu_s, this_machine
from posekit.benchmarks.studies.precision_result import (
    CONTENDERS,
    EAGER,
    NOISE,
    OPENVINO_FP16,
    OPENVINO_FP32,
    OPENVINO_INT8,
    ORT,
    PROGRESS_MARK,
    Difference,
    Engine,
    GraphResult,
    Measurement,
    Options,
    Timing,
    timing,
    write,
)
from posekit.benchmarks.studies.precision_steps import Stopwatch
from posekit.benchmarks.studies.precision_subjects import SUBJECTS, Progress, Subject
from posekit.benchmarks.studies.round_robin import PAUSE_S, interleaved
from posekit.calibration.feeds import Arrays, CropFeeds, recorded_frames
from posekit.calibration.fitness import check_fitness, fitness_of
from posekit.calibration.ranges import calibrate
from posekit.export.kernel_types import product_types
from posekit.export.onnx_from_network import onnx_from_network
from posekit.export.parity import network_outputs
from posekit.export.precision.half import half_source
from posekit.export.precision.int8 import int8_content
from posekit.export.precision.judge import Judge
from posekit.export.systems import GraphSource
from posekit.export.verify.figures import Figures, figures_of
from posekit.export.verify.gates import AnyFigures, Gates
from posekit.export.verify.observe import GreyNoise, Observation
from posekit.export.verify.reference import PoseReference
from posekit.export.verify.samples import Sample, feeds_from, samples_from
from posekit.runtime.backends import BACKENDS
from posekit.runtime.backends.tensorrt import profiles_for
from posekit.runtime.boxes import Boxes, detections_from_truth
from posekit.runtime.engines.api import missing
from posekit.runtime.engines.build import build_plan
from posekit.runtime.engines.kernels import check_kernels
from posekit.runtime.engines.options import RTX_CAPABILITIES, BuildOptions
from posekit.runtime.errors import CalibrationError, EngineError, PosekitError, PrecisionError
from posekit.runtime.manifest import GraphEntry, ObjectEntry, Precision
from posekit.runtime.session import Session
from posekit.runtime.tensor import Feed, TensorSpec

Outputs = dict[str, npt.NDArray[Any]]
CROP_COUNTS = (1, 4)
CALIBRATED, VERIFIED = 0, 1  # even frames, odd frames
METHOD = "minmax"
NOISE_SEED = 0
ROWS: dict[str, tuple[str, Precision]] = {
    ORT: ("onnxruntime", "fp32"),
    OPENVINO_FP32: ("openvino", "fp32"),
    OPENVINO_FP16: ("openvino", "fp16"),
    OPENVINO_INT8: ("openvino", "int8"),
}


@dataclass(frozen=True)
class Setting:
    """Of every contender and engine. threads: given to each.  pause_s: see `interleaved`.  capabilities: of engines."""

    threads: int
    pause_s: float = PAUSE_S
    capabilities: tuple[int, ...] = RTX_CAPABILITIES


def measured(
    subject: Subject,
    options: Options,
    progress: Progress,
    stopwatch: Stopwatch,
    setting: Setting,
) -> Measurement:
    """Everything about one subject. Raises CalibrationError for too few crops, and what the steps raise."""
    torch.set_num_threads(setting.threads)
    samples = _samples(subject, options.crops)
    before, graphs = tuple(stopwatch.done), []
    for name, source in subject.network.graphs.items():
        stopwatch.done.clear()
        graphs.append(_Graph(subject, name, source, options, setting, samples, progress, stopwatch).result())
    return Measurement(
        subject.weights,
        subject.pictures,
        subject.trained,
        subject.convolutional,
        options.crops,
        len(samples),
        before,
        tuple(graphs),
    )


@dataclass(frozen=True, eq=False)
class _Graph:
    """The work on one graph."""

    subject: Subject
    name: str
    source: GraphSource
    options: Options
    setting: Setting
    samples: Sequence[Sample]
    progress: Progress
    stopwatch: Stopwatch

    def result(self) -> GraphResult:
        threads = self.setting.threads
        files, inputs, outputs = self._exported()
        entry = GraphEntry(self.source.role, dict.fromkeys(files, ""), inputs, outputs)
        feeds = feeds_from(self.samples, self.subject.network.crop, self.subject.objects, inputs)
        with ExitStack() as stack:
            sessions: dict[str, Session] = {}
            for contender, (backend, precision) in ROWS.items():
                sessions[contender] = BACKENDS[backend].open(memoryview(files[precision]), entry, threads)
                stack.callback(sessions[contender].close)
            timings, others_cpu = self._timings(sessions, feeds)
            ran_on = {name: session.backend for name, session in sessions.items()}
            differences = self._poses(files) if self.subject.bundle else self._numbers(sessions, feeds)
        ran_on[EAGER] = f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads"
        skipped = missing("rtx")
        return GraphResult(
            graph=self.name,
            sizes_bytes={precision: len(content) for precision, content in files.items()},
            ran_on={name: ran_on[name] for name in CONTENDERS},
            steps=tuple(self.stopwatch.done),
            timings=timings,
            differences=differences,
            layer_shares=layer_shares(files["int8"], feeds[0], threads),
            others_cpu=others_cpu,
            engines=() if skipped else tuple(self._engines(files, inputs)),
            engines_skipped=skipped,
        )

    def _exported(self) -> tuple[dict[Precision, bytes], tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """The three files, and the specs that they share."""
        step = self.stopwatch.step

        def tell(done: int) -> None:
            self.progress(f"{self.name}: export", done, 4)

        tell(0)
        with tempfile.TemporaryDirectory(prefix="posekit-study-") as folder:
            path = Path(folder) / "graph.onnx"
            with step("export fp32"):
                plain = onnx_from_network(self.source, path)
            fp32 = path.read_bytes()
            tell(1)
            source = calibration_feeds(self.subject, plain.inputs, self.options.crops)
            with step("export fp16"):
                onnx_from_network(half_source(self.source), path, crops=next(iter(source)).feed)
            fp16 = path.read_bytes()
        tell(2)
        model = onnx.load_from_string(fp16)
        with step("int8 ranges"):
            _check_crops(source, self.options.crops)
            table = calibrate(model, lambda: (portion.feed for portion in source), METHOD)
        tell(3)
        with step("int8 file"):
            int8 = int8_content(model, table)
        tell(4)
        return {"fp32": fp32, "fp16": fp16, "int8": int8}, plain.inputs, plain.outputs

    def _timings(self, sessions: Mapping[str, Session], feeds: Sequence[Arrays]) -> tuple[tuple[Timing, ...], float]:
        """And the share of the machine's processor time that others took meanwhile."""
        wall_s, all_s, own_s = time.perf_counter(), busy_cpu_s(), time.process_time()
        rows = tuple(row for crops in CROP_COUNTS for row in self._timed(sessions, feeds[:crops]))
        others_s = busy_cpu_s() - all_s - (time.process_time() - own_s)
        whole_s = (time.perf_counter() - wall_s) * (os.cpu_count() or 1)
        return rows, round(max(others_s, 0.0) / whole_s, 3)

    def _timed(self, sessions: Mapping[str, Session], feeds: Sequence[Arrays]) -> Iterator[Timing]:
        """All contenders on one batch of these crops."""
        feed = {name: np.concatenate([one[name] for one in feeds]) for name in feeds[0]}
        runs = {name: _running(session, feed) for name, session in sessions.items()} | {
            EAGER: _eager(self.source, feed)
        }

        def advance(done: int, total: int) -> None:
            self.progress(f"{self.name}: latency, {len(feeds)} crop{'s' * (len(feeds) > 1)}", done, total)

        ordered = {name: runs[name] for name in CONTENDERS}
        found = interleaved(ordered, self.options.rounds, advance, self.setting.pause_s)
        return (timing(name, len(feeds), samples_ms) for name, samples_ms in found.items())

    def _numbers(self, sessions: Mapping[str, Session], feeds: Sequence[Arrays]) -> tuple[Difference, ...]:
        """Output by output."""
        noise = GreyNoise(1, NOISE_SEED)
        shaken = [{**feed, "crops": feed["crops"].copy()} for feed in feeds]
        for feed in shaken:
            noise.add(feed["crops"])
        wanted = [(name, session, feeds) for name, session in sessions.items() if name != ORT]
        exact = self._observed(sessions[ORT], feeds, 0)
        scored = {entry.id: _box_as_object(entry) for entry in self.subject.objects}
        rows = []
        for turn, (name, session, fed) in enumerate([(NOISE, sessions[ORT], shaken), *wanted]):
            seen = self._observed(session, fed, turn + 1)
            figures = figures_of(exact, seen, self.samples, scored)
            rows.append(_difference(name, figures, of_variation(exact.outputs, seen.outputs)))
        return tuple(rows)

    def _observed(self, session: Session, feeds: Sequence[Feed], turn: int) -> Observation:
        """One crop at a time; PrecisionError for values that are not finite. turn: for the progress."""
        outputs: list[Outputs] = []
        for feed in feeds:
            outputs.append({name: array[0].copy() for name, array in session.run(feed).items()})
            _check_finite(outputs[-1], session)
            self.progress(f"{self.name}: errors", turn * len(feeds) + len(outputs), (len(ROWS) + 1) * len(feeds))
        return Observation((None,) * len(feeds), tuple(outputs), (session.backend,), {})

    def _poses(self, files: Mapping[Precision, bytes]) -> tuple[Difference, ...]:
        """Through the path that uses the graph, in pose units."""
        assert self.subject.bundle is not None
        path = self.subject.paths[self.name]
        judge = Judge.of(PoseReference.of(self.subject.bundle, path, self.samples, self.progress), Gates())
        rows = [_difference(NOISE, max(map(_posed, judge.reference.floors), key=_rotation_p95))]
        for done, (name, (backend, precision)) in enumerate(row for row in ROWS.items() if row[0] != ORT):
            self.progress(f"{self.name}: poses", done, len(ROWS) - 1)
            found = judge.measure(partial(bytes, files[precision]), precision, backend)
            rows.append(_difference(name, _posed(found.figures)))
        self.progress(f"{self.name}: poses", len(ROWS) - 1, len(ROWS) - 1)
        return tuple(rows)

    def _engines(self, files: Mapping[Precision, bytes], inputs: tuple[TensorSpec, ...]) -> Iterator[Engine]:
        wanted: list[tuple[Precision, int]] = [(p, c) for p in ("fp16", "int8") for c in self.setting.capabilities]
        for done, (precision, capability) in enumerate(wanted):
            self.progress(f"{self.name}: engines", done, len(wanted))
            yield _engine(files[precision], precision, capability, inputs)
        self.progress(f"{self.name}: engines", len(wanted), len(wanted))


def calibration_feeds(subject: Subject, inputs: tuple[TensorSpec, ...], crops: int) -> CropFeeds:
    """What int8 ranges are from: true boxes of even frames."""
    frames = recorded_frames(subject.frames)
    return CropFeeds(frames, _boxes_of(CALIBRATED), subject.objects, subject.network.crop, inputs, crops)


def _boxes_of(parity: int) -> Boxes:
    return lambda frame: detections_from_truth(frame) if frame.index % 2 == parity else []


def _samples(subject: Subject, crops: int) -> list[Sample]:
    """What contenders are compared on: as many boxes of odd frames."""
    ids = {entry.id for entry in subject.objects}
    samples = samples_from(str(subject.frames), _boxes_of(VERIFIED), None, ids, crops)
    _check_count(len(samples), crops, "odd")
    return samples


def _check_crops(source: CropFeeds, crops: int) -> None:
    fitness = fitness_of(source)
    check_fitness(fitness)
    _check_count(fitness.crops, crops, "even")


def _check_count(found: int, crops: int, which: str) -> None:
    if found < crops:
        raise CalibrationError(
            f"crops of {which} frames",
            got=found,
            expected=f"{crops}",
            remedy="Give more frames, or ask for fewer crops.",
        )


def _running(session: Session, feed: Feed) -> Callable[[], object]:
    return lambda: session.run(feed)


def _eager(source: GraphSource, feed: Arrays) -> Callable[[], object]:
    return lambda: network_outputs(source, source.module, feed)


def _check_finite(outputs: Outputs, session: Session) -> None:
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise PrecisionError(
                f"output {name!r}", got=f"NaN or infinity on {session.backend}", expected="finite values",
                remedy="Run the overflow probe (posekit.export.precision.overflow): it names the layer.",
            )  # fmt: skip


def _box_as_object(entry: ObjectEntry) -> ScoredObject:
    """What figures ask for. Nobody finds poses with random weights, so nothing is measured on it."""
    return ScoredObject(entry.id, entry.name, entry.diameter_m, np.array([entry.bbox_min_m, entry.bbox_max_m]))


def _posed(figures: AnyFigures) -> Figures:
    assert isinstance(figures, Figures)  # a pose path has no boxes
    return figures


def _rotation_p95(figures: Figures) -> float:
    return figures.rotation_deg.p95 if figures.rotation_deg else 0.0


def of_variation(exact: Sequence[Outputs], seen: Sequence[Outputs]) -> dict[str, float]:
    """Per float output: RMS of the difference over RMS of the distance from the mean crop."""
    found = {}
    for name in (name for name, array in exact[0].items() if array.dtype.kind == "f"):
        a, b = (np.stack([outputs[name] for outputs in side]).astype(np.float64) for side in (exact, seen))
        variation = float(np.sqrt(((a - a.mean(axis=0)) ** 2).mean()))
        if variation:
            found[name] = float(np.sqrt(((b - a) ** 2).mean())) / variation
    return found


def _difference(contender: str, figures: Figures, varied: dict[str, float] | None = None) -> Difference:
    rotation, translation = figures.rotation_deg, figures.translation_of_diameter
    outputs_p95 = {name: spread.p95 for name, spread in figures.outputs.items()}
    if rotation is None or translation is None:
        return Difference(contender, outputs_p95, varied or {}, figures.cosine_p1)
    return Difference(
        contender,
        outputs_p95,
        {},
        figures.cosine_p1,
        figures.settled,
        rotation.p50,
        rotation.p95,
        translation.p95,
        figures.add_recall_drop,
    )


def _engine(content: bytes, precision: Precision, capability: int, inputs: tuple[TensorSpec, ...]) -> Engine:
    try:
        profiles = profiles_for(GraphEntry("pose", {}, inputs, ()))
        built = build_plan(content, inputs, BuildOptions("rtx", profiles, compute_capabilities=(capability,)))
    except EngineError as error:
        return Engine(precision, capability, 0.0, 0, {}, str(error))
    kernels, problem = built.report.kernels, None
    try:
        check_kernels(kernels, product_types(onnx.load_from_string(content)))
    except EngineError as error:
        problem = str(error)
    products = Counter(kernel.multiplied for kernel in kernels if kernel.multiplies)
    return Engine(
        precision, capability, round(built.report.seconds, 2), len(built.plan), dict(sorted(products.items())), problem
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=SUBJECTS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--frames", type=Path, required=True)
    parser.add_argument("--crops", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    given = parser.parse_args(arguments)

    def progress(stage: str, done: int, total: int) -> None:
        print(PROGRESS_MARK, stage, done, total, sep="\t", flush=True)

    make, named = SUBJECTS[given.system]
    stopwatch = Stopwatch()
    try:
        with ExitStack() as stack:
            with stopwatch.step("prepare"):
                subject = stack.enter_context(make(given.frames, progress, **named))
            options = Options(given.rounds, given.crops, given.frames.name)
            write(given.out, measured(subject, options, progress, stopwatch, Setting(this_machine().cores)))
    except PosekitError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
