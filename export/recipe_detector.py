"""The detector that a recipe names: a third party's ONNX file, or a torch network of posekit's own family."""

from __future__ import annotations

from dataclasses import dataclass

from posekit.export.checkpoint import sha256_of
from posekit.export.crops import frames_with
from posekit.export.detector_from_onnx import (
    class_object_ids,
    detector_graph_from_onnx,
    labels_from_file,
    labels_from_onnx,
)
from posekit.export.detector_trial import TRIAL_FRAMES, check_finds, check_outputs_of, synthetic_picture
from posekit.export.onnx_graph import specs_from_graph
from posekit.export.recipe import DetectorRecipe, ExportRecipe
from posekit.export.recipe_networks import DETECTOR, TracedFrom, detector_network
from posekit.runtime.detector import Family, family_named
from posekit.runtime.errors import RecipeError
from posekit.runtime.manifest import DetectorEntry
from posekit.runtime.tensor import TensorSpec


@dataclass(frozen=True, eq=False)
class ThirdParty:
    """A converted ONNX file."""

    content: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, eq=False)
class Detector:
    """graph: what is in the bundle, or what it is to be exported from.  origin: a row of the provenance."""

    entry: DetectorEntry
    graph: ThirdParty | TracedFrom
    origin: tuple[str, str]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Of the graph."""
        return _inputs(self.graph)


def detector_from_recipe(recipe: ExportRecipe, entry: DetectorRecipe) -> Detector:
    """Read and check it; a third party's is tried on pictures. Raises RecipeError, CheckpointError, ExportError."""
    family = family_named(entry.family)
    labels = _labels(recipe, entry)
    objects = entry.objects or {row.name: row.id for row in recipe.objects if row.name in labels}
    if not objects:
        names = ", ".join(row.name for row in recipe.objects)
        raise RecipeError(
            "detector classes",
            got=", ".join(labels[:12]),
            expected=f"the objects {names} among them",
            remedy="Map classes to object ids in [detector.objects].",
        )
    ids = class_object_ids(labels, objects)
    graph, origin = _third_party(recipe, entry, len(labels)) if entry.onnx is not None else _from_torch(recipe, entry)
    _, height, width, _ = _inputs(graph)[0].shape
    row = DetectorEntry(
        graph=DETECTOR,
        family=entry.family,
        input_wh_px=(int(width), int(height)),
        letterbox_value=family.letterbox_value if entry.letterbox_value is None else entry.letterbox_value,
        class_object_ids=ids,
        score_threshold=family.score_threshold if entry.score_threshold is None else entry.score_threshold,
        iou_threshold=family.iou_threshold if entry.iou_threshold is None else entry.iou_threshold,
    )
    if isinstance(graph, ThirdParty):
        _try(recipe, entry, row, graph.content)
    return Detector(row, graph, origin)


def _try(recipe: ExportRecipe, entry: DetectorRecipe, row: DetectorEntry, content: bytes) -> None:
    """On frames of the recipe's that show its objects, on a picture of noise where it has none."""
    assert entry.onnx is not None
    source = recipe.resolve(entry.onnx)
    what = f"detector {source}"

    def prepared_as(other: Family) -> bytes:
        model = detector_graph_from_onnx(
            source, row.family, len(row.class_object_ids), row.input_wh_px, prepared_as=other
        )
        return bytes(model.SerializeToString(deterministic=True))

    ids = set(row.class_object_ids) - {-1}
    labelled = frames_with(recipe, ids, TRIAL_FRAMES) if recipe.calibration else []
    check_outputs_of(what, row, content, labelled[0][0].image_rgb_u8 if labelled else synthetic_picture())
    check_finds(what, row, content, prepared_as, labelled)


def _inputs(graph: ThirdParty | TracedFrom) -> tuple[TensorSpec, ...]:
    return graph.inputs if isinstance(graph, ThirdParty) else graph.graph.inputs


def _labels(recipe: ExportRecipe, entry: DetectorRecipe) -> tuple[str, ...]:
    if entry.labels is not None:
        return labels_from_file(recipe.resolve(entry.labels))
    if entry.onnx is not None:
        return labels_from_onnx(recipe.resolve(entry.onnx))
    return tuple(row.name for row in recipe.objects)


def _third_party(recipe: ExportRecipe, entry: DetectorRecipe, class_count: int) -> tuple[ThirdParty, tuple[str, str]]:
    assert entry.onnx is not None
    source = recipe.resolve(entry.onnx)
    int8 = "int8" in recipe.detector_variants
    model = detector_graph_from_onnx(source, entry.family, class_count, entry.input_wh_px, int8)
    graph = ThirdParty(model.SerializeToString(deterministic=True), *specs_from_graph(model))
    return graph, (DETECTOR, f"{source.name}, sha256 {sha256_of(source)}")


def _from_torch(recipe: ExportRecipe, entry: DetectorRecipe) -> tuple[TracedFrom, tuple[str, str]]:
    graph, origin = detector_network(recipe, entry)
    return graph, (f"checkpoint of {DETECTOR}", origin)
