"""The precision stage of an export: fp16 and int8 files of every pose graph, each measured before it is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from posekit.calibration.feeds import Arrays, CropFeeds, recorded_frames
from posekit.export.onnx_from_network import ExportedGraph, onnx_from_network
from posekit.export.parity import ParityReport
from posekit.export.precision.half import half_source
from posekit.export.precision.half_check import HalfReport
from posekit.export.precision.int8 import Int8Report, int8_variant
from posekit.export.precision.judge import Judge, Measured, Progress
from posekit.export.precision.overflow import OverflowReport, overflow_probe
from posekit.export.recipe import CropsRecipe, ExportRecipe
from posekit.export.systems import GraphSource
from posekit.export.verify.samples import Sample, samples_from
from posekit.export.verify.verify import REFERENCE_BACKEND
from posekit.export.viewsphere import viewsphere
from posekit.runtime.boxes import Boxes, boxes_from
from posekit.runtime.bundle import Bundle
from posekit.runtime.engines.cache import default_folder
from posekit.runtime.errors import RecipeError
from posekit.runtime.intrinsics import Intrinsics, intrinsics_from_json
from posekit.runtime.manifest import Precision

RANGES = "ranges"  # folder of range tables in the cache
COVERAGE_VIEWS = 42  # directions, 20 degrees apart, that calibration crops are counted over
CALIBRATION, VERIFICATION = 0, 1  # even frames, odd frames


@dataclass(frozen=True)
class GraphVariants:
    """What became of one graph. points: its fp32 and fp16 files as measured, by "precision backend".

    overflow: of the trunk on the calibration crops.   half: what the fp16 file is.   parity: of it with the same plan in
    torch.   int8: how far it was quantised.
    """

    graph: str
    path: str
    points: dict[str, Measured]
    trunk: tuple[str, ...] = ()
    overflow: OverflowReport | None = None
    half: HalfReport | None = None
    parity: ParityReport | None = None
    int8: Int8Report | None = None


@dataclass(frozen=True)
class Variants:
    """files: graph -> precision -> file, for the graphs that got any."""

    files: dict[str, dict[Precision, Path]] = field(default_factory=dict)
    graphs: tuple[GraphVariants, ...] = ()


def make_variants(
    bundle: Bundle,
    sources: Mapping[str, GraphSource],
    samples: Sequence[Sample],
    recipe: ExportRecipe,
    folder: Path,
    progress: Progress,
) -> Variants:
    """Make what the recipe asks for, for the main graph of every pose path.

    bundle: the fp32 export.  sources: its graphs' modules, by name.  samples: see `verification_samples`.
    folder: where files are written. Range tables are kept beside the engines, in posekit's cache.
    Raises CalibrationError for unfit crops, PrecisionError for what cannot be had in float16 or int8.
    """
    made: dict[str, dict[Precision, Path]] = {}
    reports = []
    for path, entry in bundle.manifest.paths.items():
        if entry.graph in made:
            raise _shared(entry.graph, path)
        stage = _Stage(bundle, path, entry.graph, sources[entry.graph], recipe, folder, progress)
        judge = Judge.of(bundle, path, samples, recipe.gates, progress)
        made[entry.graph], report = stage.run(judge)
        reports.append(report)
    return Variants(made, tuple(reports))


def verification_samples(recipe: ExportRecipe, object_ids: set[int]) -> list[Sample]:
    """The crops that variants are compared on: the recipe's own, or those frames that are not calibrated on."""
    entry = recipe.verification or recipe.calibration
    assert entry is not None  # the recipe's cross-check
    boxes = boxes_of(recipe, entry, None if recipe.verification else VERIFICATION)
    source = str(recipe.resolve(entry.source))
    return samples_from(source, boxes, intrinsics_of(recipe, entry), object_ids, entry.max_crops)


def boxes_of(recipe: ExportRecipe, entry: CropsRecipe, half: int | None) -> Boxes:
    """half: only of even or odd frames, so that nothing is verified on what it was calibrated on."""
    boxes = boxes_from(entry.boxes if entry.boxes == "gt" else str(recipe.resolve(entry.boxes)))
    return boxes if half is None else lambda frame: boxes(frame) if frame.index % 2 == half else []


def intrinsics_of(recipe: ExportRecipe, entry: CropsRecipe) -> Intrinsics | None:
    return intrinsics_from_json(recipe.resolve(entry.camera)) if entry.camera else None


@dataclass(frozen=True, eq=False)
class _Stage:
    """The work on one graph."""

    bundle: Bundle
    path: str
    graph: str
    source: GraphSource
    recipe: ExportRecipe
    folder: Path
    progress: Progress

    def run(self, judge: Judge) -> tuple[dict[Precision, Path], GraphVariants]:
        wanted = self.recipe.precision.variants
        plain = bytes(self.bundle.read(self.bundle.manifest.graphs[self.graph].variants["fp32"]))
        base = self.folder / f"{self.graph}.fp32.onnx"
        base.write_bytes(plain)
        points = {
            f"fp32 {name}": judge.measure(plain, name) for name in dict.fromkeys((REFERENCE_BACKEND, judge.backend))
        }
        files: dict[Precision, Path] = {}
        report = GraphVariants(self.graph, self.path, points)
        if "fp16" in wanted:
            files["fp16"] = base = self.folder / f"{self.graph}.fp16.onnx"
            overflow, half = self._half(base)
            points[f"fp16 {judge.backend}"] = judge.measure(base.read_bytes())
            report = GraphVariants(self.graph, self.path, points, self.source.trunk, overflow, half.half, half.parity)
        if "int8" in wanted:
            out = self.folder / f"{self.graph}.int8.onnx"
            int8 = int8_variant(
                base,
                out,
                self._feeds(),
                self.recipe.precision.method,
                default_folder().with_name(RANGES),
                judge,
                tuple(points.values()),
                viewsphere(COVERAGE_VIEWS),
                self.progress,
            )
            if int8.search.chosen is not None:
                files["int8"] = out
            report = replace(report, int8=int8)
        return files, report

    def _half(self, out: Path) -> tuple[OverflowReport, ExportedGraph]:
        self.progress(f"fp16 of {self.graph}", 0, 2)

        def feeds() -> Iterator[Arrays]:
            return (portion.feed for portion in self._feeds())

        overflow = overflow_probe(self.source, feeds())
        self.progress(f"fp16 of {self.graph}", 1, 2)
        half = onnx_from_network(half_source(self.source), out, crops=next(feeds()))
        self.progress(f"fp16 of {self.graph}", 2, 2)
        return overflow, half

    def _feeds(self) -> CropFeeds:
        entry = self.recipe.calibration
        assert entry is not None  # the recipe's cross-check
        path = self.bundle.manifest.paths[self.path]
        objects = {o.id: o for o in self.bundle.manifest.objects}
        return CropFeeds(
            recorded_frames(self.recipe.resolve(entry.source), intrinsics_of(self.recipe, entry)),
            boxes_of(self.recipe, entry, None if self.recipe.verification else CALIBRATION),
            [objects[i] for i in path.object_ids],
            path.crop,
            self.bundle.manifest.graphs[self.graph].inputs,
            entry.max_crops,
        )


def _shared(graph: str, path: str) -> RecipeError:
    return RecipeError(
        f"variants of graph {graph!r}",
        got=f"two paths, the second is {path!r}",
        expected="one path that judges it",
        remedy="Give each path a network of its own, or leave [precision] out.",
    )
