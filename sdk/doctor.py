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
  "member"; absent where nothing loads), "reasons" (a sentence per backend that it looks at, in order), and "loads", one
  row per variant and backend: "graph", "precision", "backend", "status", "found", "remedy", "engine". Status: loads; builds: the first run builds its engine; refused: the backend
  works and does not take this graph; absent, broken: as the check of the backend; not-offered: posekit does not run this
  precision there. "engine": "state" cached, to-build or foreign, its "digest" and "path", and how many "others" there
  are for other GPUs or versions. "paths": path -> whether it runs here; "detector" likewise.
- "next": commands to try, the first one first.

Exit codes: 0 can_run, 3 not, 2 the bundle is damaged or no bundle.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

from posekit import __version__
from posekit.runtime.backends import AUTO_ORDER, BACKENDS
from posekit.runtime.bundle import Bundle
from posekit.runtime.cuda import PROVIDERS
from posekit.runtime.cuda.cuda_python import REMEDY_DRIVER
from posekit.runtime.cuda.driver import Device
from posekit.runtime.engines.cache import CacheEntry, EngineCache
from posekit.runtime.errors import PosekitError
from posekit.runtime.machine import Machine, machine_from_root
from posekit.runtime.manifest import GraphEntry, Manifest, Precision
from posekit.trial import TRIALS, Engine, Loading, Outcome, Status, foreign, tried, variants_for

SCHEMA = 1
AT_ONCE = 2  # trials side by side: more would need more memory than a small board has
NEEDS_GPU = (*PROVIDERS, "tensorrt", "tensorrt-rtx", "onnxruntime-cuda")
OLDEST_PYTHON = (3, 10)
LoadStatus = Literal["loads", "builds", "refused", "absent", "broken", "not-offered"]
Result = tuple[Outcome, tuple[Loading, ...]]
Trial = Callable[..., Result]
Update = Callable[[int, int], None]

# Whose version it is, by the names that a package index has for it.
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "numpy": ("numpy",),
    "opencv": ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
    "cuda-bindings": ("cuda-bindings",),
    "pycuda": ("pycuda",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
    "onnxruntime-cuda": ("onnxruntime-gpu",),
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
}


@dataclass(frozen=True)
class Check:
    """One row of the table. See the module's page."""

    code: str
    status: Status
    found: str
    version: str | None = None
    remedy: str | None = None


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
    """auto: None when nothing loads.  reasons: one sentence per backend that "auto" looks at, the chosen one last."""

    role: str
    loads: tuple[Load, ...]
    auto: Choice | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class BundleDiagnosis:
    """detector: whether the bundle's own detector runs here, None when it has none."""

    path: str
    name: str
    default_path: str
    graphs: dict[str, GraphDiagnosis]
    paths: dict[str, bool]
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
    entries, cache_check = _engine_cache()
    gpu = next((outcome.gpu for outcome, _ in results.values() if outcome.gpu), None)
    driver = _driver(machine, gpu, [results[name][0] for name in PROVIDERS])
    checks = (
        _python(machine),
        Check("numpy", "ok", f"NumPy {metadata.version('numpy')}", metadata.version("numpy")),
        _library("opencv", results["opencv"][0], driver),
        driver,
        *(_library(name, results[name][0], driver) for name in (*PROVIDERS, *BACKENDS)),
        cache_check,
        _export_tools(),
    )
    by_code = {check.code: check for check in checks}
    bundled = None
    if manifest is not None:
        loadings = [(name, one) for name in BACKENDS for one in results[name][1]]
        bundled = _bundle(str(path), manifest, by_code, loadings, entries)
    runs = by_code["opencv"].status == "ok" and any(by_code[name].status == "ok" for name in BACKENDS)
    can_run = runs and (bundled is None or bundled.paths[bundled.default_path])
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


def _python(machine: Machine) -> Check:
    new_enough = tuple(int(n) for n in machine.python.split(".")[:2]) >= OLDEST_PYTHON
    oldest = ".".join(map(str, OLDEST_PYTHON))
    remedy = None if new_enough else f"Make a virtual environment with Python {oldest} or later."
    return Check("python", "ok" if new_enough else "broken", f"Python {machine.python}", machine.python, remedy)


def _driver(machine: Machine, gpu: Device | None, outcomes: Sequence[Outcome]) -> Check:
    """ok when a GPU was opened. Without one: broken where NVIDIA's kernel module or a Jetson is there, else absent."""
    version = machine.nvidia_driver
    if gpu is not None:
        name = f"{gpu.name} (SM{gpu.sm}), {gpu.memory_bytes / 2**30:.1f} GiB, CUDA {gpu.driver_version}"
        return Check("cuda-driver", "ok", f"driver {version}, {name}" if version else name, version)
    if version is None and machine.jetson is None:
        return Check("cuda-driver", "absent", "no NVIDIA driver on this machine", remedy=REMEDY_DRIVER)
    tried_ones = [outcome for outcome in outcomes if outcome.status == "broken"]
    if not tried_ones:  # nothing to open it with
        return Check(
            "cuda-driver",
            "absent",
            f"driver {version or 'unknown'}; nothing to reach it by",
            version,
            outcomes[0].remedy,
        )
    found = f"driver {version or 'unknown'}, and no GPU can be opened: {tried_ones[0].found}"
    return Check("cuda-driver", "broken", found, version, _container_hint(tried_ones[0]))


def _container_hint(outcome: Outcome) -> str:
    inside = any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))
    hint = " In a container: start it with --gpus all (Jetson: --runtime nvidia)." if inside else ""
    return f"{outcome.remedy}{hint}"


def _library(code: str, outcome: Outcome, driver: Check) -> Check:
    """What needs a GPU is not broken where there is none."""
    version = _version(DISTRIBUTIONS[code])
    if outcome.status == "broken" and code in NEEDS_GPU and driver.status == "absent":
        return Check(code, "absent", f"{version or 'a version'} is installed; {driver.found}", version, driver.remedy)
    return Check(code, outcome.status, outcome.found, version, outcome.remedy)


def _version(distributions: Iterable[str]) -> str | None:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _engine_cache() -> tuple[tuple[CacheEntry, ...], Check]:
    """What is in it; broken when engines could not be kept."""
    try:
        cache = EngineCache()
        entries = cache.entries()
    except (PosekitError, OSError) as error:
        remedy = error.remedy if isinstance(error, PosekitError) else "Set POSEKIT_CACHE to a folder of your own."
        return (), Check("engine-cache", "broken", str(error), remedy=remedy)
    there = next(folder for folder in (cache.folder, *cache.folder.parents) if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        remedy = "Set POSEKIT_CACHE to a folder that can be written, or every run builds its engines again."
        return entries, Check("engine-cache", "broken", f"{cache.folder} cannot be written", remedy=remedy)
    size_mb = sum(entry.size for entry in entries) / 1e6
    count = f"{len(entries)} engine{'' if len(entries) == 1 else 's'}"
    return entries, Check("engine-cache", "ok", f"{count}, {size_mb:.0f} MB, in {cache.folder}")


def _export_tools() -> Check:
    """Everything that posekit[export] names, by package; nothing is imported, torch would take seconds."""
    remedy = "pip install 'posekit[export]'"
    try:
        wanted = metadata.requires("posekit") or []
    except metadata.PackageNotFoundError:
        return Check("export-tools", "broken", "posekit itself is not installed", remedy=remedy)
    lines = [line for line in wanted if re.search(r"extra == .export.", line) and "python_version" not in line]
    names = [match[0] for match in (re.match(r"[A-Za-z0-9._-]+", line) for line in lines) if match]
    versions = {name: _version((name,)) for name in names if name != "posekit"}
    lacking = [name for name, version in versions.items() if version is None]
    if lacking:
        return Check("export-tools", "absent", f"without {', '.join(lacking)}", remedy=remedy)
    shown = ", ".join(f"{name} {versions[name]}" for name in ("torch", "onnx") if name in versions)
    return Check("export-tools", "ok", f"{shown} and {len(versions) - 2} more", versions.get("torch"))


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
        one = found.get((backend, graph, precision))
        if one is None:  # broken before or at this variant
            return here("broken", row.found, row.remedy)
        return here(one.status, one.found, one.remedy, one.engine)

    graphs = {}
    for name, entry in manifest.graphs.items():
        loads = tuple(load(name, precision, backend) for precision in entry.variants for backend in BACKENDS)
        auto, reasons = auto_choice(entry, loads)
        graphs[name] = GraphDiagnosis(entry.role, loads, auto, reasons)
    cropping = checks["opencv"].status == "ok"

    def runs(*names: str | None) -> bool:
        return cropping and all(graphs[name].auto is not None for name in names if name is not None)

    paths = {name: runs(one.graph, one.matcher) for name, one in manifest.paths.items()}
    detector = runs(manifest.detector.graph) if manifest.detector else None
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
        precision = next((p for p in precisions if p in entry.variants), None)
        if precision is None:
            reasons.append(f"{backend}: no variant in {' or '.join(precisions)}.")
            continue
        load = by_place[backend, precision]
        reasons.append(f"{backend}: {load.found}.")
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
