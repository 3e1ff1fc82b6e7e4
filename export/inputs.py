"""Everything that an export reads, read and checked before anything is made: a bad input costs seconds, not an hour."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from posekit.calibration.fitness import check_fitness
from posekit.export.crops import (
    CalibrationCrops,
    calibration_crops,
    calibration_images,
    measured_crops_per_pass,
    search_samples,
    verification_samples,
)
from posekit.export.fingerprint import fingerprint
from posekit.export.objects import BundledObject, bundled_object
from posekit.export.recipe import ExportRecipe, NetworkRecipe
from posekit.export.recipe_detector import Detector, detector_from_recipe
from posekit.export.recipe_networks import DETECTOR, Network, TracedFrom, built_network, check_default_path
from posekit.export.verify.reference import Progress, check_enough
from posekit.export.verify.samples import Sample, frames_of


@dataclass(frozen=True, eq=False)
class ExportInputs:
    """objects: by id.  networks: by name.  samples, searched, crops: of a recipe with variants, which are verified on the
    samples, chosen on the searched ones and calibrated on the crops, by graph.

    crops_per_pass: by network, where the recipe asks for others than the runtime's own.
    """

    recipe: ExportRecipe
    objects: dict[int, BundledObject]
    networks: dict[str, Network]
    detector: Detector | None
    samples: tuple[Sample, ...] = ()
    searched: tuple[Sample, ...] = ()
    crops: dict[str, CalibrationCrops] = field(default_factory=dict)
    crops_per_pass: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def ids_of(self, entry: NetworkRecipe) -> tuple[int, ...]:
        """Objects of a network's paths."""
        return entry.objects or tuple(self.objects)

    def variants_of(self, graph: str) -> tuple[str, ...]:
        """Precisions beside fp32 that are asked for, by the graph's name in the bundle."""
        if graph == DETECTOR:
            return self.recipe.detector_variants
        return self.recipe.precision.variants if graph in self.crops else ()

    @property
    def sources(self) -> dict[str, TracedFrom]:
        """Every graph that is traced from torch, by its name in the bundle."""
        own = {name: source for entry in self.recipe.networks for name, source in self.traced(entry.name).items()}
        detector = self.detector.graph if self.detector else None
        return own | ({DETECTOR: detector} if isinstance(detector, TracedFrom) else {})

    def traced(self, name: str) -> dict[str, TracedFrom]:
        """Graphs of a network, by the names that they have in the bundle."""
        network = self.networks[name]
        return {
            f"{name}.{graph}": TracedFrom(source, fingerprint(network.key, graph))
            for graph, source in network.graphs.items()
        }


def read_inputs(recipe: ExportRecipe, progress: Progress) -> ExportInputs:
    """Raises what is wrong with the recipe, its meshes, checkpoints, ONNX files, frames or boxes."""
    check_default_path(recipe)
    objects = {}
    for done, row in enumerate(recipe.objects):
        progress("objects", done, len(recipe.objects))
        objects[row.id] = bundled_object(recipe, row)
    progress("objects", len(recipe.objects), len(recipe.objects))
    detector = detector_from_recipe(recipe, recipe.detector) if recipe.detector else None
    networks = {entry.name: built_network(recipe, entry) for entry in recipe.networks}
    inputs = ExportInputs(recipe, objects, networks, detector)
    asked = recipe.engines.crops_per_pass
    if asked:
        counted = {
            entry.name: measured_crops_per_pass(recipe, inputs.ids_of(entry)) if asked == "measured" else asked
            for entry in recipe.networks
        }
        inputs = replace(inputs, crops_per_pass=counted)
    if not recipe.precision.variants:
        return inputs
    samples, searched = (tuple(read(recipe, set(objects))) for read in (verification_samples, search_samples))
    inputs = replace(inputs, samples=samples, searched=searched)
    return replace(inputs, crops=_crops(inputs, progress))


def _crops(inputs: ExportInputs, progress: Progress) -> dict[str, CalibrationCrops]:
    """Of the main graph of every path and of the detector, checked, as are the samples."""
    recipe, found = inputs.recipe, {}
    steps = len(recipe.networks) + 1
    for done, entry in enumerate(recipe.networks):
        progress("crops", done, steps)
        network, ids = inputs.networks[entry.name], inputs.ids_of(entry)
        for samples in (inputs.samples, inputs.searched):
            check_enough(sum(s.detection.object_id in ids for s in samples), f"network {entry.name}", "crops")
        for name in dict.fromkeys(plan.graph for plan in network.paths.values()):
            entries = [inputs.objects[i].entry for i in ids]
            feeds = calibration_crops(recipe, entries, network.crop, network.graphs[name].inputs)
            found[f"{entry.name}.{name}"] = CalibrationCrops.of(feeds)
    progress("crops", len(recipe.networks), steps)
    if inputs.detector and recipe.detector_variants:
        for samples in (inputs.samples, inputs.searched):
            check_enough(len(frames_of(samples)), DETECTOR, "frames")
        images = calibration_images(recipe, inputs.detector.entry, inputs.detector.inputs)
        found[DETECTOR] = CalibrationCrops.of(images)
    progress("crops", steps, steps)
    if "int8" in recipe.precision.variants:
        for crops in found.values():
            check_fitness(crops.fitness)
    return found
