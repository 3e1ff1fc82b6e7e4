"""What one variant of a pose path says of every sample: its pose, and what its networks put out on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from posekit.export.verify.samples import FrameSample, Sample
from posekit.runtime.bundle import Bundle
from posekit.runtime.crop_batch import CropBatch
from posekit.runtime.detection import Detection, Hypothesis
from posekit.runtime.detector import Detector
from posekit.runtime.estimator import graph_opener, path_named
from posekit.runtime.manifest import DetectorEntry, Precision
from posekit.runtime.paths import PATHS, OpenGraph
from posekit.runtime.pose import Pose
from posekit.runtime.profiler import no_stage
from posekit.runtime.session import ForwardingSession, Session
from posekit.runtime.tensor import Feed

Outputs = dict[str, npt.NDArray[Any]]
Advance = Callable[[int, int], None]
Boxes = tuple[Detection, ...]


def silent(done: int, total: int) -> None:
    """Nobody looks at the progress."""


@dataclass(frozen=True, eq=False)
class Observation:
    """poses: per sample, None where none was found.  outputs: per sample, every output of the path's graphs by name.
    backends: what really ran, a line per graph.  latency_ms: graph -> its fastest run with one crop,
    wall clock: what the machine can do when nothing else wants it.
    """

    poses: tuple[Pose | None, ...]
    outputs: tuple[Outputs, ...]
    backends: tuple[str, ...]
    latency_ms: dict[str, float]


@dataclass(frozen=True, eq=False)
class BoxObservation:
    """What a detector says of every frame. boxes: best score first; the rest as in `Observation`."""

    boxes: tuple[Boxes, ...]
    outputs: tuple[Outputs, ...]
    backends: tuple[str, ...]
    latency_ms: dict[str, float]


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
    entry = path_named(bundle, path)
    objects = {o.id: o for o in bundle.manifest.objects}
    recorders: list[_Recorder] = []

    def recorded(name: str) -> Session:
        recorders.append(_Recorder(name, open_graph(name)))
        return recorders[-1]

    found = PATHS[entry.kind](bundle, entry, recorded)
    batch = CropBatch(entry.crop, [objects[i] for i in entry.object_ids], capacity=1)
    poses: list[Pose | None] = []
    outputs: list[Outputs] = []
    try:
        for done, sample in enumerate(samples):
            batch.cut(sample.image_rgb_u8, sample.intrinsics, [sample.detection])
            if noise is not None:
                noise.add(batch.crops[0].pixels)
            (result,) = found.poses(batch, [sample.detection], sample.intrinsics.ideal, no_stage)
            poses.append(result.cam_from_obj if isinstance(result, Hypothesis) else None)
            outputs.append({name: array[0] for recorder in recorders for name, array in recorder.last.items()})
            advance(done + 1, len(samples))
    finally:
        for recorder in recorders:
            recorder.close()
    return Observation(
        tuple(poses),
        tuple(outputs),
        tuple(recorder.backend for recorder in recorders),
        {recorder.name: min(recorder.runs_ns) / 1e6 for recorder in recorders if recorder.runs_ns},
    )


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
    return BoxObservation(tuple(boxes), tuple(outputs), (recorder.backend,), latency_ms)


def variant_opener(bundle: Bundle, path: str, backend: str, precision: Precision) -> OpenGraph:
    """The variants of a bundle: those graphs of the path that have this precision run it, the others fp32."""
    return graph_opener(bundle, path_named(bundle, path), backend, precision)
