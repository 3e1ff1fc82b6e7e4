"""From a recipe to a bundle: the one place where the stages meet."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp

from posekit.export.bank import BuiltBank, build_bank
from posekit.export.bank_ceiling import bank_ceiling
from posekit.export.bank_recipe import BankRecipe
from posekit.export.crops import labelled_frames
from posekit.export.engines import CompiledEngine, compile_ahead
from posekit.export.fingerprint import code, fingerprint
from posekit.export.inputs import ExportInputs, read_inputs
from posekit.export.objects import BundledObject
from posekit.export.onnx_from_network import ExportedGraph, onnx_from_network
from posekit.export.pack import Content, check_output, pack_bundle
from posekit.export.precision.pareto import markdown_from_points, pareto_points, plot_png
from posekit.export.precision.search import next_strain
from posekit.export.precision.variants import GraphVariants, Variants, make_variants
from posekit.export.recipe import ExportRecipe, NetworkRecipe
from posekit.export.recipe_detector import Detector, ThirdParty
from posekit.export.recipe_networks import DETECTOR, TracedFrom, path_name
from posekit.export.rejection import MOST_FRAMES, RejectionReport, calibrated_rejection, rendered_frames
from posekit.export.scratch import scratch_beside
from posekit.export.steps import Step, Steps
from posekit.export.verify.reference import Progress
from posekit.export.verify.report import json_from_verification, markdown_from_verification, missed_gates, write_reports
from posekit.export.verify.verify import Verification, verify_bundle
from posekit.runtime.backends.ort import OrtSession
from posekit.runtime.bank import bank_from_bytes
from posekit.runtime.bundle import Bundle
from posekit.runtime.crop import CropPreset
from posekit.runtime.errors import GateError
from posekit.runtime.manifest import FORMAT, GraphEntry, Manifest, PathEntry, Precision
from posekit.runtime.object_model import symmetries_from_entry
from posekit.runtime.records import plain_from

TOOLS = ("posekit", "torch", "onnx", "onnxruntime")
PARITY_REPORT, ENGINES_REPORT = "reports/parity.json", "reports/engines.json"
BANKS_REPORT = "reports/banks.json"


@dataclass(frozen=True)
class ExportReport:
    """What was written. graphs: by name, in fp32.  banks: by member.  rejections: by bank path.

    variants, verification: of what the recipe asked for beside fp32.  engines: compiled ahead of time.
    found, made: steps that an earlier export had made already, and those that this one made.
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
    found: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    rejections: dict[str, RejectionReport] = field(default_factory=dict)


@dataclass(eq=False)
class _Draft:
    """The bundle while it grows. folder: where files wait to be packed."""

    inputs: ExportInputs
    folder: Path
    progress: Progress
    steps: Steps
    members: dict[str, Content] = field(default_factory=dict)
    graphs: dict[str, GraphEntry] = field(default_factory=dict)
    reports: dict[str, str] = field(default_factory=dict)
    paths: dict[str, PathEntry] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    exported: dict[str, ExportedGraph] = field(default_factory=dict)
    banks: dict[str, BuiltBank] = field(default_factory=dict)
    rejections: dict[str, RejectionReport] = field(default_factory=dict)

    def graph_of(self, path: str) -> str:
        """The graph that is judged by a path's poses, or by the detector's boxes."""
        return DETECTOR if path == DETECTOR else self.paths[path].graph


def export_recipe(
    recipe: ExportRecipe,
    out: Path,
    progress: Progress = lambda stage, done, total: None,
    engines: bool = False,
) -> ExportReport:
    """Export everything that the recipe names into one bundle at `out`; equal input gives equal graphs and banks.

    engines: also compile the fp16 and int8 graphs with TensorRT-RTX, into the engine cache.
    progress: called with a stage's name and how much of it is done. Any PosekitError leaves `out` as it was.
    Steps are kept in posekit's cache: an export that was stopped goes on there, and one that is repeated gives the same
    bytes, latencies in its reports included. Without the cache these differ, and with them their hashes in the manifest.
    """
    start = time.perf_counter()
    check_output(out)
    with scratch_beside(out) as folder:
        inputs = read_inputs(recipe, progress)
        draft = _Draft(inputs, folder, progress, Steps())
        for row in inputs.objects.values():
            draft.members[row.entry.model] = row.member
        if inputs.detector:
            _add_detector(draft, inputs.detector)
        for entry in recipe.networks:
            _add_network(draft, entry)
        _add_parity(draft)
        _add_rejection(draft)
        variants, verification = _add_variants(draft, out) if inputs.samples else ((), None)
        compiled = _add_engines(draft) if engines else ()
        progress("pack", 0, 1)
        packed = pack_bundle(out, _manifest(draft), draft.members)
        progress("pack", 1, 1)
    seconds = time.perf_counter() - start
    steps = (tuple(draft.steps.found), tuple(draft.steps.made))
    return ExportReport(
        out,
        packed.size,
        seconds,
        packed.manifest,
        draft.exported,
        draft.banks,
        variants,
        verification,
        compiled,
        *steps,
        draft.rejections,
    )


def _add_network(draft: _Draft, entry: NetworkRecipe) -> None:
    inputs, network = draft.inputs, draft.inputs.networks[entry.name]
    draft.provenance[f"checkpoint of {entry.name}"] = network.origin
    stage = f"graphs of {entry.name}"
    for done, (name, source) in enumerate(inputs.traced(entry.name).items()):
        draft.progress(stage, done, len(network.graphs))
        _add_graph(draft, name, source, inputs.crops_per_pass.get(entry.name))
    draft.progress(stage, len(network.graphs), len(network.graphs))
    ids = inputs.ids_of(entry)
    for name, plan in network.paths.items():
        name_in_bundle = path_name(entry, name, network.paths)
        matcher = f"{entry.name}.{plan.matcher}" if plan.matcher else None
        solver = (entry.solver or plan.solver) if plan.kind == "correspondence" else None
        path = PathEntry(plan.kind, f"{entry.name}.{plan.graph}", network.crop, ids, matcher, {}, solver)
        banks = {str(i): _add_bank(draft, entry, path, name_in_bundle, i) for i in ids} if plan.kind == "bank" else {}
        draft.paths[name_in_bundle] = replace(path, banks=banks)
        if matcher:
            most = max(draft.banks[member].views for member in banks.values())
            draft.graphs[matcher] = replace(draft.graphs[matcher], views=most)


def graph_step(name: str, source: TracedFrom) -> Step:
    """What the fp32 file of a graph follows from."""
    return f"graph {name}", {"network": source.key}


def bank_step(path: str, embedder_sha256: str, row: BundledObject, crop: CropPreset, views: BankRecipe) -> Step:
    """What a bank follows from."""
    model = fingerprint(row.model, row.entry)
    inputs = {"embedder": embedder_sha256, "model": model, "views": fingerprint(crop, views), "code": code()}
    return f"bank of {row.entry.name} for {path}", inputs


def _add_graph(
    draft: _Draft, name: str, source: TracedFrom, crops_per_pass: tuple[int, int, int] | None = None
) -> None:
    member, file = f"graphs/{name}.fp32.onnx", draft.folder / f"{name}.fp32.onnx"
    step = graph_step(name, source)
    graph = draft.steps.result(ExportedGraph, *step, lambda: onnx_from_network(source.graph, file), file)
    variants: dict[Precision, str] = {"fp32": member}
    draft.members[member] = file
    draft.graphs[name] = GraphEntry(source.graph.role, variants, graph.inputs, graph.outputs, crops_per_pass)
    draft.exported[name] = graph


def _add_variants(draft: _Draft, out: Path) -> tuple[tuple[GraphVariants, ...], Verification]:
    """Make and verify the recipe's variants. GateError, with reports beside `out`, where one misses a gate.

    One that the crops cannot decide on is in the bundle, held back: it is never taken of its own accord.
    """
    made, verification = _verified_variants(draft)
    reports = _precision_reports(draft.inputs.recipe.name, made.graphs, verification)
    if verification.outcome == "missed":
        raise _gate_missed(verification, out, reports)
    for (path, precision), why in verification.undecided().items():
        graph = draft.graph_of(path)
        entry = draft.graphs[graph]
        draft.graphs[graph] = replace(entry, held_back=entry.held_back | {precision: why})
    for name, (file, content) in reports.items():
        draft.members[f"reports/{file}"] = content
        draft.reports[name] = f"reports/{file}"
    return made.graphs, verification


def _verified_variants(draft: _Draft) -> tuple[Variants, Verification]:
    """Add the variants to the draft, and what verification says of them.

    An int8 file that misses a gate is made again with more to spare, and left out where that does not help: the crops that
    judge it have no other part in what it is.
    """
    inputs, folder, progress = draft.inputs, draft.folder, draft.progress
    plain = pack_bundle(folder / "fp32.posekit", _manifest(draft), draft.members).path
    members, graphs = dict(draft.members), dict(draft.graphs)
    most_strain: dict[str, float] = {}
    while True:
        place = Path(mkdtemp(dir=folder))
        with Bundle(plain) as bundle:
            made = make_variants(bundle, inputs, place, progress, draft.steps, most_strain)
        draft.members, draft.graphs = dict(members), dict(graphs)
        for report in made.graphs:
            name, files, entry = report.graph, made.files[report.graph], graphs[report.graph]
            added = {precision: f"graphs/{name}.{precision}.onnx" for precision in files}
            draft.members |= {added[precision]: file for precision, file in files.items()}
            draft.graphs[name] = replace(entry, variants=entry.variants | added, held_back=report.held_back)
        mixed = pack_bundle(place / "variants.posekit", _manifest(draft), draft.members).path
        with Bundle(mixed) as bundle:
            found = verify_bundle(bundle, inputs.samples, inputs.recipe.gates, progress, steps=draft.steps)
        missed = {(v.path, v.precision) for v in found.verdicts if v.binding and v.outcome == "missed"}
        after = {(g := draft.graph_of(path)): next_strain(most_strain.get(g)) for path, _ in missed}
        if not missed or any(precision != "int8" for _, precision in missed) or None in after.values():
            return made, found
        most_strain |= {graph: strain for graph, strain in after.items() if strain is not None}


def _add_engines(draft: _Draft) -> tuple[CompiledEngine, ...]:
    """Compile, and keep in the bundle what was compiled; the engines themselves are a cache."""
    packed = pack_bundle(draft.folder / "compiled.posekit", _manifest(draft), draft.members).path
    with Bundle(packed) as bundle:
        compiled = compile_ahead(bundle, draft.progress)
    rows = [plain_from(replace(engine, path=None, reason="")) for engine in compiled]
    draft.members[ENGINES_REPORT] = (json.dumps(rows, indent=1, sort_keys=True) + "\n").encode()
    draft.reports["engines"] = ENGINES_REPORT
    return compiled


Reports = dict[str, tuple[str, bytes]]  # name -> file name, content


def _precision_reports(title: str, graphs: Sequence[GraphVariants], verification: Verification) -> Reports:
    """Times of this machine are in them: made anew they differ from run to run. Where it keeps its cache is not."""
    points = pareto_points(graphs)
    verdicts = "".join(f"- {sentence}\n" for g in graphs for sentence in g.sentences)
    told = [replace(g, int8=replace(g.int8, calibration=None)) if g.int8 else g for g in graphs]
    plain = json.dumps(plain_from(told), indent=1, sort_keys=True) + "\n"
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
    row, sha256 = draft.inputs.objects[object_id], draft.exported[path.graph].sha256
    file = draft.folder / f"{path_name}.{row.entry.name}.safetensors"
    stage, inputs = bank_step(path_name, sha256, row, path.crop, entry.bank)

    def built() -> BuiltBank:
        session = OrtSession(draft.folder / f"{path.graph}.fp32.onnx")
        try:
            bank = build_bank(
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
        views = bank_from_bytes(file.read_bytes(), file.name, symmetries_from_entry(row.entry))
        return replace(bank, ceiling=bank_ceiling(views, row.model))

    member = f"banks/{file.name}"
    draft.banks[member] = bank = draft.steps.result(BuiltBank, stage, inputs, built, file)
    draft.progress(stage, bank.views, bank.views)
    draft.members[member] = file
    return member


def _add_rejection(draft: _Draft) -> None:
    """Thresholds of the banks' scores, and a report of what banks can and cannot do, in a bundle that has any."""
    recipe = draft.inputs.recipe
    rates = {entry.name: entry.false_accept_rate for entry in recipe.networks}
    wanted = {n: rates[n.split(".")[0]] for n, path in draft.paths.items() if path.kind == "bank"}
    if not wanted:
        return
    packed = pack_bundle(draft.folder / "banks.posekit", _manifest(draft), draft.members).path
    with Bundle(packed) as bundle:
        for done, (name, rate) in enumerate(wanted.items()):
            if rate == 1:
                continue
            stage = f"rejection of {name}"
            draft.progress(stage, done, len(wanted))
            draft.rejections[name] = report = _rejection(draft, bundle, name, rate)
            draft.paths[name] = replace(draft.paths[name], rejection=report.thresholds)
            draft.progress(stage, len(wanted), len(wanted))
    banks = {member: plain_from(bank) for member, bank in draft.banks.items()}
    rows = {"banks": banks, "rejection": plain_from(draft.rejections)}
    draft.members[BANKS_REPORT] = (json.dumps(rows, indent=1, sort_keys=True) + "\n").encode()
    draft.reports["banks"] = BANKS_REPORT


def _rejection(draft: _Draft, bundle: Bundle, name: str, rate: float) -> RejectionReport:
    recipe, path = draft.inputs.recipe, draft.paths[name]
    models = {i: row.model for i, row in draft.inputs.objects.items()}
    of, recorded = "rendered", None
    if recipe.calibration is not None:
        of, recorded = "recorded", labelled_frames(recipe, MOST_FRAMES)
    members = [bundle.manifest.files[member].sha256 for member in path.banks.values()]
    frames = fingerprint(models if recorded is None else recorded)  # frames follow from models where they are rendered
    inputs = {"banks": fingerprint(members, path, rate), of: frames, "code": code()}

    def made() -> RejectionReport:
        frames = rendered_frames(models, path.object_ids) if recorded is None else recorded
        return calibrated_rejection(bundle, name, frames, rate, of)

    return draft.steps.result(RejectionReport, f"rejection of {name}", inputs, made)


def _add_detector(draft: _Draft, detector: Detector) -> None:
    draft.progress(DETECTOR, 0, 1)
    if isinstance(detector.graph, ThirdParty):
        member, graph = f"graphs/{DETECTOR}.fp32.onnx", detector.graph
        draft.members[member] = graph.content
        draft.graphs[DETECTOR] = GraphEntry("detector", {"fp32": member}, graph.inputs, graph.outputs)
    else:
        _add_graph(draft, DETECTOR, detector.graph)
    name, origin = detector.origin
    draft.provenance[name] = origin
    draft.progress(DETECTOR, 1, 1)


def _manifest(draft: _Draft) -> Manifest:
    inputs = draft.inputs
    recipe = inputs.recipe
    first = next(entry for entry in recipe.networks if entry.name == recipe.default_path.split(".")[0])
    tools = {name: version(name) for name in TOOLS}
    return Manifest(
        format=FORMAT,
        name=recipe.name,
        system=first.system or f"own {first.role}",
        provenance={**tools, "recipe": f"sha256 {recipe.sha256}", **draft.provenance},
        graphs=draft.graphs,
        objects=tuple(row.entry for row in inputs.objects.values()),
        paths=draft.paths,
        default_path=recipe.default_path,
        files={},
        detector=inputs.detector.entry if inputs.detector else None,
        reports=draft.reports,
    )
