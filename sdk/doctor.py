"""What this machine can run, proven by running it; for a bundle, which variant loads where, and what mends the rest.

`posekit doctor --json` prints one object. "schema" is 1; a key or code is added without changing it, and changed or
removed only with a new number. Absent keys mean: not there, or not known.

- "machine": processor, memory, system, NVIDIA driver, Jetson (posekit.runtime.machine); "gpu": name, sm, memory_bytes,
  driver_version of CUDA, when a GPU was really opened.
- "checks": rows of "code", "status", "found", "version" of the package, "remedy". Codes: python, numpy, opencv,
  cuda-driver, cuda-bindings, pycuda, the backends tensorrt, tensorrt-rtx, onnxruntime-cuda, openvino, onnxruntime,
  engine-cache, export-tools. Status: ok; absent: not installed, or no GPU for it here; broken: it is there and fails.
- "can_run": OpenCV and a backend are ok; with a bundle, also that its default path runs.
- "bundle": "path", "name", "default_path"; "graphs" with "auto" (what backend "auto" takes: "backend", "precision",
  "member"; absent where nothing loads), "reasons" (a sentence per backend that it looks at, in order), "held_back"
  (precision -> why no backend takes that variant of its own accord; it runs when asked for), and "loads", one
  row per variant and backend: "graph", "precision", "backend", "status", "found", "remedy", "engine". Status: loads; builds: the first run builds its engine; refused: the backend
  works and does not take this graph; absent, broken: as the check of the backend; not-offered: posekit does not run this
  precision there. "engine": "state" cached, to-build or foreign, its "digest" and "path", and how many "others" there
  are for other GPUs or versions. "paths": path -> "runs" and its "graphs"; "detector": whether the bundle's own runs.
- "next": commands to try, the first one first.

Exit codes: 0 can_run, 3 not, 2 the bundle is damaged or no bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from posekit import __version__
from posekit.checks import (
    Check,
    driver_check,
    engine_cache_check,
    export_tools_check,
    library_check,
    numpy_check,
    python_check,
    without_gpu,
)
from posekit.runtime.backends import AUTO_ORDER, BACKENDS, passed_over_for, variants_offered
from posekit.runtime.bundle import Bundle
from posekit.runtime.cuda import PROVIDERS
from posekit.runtime.cuda.driver import Device
from posekit.runtime.engines.cache import CacheEntry
from posekit.runtime.machine import Machine, machine_from_root
from posekit.runtime.manifest import GraphEntry, Manifest, Precision
from posekit.trial import TRIALS, Engine, Loading, Outcome, foreign, tried, variants_for

SCHEMA = 1
AT_ONCE = 2  # trials side by side: more would need more memory than a small board has
LoadStatus = Literal["loads", "builds", "refused", "absent", "broken", "not-offered"]
Result = tuple[Outcome, tuple[Loading, ...]]
Trial = Callable[..., Result]
Update = Callable[[int, int], None]


@dataclass(frozen=True)
class Load:
    """One variant on one backend. See the module's page."""

    graph: str
    precision: Precision
    backend: str
    status: LoadStatus
    found: str
    remedy: str | None = None
    engine: Engine | None = None


@dataclass(frozen=True)
class Choice:
    """What backend "auto" takes for a graph."""

    backend: str
    precision: Precision
    member: str


@dataclass(frozen=True)
class GraphDiagnosis:
    """auto: None when nothing loads.  reasons: one sentence per backend that "auto" looks at, the chosen one last.

    held_back: precision -> why no backend takes that variant of its own accord.
    """

    role: str
    loads: tuple[Load, ...]
    auto: Choice | None
    reasons: tuple[str, ...]
    held_back: dict[Precision, str]


@dataclass(frozen=True)
class PathDiagnosis:
    """runs: every one of its graphs loads somewhere, or builds."""

    runs: bool
    graphs: tuple[str, ...]


@dataclass(frozen=True)
class BundleDiagnosis:
    """detector: whether the bundle's own detector runs here, None when it has none."""

    path: str
    name: str
    default_path: str
    graphs: dict[str, GraphDiagnosis]
    paths: dict[str, PathDiagnosis]
    detector: bool | None


@dataclass(frozen=True)
class Diagnosis:
    """See the module's page."""

    schema: int
    posekit: str
    machine: Machine
    gpu: Device | None
    checks: tuple[Check, ...]
    can_run: bool
    bundle: BundleDiagnosis | None
    next: tuple[str, ...]


def diagnose(
    bundle: Path | None = None,
    update: Update = lambda done, total: None,
    *,
    trial: Trial = tried,
    root: Path = Path("/"),
) -> Diagnosis:
    """Try everything. update: trials done, and all.  trial: how a row of TRIALS is tried.  root: of the machine's files.

    Raises BundleError for a bundle that cannot be read; whatever else is wrong is what the diagnosis says.
    """
    if bundle is None:
        return _diagnosis(None, None, machine_from_root(root), _tried(None, None, trial, update))
    with Bundle(bundle) as opened:
        results = _tried(bundle, opened.manifest, trial, update)
        return _diagnosis(bundle, opened.manifest, machine_from_root(root), results)


def _diagnosis(
    path: Path | None, manifest: Manifest | None, machine: Machine, results: Mapping[str, Result]
) -> Diagnosis:
    entries, cache_check = engine_cache_check()
    gpu = next((outcome.gpu for outcome, _ in results.values() if outcome.gpu), None)
    no_gpu = without_gpu(machine, gpu)
    checks = (
        python_check(machine),
        numpy_check(),
        library_check("opencv", results["opencv"][0], no_gpu),
        driver_check(machine, gpu, [results[name][0] for name in PROVIDERS]),
        *(library_check(name, results[name][0], no_gpu) for name in (*PROVIDERS, *BACKENDS)),
        cache_check,
        export_tools_check(),
    )
    by_code = {check.code: check for check in checks}
    bundled = None
    if manifest is not None:
        loadings = [(name, one) for name in BACKENDS for one in results[name][1]]
        bundled = _bundle(str(path), manifest, by_code, loadings, entries)
    runs = by_code["opencv"].status == "ok" and any(by_code[name].status == "ok" for name in BACKENDS)
    can_run = runs and (bundled is None or bundled.paths[bundled.default_path].runs)
    commands = _next(by_code, bundled, can_run)
    return Diagnosis(SCHEMA, __version__, machine, gpu, checks, can_run, bundled, commands)


def _tried(path: Path | None, manifest: Manifest | None, trial: Trial, update: Update) -> dict[str, Result]:
    """Every row of TRIALS; backends also on the bundle."""

    def one(name: str) -> Result:
        if path is None or manifest is None or name not in BACKENDS:
            return trial(name)
        return trial(name, path, len(variants_for(name, manifest)))

    results: dict[str, Result] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for name, result in zip(TRIALS, pool.map(one, TRIALS), strict=True):
            results[name] = result
            update(len(results), len(TRIALS))
    return results


def _bundle(
    path: str,
    manifest: Manifest,
    checks: Mapping[str, Check],
    loadings: Sequence[tuple[str, Loading]],
    entries: tuple[CacheEntry, ...],
) -> BundleDiagnosis:
    found = {(backend, one.graph, one.precision): one for backend, one in loadings}

    def load(graph: str, precision: Precision, backend: str) -> Load:
        row, here = checks[backend], partial(Load, graph, precision, backend)
        if precision not in BACKENDS[backend].precisions:
            return here("not-offered", f"posekit runs {' and '.join(BACKENDS[backend].precisions)} there")
        if row.status == "absent":
            member = manifest.graphs[graph].variants[precision]
            engine = _unusable_engine(backend, manifest.files[member].sha256, entries)
            return here("absent", row.found, row.remedy, engine)
        unfit = BACKENDS[backend].unfit(precision)
        if unfit is not None:
            return here("refused", unfit, "Run another precision here, or this one on another backend.")
        one = found.get((backend, graph, precision))
        if one is None:  # broken before or at this variant
            return here("broken", row.found, row.remedy)
        return here(one.status, one.found, one.remedy, one.engine)

    graphs = {}
    for name, entry in manifest.graphs.items():
        loads = tuple(load(name, precision, backend) for precision in entry.variants for backend in BACKENDS)
        auto, reasons = auto_choice(entry, loads)
        graphs[name] = GraphDiagnosis(entry.role, loads, auto, reasons, entry.held_back)
    cropping = checks["opencv"].status == "ok"

    def diagnosed(*names: str) -> PathDiagnosis:
        return PathDiagnosis(cropping and all(graphs[name].auto is not None for name in names), names)

    paths = {n: diagnosed(one.graph, *([one.matcher] if one.matcher else [])) for n, one in manifest.paths.items()}
    detector = diagnosed(manifest.detector.graph).runs if manifest.detector else None
    return BundleDiagnosis(path, manifest.name, manifest.default_path, graphs, paths, detector)


def _unusable_engine(backend: str, graph_sha256: str, entries: tuple[CacheEntry, ...]) -> Engine | None:
    """Engines of this graph that lie in the cache although nothing here can open them."""
    flavour = BACKENDS[backend].engine
    count = foreign(flavour, graph_sha256, entries) if flavour else 0
    return Engine("foreign", others=count) if count else None


def auto_choice(entry: GraphEntry, loads: Sequence[Load]) -> tuple[Choice | None, tuple[str, ...]]:
    """What `session_and_choice` takes for this graph, by its own order, and a sentence on each backend before it."""
    by_place = {(load.backend, load.precision): load for load in loads}
    reasons: list[str] = []
    for backend, precisions in AUTO_ORDER:
        precision = next(iter(variants_offered(entry, precisions)), None)
        passed_over = passed_over_for(entry, precisions, precision)
        if precision is None:
            none = f" no variant in {' or '.join(precisions)}."
            reasons.append(f"{backend}:{passed_over or none}")
            continue
        load = by_place[backend, precision]
        reasons.append(f"{backend}: {load.found.rstrip('.')}.{passed_over}")
        if load.status in ("loads", "builds"):
            return Choice(backend, precision, entry.variants[precision]), tuple(reasons)
    return None, tuple(reasons)


def _next(checks: Mapping[str, Check], bundle: BundleDiagnosis | None, can_run: bool) -> tuple[str, ...]:
    """What mends what is missing, then what to do with what is there."""
    if not can_run:
        lacking = [checks["opencv"], checks["onnxruntime"]]
        remedies = [check.remedy for check in lacking if check.status != "ok"]
        refused = (
            [load for graph in bundle.graphs.values() if graph.auto is None for load in graph.loads] if bundle else []
        )
        remedies += [load.remedy for load in refused if load.status == "refused"]
        return tuple(dict.fromkeys(filter(None, remedies)))
    if bundle is None:
        return ("posekit doctor X.posekit    what of a bundle loads here",)
    boxes = " --boxes BOXES.json" if not bundle.detector else ""
    return (*_faster(checks, bundle), f"posekit run {bundle.path} FRAMES --camera CAM.json{boxes}")


def _faster(checks: Mapping[str, Check], bundle: BundleDiagnosis) -> list[str]:
    """OpenVINO is the only backend that gives int8 its speed on a CPU."""
    taken = {graph.auto.backend for graph in bundle.graphs.values() if graph.auto}
    int8 = any(load.precision == "int8" for graph in bundle.graphs.values() for load in graph.loads)
    row = checks["openvino"]
    return [f"{row.remedy}    runs int8 faster"] if int8 and row.status == "absent" and taken == {"onnxruntime"} else []
