"""The precision stage of an export: fp16 and int8 files of pose graphs and detector, each measured before it is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from posekit.export.crops import CalibrationCrops
from posekit.export.inputs import ExportInputs
from posekit.export.lint.lint_file import check_lint
from posekit.export.onnx_from_network import ExportedGraph, onnx_from_network
from posekit.export.parity import ParityReport
from posekit.export.precision.half import half_source
from posekit.export.precision.half_check import HalfReport
from posekit.export.precision.int8 import Int8Report, int8_variant
from posekit.export.precision.judge import Judge, Measured
from posekit.export.precision.overflow import OverflowReport, within_half
from posekit.export.precision.search import LARGEST_STRAIN
from posekit.export.recipe_networks import DETECTOR, TracedFrom
from posekit.export.steps import Keeping, Step
from posekit.export.verify.reference import REFERENCE_BACKEND, BoxReference, PoseReference, Progress
from posekit.runtime.bundle import Bundle
from posekit.runtime.cache_folder import cache_folder
from posekit.runtime.errors import CalibrationError, ExportError, RecipeError
from posekit.runtime.manifest import Precision

RANGES = "ranges"  # folder of range tables in the cache
SHOWN = 4  # layers in a sentence
NOT_MADE = (ExportError, CalibrationError)  # a variant that ends so is left out


@dataclass(frozen=True)
class GraphVariants:
    """What became of one graph. points: its fp32 and fp16 files as measured, by "precision backend".

    trunk: what runs in float16 there.   overflow: of it on the calibration crops.   half: what the fp16 file is.   parity:
    of it with the same plan in torch.   int8: how far it was quantised.   refused: precision -> why there is no such file.
    held_back: precision -> why the file is there and no backend takes it of its own accord. Sentences.
    """

    graph: str
    path: str
    points: dict[str, Measured]
    trunk: tuple[str, ...] = ()
    overflow: OverflowReport | None = None
    half: HalfReport | None = None
    parity: ParityReport | None = None
    int8: Int8Report | None = None
    refused: dict[Precision, str] = field(default_factory=dict)
    held_back: dict[Precision, str] = field(default_factory=dict)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What there is to say about each variant beside its figures."""
        stayed = self.overflow.kept if self.overflow else {}
        shown = ", ".join(f"{layer} ({value:.3g})" for layer, value in list(stayed.items())[:SHOWN])
        more = f" and {len(stayed) - SHOWN} more" * (len(stayed) > SHOWN)
        return (
            *([f"{self.graph} fp16: in float32 for the size of their values stay {shown}{more}."] if stayed else ()),
            *(f"{self.graph} {precision} was not made: {why}" for precision, why in self.refused.items()),
            *([f"{self.graph}: {self._int8}"] if self.int8 and "int8" not in self.refused else ()),
            *(f"{self.graph} {precision} is held back: no backend takes it unasked." for precision in self.held_back),
        )

    @property
    def _int8(self) -> str:
        assert self.int8 is not None
        searched = next(iter(self.points.values())).figures.n
        fitness = self.int8.fitness
        unseen = f" No crop shows objects {', '.join(map(str, fitness.unseen))}." if fitness.unseen else ""
        return f"{self.int8.verdict} Ranges are from {fitness.crops} crops, blocks chosen on {searched}.{unseen}"


@dataclass(frozen=True)
class Variants:
    """files: graph -> precision -> file, for the graphs that got any."""

    files: dict[str, dict[Precision, Path]] = field(default_factory=dict)
    graphs: tuple[GraphVariants, ...] = ()


@dataclass(frozen=True)
class _Half:
    """What the fp16 step tells."""

    trunk: tuple[str, ...]
    overflow: OverflowReport
    graph: ExportedGraph


def make_variants(
    bundle: Bundle,
    inputs: ExportInputs,
    folder: Path,
    progress: Progress,
    steps: Keeping,
    most_strain: Mapping[str, float] = MappingProxyType({}),
) -> Variants:
    """Make what the recipe asks for, for the main graph of every pose path and for the detector.

    bundle: the fp32 export of `inputs`.  folder: where files are written. Range tables are kept beside the engines, in
    posekit's cache.  steps: keeps the rest.  most_strain: of the graphs whose int8 has to spare more than usual. A variant that cannot be made costs itself: its report says why.
    """
    made: dict[str, dict[Precision, Path]] = {}
    reports = []
    for reference in _references(bundle, inputs, progress, steps):
        stage = _Stage(reference.graph, reference.name, inputs, bundle, folder, progress, steps, most_strain)
        made[reference.graph], report = stage.run(Judge.of(reference, inputs.recipe.gates))
        reports.append(report)
    return Variants(made, tuple(reports))


def _references(
    bundle: Bundle, inputs: ExportInputs, progress: Progress, steps: Keeping
) -> Iterator[PoseReference | BoxReference]:
    """Who judges each graph. RecipeError for a graph that two paths use."""
    judged: set[str] = set()
    for path, entry in bundle.manifest.paths.items():
        if entry.graph in judged:
            raise _shared(entry.graph, path)
        judged.add(entry.graph)
        yield PoseReference.of(bundle, path, inputs.searched, progress, steps)
    if inputs.recipe.detector_variants:
        yield BoxReference.of(bundle, inputs.searched, progress, steps)


def half_step(graph: str, source: TracedFrom, crops: CalibrationCrops) -> Step:
    """What the float16 file of a graph follows from."""
    return f"fp16 of {graph}", {"fp32": source.key, "crops": crops.fitness.fingerprint}


@dataclass(frozen=True, eq=False)
class _Stage:
    """The work on one graph."""

    graph: str
    path: str
    inputs: ExportInputs
    bundle: Bundle
    folder: Path
    progress: Progress
    steps: Keeping
    most_strain: Mapping[str, float]

    @property
    def crops(self) -> CalibrationCrops:
        return self.inputs.crops[self.graph]

    def run(self, judge: Judge) -> tuple[dict[Precision, Path], GraphVariants]:
        wanted = self.inputs.variants_of(self.graph)
        member = self.bundle.manifest.graphs[self.graph].variants["fp32"]
        plain, sha256 = bytes(self.bundle.read(member)), self.bundle.manifest.files[member].sha256
        points = {
            f"fp32 {name}": judge.measure(lambda: plain, sha256, name)
            for name in dict.fromkeys((REFERENCE_BACKEND, judge.backend))
        }
        files: dict[Precision, Path] = {}
        report, base = GraphVariants(self.graph, self.path, points), plain
        if "fp16" in wanted:
            out = self.folder / f"{self.graph}.fp16.onnx"
            try:
                half = self._half(self.inputs.sources[self.graph], out)
            except NOT_MADE as error:
                report.refused["fp16"] = str(error)
            else:
                files["fp16"], base = out, out.read_bytes()
                points[f"fp16 {judge.backend}"] = judge.measure(lambda: base, half.graph.sha256)
                made = half.graph
                report = replace(report, trunk=half.trunk, overflow=half.overflow, half=made.half, parity=made.parity)
        if "int8" in wanted:
            out = self.folder / f"{self.graph}.int8.onnx"
            try:
                int8 = self._int8(base, out, judge, tuple(points.values()))
                if int8.search.chosen is not None:
                    check_lint(out)
            except NOT_MADE as error:
                report.refused["int8"] = str(error)
            else:
                report = replace(report, int8=int8)
                if int8.search.chosen is None:
                    report.refused["int8"] = int8.verdict
                else:
                    files["int8"] = out
                if int8.search.chosen is not None and not int8.faster:
                    report.held_back["int8"] = int8.verdict
        return files, report

    def _half(self, source: TracedFrom, out: Path) -> _Half:
        feeds = self.crops.feeds
        stage, inputs = half_step(self.graph, source, self.crops)

        def made() -> _Half:
            self.progress(stage, 0, 2)
            mended, overflow = within_half(source.graph, lambda: (portion.feed for portion in feeds))
            self.progress(stage, 1, 2)
            # Parity runs several sizes of a batch; a detector has one, of plausible pixels.
            real = next(iter(feeds)).feed if self.graph != DETECTOR else None
            graph = onnx_from_network(half_source(mended), out, crops=real)
            check_lint(out)
            return _Half(mended.trunk, overflow, graph)

        half = self.steps.result(_Half, stage, inputs, made, out)
        self.progress(stage, 2, 2)
        return half

    def _int8(self, base: bytes, out: Path, judge: Judge, others: tuple[Measured, ...]) -> Int8Report:
        method, tables = self.inputs.recipe.precision.method, cache_folder(RANGES)
        most_strain = self.most_strain.get(self.graph, LARGEST_STRAIN)
        return int8_variant(
            base, out, self.crops.feeds, self.crops.fitness, method, tables, judge, others, self.progress, most_strain
        )


def _shared(graph: str, path: str) -> RecipeError:
    return RecipeError(
        f"variants of graph {graph!r}",
        got=f"two paths, the second is {path!r}",
        expected="one path that judges it",
        remedy="Give each path a network of its own, or leave [precision] out.",
    )
