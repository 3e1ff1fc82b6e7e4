"""What variants are held against: a path or the detector in fp32 on ONNX Runtime, and what camera noise does to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

from posekit.benchmarks.pose_error import ScoredObject, scored_object
from posekit.calibration.feeds import Arrays, spread
from posekit.export.fingerprint import code, fingerprint, this_cpu
from posekit.export.steps import Anew, Keeping
from posekit.export.verify.box_figures import BoxFigures, box_figures, settled_boxes
from posekit.export.verify.figures import Figures, batch_figures, figures_of, settled_samples
from posekit.export.verify.gates import MIN_JUDGED, AnyFigures
from posekit.export.verify.observe import (
    Advance,
    BoxObservation,
    GreyNoise,
    Observation,
    observe,
    observe_boxes,
    poses_in_batches,
    silent,
    variant_opener,
)
from posekit.export.verify.samples import FrameSample, Sample, feeds_from, frames_of
from posekit.runtime.backends import open_session
from posekit.runtime.bundle import Bundle
from posekit.runtime.detector import family_named, letterbox
from posekit.runtime.errors import CalibrationError
from posekit.runtime.manifest import DetectorEntry, PathEntry, Precision
from posekit.runtime.paths import OpenGraph

DETECTOR = "detector"  # its name among the paths; no path has it, as posekit.export.recipe sees to
REFERENCE_BACKEND = "onnxruntime"
REFERENCE_PRECISION: Precision = "fp32"
FLOOR_GREY_LEVELS = 1  # what two pictures of an unchanged scene differ by at least
FLOOR_DRAWS = 3
BATCHED = 48  # crops that are run again in batches
RANDOM_ORIGIN = "random weights"
Progress = Callable[[str, int, int], None]
T = TypeVar("T")
Seen = TypeVar("Seen", Observation, BoxObservation)


@dataclass(frozen=True)
class _Floors:
    floors: tuple[AnyFigures, ...]


@dataclass(frozen=True)
class Compared:
    """A variant against the reference. ran_on: a line per graph.  latency_ms: by graph, as in `Observation`."""

    figures: AnyFigures
    ran_on: tuple[str, ...]
    latency_ms: dict[str, float]


@dataclass(frozen=True, eq=False)
class Reference(ABC, Generic[Seen]):
    """What uses a graph, in fp32, run when it is first needed: where all that is asked for is kept, nothing runs.

    name: of the path, or of the detector.  graph: whose variants are compared.  steps: remembers figures.
    """

    bundle: Bundle
    name: str
    graph: str
    progress: Progress
    steps: Keeping

    @abstractmethod
    def observe(self, open_graph: OpenGraph, noise: GreyNoise | None = None, advance: Advance = silent) -> Seen:
        """Run every sample; open_graph says what runs each graph."""

    @abstractmethod
    def opener(self, backend: str, precision: Precision) -> OpenGraph:
        """The bundle's variants: graphs that have this precision run it, the others fp32."""

    @abstractmethod
    def feeds(self, count: int) -> list[Arrays]:
        """Of the graph, for so many samples, spread evenly."""

    @abstractmethod
    def _compared(self, plain: Seen, seen: Seen, settled: Any) -> AnyFigures: ...

    @abstractmethod
    def _settled_under(self, plain: Seen, shaken: Sequence[Seen]) -> Any:
        """Which answers stay where they are."""

    @abstractmethod
    def _depends_on(self) -> tuple[tuple[str, ...], object]:
        """Members of the bundle, and values, that figures follow from besides the variant."""

    @cached_property
    def key(self) -> str:
        """Of everything that figures depend on besides the variant: members, samples, noise, code, processor."""
        members, values = self._depends_on()
        files = {member: self.bundle.manifest.files[member].sha256 for member in members}
        return fingerprint(code(), this_cpu(), self.name, files, (FLOOR_GREY_LEVELS, FLOOR_DRAWS), values)

    @cached_property
    def floors(self) -> tuple[AnyFigures, ...]:
        """What noise does to the reference itself, draw by draw."""

        def drawn() -> _Floors:
            return _Floors(tuple(self._figures(shaken) for shaken in self._shaken))

        return self.steps.result(_Floors, f"noise floor of {self.name}", {"reference": self.key}, drawn).floors

    @property
    def trained(self) -> bool:
        """Whether the answers mean something: not with random weights, which the bundle's provenance states."""
        network = self.graph.split(".")[0]
        return not self.bundle.manifest.provenance.get(f"checkpoint of {network}", "").startswith(RANDOM_ORIGIN)

    def compared(self, open_graph: OpenGraph, advance: Advance = silent, batches: bool = False) -> Compared:
        """Run a variant and hold it against the reference. Raises what opening and running raises.

        batches: also run it in batches, and hold that against its own poses one by one.
        """
        return self._compared_as(self.observe(open_graph, advance=advance), open_graph, batches)

    def itself(self, batches: bool = False) -> Compared:
        """The reference as a variant of its own."""
        return self._compared_as(self._plain, self.opener(REFERENCE_BACKEND, REFERENCE_PRECISION), batches)

    def _compared_as(self, seen: Seen, open_graph: OpenGraph, batches: bool) -> Compared:
        figures = self._figures(seen)
        if batches:
            figures = self._with_batches(figures, seen, open_graph)
        return Compared(figures, seen.backends, seen.latency_ms)

    def _with_batches(self, figures: AnyFigures, seen: Seen, open_graph: OpenGraph) -> AnyFigures:
        """The same figures, and what batches do to poses, where the runtime ever makes batches."""
        return figures

    def _figures(self, seen: Seen) -> AnyFigures:
        return self._compared(self._plain, seen, self._settled)

    @cached_property
    def _plain(self) -> Seen:
        return self._in_fp32("", None)

    @cached_property
    def _shaken(self) -> list[Seen]:
        return [self._in_fp32(f", noise {k + 1}", GreyNoise(FLOOR_GREY_LEVELS, k)) for k in range(FLOOR_DRAWS)]

    @cached_property
    def _settled(self) -> Any:
        return self._settled_under(self._plain, self._shaken)

    def _in_fp32(self, what: str, noise: GreyNoise | None) -> Seen:
        stage = f"fp32 of {self.name}{what}"
        opener = self.opener(REFERENCE_BACKEND, REFERENCE_PRECISION)

        def observed() -> Seen:
            return self.observe(opener, noise, lambda done, total: self.progress(stage, done, total))

        return self.steps.held(f"{stage} {self.key}", observed)  # variants are made and verified against the same


@dataclass(frozen=True, eq=False)
class PoseReference(Reference[Observation]):
    """A pose path. samples: of its objects.  objects: by id."""

    entry: PathEntry
    samples: Sequence[Sample]
    objects: Mapping[int, ScoredObject]

    @staticmethod
    def of(
        bundle: Bundle, path: str, samples: Sequence[Sample], progress: Progress, steps: Keeping | None = None
    ) -> PoseReference:
        """samples: of any objects. CalibrationError for none of this path's."""
        entry = bundle.manifest.paths[path]
        mine = [sample for sample in samples if sample.detection.object_id in entry.object_ids]
        check_enough(len(mine), f"path {path}", "crops", least=1)
        objects = {o.id: scored_object(bundle, o) for o in bundle.manifest.objects if o.id in entry.object_ids}
        return PoseReference(bundle, path, entry.graph, progress, steps or Anew(), entry, mine, objects)

    def observe(self, open_graph: OpenGraph, noise: GreyNoise | None = None, advance: Advance = silent) -> Observation:
        return observe(self.bundle, self.name, self.samples, open_graph, noise, advance)

    def opener(self, backend: str, precision: Precision) -> OpenGraph:
        return variant_opener(self.bundle, self.name, backend, precision)

    def feeds(self, count: int) -> list[Arrays]:
        objects = {o.id: o for o in self.bundle.manifest.objects}
        entries = [objects[i] for i in self.entry.object_ids]
        return feeds_from(
            _some(self.samples, count), self.entry.crop, entries, self.bundle.manifest.graphs[self.graph].inputs
        )

    def _compared(self, plain: Observation, seen: Observation, settled: Any) -> Figures:
        return figures_of(plain, seen, self.samples, self.objects, settled)

    def _with_batches(self, figures: AnyFigures, seen: Observation, open_graph: OpenGraph) -> AnyFigures:
        assert isinstance(figures, Figures)
        found = [row for row, pose in enumerate(seen.poses) if pose is not None and self._settled[row]]
        rows = _some(found, BATCHED)
        mine = [self.samples[row] for row in rows]
        batched = poses_in_batches(self.bundle, self.name, mine, open_graph)
        batch = batch_figures([seen.poses[row] for row in rows], batched, mine, self.objects)
        return replace(figures, batch=batch)

    def _settled_under(self, plain: Observation, shaken: Sequence[Observation]) -> tuple[bool, ...]:
        return settled_samples(plain, shaken, self.samples, self.objects)

    def _depends_on(self) -> tuple[tuple[str, ...], object]:
        manifest = self.bundle.manifest
        graphs = [manifest.graphs[name].variants["fp32"] for name in (self.graph, self.entry.matcher) if name]
        models = [o.model for o in manifest.objects if o.id in self.objects]
        members = (*graphs, *self.entry.banks.values(), *models)
        return members, (self.entry, self.samples, manifest.objects)


@dataclass(frozen=True, eq=False)
class BoxReference(Reference[BoxObservation]):
    """The detector of a bundle. frames: whole, as it sees them."""

    entry: DetectorEntry
    frames: Sequence[FrameSample]

    @staticmethod
    def of(bundle: Bundle, samples: Sequence[Sample], progress: Progress, steps: Keeping | None = None) -> BoxReference:
        """samples: whose frames it is run on. CalibrationError for none."""
        entry = bundle.manifest.detector
        assert entry is not None
        frames = frames_of(samples)
        check_enough(len(frames), DETECTOR, "frames", least=1)
        return BoxReference(bundle, DETECTOR, entry.graph, progress, steps or Anew(), entry, frames)

    def observe(
        self, open_graph: OpenGraph, noise: GreyNoise | None = None, advance: Advance = silent
    ) -> BoxObservation:
        return observe_boxes(self.entry, self.frames, open_graph, noise, advance)

    def opener(self, backend: str, precision: Precision) -> OpenGraph:
        return lambda name: open_session(self.bundle, name, backend=backend, precision=precision)

    def feeds(self, count: int) -> list[Arrays]:
        placement = family_named(self.entry.family).placement
        pictures = [
            letterbox(frame.image_rgb_u8, self.entry.input_wh_px, self.entry.letterbox_value, placement).pixels
            for frame in _some(self.frames, count)
        ]
        return [{"image": pixels[None]} for pixels in pictures]

    def _compared(self, plain: BoxObservation, seen: BoxObservation, settled: Any) -> BoxFigures:
        return box_figures(plain, seen, self.frames, settled)

    def _settled_under(self, plain: BoxObservation, shaken: Sequence[BoxObservation]) -> list[list[bool]]:
        return settled_boxes(plain, shaken)

    def _depends_on(self) -> tuple[tuple[str, ...], object]:
        return (self.bundle.manifest.graphs[self.graph].variants["fp32"],), (self.entry, self.frames)


def _some(things: Sequence[T], count: int) -> list[T]:
    """At most so many of them, spread evenly."""
    return [things[k] for k in spread({0: len(things)}, count)[0]]


def check_enough(count: int, what: str, unit: str, least: int = MIN_JUDGED) -> None:
    """CalibrationError for fewer samples than a verdict needs, or than `least`."""
    if count < least:
        raise CalibrationError(
            f"verification of {what}",
            got=f"{count} {unit}",
            expected=f"at least {least}",
            remedy="Give more frames, or boxes of the objects that this path knows.",
        )
