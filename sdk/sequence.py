"""A bundle run over a source of frames: poses to a file, overlays to a folder, accuracy where truth is known."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from posekit.benchmarks.accuracy import Accuracy, TruthScore, accuracy_from, image_scores
from posekit.benchmarks.pose_error import scored_object
from posekit.runtime.atomic import make_folder, write_whole
from posekit.runtime.boxes import Boxes, boxes_from
from posekit.runtime.bundle import Bundle
from posekit.runtime.camera_file import intrinsics_from_file
from posekit.runtime.detection import Detection, PoseEstimate, Unposed
from posekit.runtime.errors import InputError, OutputError, PosekitError
from posekit.runtime.estimator import PoseEstimator
from posekit.runtime.manifest import Precision
from posekit.runtime.object_model import object_model
from posekit.runtime.overlay import PALETTE, TRUTH_COLOUR, Drawing, MarkedBox, Outline, draw_poses, outline_from
from posekit.runtime.profiler import StageProfiler
from posekit.runtime.results import ResultsWriter, records_from
from posekit.runtime.sources import Frame, frames_from

Progress = Callable[[int, int | None], None]  # frames done, frames in all


@dataclass(frozen=True)
class RunRequest:
    """What `posekit run` was asked.

    boxes: "gt" or "gt-amodal" for true boxes, a box file, or None for the bundle's detector.   path: None for the bundle's own.
    precision: of the graphs that have it, None for what the backend prefers.   banks: see `Bundle`.
    """

    bundle: Path
    source: str
    camera: Path | None = None
    boxes: str | None = None
    path: str | None = None
    backend: str = "auto"
    precision: Precision | None = None
    results: Path | None = None
    overlays: Path | None = None
    score: bool = False
    max_frames: int | None = None
    banks: Mapping[int, Path] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class FrameResult:
    """What became of one frame. outcomes: of every detection of an object that the path knows, in order.

    left_out: given boxes of other objects.   time_s: detection and estimation, wall clock.   stages_s: stage -> seconds
    of it.
    """

    frame: Frame
    outcomes: list[PoseEstimate | Unposed]
    left_out: list[Detection]
    time_s: float
    stages_s: dict[str, float]

    @property
    def estimates(self) -> list[PoseEstimate]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, PoseEstimate)]

    @property
    def unposed(self) -> list[Unposed]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, Unposed)]


@dataclass(frozen=True)
class Timing:
    """Of n frames, milliseconds."""

    n: int
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class FrameScore:
    """How one true object of one frame fared."""

    frame: str
    score: TruthScore


@dataclass(frozen=True)
class RunOutcome:
    """What `posekit run` did. n_detections: of objects that the path knows; n_estimates of them have a pose.

    reasons: the others, counted by why they have none (`detection.Reason`), most frequent first.   left_out: number of
    given boxes by object id, of objects that the path does not know.   timings: "frame" and each stage.
    stopped: by the user, on a source without end.
    """

    path: str
    backends: tuple[str, ...]
    n_frames: int
    n_detections: int
    n_estimates: int
    timings: dict[str, Timing]
    reasons: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    written: tuple[str, ...] = ()
    accuracy: Accuracy | None = None
    scores: tuple[FrameScore, ...] = ()
    stopped: bool = False


@dataclass
class _Tally:
    """Sums over the run."""

    n_frames: int = 0
    n_detections: int = 0
    n_estimates: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    left_out: Counter[int] = field(default_factory=Counter)
    times_s: dict[str, list[float]] = field(default_factory=dict)

    def add(self, result: FrameResult) -> None:
        self.n_frames += 1
        self.n_detections += len(result.outcomes)
        self.n_estimates += len(result.estimates)
        self.reasons.update(unposed.reason.value for unposed in result.unposed)
        self.left_out.update(detection.object_id for detection in result.left_out)
        for name, seconds in {"frame": result.time_s, **result.stages_s}.items():
            self.times_s.setdefault(name, []).append(seconds)


Sink = Callable[[FrameResult], None]


def run_sequence(request: RunRequest, progress: Progress) -> RunOutcome:
    """Do what was asked. Every PosekitError names the frame it met, and where results so far are kept."""
    with ExitStack() as stack:
        bundle = stack.enter_context(Bundle(request.bundle, request.banks))
        intrinsics = intrinsics_from_file(request.camera) if request.camera else None
        boxes = boxes_from(request.boxes) if request.boxes else None
        frames = frames_from(request.source, intrinsics)
        stack.callback(frames.close)
        profiler = StageProfiler()
        estimator = stack.enter_context(
            PoseEstimator(
                bundle,
                path=request.path,
                backend=request.backend,
                precision=request.precision,
                stage=profiler.stage,
            )
        )
        _check_banks_used(request.banks, bundle, estimator.path_name)
        tally, scores = _Tally(), list[FrameScore]()
        sinks: list[Sink] = [tally.add]
        if request.overlays:
            _check_apart(request.overlays, Path(request.source))
            sinks.append(_overlay_sink(bundle, request.overlays))
        if request.score:
            sinks.append(_score_sink(bundle, estimator, scores))
        if request.results:
            sinks.append(_results_sink(stack.enter_context(_kept(ResultsWriter(request.results)))))
        results = (_frame_result(estimator, profiler, f, boxes) for f in islice(frames, request.max_frames))
        total = min((n for n in (frames.count, request.max_frames) if n is not None), default=None)
        stopped = _drain(results, sinks, total, progress)
        names = {entry.id: entry.name for entry in bundle.manifest.objects}
        outputs = (request.results, request.overlays)
        return RunOutcome(
            path=estimator.path_name,
            backends=estimator.backends,
            n_frames=tally.n_frames,
            n_detections=tally.n_detections,
            n_estimates=tally.n_estimates,
            timings={name: _timing(times) for name, times in tally.times_s.items()},
            reasons=dict(tally.reasons.most_common()),
            left_out={str(object_id): count for object_id, count in sorted(tally.left_out.items())},
            written=tuple(str(output) for output in outputs if output),
            accuracy=accuracy_from([s.score for s in scores], names) if request.score else None,
            scores=tuple(scores),
            stopped=stopped,
        )


def banks_from(options: Sequence[str]) -> dict[int, Path]:
    """ "3=cup.safetensors" -> {3: cup.safetensors}. InputError for anything else."""
    banks = {}
    for option in options:
        object_id, _, file = option.partition("=")
        if not object_id.isdecimal() or not file:
            raise InputError(
                "--bank", got=repr(option), expected="ID=FILE, such as 3=cup.safetensors", remedy="Correct it."
            )
        banks[int(object_id)] = Path(file)
    return banks


def _check_banks_used(banks: Mapping[int, Path], bundle: Bundle, path: str) -> None:
    """InputError for a bank that the path does not look at."""
    paths = bundle.manifest.paths
    for object_id in banks:
        if str(object_id) not in paths[path].banks:
            having = ", ".join(name for name, entry in paths.items() if str(object_id) in entry.banks)
            raise InputError(
                f"--bank {object_id}",
                got=f"path {path}, which has no bank of it",
                expected=having,
                remedy="Name --path.",
            )


def _drain(results: Iterator[FrameResult], sinks: list[Sink], total: int | None, progress: Progress) -> bool:
    """Every result into every sink. Ctrl-C ends a source without end in good order (True), else it is an OutputError."""
    done = 0
    try:
        for result in results:
            for sink in sinks:
                sink(result)
            done += 1
            progress(done, total)
    except KeyboardInterrupt as error:
        if total is None:
            return True
        raise OutputError(
            "run", got=f"a stop after {done} frames", expected=f"all {total}", remedy="Run again, or use --max-frames."
        ) from error
    return False


def _frame_result(estimator: PoseEstimator, profiler: StageProfiler, frame: Frame, boxes: Boxes | None) -> FrameResult:
    profiler.samples_ns.clear()
    start_ns = time.perf_counter_ns()
    try:
        given = estimator.detect(frame.image_rgb_u8, frame.intrinsics) if boxes is None else boxes(frame)
        detections = [d for d in given if d.object_id in estimator.object_ids]
        outcomes = estimator.outcomes(frame.image_rgb_u8, frame.intrinsics, detections)
    except PosekitError as error:
        where = f"frame {frame.name}"
        raise (error if error.what.startswith(where) else _with(error, what=f"{where}: {error.what}")) from error
    time_s = (time.perf_counter_ns() - start_ns) / 1e9
    stages_s = {name: sum(ns) / 1e9 for name, ns in profiler.samples_ns.items()}
    left_out = [d for d in given if d.object_id not in estimator.object_ids]
    return FrameResult(frame, outcomes, left_out, time_s, stages_s)


def _with(error: PosekitError, *, what: str | None = None, remedy: str | None = None) -> PosekitError:
    """The same error with more context."""
    return type(error)(what or error.what, got=error.got, expected=error.expected, remedy=remedy or error.remedy)


def _timing(times_s: list[float]) -> Timing:
    p50_ms, p95_ms = (float(np.percentile(times_s, q)) * 1e3 for q in (50, 95))
    return Timing(len(times_s), p50_ms, p95_ms)


# Sinks: what is done with each frame's outcome.


@contextmanager
def _kept(writer: ResultsWriter) -> Iterator[ResultsWriter]:
    """The writer, whose partial file is named by any error that stops the run."""
    try:
        with writer:
            yield writer
    except PosekitError as error:
        if not writer.n_records or str(writer.partial_path) in error.remedy:
            raise
        kept = f"{writer.n_records} results so far are kept in {writer.partial_path}."
        raise _with(error, remedy=f"{error.remedy} {kept}") from error


def _results_sink(writer: ResultsWriter) -> Sink:
    return lambda r: writer.write(records_from(r.frame, r.outcomes, r.time_s, r.stages_s))


def _score_sink(bundle: Bundle, estimator: PoseEstimator, scores: list[FrameScore]) -> Sink:
    objects = {e.id: scored_object(bundle, e) for e in bundle.manifest.objects if e.id in estimator.object_ids}

    def score(result: FrameResult) -> None:
        if result.frame.truth is None:
            raise InputError(
                f"frame {result.frame.name}",
                got="no ground truth",
                expected="a BOP data set with scene_gt.json",
                remedy="Leave --gt out.",
            )
        found = image_scores(result.frame.truth, result.outcomes, objects, result.frame.intrinsics)
        scores.extend(FrameScore(result.frame.name, score) for score in found)

    return score


def _check_apart(folder: Path, source: Path) -> None:
    """InputError where overlays would take the place of the images they are drawn on."""
    if folder.resolve() in (source.resolve(), source.resolve().parent):
        raise InputError(
            f"overlays {folder}",
            got="the folder of the source",
            expected="another folder",
            remedy="Name another one: images of the same name would be replaced.",
        )


def _overlay_sink(bundle: Bundle, folder: Path) -> Sink:
    outlines = {entry.id: outline_from(object_model(bundle, entry)) for entry in bundle.manifest.objects}
    names = {entry.id: entry.name for entry in bundle.manifest.objects}
    make_folder(folder, "overlays")

    def draw(result: FrameResult) -> None:
        import cv2

        drawings = _truth_drawings(result.frame, outlines) + _drawings(result.estimates, outlines, names)
        marked = [
            MarkedBox(u.detection.box_xyxy_px, f"{names[u.detection.object_id]} {u.reason.value}")
            for u in result.unposed
        ]
        image = draw_poses(result.frame.image_rgb_u8, result.frame.intrinsics, drawings, marked)
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        _, encoded = cv2.imencode(".png", bgr)
        write_whole(folder / f"{overlay_stem(result.frame.name)}.png", encoded.tobytes())

    return draw


def overlay_stem(frame_name: str) -> str:
    """A frame's name as a file's: clip.mp4#000012 -> clip.mp4_000012."""
    return frame_name.replace("/", "_").replace("#", "_").removesuffix(".png")


def _drawings(
    estimates: list[PoseEstimate], outlines: Mapping[int, Outline], names: Mapping[int, str]
) -> list[Drawing]:
    return [
        Drawing(
            outline=outlines[e.object_id],
            cam_from_obj=e.cam_from_obj,
            colour=PALETTE[list(outlines).index(e.object_id) % len(PALETTE)],
            label=f"{names[e.object_id]} {e.score:.2f}",
            box_xyxy_px=e.detection.box_xyxy_px,
        )
        for e in estimates
    ]


def _truth_drawings(frame: Frame, outlines: Mapping[int, Outline]) -> list[Drawing]:
    known = [true for true in frame.truth or () if true.object_id in outlines]
    return [Drawing(outlines[t.object_id], t.cam_from_obj, TRUTH_COLOUR, axes=False, fill=0.0) for t in known]
