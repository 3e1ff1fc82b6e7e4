"""The command line: parse, one call, render. Heavy imports stay inside the commands; --help loads none."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from posekit.runtime.errors import BackendError, ClockError, GateError, OutputError, PosekitError

GATE_MISSED, INVALID_INPUT, ENVIRONMENT = 1, 2, 3
LINT_ERRORS = 1
# What a missing module needs; cv2 and onnxruntime come as system packages on some devices.
EXTRAS = {
    "cv2": "onnx", "onnxruntime": "onnx", "openvino": "openvino", "tensorrt": "tensorrt", "torch": "export",
    "onnx": "export", "scipy": "bank", "trimesh": "bank", "PIL": "bank", "safetensors": "export", "embreex": "export",
}  # fmt: skip


class Boundary(TyperGroup):
    """Where errors end: one message and an exit code, never a traceback for what posekit foresaw."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with _warnings_shown(), _builds_shown():
                return super().invoke(ctx)
        except PosekitError as error:
            raise _exit(error) from error
        except KeyboardInterrupt as error:
            raise _exit(_stopped()) from error
        except ModuleNotFoundError as error:
            if error.name not in EXTRAS:
                raise
            raise _exit(_missing(error.name)) from error


def _exit(error: PosekitError) -> typer.Exit:
    from posekit.render import show_error

    show_error(error)
    codes = {GateError: GATE_MISSED, BackendError: ENVIRONMENT, ClockError: ENVIRONMENT}
    return typer.Exit(next((code for kind, code in codes.items() if isinstance(error, kind)), INVALID_INPUT))


def _stopped() -> PosekitError:
    return OutputError(
        "posekit",
        got="a stop (Ctrl-C)",
        expected="the end of the command",
        remedy="What it should have replaced is unchanged. Run it again.",
    )


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """A posekit warning is one line on stderr, without the place in the code."""
    from posekit.render import show_warning

    with warnings.catch_warnings():
        python_shows = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
            if category.__module__.startswith("posekit."):
                show_warning(str(message))
            else:
                python_shows(message, category, *place, **rest)

        warnings.showwarning = show
        yield


def _builds_shown() -> Any:
    from posekit.render import builds_shown

    return builds_shown()


def _missing(module: str) -> BackendError:
    return BackendError(
        f"package {module}",
        got="not installed",
        expected="it for this command",
        remedy=f"pip install 'posekit[{EXTRAS[module]}]'",
    )


app = typer.Typer(
    cls=Boundary,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="6D object pose on the edge: trained models to verified bundles, bundles to poses.",
)
bank_app = typer.Typer(no_args_is_help=True, help="Template banks: views of an object as its embedder sees them.")
app.add_typer(bank_app, name="bank")

BundlePath = Annotated[Path, typer.Argument(metavar="X.posekit", help="The bundle.", show_default=False)]
PrecisionName = Literal["fp32", "fp16", "int8"]
CameraFile = Annotated[
    Path | None,
    typer.Option(help="Intrinsics: JSON, OpenCV, ROS, RealSense or Kalibr file; a BOP data set brings its own."),
]
BoxesFrom = Annotated[
    str | None, typer.Option(help="Box file (JSON), or gt or gt-amodal for true boxes. Default: the detector.")
]
PathName = Annotated[str | None, typer.Option(help="Pose path. Default: the bundle's own.")]
BackendName = Annotated[str, typer.Option(help="auto, or a backend by name.")]
WantedPrecision = Annotated[PrecisionName | None, typer.Option(help="Default: what the backend prefers.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of tables.")]


class Unit(str, Enum):
    """What one unit of a mesh's coordinates is."""

    m = "m"
    cm = "cm"
    mm = "mm"
    inch = "inch"


class Difference(str, Enum):
    """What may differ, if asked, between two sides of a comparison."""

    machine = "machine"
    bundle = "bundle"
    settings = "settings"
    invalid = "invalid"


def _version(wanted: bool) -> None:
    if wanted:
        from posekit import __version__

        typer.echo(f"posekit {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """6D object pose on the edge: trained models to verified bundles, bundles to poses."""


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where to work.")] = Path("posekit-demo"),
    variants: Annotated[
        bool, typer.Option("--variants", help="Also fp16 and int8 of every network, verified: some minutes more.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Export the reference models, run them on rendered scenes, show poses, errors and latency."""
    from posekit import render
    from posekit.sequence import RunRequest, run_sequence

    with render.stages() as update:
        from posekit.export.pipeline import export_recipe
        from posekit.export.recipe import recipe_from_toml
        from posekit.export.reference.demo import write_demo

        written = write_demo(folder, update, variants=variants)
        report = export_recipe(recipe_from_toml(written.recipe), folder / "reference.posekit", update)
    request = RunRequest(
        report.path, str(written.scenes), results=folder / "poses.jsonl", overlays=folder / "overlays", score=True
    )
    with render.progress("estimating") as advance:
        outcome = run_sequence(request, advance)
    render.show_json(outcome) if json else render.show_demo(report, request, outcome)


@app.command()
def run(
    bundle: BundlePath,
    source: Annotated[
        str, typer.Argument(help="Image, folder, video, camera index or BOP data set.", show_default=False)
    ],
    camera: CameraFile = None,
    boxes: BoxesFrom = None,
    path: PathName = None,
    backend: BackendName = "auto",
    precision: WantedPrecision = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Poses: .jsonl, or .csv for BOP.")] = None,
    overlay: Annotated[Path | None, typer.Option(help="Folder for frames with poses drawn on them.")] = None,
    gt: Annotated[bool, typer.Option("--gt", help="Score against the data set's ground truth.")] = False,
    max_frames: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    bank: Annotated[
        list[str] | None, typer.Option(metavar="ID=FILE", help="A bank instead of the bundle's own, repeatable.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Estimate poses in frames."""
    from posekit import render
    from posekit.sequence import RunRequest, banks_from, run_sequence

    request = RunRequest(
        bundle, source, camera, boxes, path, backend, precision, output, overlay, gt, max_frames, banks_from(bank or ())
    )
    with render.progress("estimating") as update:
        outcome = run_sequence(request, update)
    render.show_json(outcome) if json else render.show_run(request, outcome)


@app.command()
def export(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What to export, and how.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", help="The bundle to write.", show_default=False)],
    engine: Annotated[
        Literal["rtx"] | None, typer.Option(help="Also compile fp16 and int8 graphs ahead of time, into the cache.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and check everything, make nothing: the plan.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Export trained networks, template banks and objects into one bundle, every variant verified.

    Steps are kept in posekit's cache (POSEKIT_CACHE): what was stopped goes on, what is unchanged is not made again.
    """
    from posekit import render

    with render.stages() as update:
        from posekit.export.pipeline import export_recipe
        from posekit.export.plan import planned
        from posekit.export.recipe import recipe_from_toml

        if dry_run:
            plan = planned(recipe_from_toml(recipe), update, engines=engine is not None)
        else:
            report = export_recipe(recipe_from_toml(recipe), output, update, engines=engine is not None)
    if dry_run:
        render.show_json(plan) if json else render.show_plan(plan, recipe, output, engine)
        return
    render.show_json(render.export_summary(report)) if json else render.show_export(report)


@app.command()
def verify(
    bundle: BundlePath,
    source: Annotated[
        str, typer.Argument(help="Recorded frames: image folder, video or BOP data set.", show_default=False)
    ],
    camera: CameraFile = None,
    boxes: Annotated[str, typer.Option(help="Box file (JSON), or gt or gt-amodal for true boxes.")] = "gt",
    max_crops: Annotated[int, typer.Option(min=1, help="Spread evenly over the source.")] = 256,
    backend: Annotated[list[str] | None, typer.Option(help="By name, repeatable. Default: all at hand.")] = None,
    gate: Annotated[list[str] | None, typer.Option(help="NAME=LIMIT, repeatable, over the defaults.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for the reports.")] = None,
    json: AsJson = False,
) -> None:
    """Compare every variant of a bundle with fp32, in degrees and millimetres, on real crops.

    Needs 32 boxes per path, better 64, whose poses stand firm, from 8 frames or more. Exit code 1: a gate is missed. 2: the
    frames cannot decide one.
    """
    from posekit import render

    with render.stages() as update:
        from posekit.verification import VerifyRequest, run_verification

        names, gates = tuple(backend or ()), tuple(gate or ())
        request = VerifyRequest(bundle, source, boxes, camera, max_crops, names, gates, output)
        found = run_verification(request, update)
    render.show_verification_json(found) if json else render.show_verification(found, request)
    if found.outcome != "held":
        raise typer.Exit(GATE_MISSED if found.outcome == "missed" else INVALID_INPUT)


@app.command()
def bench(
    bundle: BundlePath,
    source: Annotated[
        str, typer.Argument(help="Real frames: image folder, video, camera index or BOP data set.", show_default=False)
    ],
    camera: CameraFile = None,
    boxes: BoxesFrom = None,
    path: PathName = None,
    backend: BackendName = "auto",
    precision: WantedPrecision = None,
    frames: Annotated[
        int | None,
        typer.Option(min=1, help="Per mode, each another. Default: 200, and where there are fewer they repeat."),
    ] = None,
    repeat: Annotated[
        bool, typer.Option("--repeat", help="Frames may repeat although --frames asks for so many; the result says so.")
    ] = False,
    paced: Annotated[float | None, typer.Option(metavar="HZ", help="Also as a camera of this rate would.")] = None,
    objects: Annotated[
        str | None, typer.Option(metavar="N,N", help="Also with so many boxes per frame: 1,2,4,8,16.")
    ] = None,
    pipelined: Annotated[
        bool, typer.Option("--pipelined", help="Also overlapping consecutive frames, against one after the other.")
    ] = False,
    mlperf: Annotated[
        bool, typer.Option("--mlperf", help="Also SingleStream and Offline style: 1024 frames and 10 minutes each.")
    ] = False,
    minutes: Annotated[float | None, typer.Option(help="Also a soak: first against last minute.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Evidence folder. Default: a new one, here.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Measure detector to pose, stage by stage, with the machine watched. Exit code 2: the run is INVALID."""
    import shlex
    import sys

    from posekit import bench_view, render
    from posekit.bench import BenchRequest, objects_from, run_bench
    from posekit.benchmarks.bench.plan import DEFAULT_FRAMES, Plan

    soak_s = None if minutes is None else minutes * 60
    counts = objects_from(objects) if objects else ()
    repeats = repeat or frames is None or mlperf or soak_s is not None
    plan = Plan(frames or DEFAULT_FRAMES, repeats, paced, counts, pipelined, mlperf, soak_s)
    command = shlex.join(["posekit", *sys.argv[1:]])
    request = BenchRequest(bundle, source, plan, camera, boxes, path, backend, precision, output, command)
    # No bar while measuring: what draws it would take the processor from what is measured.
    result, folder = run_bench(request, lambda line: print(line, file=sys.stderr, flush=True))
    render.show_json(bench_view.bench_summary(result, folder)) if json else bench_view.show_bench(result, folder)
    if not result.valid:
        raise typer.Exit(INVALID_INPUT)


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Evidence folders, or folders of them.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML page.")] = Path("report.html"),
    markdown: Annotated[Path | None, typer.Option(help="Also as Markdown, for the summary of a CI job.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Also as JUnit XML.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Also this bundle's precision report.")] = None,
    json: AsJson = False,
) -> None:
    """Show benchmark runs side by side on one HTML page that needs nothing else."""
    from posekit import render
    from posekit.benchmarks.bench.report import ReportFiles
    from posekit.report import ReportRequest, report_summary, run_report, show_report

    request = ReportRequest(tuple(folders), ReportFiles(output, markdown, junit), bundle)
    runs = run_report(request)
    render.show_json(report_summary(runs, request)) if json else show_report(runs, request)


@app.command()
def compare(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="Evidence folder, folder of them, or baseline file.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The same, of what is to be judged.")],
    gate: Annotated[
        list[str] | None,
        typer.Option(help='"total.p95<+5%", "rotation.p95<0.5deg", "paced:total.p99<40ms"; repeatable.'),
    ] = None,
    allow: Annotated[list[Difference] | None, typer.Option(help="Compare although this differs, repeatable.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also as Markdown, for the summary of a CI job.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Also as JUnit XML.")] = None,
    json: AsJson = False,
) -> None:
    """Judge NEW against BASE, noise included. Exit code 1: a gate is missed. 2: not comparable, or too noisy to decide."""
    from posekit import render
    from posekit.compare import CompareRequest, comparison_json, run_compare, show_comparison

    request = CompareRequest(base, new, tuple(gate or ()), tuple(d.value for d in allow or ()), markdown, junit)
    found = run_compare(request)
    render.show_json(comparison_json(found)) if json else show_comparison(found, request)
    if found.verdict != "held":
        raise typer.Exit(GATE_MISSED if found.verdict == "missed" else INVALID_INPUT)


@app.command()
def baseline(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Evidence folders of the same thing, or folders of them.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to commit.", show_default=False)],
    json: AsJson = False,
) -> None:
    """Keep several runs as one small file for `posekit compare`."""
    from posekit import render
    from posekit.compare import baseline_summary, run_baseline, show_baseline

    runs = run_baseline(folders, output)
    render.show_json(baseline_summary(runs, output)) if json else show_baseline(runs, output)


@app.command()
def inspect(bundle: BundlePath, json: AsJson = False) -> None:
    """Show what is in a bundle, after verifying every member."""
    from posekit import render
    from posekit.runtime.bundle import Bundle

    with Bundle(bundle) as opened:
        manifest = opened.manifest
    render.show_json(manifest) if json else render.show_bundle(manifest, str(bundle))


@app.command()
def lint(
    graph: Annotated[
        Path, typer.Argument(metavar="X", help="X.onnx, whoever made it, or X.posekit.", show_default=False)
    ],
    target: Annotated[list[str] | None, typer.Option(help="What it shall run on, repeatable. Default: all.")] = None,
    json: AsJson = False,
) -> None:
    """Check graphs against what TensorRT, ONNX Runtime and OpenVINO refuse or silently mis-handle. Exit code 1: errors."""
    from posekit import lint_view, render
    from posekit.export.lint import ALL, checked_targets
    from posekit.export.lint.lint_file import lint_file

    targets = checked_targets(target or ALL)
    graphs = lint_file(graph, targets)
    summary = lint_view.lint_summary(graph, graphs, targets)
    render.show_json(summary) if json else lint_view.show_lint(graph, graphs, targets)
    if summary["errors"]:
        raise typer.Exit(LINT_ERRORS)


@app.command()
def doctor(
    bundle: Annotated[Path | None, typer.Argument(metavar="X.posekit", help="Also what of it loads here.")] = None,
    json: AsJson = False,
) -> None:
    """Try what this machine can run: every backend for real, and every variant of a bundle. Exit code 3: nothing runs."""
    from posekit import doctor_view, render
    from posekit.doctor import diagnose

    with render.progress("trying every backend") as update:
        diagnosis = diagnose(bundle, update)
    render.show_json(diagnosis) if json else doctor_view.show_diagnosis(diagnosis)
    if not diagnosis.can_run:
        raise typer.Exit(ENVIRONMENT)


@app.command()
def systems(json: AsJson = False) -> None:
    """List the published systems that posekit can export."""
    from posekit import render
    from posekit.export.systems import SYSTEMS, system_named

    found = [system_named(name) for name in SYSTEMS]
    rows = [(s.name, s.title, s.source, " ".join(s.paths), f"{s.crop.rule} {s.crop.written_size}") for s in found]
    columns = ("name", "title", "source", "paths", "crop")
    if json:
        render.show_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        render.show_rows("systems", columns, rows, then=["posekit export RECIPE.toml -o X.posekit"])


BankMesh = Annotated[Path, typer.Option(help="Its mesh: PLY, OBJ, STL or GLB.", show_default=False)]
BankUnit = Annotated[Unit, typer.Option(help="Of the mesh.", show_default=False)]
BankSphere = Annotated[
    int | None, typer.Option(help="Directions: 42, 162, 642 or 2562. Default: as the bundle's own banks.")
]
BankSteps = Annotated[int | None, typer.Option(min=1, help="Turns of each direction. Default: as the bundle's own.")]
StatedSymmetry = Annotated[
    list[str] | None,
    typer.Option(help='"none", "z" for any turn about z, "z/4" for quarter turns; repeatable. Default: none.'),
]
ModelsInfo = Annotated[Path | None, typer.Option(help="BOP's models_info.json, which states the symmetry instead.")]


@bank_app.command("build")
def bank_build(
    bundle: BundlePath,
    object_id: Annotated[int, typer.Option("--object", help="Id of the object.", show_default=False)],
    mesh: BankMesh,
    unit: BankUnit,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="A bundle, or X.safetensors for the bank alone. Default: the bundle itself."
        ),
    ] = None,
    path: Annotated[str | None, typer.Option(help="Pose path. Default: the first with a bank of it.")] = None,
    sphere: BankSphere = None,
    in_plane_steps: BankSteps = None,
    replace_model: Annotated[
        bool, typer.Option("--replace-model", help="The mesh is another: replace the object's model and facts too.")
    ] = False,
    symmetry: StatedSymmetry = None,
    models_info: ModelsInfo = None,
    json: AsJson = False,
) -> None:
    """Rebuild one object's bank in a bundle, with the bundle's own embedder. Another object's mesh is refused."""
    from posekit import render

    with render.progress("rendering and embedding views") as update:
        from posekit.bank_build import BankRequest, SymmetryWish, rebuild_bank

        wish = SymmetryWish(tuple(symmetry or ()), models_info)
        request = BankRequest(
            bundle, object_id, mesh, unit.value, output or bundle, sphere, in_plane_steps, path,
            replace_model=replace_model, symmetry=wish,
        )  # fmt: skip
        built = rebuild_bank(request, update)
    render.show_json(render.bank_summary(request, built)) if json else render.show_bank(request, built)


@bank_app.command("add")
def bank_add(
    bundle: BundlePath,
    object_id: Annotated[int, typer.Option("--id", help="A new one.", show_default=False)],
    name: Annotated[str, typer.Option(help="A new one.", show_default=False)],
    mesh: BankMesh,
    unit: BankUnit,
    symmetry: StatedSymmetry = None,
    models_info: ModelsInfo = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: the bundle itself.")] = None,
    sphere: BankSphere = None,
    in_plane_steps: BankSteps = None,
    json: AsJson = False,
) -> None:
    """Add an object to a bundle: its mesh, its facts, and a bank of it, whose own views have to be found again."""
    from posekit import render

    with render.progress("rendering and embedding views, then finding new ones again") as update:
        from posekit.bank_build import BankRequest, SymmetryWish, add_object

        wish = SymmetryWish(tuple(symmetry or ()), models_info)
        request = BankRequest(
            bundle, object_id, mesh, unit.value, output or bundle, sphere, in_plane_steps, name=name, symmetry=wish
        )
        built = add_object(request, update)
    render.show_json(render.bank_summary(request, built)) if json else render.show_bank(request, built)


def main() -> None:
    """Entry point of the `posekit` command."""
    app()
