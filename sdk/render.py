"""What people and programs see: tables and progress for a terminal, one JSON object for a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from math import degrees
from typing import TYPE_CHECKING, Any

from posekit.runtime.errors import PosekitError
from posekit.runtime.records import plain_from

if TYPE_CHECKING:
    from pathlib import Path

    from posekit.bank_build import BankRequest, BuiltBanks
    from posekit.benchmarks.accuracy import Accuracy, ObjectAccuracy
    from posekit.export.bank_ceiling import CeilingFigures
    from posekit.export.engines import CompiledEngine
    from posekit.export.pipeline import ExportReport
    from posekit.export.plan import ExportPlan
    from posekit.export.verify.verify import Verification
    from posekit.runtime.manifest import Manifest
    from posekit.sequence import RunOutcome, RunRequest
    from posekit.verification import VerifyRequest

Update = Callable[[int, int | None], None]
BYTES_PER_MB = 1e6
SHORT_BUILD_S = 3.0
PIPED_WIDTH = 200  # a pipe has no width; do not fold tables for it


def show_error(error: PosekitError) -> None:
    """On stderr: a red panel on a terminal, one plain line elsewhere."""
    if not sys.stderr.isatty():
        print(f"error: {error}", file=sys.stderr)
        return
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    body = Text.assemble(
        (f"{error.what}\n", "bold"),
        ("got       ", "dim"), f"{error.got}\n",
        ("expected  ", "dim"), f"{error.expected}\n\n",
        (error.remedy, "green"),
    )  # fmt: skip
    Console(stderr=True).print(Panel(body, title=type(error).__name__, border_style="red", title_align="left"))


def show_warning(text: str) -> None:
    """One line on stderr."""
    print(f"warning: {text}", file=sys.stderr)


def show_json(value: Any) -> None:
    """One JSON object on stdout and nothing else."""
    print(json.dumps(plain_from(value), indent=1, ensure_ascii=False))


@contextmanager
def progress(title: str) -> Iterator[Update]:
    """A bar on stderr while something long runs; silent where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """One bar on stderr per stage of something long, one line where stderr is no terminal (a CI log).

    What libraries print meanwhile goes to stderr too.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with redirect_stdout(sys.stderr), Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def update(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
                if not console.is_terminal:
                    print(stage, file=sys.stderr, flush=True)
            bar.update(tasks[stage], completed=done, total=total)

        yield update


@contextmanager
def builds_shown() -> Iterator[None]:
    """A line on stderr for every tenth of an engine build that takes seconds: on a device it takes minutes."""
    from posekit.runtime.engines.progress import BuildProgress, builds_watched

    told = {"tenths": 0}

    def tell(build: BuildProgress) -> None:
        tenths = int(build.fraction * 10)
        if build.elapsed_s < SHORT_BUILD_S or tenths == told["tenths"]:
            return
        told["tenths"] = tenths
        left = "" if build.left_s is None else f", about {build.left_s:.0f} s left"
        print(f"building an engine: {build.fraction:.0%}{left} ({build.phase})", file=sys.stderr, flush=True)

    with builds_watched(tell):
        yield


def export_summary(report: ExportReport) -> dict[str, Any]:
    """What a program wants to know of an export."""
    return {
        "path": str(report.path),
        "size_bytes": report.size,
        "seconds": report.seconds,
        "steps": {"kept": len(report.found), "made": len(report.made)},
        "graphs": {name: plain_from(graph.parity) for name, graph in report.graphs.items()},
        "banks": {
            name: {"views": bank.views, "size_bytes": bank.size, "ceiling": plain_from(bank.ceiling)}
            for name, bank in report.banks.items()
        },
        "rejection": plain_from(report.rejections),
        "int8": {entry.graph: entry.int8.verdict for entry in report.variants if entry.int8},
        "refused": {entry.graph: entry.refused for entry in report.variants if entry.refused},
        "held_back": {entry.graph: entry.held_back for entry in report.variants if entry.held_back},
        "verification": plain_from(report.verification),
        "engines": [plain_from(engine) | {"path": str(engine.path)} for engine in report.engines],
    }


def show_export(report: ExportReport, then: Sequence[str] | None = None) -> None:
    """Graphs with their parity, banks, the file, and what to try next (`then`, if given)."""
    graphs = [
        (name, str(g.nodes), f"{g.size / BYTES_PER_MB:.1f}", f"{g.parity.worst:.1e}", g.parity.against)
        for name, g in report.graphs.items()
    ]
    _table("graphs", ("name", "nodes", "MB", "worst relative difference to PyTorch", "run on"), graphs)
    banks = [
        (name, str(b.views), f"{b.places} x {b.channels}", f"{b.size / BYTES_PER_MB:.1f}",
         *(map(_at_best, (b.ceiling.amodal, b.ceiling.visible)) if b.ceiling else ("-", "-")))
        for name, b in report.banks.items()
    ]  # fmt: skip
    columns = ("name", "views", "descriptor", "MB", "perfect retrieval would give", "with a part hidden")
    _table("banks", columns, banks)
    _show_rejection(report)
    _show_precision(report)
    _show_engines(report.engines)
    _line(f"wrote [bold]{report.path}[/], {report.size / BYTES_PER_MB:.1f} MB in {report.seconds:.1f} s")
    if report.found:
        _line(f"{len(report.found)} of {len(report.found) + len(report.made)} steps were kept from an earlier export")
    boxes = "" if report.manifest.detector else " --boxes BOXES.json"
    tips = [f"posekit inspect {report.path}", f"posekit run {report.path} FRAMES --camera CAM.json{boxes}"]
    _next(tips if then is None else then)


def _show_rejection(report: ExportReport) -> None:
    """The score below which each object's pose is no answer, or why there is none."""
    rows = [
        (path, object_id, f"{r.threshold:.3f}", f"{r.false_accept_rate:.1%} of {r.n_negative}",
         f"{r.false_reject_rate:.1%} of {r.n_positive}", told.of)
        for path, told in report.rejections.items()
        for object_id, r in told.thresholds.items()
    ]  # fmt: skip
    if rows:
        columns = ("path", "object", "score below", "lets through others", "refuses its own", "frames")
        _table("poses refused by their score", columns, rows)
    for path, told in report.rejections.items():
        for object_id, why in told.undecided.items():
            _line(f"{path}, object {object_id}: no score threshold ({why})")


def show_plan(plan: ExportPlan, recipe: Path, output: Path, engine: str | None) -> None:
    """Every step with its size, which of them are kept, and the command that does it."""
    rows = [
        (step.name, "-" if step.size_bytes is None else f"{'' if step.exact else 'about '}{step.size_bytes / BYTES_PER_MB:.1f}",
         "kept" if step.kept else "to do", "-" if step.seconds is None else f"{step.seconds:.1f}", step.note)
        for step in plan.steps
    ]  # fmt: skip
    _table("plan", ("step", "MB", "state", "took s", ""), rows)
    crops = f", verified on {plan.crops} crops" if plan.crops else ""
    _line(f"about {plan.size_bytes / BYTES_PER_MB:.0f} MB{crops}; steps are kept in {plan.cache}. Nothing was made.")
    _next([f"posekit export {recipe} -o {output}" + (f" --engine {engine}" if engine else "")])


def _show_precision(report: ExportReport) -> None:
    """What every variant costs and gives, and the sentence on INT8 for each graph."""
    if report.verification is None:
        return
    from rich.markup import escape

    from posekit.export.precision.pareto import COLUMNS, pareto_points, table_rows

    _table(
        "precision (* Pareto-optimal, in brackets not in the bundle)",
        COLUMNS,
        table_rows(pareto_points(report.variants)),
    )
    for sentence in (sentence for entry in report.variants for sentence in entry.sentences):
        _line(escape(sentence))
    _show_verdicts(report.verification)


def _show_engines(engines: Sequence[CompiledEngine]) -> None:
    rows = [
        (e.graph, e.precision, f"SM{e.compute_capability}", f"{e.seconds:.1f}", f"{e.size_bytes / BYTES_PER_MB:.1f}",
         ", ".join(f"{count} {kind}" for kind, count in e.kernels.items()), str(e.path or e.reason))
        for e in engines
    ]  # fmt: skip
    columns = ("graph", "precision", "GPU", "build s", "MB", "products", "plan")
    _table("engines of TensorRT-RTX, kernels as the graphs say", columns, rows)


def bank_summary(request: BankRequest, built: BuiltBanks) -> dict[str, Any]:
    """What a program wants to know of banks that were built."""
    banks = {
        path: {"views": bank.views, "places": bank.places, "channels": bank.channels, "bank_bytes": bank.size,
               "ceiling": plain_from(bank.ceiling), "self_check": plain_from(built.checks.get(path))}
        for path, bank in built.banks.items()
    }  # fmt: skip
    return {"path": str(request.output), "object_id": request.object_id, "told": list(built.told), "banks": banks}


def show_bank(request: BankRequest, built: BuiltBanks) -> None:
    """Size of the banks, what their poses can be at best, the file, and what to try next."""
    for path, bank in built.banks.items():
        shape = f"{bank.views} views of {bank.places} x {bank.channels}, {bank.size / BYTES_PER_MB:.1f} MB"
        _line(f"object {request.object_id}, path {path}: {shape}")
        if bank.ceiling:
            _line(f"perfect retrieval would give {_at_best(bank.ceiling.amodal)} with boxes of the whole object, "
                  f"{_at_best(bank.ceiling.visible)} with a part hidden")  # fmt: skip
        if path in built.checks:
            check = built.checks[path]
            _line(
                f"self-check: {check.found:.0%} of {check.n} unseen views found to 15 deg beyond the nearest view, p50 {check.rotation_p50_deg:.1f} deg"
            )
    for sentence in built.told:
        _line(sentence)
    _line(f"wrote [bold]{request.output}[/]")
    if request.output.suffix == ".safetensors":
        _next([f"posekit run {request.bundle} FRAMES --bank {request.object_id}={request.output}"])
    else:
        _next([f"posekit inspect {request.output}"])


def _at_best(figures: CeilingFigures) -> str:
    return f"{figures.recall_add:.0%} ADD 0.1 d (p50 {figures.rotation_p50_deg:.1f} deg, {figures.translation_p50_mm:.0f} mm)"


def counted(count: int, noun: str) -> str:
    """ "1 pose", "2 poses"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def show_run(request: RunRequest, outcome: RunOutcome) -> None:
    """Counts, what ran where, time per stage, accuracy, files, and what to try next."""
    _line(f"[bold]{counted(outcome.n_estimates, 'pose')}[/] in {counted(outcome.n_frames, 'frame')}")
    if outcome.reasons:
        counts = ", ".join(f"{count} {reason}" for reason, count in outcome.reasons.items())
        _line(f"{counted(outcome.n_detections - outcome.n_estimates, 'detection')} without a pose: {counts}")
    if outcome.left_out:
        counts = ", ".join(f"{count} of object {object_id}" for object_id, count in outcome.left_out.items())
        _line(f"boxes left out, of objects that path {outcome.path} does not know: {counts}")
    _line(f"path [bold]{outcome.path}[/] on {'; '.join(outcome.backends)}")
    times = [(name, f"{t.p50_ms:.2f}", f"{t.p95_ms:.2f}", str(t.n)) for name, t in outcome.timings.items()]
    _table("time per frame, wall clock, first frame included", ("stage", "p50 ms", "p95 ms", "frames"), times)
    if outcome.accuracy:
        show_accuracy(outcome.accuracy)
    for path in outcome.written:
        _line(f"wrote [bold]{path}[/]")
    _next(_after_run(request, outcome))


def show_demo(report: ExportReport, request: RunRequest, outcome: RunOutcome) -> None:
    """The export, every pose with its error, and the run."""
    show_export(report, then=[])
    show_poses(outcome, {entry.id: entry.name for entry in report.manifest.objects})
    show_run(request, outcome)


def show_poses(outcome: RunOutcome, names: Mapping[int, str]) -> None:
    """One row per true object: how far its estimate is off, or that there is none."""
    rows = []
    for entry in outcome.scores:
        score, errors = entry.score, entry.score.errors
        visible = "-" if score.visible_fraction is None else f"{score.visible_fraction:.0%}"
        figures = (
            (f"{degrees(errors.rotation_rad):.1f}", f"{errors.translation_m * 1e3:.1f}", f"{errors.add_m * 1e3:.1f}")
            if errors
            else ("not found", "-", "-")
        )
        rows.append((entry.frame, names[score.object_id], visible, *figures, "yes" if score.correct_add else "no"))
    columns = ("frame", "object", "visible", "rot deg", "trans mm", "ADD mm", "within 0.1 d")
    _table("poses against the truth", columns, rows)


def show_verification_json(found: Verification) -> None:
    """One JSON object on stdout."""
    from posekit.export.verify.report import json_from_verification

    print(json_from_verification(found), end="")


def show_verification(found: Verification, request: VerifyRequest) -> None:
    """The table of variants, every gate that is not held in a sentence, the reports, and what to do next."""
    _show_verdicts(found)
    for path in request.written:
        _line(f"wrote [bold]{path}[/]")
    _next(_after_verification(found, request))


def _after_verification(found: Verification, request: VerifyRequest) -> list[str]:
    again = f"posekit verify {request.bundle}"
    steps = {
        "missed": f"posekit lint {request.bundle}    what targets refuse in the files",
        "undecided": f"{again} MORE_FRAMES    what the undecided gates need stands above",
        "held": f"posekit bench {request.bundle} {request.source}    what the variants give in time",
    }
    return [
        *([] if request.reports else [f"{again} {request.source} -o report    keep the report"]),
        steps[found.outcome],
    ]


def _show_verdicts(found: Verification) -> None:
    from posekit.export.verify.report import WORDS, box_table, pose_table, reading, sentences

    _table("variants against fp32", *pose_table(found))
    _table("the detector against fp32", *box_table(found))
    colours = {"missed": "[red]missed[/]", "undecided": "[yellow]undecided[/]"}
    for word, sentence in sentences(found):
        _line(f"{colours.get(word, word)}: {sentence}")
    _line(reading(found))
    _line(f"verdict: [bold]{WORDS[found.outcome]}[/]")


def show_bundle(manifest: Manifest, where: str) -> None:
    """Objects, graphs, paths, members and provenance of a bundle."""
    from rich.markup import escape

    size = sum(member.size for member in manifest.files.values())
    _line(
        f"[bold]{manifest.name}[/], system {manifest.system}, {size / BYTES_PER_MB:.1f} MB in {len(manifest.files)} members, all verified"
    )
    objects = [(str(o.id), o.name, f"{o.diameter_m * 1000:.1f}", _symmetry(o)) for o in manifest.objects]
    _table("objects", ("id", "name", "diameter mm", "symmetry"), objects)
    graphs = [
        (
            name,
            g.role,
            " ".join(p + " (held back)" * (p in g.held_back) for p in g.variants),
            "\n".join(map(str, g.inputs)),
            "\n".join(map(str, g.outputs)),
        )
        for name, g in manifest.graphs.items()
    ]
    _table("graphs", ("name", "role", "precisions", "inputs", "outputs"), graphs)
    for name, entry in manifest.graphs.items():
        for precision, why in entry.held_back.items():
            _line(escape(f"{name} {precision} is held back, it runs only when asked for: {why}"))
    paths = [
        (name + " (default)" * (name == manifest.default_path), p.kind, p.graph, " ".join(map(str, p.object_ids)),
         f"{p.crop.rule} {p.crop.written_size}")
        for name, p in manifest.paths.items()
    ]  # fmt: skip
    _table("paths", ("name", "kind", "graph", "objects", "crop"), paths)
    members = [(name, f"{m.size / BYTES_PER_MB:.2f}", m.sha256[:12]) for name, m in manifest.files.items()]
    _table("members", ("name", "MB", "sha256"), members)
    _table("provenance", ("what", "value"), list(manifest.provenance.items()))
    boxes = "" if manifest.detector else " --boxes BOXES.json"
    _next([f"posekit run {where} FRAMES --camera CAM.json{boxes} -o poses.jsonl --overlay overlays"])


def show_rows(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, then: Sequence[str] = ()) -> None:
    """Any table, and what to try next."""
    _table(title, columns, rows)
    _next(then)


def show_accuracy(accuracy: Accuracy) -> None:
    """One row per object, and the totals."""
    columns = (
        "object",
        "true",
        "found",
        "ADD(-S) 0.1d",
        "AR MSSD",
        "AR MSPD",
        "rot p50 deg",
        "trans p50 mm",
        "boxes found",
    )
    summary = (accuracy.total, *((accuracy.unoccluded,) if accuracy.unoccluded else ()))
    rows = [_accuracy_row(row) for row in (*accuracy.per_object, *summary)]
    _table("accuracy (recalls over all true objects, medians over found ones, symmetry-aware)", columns, rows)


def _accuracy_row(row: ObjectAccuracy) -> tuple[str, ...]:
    shares = (f"{share:.1%}" for share in (row.recall_add, row.ar_mssd, row.ar_mspd))
    medians = (_number(value) for value in (row.rotation_p50_deg, row.translation_p50_mm))
    boxes = "-" if row.detection_recall is None else f"{row.detection_recall:.1%}"
    return row.name, str(row.n_true), str(row.n_matched), *shares, *medians, boxes


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _symmetry(entry: Any) -> str:
    kinds = {"discrete": len(entry.symmetries_discrete), "continuous": len(entry.symmetries_continuous)}
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count) or "none"


def _after_run(request: RunRequest, outcome: RunOutcome) -> list[str]:
    run = f"posekit run {request.bundle} {request.source}"
    tips = [] if outcome.written else [f"{run} -o poses.jsonl --overlay overlays    keep poses and pictures"]
    return [*tips, f"posekit inspect {request.bundle}    what is in the bundle"]


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.table import Table

    rows = [tuple(row) for row in rows]
    if not rows:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(
            column, justify="right" if all(_is_number(row[i]) for row in rows) else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    _line(f"\n[bold]{title}[/]")
    _console().print(table, markup=False)


def _is_number(text: str) -> bool:
    return text == "-" or text.removesuffix("%").replace(".", "", 1).isdecimal()


def _next(commands: Sequence[str]) -> None:
    for command in commands:
        _console().print(f"next: {command}", style="dim", markup=False, soft_wrap=True, highlight=False)


def _line(text: str) -> None:
    _console().print(text, soft_wrap=True, highlight=False)


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
