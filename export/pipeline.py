"""From a recipe to a bundle: the one place where the stages meet."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from posekit.export.bank import BuiltBank, build_bank
from posekit.export.checkpoint import load_checkpoint, network_from_factory, sha256_of
from posekit.export.detector_from_onnx import (
    class_object_ids,
    detector_graph_from_onnx,
    labels_from_file,
    labels_from_onnx,
)
from posekit.export.engines import CompiledEngine, compile_ahead
from posekit.export.networks.entrance import Entrance
from posekit.export.networks.own import detector_graph, embedder_graphs, own_paths, regressor_graphs
from posekit.export.objects import BundledObject, bundled_object
from posekit.export.onnx_from_network import ExportedGraph, onnx_from_network
from posekit.export.onnx_graph import specs_from_graph
from posekit.export.pack import Content, check_output, pack_bundle
from posekit.export.precision.pareto import markdown_from_points, pareto_points, plot_png
from posekit.export.precision.variants import GraphVariants, make_variants, verification_samples
from posekit.export.recipe import RANDOM, DetectorRecipe, ExportRecipe, NetworkRecipe
from posekit.export.systems import GraphSource, PathPlan, system_named
from posekit.export.verify.report import json_from_verification, markdown_from_verification, missed_gates, write_reports
from posekit.export.verify.verify import Verification, verify_bundle
from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.bundle import Bundle
from posekit.runtime.crop import PRESETS, CropPreset
from posekit.runtime.detector import family_named
from posekit.runtime.errors import GateError, OutputError, RecipeError
from posekit.runtime.manifest import FORMAT, DetectorEntry, GraphEntry, Manifest, PathEntry, Precision
from posekit.runtime.records import plain_from

Progress = Callable[[str, int, int], None]

TOOLS = ("posekit", "torch", "onnx", "onnxruntime")
DETECTOR = "detector"
PARITY_REPORT, ENGINES_REPORT = "reports/parity.json", "reports/engines.json"


@dataclass(frozen=True)
class ExportReport:
    """What was written. graphs: by name, in fp32.  banks: by member. Their paths are members of the bundle.

    variants, verification: of what the recipe asked for beside fp32.  engines: compiled ahead of time.
    """

    path: Path
    size: int
    seconds: float
    manifest: Manifest
    graphs: dict[str, ExportedGraph]
    banks: dict[str, BuiltBank]
    variants: tuple[GraphVariants, ...] = ()
    verification: Verification | None = None
    engines: tuple[CompiledEngine, ...] = ()


@dataclass(frozen=True, eq=False)
class Network:
    """A network with its weights, as graphs to export and paths over them.  origin: of the weights, for provenance."""

    graphs: dict[str, GraphSource]
    paths: Mapping[str, PathPlan]
    crop: CropPreset
    origin: str


@dataclass(eq=False)
class _Draft:
    """The bundle while it grows. folder: where files wait to be packed."""

    recipe: ExportRecipe
    folder: Path
    progress: Progress
    objects: dict[int, BundledObject] = field(default_factory=dict)
    members: dict[str, Content] = field(default_factory=dict)
    graphs: dict[str, GraphEntry] = field(default_factory=dict)
    sources: dict[str, GraphSource] = field(default_factory=dict)
    reports: dict[str, str] = field(default_factory=dict)
    paths: dict[str, PathEntry] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    exported: dict[str, ExportedGraph] = field(default_factory=dict)
    banks: dict[str, BuiltBank] = field(default_factory=dict)


def export_recipe(
    recipe: ExportRecipe,
    out: Path,
    progress: Progress = lambda stage, done, total: None,
    engines: bool = False,
) -> ExportReport:
    """Export everything that the recipe names into one bundle at `out`; equal input gives equal bytes.

    engines: also compile the fp16 and int8 graphs with TensorRT-RTX, into the engine cache.
    progress: called with a stage's name and how much of it is done. Any PosekitError leaves `out` as it was.
    """
    start = time.perf_counter()
    _check_default_path(recipe)
    check_output(out)
    try:
        scratch = tempfile.TemporaryDirectory(prefix=".posekit-export-", dir=out.resolve().parent)
    except OSError as error:
        raise OutputError(
            f"output {out}", got=error, expected="a writable folder", remedy="Choose another place."
        ) from error
    with scratch as folder:
        draft = _Draft(recipe, Path(folder), progress)
        _add_objects(draft)
        detector = _add_detector(draft, recipe.detector) if recipe.detector else None
        for entry in recipe.networks:
            _add_network(draft, entry)
        _add_parity(draft)
        variants, verification = _add_variants(draft, detector, out) if recipe.precision.variants else ((), None)
        compiled = _add_engines(draft, detector) if engines else ()
        progress("pack", 0, 1)
        packed = pack_bundle(out, _manifest(draft, detector), draft.members)
        progress("pack", 1, 1)
    seconds = time.perf_counter() - start
    return ExportReport(
        out, packed.size, seconds, packed.manifest, draft.exported, draft.banks, variants, verification, compiled
    )


def _check_default_path(recipe: ExportRecipe) -> None:
    names = []
    for entry in recipe.networks:
        if entry.system is not None:
            paths = system_named(entry.system).paths
        else:
            assert entry.role is not None  # the recipe's cross-check
            paths = own_paths(entry.role, entry.solver)
        names += [_path_name(entry, name, paths) for name in paths]
    if recipe.default_path not in names:
        raise RecipeError(
            f"{recipe.path}: default_path",
            got=repr(recipe.default_path),
            expected=f"one of {', '.join(names)}",
            remedy="Name a path of this recipe.",
        )


def _path_name(entry: NetworkRecipe, name: str, paths: Mapping[str, PathPlan]) -> str:
    """A network with one path gives it its own name."""
    return entry.name if len(paths) == 1 else f"{entry.name}.{name}"


def built_network(recipe: ExportRecipe, entry: NetworkRecipe) -> Network:
    """Construct and fill one network. Raises RecipeError, CheckpointError, ExportError."""
    crop = PRESETS[entry.crop] if isinstance(entry.crop, str) else entry.crop
    if entry.system is not None:
        system = system_named(entry.system)
        crop = crop or system.crop
        network, origin = _weighted(recipe, entry, lambda: _constructed(entry, system.network))
        graphs, paths = system.graphs(network, crop), system.paths
        if entry.solver and all(plan.kind != "correspondence" for plan in paths.values()):
            raise _wrong(entry, "a solver section", f"none: {entry.system} needs no solver")
        return Network(graphs, paths, crop, origin)
    assert entry.network is not None  # the recipe's cross-check
    assert entry.role is not None
    assert crop is not None
    name = entry.network
    network, origin = _weighted(recipe, entry, lambda: network_from_factory(name, entry.options, recipe.folder))
    entrance = Entrance(entry.normalise.mean, entry.normalise.std, entry.normalise.bgr)
    if entry.role == "embedder":
        graphs = embedder_graphs(network, entrance, crop.size_px, entry.threshold, entry.trunk)
    else:
        graphs = regressor_graphs(entry.role, network, entrance, crop.size_px, entry.feeds, entry.trunk)
    return Network(graphs, own_paths(entry.role, entry.solver), crop, origin)


def _weighted(
    recipe: ExportRecipe, entry: NetworkRecipe | DetectorRecipe, make: Callable[[], nn.Module]
) -> tuple[nn.Module, str]:
    """A network with its weights, and where these are from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(entry.seed)
        network = make().eval()
    if entry.checkpoint == RANDOM:
        return network, f"random weights (seed {entry.seed}), not for use"
    assert entry.checkpoint is not None  # the recipe's cross-check
    path = recipe.resolve(entry.checkpoint)
    digest = load_checkpoint(network, path, key=entry.checkpoint_key, prefix=entry.checkpoint_prefix)
    return network, f"sha256 {digest}"


def _constructed(entry: NetworkRecipe | DetectorRecipe, make: Callable[..., nn.Module]) -> nn.Module:
    try:
        return make(**entry.options)
    except (
        TypeError,
        ValueError,
        LookupError,
        ArithmeticError,
        RuntimeError,
    ) as error:  # torch refuses in any of these
        raise _wrong(entry, f"options {entry.options}: {error}", f"options of {entry.system}") from error


def _add_objects(draft: _Draft) -> None:
    rows = draft.recipe.objects
    for done, row in enumerate(rows):
        draft.progress("objects", done, len(rows))
        draft.objects[row.id] = bundled_object(draft.recipe, row)
        draft.members[draft.objects[row.id].entry.model] = draft.objects[row.id].member
    draft.progress("objects", len(rows), len(rows))


def _add_network(draft: _Draft, entry: NetworkRecipe) -> None:
    network = built_network(draft.recipe, entry)
    draft.provenance[f"checkpoint of {entry.name}"] = network.origin
    for done, (name, source) in enumerate(network.graphs.items()):
        draft.progress(f"graphs of {entry.name}", done, len(network.graphs))
        _add_graph(draft, f"{entry.name}.{name}", source)
    draft.progress(f"graphs of {entry.name}", len(network.graphs), len(network.graphs))
    ids = entry.objects or tuple(draft.objects)
    for name, plan in network.paths.items():
        path_name = _path_name(entry, name, network.paths)
        matcher = f"{entry.name}.{plan.matcher}" if plan.matcher else None
        solver = (entry.solver or plan.solver) if plan.kind == "correspondence" else None
        path = PathEntry(plan.kind, f"{entry.name}.{plan.graph}", network.crop, ids, matcher, {}, solver)
        banks = {str(i): _add_bank(draft, entry, path, path_name, i) for i in ids} if plan.kind == "bank" else {}
        draft.paths[path_name] = replace(path, banks=banks)


def _add_graph(draft: _Draft, name: str, source: GraphSource) -> None:
    member = f"graphs/{name}.fp32.onnx"
    graph = onnx_from_network(source, draft.folder / f"{name}.fp32.onnx")
    variants: dict[Precision, str] = {"fp32": member}
    draft.members[member] = graph.path
    draft.graphs[name] = GraphEntry(source.role, variants, graph.inputs, graph.outputs)
    draft.exported[name] = replace(graph, path=Path(member))
    draft.sources[name] = source


def _add_variants(
    draft: _Draft, detector: DetectorEntry | None, out: Path
) -> tuple[tuple[GraphVariants, ...], Verification]:
    """Make and verify the recipe's variants. GateError, with reports beside `out`, where one misses a gate."""
    recipe, folder = draft.recipe, draft.folder
    samples = verification_samples(recipe, set(draft.objects))
    plain = pack_bundle(folder / "fp32.posekit", _manifest(draft, detector), draft.members).path
    with Bundle(plain) as bundle:
        made = make_variants(bundle, draft.sources, samples, recipe, folder, draft.progress)
    for name, files in made.files.items():
        members = {precision: f"graphs/{name}.{precision}.onnx" for precision in files}
        draft.members |= {members[precision]: file for precision, file in files.items()}
        draft.graphs[name] = replace(draft.graphs[name], variants=draft.graphs[name].variants | members)
    mixed = pack_bundle(folder / "variants.posekit", _manifest(draft, detector), draft.members).path
    with Bundle(mixed) as bundle:
        verification = verify_bundle(bundle, samples, recipe.gates, draft.progress)
    reports = _precision_reports(recipe.name, made.graphs, verification)
    if not verification.passed:
        raise _gate_missed(verification, out, reports)
    for name, (file, content) in reports.items():
        draft.members[f"reports/{file}"] = content
        draft.reports[name] = f"reports/{file}"
    return made.graphs, verification


def _add_engines(draft: _Draft, detector: DetectorEntry | None) -> tuple[CompiledEngine, ...]:
    """Compile, and keep in the bundle what was compiled; the engines themselves are a cache."""
    packed = pack_bundle(draft.folder / "compiled.posekit", _manifest(draft, detector), draft.members).path
    with Bundle(packed) as bundle:
        compiled = compile_ahead(bundle, draft.progress)
    rows = [plain_from(replace(engine, path=None, reason="")) for engine in compiled]
    draft.members[ENGINES_REPORT] = (json.dumps(rows, indent=1, sort_keys=True) + "\n").encode()
    draft.reports["engines"] = ENGINES_REPORT
    return compiled


Reports = dict[str, tuple[str, bytes]]  # name -> file name, content


def _precision_reports(title: str, graphs: Sequence[GraphVariants], verification: Verification) -> Reports:
    """Times of this machine are in them, so they differ from run to run."""
    points = pareto_points(graphs)
    verdicts = "".join(f"- {g.graph}: {g.int8.verdict}\n" for g in graphs if g.int8)
    plain = json.dumps(plain_from(tuple(graphs)), indent=1, sort_keys=True) + "\n"
    return {
        "precision": ("precision.json", plain.encode()),
        "pareto": ("pareto.md", f"# Precision\n\n{markdown_from_points(points)}\n{verdicts}".encode()),
        "pareto_plot": ("pareto.png", plot_png(points, title)),
        "verification": ("verification.json", json_from_verification(verification).encode()),
    }


def _gate_missed(verification: Verification, out: Path, reports: Reports) -> GateError:
    folder = out.with_name(f"{out.name}.reports")
    table = markdown_from_verification(verification).encode()
    write_reports(folder, dict(reports.values()) | {"verification.md": table})
    return GateError(
        f"export of {out}",
        got="; ".join(missed_gates(verification)),
        expected="every variant within the gates of the recipe",
        remedy=f"Read {folder}; keep layers out of the trunk, leave the variant out, or widen the gate knowingly.",
    )


def _add_parity(draft: _Draft) -> None:
    parity = {name: plain_from(graph.parity) for name, graph in draft.exported.items()}
    draft.members[PARITY_REPORT] = (json.dumps(parity, indent=1, sort_keys=True) + "\n").encode()
    draft.reports["parity"] = PARITY_REPORT


def _add_bank(draft: _Draft, entry: NetworkRecipe, path: PathEntry, path_name: str, object_id: int) -> str:
    """Build one object's bank; its member name."""
    row, sha256 = draft.objects[object_id], draft.exported[path.graph].sha256
    file = draft.folder / f"{path_name}.{row.entry.name}.safetensors"
    session = OrtSession(draft.folder / f"{path.graph}.fp32.onnx")
    stage = f"bank of {row.entry.name} for {path_name}"
    try:
        built = build_bank(
            file,
            session,
            sha256,
            row.model,
            object_id,
            path.crop,
            entry.bank,
            lambda done, total: draft.progress(stage, done, total),
        )
    finally:
        session.close()
    member = f"banks/{file.name}"
    draft.members[member] = file
    draft.banks[member] = replace(built, path=Path(member))
    return member


def _add_detector(draft: _Draft, entry: DetectorRecipe) -> DetectorEntry:
    draft.progress(DETECTOR, 0, 1)
    recipe, family = draft.recipe, family_named(entry.family)
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
    if entry.onnx is not None:
        _add_third_party(draft, entry, len(labels))
    else:
        _add_torch_detector(draft, entry)
    _, height, width, _ = draft.graphs[DETECTOR].inputs[0].shape
    draft.progress(DETECTOR, 1, 1)
    return DetectorEntry(
        graph=DETECTOR,
        family=entry.family,
        input_wh_px=(int(width), int(height)),
        letterbox_value=family.letterbox_value if entry.letterbox_value is None else entry.letterbox_value,
        class_object_ids=ids,
        score_threshold=family.score_threshold if entry.score_threshold is None else entry.score_threshold,
        iou_threshold=family.iou_threshold if entry.iou_threshold is None else entry.iou_threshold,
    )


def _labels(recipe: ExportRecipe, entry: DetectorRecipe) -> tuple[str, ...]:
    if entry.labels is not None:
        return labels_from_file(recipe.resolve(entry.labels))
    if entry.onnx is not None:
        return labels_from_onnx(recipe.resolve(entry.onnx))
    return tuple(row.name for row in recipe.objects)


def _add_third_party(draft: _Draft, entry: DetectorRecipe, class_count: int) -> None:
    assert entry.onnx is not None
    source = draft.recipe.resolve(entry.onnx)
    model = detector_graph_from_onnx(source, entry.family, class_count, entry.input_wh_px)
    member = f"graphs/{DETECTOR}.fp32.onnx"
    draft.members[member] = model.SerializeToString(deterministic=True)
    variants: dict[Precision, str] = {"fp32": member}
    draft.graphs[DETECTOR] = GraphEntry("detector", variants, *specs_from_graph(model))
    draft.provenance["detector"] = f"{source.name}, sha256 {sha256_of(source)}"


def _add_torch_detector(draft: _Draft, entry: DetectorRecipe) -> None:
    """A detector of posekit's own family: a system of ours, or the user's own network."""
    if entry.system is not None:
        system = system_named(entry.system)
        network, origin = _weighted(draft.recipe, entry, lambda: _constructed(entry, system.network))
        graph = system.graphs(network, system.crop)[DETECTOR]
    else:
        assert entry.network is not None  # the recipe's cross-check
        assert entry.input_wh_px is not None
        name = entry.network
        network, origin = _weighted(
            draft.recipe, entry, lambda: network_from_factory(name, entry.options, draft.recipe.folder)
        )
        entrance = Entrance(entry.normalise.mean, entry.normalise.std, entry.normalise.bgr)
        graph = detector_graph(network, entrance, entry.input_wh_px)
    _add_graph(draft, DETECTOR, graph)
    draft.provenance["checkpoint of detector"] = origin


def _manifest(draft: _Draft, detector: DetectorEntry | None) -> Manifest:
    recipe = draft.recipe
    first = next(entry for entry in recipe.networks if entry.name == recipe.default_path.split(".")[0])
    tools = {name: version(name) for name in TOOLS}
    return Manifest(
        format=FORMAT,
        name=recipe.name,
        system=first.system or f"own {first.role}",
        provenance={**tools, "recipe": f"sha256 {recipe.sha256}", **draft.provenance},
        graphs=draft.graphs,
        objects=tuple(row.entry for row in draft.objects.values()),
        paths=draft.paths,
        default_path=recipe.default_path,
        files={},
        detector=detector,
        reports=draft.reports,
    )


def _wrong(entry: NetworkRecipe | DetectorRecipe, got: object, expected: object) -> RecipeError:
    what = f"network {entry.name!r}" if isinstance(entry, NetworkRecipe) else DETECTOR
    return RecipeError(what, got=got, expected=expected, remedy="Correct the recipe.")
