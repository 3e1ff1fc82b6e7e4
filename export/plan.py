"""What an export would do, step by step, with sizes, and what of it earlier exports have done already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from posekit.export.bank_recipe import bank_rotations
from posekit.export.crops import CalibrationCrops
from posekit.export.example_feed import example_feed
from posekit.export.inputs import ExportInputs, read_inputs
from posekit.export.parity import network_outputs
from posekit.export.pipeline import bank_step, graph_step
from posekit.export.precision.trunk import read_trunk
from posekit.export.precision.variants import half_step
from posekit.export.recipe import ExportRecipe, NetworkRecipe
from posekit.export.recipe_detector import ThirdParty
from posekit.export.recipe_networks import DETECTOR, TracedFrom, path_name
from posekit.export.steps import KeptStep, Step, Steps
from posekit.export.systems import GraphSource
from posekit.export.verify.reference import Progress
from posekit.runtime.engines.options import RTX_CAPABILITIES
from posekit.runtime.manifest import Precision

WEIGHT_BYTES: Mapping[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 1}  # of the trunk; the rest stays at 4
POSE_BYTES = 4 * (9 + 3 + 4)  # R, t_m and box of one view
EMBEDDING_BYTES = {"fp32": 4, "fp16": 2}


@dataclass(frozen=True)
class PlannedStep:
    """size_bytes: that it adds to the bundle, None where it adds nothing or nobody can know; exact: measured, not reckoned.

    kept: an earlier export has made it, in `seconds`.  note: what else there is to know.
    """

    name: str
    size_bytes: int | None = None
    exact: bool = False
    kept: bool = False
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True)
class ExportPlan:
    """steps: in their order.  crops: that variants are verified on."""

    steps: tuple[PlannedStep, ...]
    crops: int = 0
    cache: str = ""
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size_bytes", sum(step.size_bytes or 0 for step in self.steps))


def planned(recipe: ExportRecipe, progress: Progress, engines: bool = False) -> ExportPlan:
    """Read and check every input as an export does, and make nothing. Raises what `read_inputs` raises."""
    inputs, steps = read_inputs(recipe, progress), Steps()
    return ExportPlan(tuple(_steps(inputs, steps, engines)), len(inputs.samples), str(steps.folder))


def _steps(inputs: ExportInputs, steps: Steps, engines: bool) -> Iterator[PlannedStep]:
    for row in inputs.objects.values():
        yield PlannedStep(f"object {row.entry.name}", len(row.member), exact=True, note="read anew each time")
    if inputs.detector and isinstance(inputs.detector.graph, ThirdParty):
        yield PlannedStep(DETECTOR, len(inputs.detector.graph.content), exact=True, note="read anew each time")
    elif inputs.detector:
        yield _graph(steps, DETECTOR, inputs.sources[DETECTOR])
    for entry in inputs.recipe.networks:
        traced = inputs.traced(entry.name)
        for name, source in traced.items():
            yield _graph(steps, name, source)
        yield from _banks(inputs, steps, entry, traced)
    sources = inputs.sources
    for name, crops in inputs.crops.items():
        yield from _variants(inputs, steps, name, crops, sources.get(name))
        if engines:
            gpus = ", ".join(f"SM{capability}" for capability in RTX_CAPABILITIES)
            yield PlannedStep(f"engines of {name}", note=f"for {gpus}; into the engine cache, not the bundle")


def _variants(
    inputs: ExportInputs, steps: Steps, name: str, crops: CalibrationCrops, source: TracedFrom | None
) -> Iterator[PlannedStep]:
    wanted, count = inputs.variants_of(name), crops.fitness.crops
    if "fp16" in wanted and source:
        yield _looked_up(steps, half_step(name, source, crops), _graph_bytes(source.graph, "fp16"), f"on {count} crops")
    if "int8" in wanted:
        size = _graph_bytes(source.graph, "int8") if source else None
        yield PlannedStep(
            f"int8 of {name}", size, note=f"searched on {count} crops; figures that are kept are used again"
        )


def _graph(steps: Steps, name: str, source: TracedFrom) -> PlannedStep:
    return _looked_up(steps, graph_step(name, source), _graph_bytes(source.graph, "fp32"))


def _banks(
    inputs: ExportInputs, steps: Steps, entry: NetworkRecipe, traced: Mapping[str, TracedFrom]
) -> Iterator[PlannedStep]:
    network = inputs.networks[entry.name]
    for name, plan in network.paths.items():
        if plan.kind != "bank":
            continue
        graph = f"{entry.name}.{plan.graph}"
        embedder = steps.kept(*graph_step(graph, traced[graph]))
        views = len(bank_rotations(entry.bank))
        size = views * _view_bytes(traced[graph].graph, entry.bank.precision)
        for i in inputs.ids_of(entry):
            row, path = inputs.objects[i], path_name(entry, name, network.paths)
            if embedder is None:  # a bank is bound to its embedder's file
                yield PlannedStep(f"bank of {row.entry.name} for {path}", size, note=f"{views} views")
            else:
                step = bank_step(path, embedder.result["sha256"], row, network.crop, entry.bank)
                yield _looked_up(steps, step, size, f"{views} views")


def _looked_up(steps: Steps, step: Step, size_bytes: int, note: str = "") -> PlannedStep:
    found: KeptStep | None = steps.kept(*step)
    if found is None:
        return PlannedStep(step[0], size_bytes, note=note)
    return PlannedStep(step[0], found.size, exact=True, kept=True, seconds=found.seconds, note=note)


def _graph_bytes(source: GraphSource, precision: Precision) -> int:
    """Of its weights, which are nearly all of a file."""
    trunk = read_trunk(source) if source.trunk else None
    return sum(
        parameter.numel() * WEIGHT_BYTES[precision if trunk and trunk.has(name) else "fp32"]
        for name, parameter in source.module.named_parameters()
    )


def _view_bytes(source: GraphSource, precision: str) -> int:
    """Of one view in a bank: its descriptor, its places' weights, and its pose."""
    with torch.inference_mode():
        descriptors = network_outputs(source, source.module, example_feed(source.inputs, {"batch": 1}))["descriptors"]
    places = descriptors.shape[1] if descriptors.ndim == 3 else 1
    return int(descriptors.size) * EMBEDDING_BYTES[precision] + 4 * places + POSE_BYTES
