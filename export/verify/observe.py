"""What one variant of a pose path says of every sample: its pose, and what its networks put out on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt

from posekit.calibration.fitness import is_exposed, is_noise
from posekit.export.fingerprint import fingerprint
from posekit.export.verify.samples import FrameSample, Sample
from posekit.runtime.bundle import Bundle
from posekit.runtime.crop_batch import CropBatch
from posekit.runtime.detection import Detection, Hypothesis
from posekit.runtime.detector import Detector
from posekit.runtime.estimator import graph_opener, path_named
from posekit.runtime.manifest import DetectorEntry, Precision
from posekit.runtime.paths import PATHS, OpenGraph, PosePath
from posekit.runtime.pose import Pose
from posekit.runtime.profiler import no_stage
from posekit.runtime.session import ForwardingSession, Session
from posekit.runtime.tensor import Feed, TensorSpec

Outputs = dict[str, npt.NDArray[Any]]
Advance = Callable[[int, int], None]
Boxes = tuple[Detection, ...]
BATCHES = (3, 1)  # crops at once: a place in the middle, two at the ends, and one alone after others


def silent(done: int, total: int) -> None:
    """Nobody looks at the progress."""


@dataclass(frozen=True, eq=False)
class Observation:
    """poses: per sample, None where none was found.  outputs: per sample, every output of the path's graphs by name.
    backends: what really ran, a line per graph.  latency_ms: graph -> its fastest run with one crop,
    wall clock: what the machine can do when nothing else wants it.   scores: of the poses.   exposed: per sample, whether
    its crop is neither black, burnt out nor noise.
    """

    poses: tuple[Pose | None, ...]
    outputs: tuple[Outputs, ...]
    backends: tuple[str, ...]
    latency_ms: dict[str, float]
    scores: tuple[float | None, ...] = ()
    exposed: tuple[bool, ...] = ()


@dataclass(frozen=True, eq=False)
class BoxObservation:
    """What a detector says of every frame. boxes: best score first; the rest as in `Observation`."""

    boxes: tuple[Boxes, ...]
    outputs: tuple[Outputs, ...]
    backends: tuple[str, ...]
    latency_ms: dict[str, float]
    exposed: tuple[bool, ...] = ()


@dataclass(frozen=True, eq=False)
class GreyNoise:
    """Uniform noise of -levels .. +levels grey levels, another at every call; equal seeds, equal noise."""

    levels: int
    seed: int
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rng", np.random.default_rng(self.seed))

    def add(self, pixels: npt.NDArray[np.uint8]) -> None:
        """In place."""
        drawn = self.rng.integers(-self.levels, self.levels + 1, pixels.shape)
        pixels[:] = np.clip(pixels.astype(np.int16) + drawn, 0, 255)


class _Recorder(ForwardingSession):
    """A session that keeps what its last run put out, and how long each took."""

    def __init__(self, name: str, session: Session) -> None:
        super().__init__(session)
        self.name = name
        self.last: Outputs = {}
        self.runs_ns: list[int] = []

    def run(self, feed: Feed) -> Outputs:
        start_ns = time.perf_counter_ns()
        out = self.session.run(feed)
        self.runs_ns.append(time.perf_counter_ns() - start_ns)
        self.last = {name: array.copy() for name, array in out.items()}
        return out


def observe(
    bundle: Bundle,
    path: str,
    samples: Sequence[Sample],
    open_graph: OpenGraph,
    noise: GreyNoise | None = None,
    advance: Advance = silent,
) -> Observation:
    """Run a path crop by crop, through the code that runs on the device.

    open_graph: which backend and variant runs each graph; `variant_opener` for those of the bundle.
    noise: added to every pixel of the crops.
    Raises what opening and running the path raises.
    """
    entry, objects = path_named(bundle, path), {o.id: o for o in bundle.manifest.objects}
    batch = CropBatch(entry.crop, [objects[i] for i in entry.object_ids], capacity=1)
    poses: list[Pose | None] = []
    scores: list[float | None] = []
    outputs: list[Outputs] = []
    exposed: list[bool] = []
    with _opened(bundle, path, open_graph) as (found, recorders):
        for done, sample in enumerate(samples):
            batch.cut(sample.image_rgb_u8, sample.intrinsics, [sample.detection])
            if noise is not None:
                noise.add(batch.crops[0].pixels)
            (result,) = found.poses(batch, no_stage)
            poses.append(result.cam_from_obj if isinstance(result, Hypothesis) else None)
            scores.append(result.score if isinstance(result, Hypothesis) else None)
            pixels = batch.crops[0].pixels
            exposed.append(is_exposed(pixels) and not is_noise(pixels, sample.detection.box_xyxy_px))
            outputs.append({name: array[0] for recorder in recorders for name, array in recorder.last.items()})
            advance(done + 1, len(samples))
    return Observation(
        tuple(poses),
        tuple(outputs),
        tuple(recorder.backend for recorder in recorders),
        {recorder.name: min(recorder.runs_ns) / 1e6 for recorder in recorders if recorder.runs_ns},
        tuple(scores),
        tuple(exposed),
    )


class _Side(CropBatch):
    """Crops of several frames side by side: the runtime never makes such a batch, but a graph must not care."""

    def __init__(self, singles: Sequence[CropBatch]) -> None:
        self._singles = singles
        self.preset, self.capacity = singles[0].preset, len(singles)
        self.intrinsics = singles[0].intrinsics
        self.crops = [crop for single in singles for crop in single.crops]
        self.detections = [detection for single in singles for detection in single.detections]
        self.labels = [label for single in singles for label in single.labels]

    def feed(self, specs: Sequence[TensorSpec]) -> dict[str, npt.NDArray[np.generic]]:
        fed = [single.feed(specs) for single in self._singles]
        return {spec.name: np.concatenate([each[spec.name] for each in fed]) for spec in specs}


def poses_in_batches(
    bundle: Bundle, path: str, samples: Sequence[Sample], open_graph: OpenGraph
) -> tuple[Pose | None, ...]:
    """Per sample its pose when all run in another order, in batches of BATCHES in turn; only crops of one camera share a batch.

    A graph whose rows influence each other, change places, or remember earlier runs gives other poses than crop by crop.
    """
    entry, objects = path_named(bundle, path), {o.id: o for o in bundle.manifest.objects}
    entries = [objects[i] for i in entry.object_ids]
    poses: list[Pose | None] = [None] * len(samples)
    with _opened(bundle, path, open_graph) as (found, _):
        for rows in _batches(samples):
            singles = [CropBatch(entry.crop, entries, capacity=1) for _ in rows]
            for single, row in zip(singles, rows, strict=True):
                single.cut(samples[row].image_rgb_u8, samples[row].intrinsics, [samples[row].detection])
            results = found.poses(_Side(singles), no_stage)
            for row, result in zip(rows, results, strict=True):
                poses[row] = result.cam_from_obj if isinstance(result, Hypothesis) else None
    return tuple(poses)


def _batches(samples: Sequence[Sample]) -> Iterator[list[int]]:
    """All samples once, shuffled, camera by camera."""
    cameras: dict[str, list[int]] = {}
    for row in np.random.default_rng(0).permutation(len(samples)).tolist():
        cameras.setdefault(fingerprint(samples[row].intrinsics), []).append(row)
    for rows in cameras.values():
        for size in cycle(BATCHES):
            if not rows:
                break
            yield rows[:size]
            rows = rows[size:]


@contextmanager
def _opened(bundle: Bundle, path: str, open_graph: OpenGraph) -> Iterator[tuple[PosePath, list[_Recorder]]]:
    """A path whose graphs are recorded, closed afterwards."""
    entry = path_named(bundle, path)
    recorders: list[_Recorder] = []

    def recorded(name: str) -> Session:
        recorders.append(_Recorder(name, open_graph(name)))
        return recorders[-1]

    try:
        yield PATHS[entry.kind](bundle, entry, recorded), recorders
    finally:
        for recorder in recorders:
            recorder.close()


def observe_boxes(
    entry: DetectorEntry,
    frames: Sequence[FrameSample],
    open_graph: OpenGraph,
    noise: GreyNoise | None = None,
    advance: Advance = silent,
) -> BoxObservation:
    """Run a detector frame by frame, through the code that runs on the device. noise: added to every pixel.

    Raises what opening and running the detector raises.
    """
    recorder = _Recorder(entry.graph, open_graph(entry.graph))
    boxes: list[Boxes] = []
    outputs: list[Outputs] = []
    try:
        detector = Detector(recorder, entry)
        for done, frame in enumerate(frames):
            pixels = frame.image_rgb_u8.copy()
            if noise is not None:
                noise.add(pixels)
            boxes.append(tuple(detector.detect(pixels)))
            outputs.append({name: array[0] for name, array in recorder.last.items()})
            advance(done + 1, len(frames))
    finally:
        recorder.close()
    latency_ms = {entry.graph: min(recorder.runs_ns) / 1e6} if recorder.runs_ns else {}
    exposed = tuple(is_exposed(frame.image_rgb_u8) for frame in frames)
    return BoxObservation(tuple(boxes), tuple(outputs), (recorder.backend,), latency_ms, exposed)


def variant_opener(bundle: Bundle, path: str, backend: str, precision: Precision) -> OpenGraph:
    """The variants of a bundle: those graphs of the path that have this precision run it, the others fp32."""
    return graph_opener(bundle, path_named(bundle, path), backend, precision)
