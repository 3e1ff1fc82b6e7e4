"""What a bundle contains: the frozen records behind manifest.json, read strictly and written reproducibly."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from posekit.runtime.crop import CropPreset
from posekit.runtime.errors import BundleError, InputError
from posekit.runtime.records import RecordProblem, distinct_keys, plain_from, record_from
from posekit.runtime.tensor import TensorSpec

FORMAT = 1
DEFAULT_CROPS_PER_PASS = (1, 4, 16)  # more go through in several passes
DEFAULT_VIEWS = 642 * 36
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # of objects and networks: members and graphs are called so
MIN_CORRESPONDENCES = 4  # three give up to four poses
DTYPES = (
    "float32", "float16", "float64", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "bool",
)  # fmt: skip
Precision = Literal["fp32", "fp16", "int8"]
Role = Literal["detector", "embedder", "matcher", "pose", "correspondence", "refiner"]
PathKind = Literal["bank", "regressor", "correspondence"]


@dataclass(frozen=True)
class Member:
    """One file of the bundle."""

    size: int
    sha256: str


@dataclass(frozen=True)
class GraphEntry:
    """One graph in one or more precisions. variants: precision -> member name.

    crops_per_pass: fewest, usual and most, which engines are built for; left out: DEFAULT_CROPS_PER_PASS.
    views: most of a bank that a matcher searches, which its engines are built for; left out: DEFAULT_VIEWS.
    held_back: precision -> one sentence why no backend takes that variant of its own accord; it runs when asked for.
    """

    role: Role
    variants: dict[Precision, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    crops_per_pass: tuple[int, int, int] | None = None
    views: int | None = None
    held_back: dict[Precision, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ContinuousSymmetry:
    """Rotation by any angle about `axis` through `offset_m`, both in the object frame."""

    axis: tuple[float, float, float]
    offset_m: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class ObjectEntry:
    """One object. bbox: of the mesh in the object frame.  symmetries_discrete: row-major 4x4, metres, identity left out.

    model: member with `vertices_m` (V, 3) float32, `faces` (F, 3) int32 and `colours` (V, 3) uint8, thinned, for overlays;
    and `points_m` (P, 3) float32, all vertices of the mesh, for error figures.
    """

    id: int
    name: str
    diameter_m: float
    bbox_min_m: tuple[float, float, float]
    bbox_max_m: tuple[float, float, float]
    model: str
    symmetries_discrete: tuple[tuple[float, ...], ...] = ()
    symmetries_continuous: tuple[ContinuousSymmetry, ...] = ()


@dataclass(frozen=True)
class SolverEntry:
    """How correspondences become a pose: method, a row of posekit.runtime.solvers.METHODS, and its options.

    iterations: at most; the search ends as soon as it has seen enough for the share of outliers that it meets.
    reprojection_px: of an inlier at most, in crop pixels.   mask_threshold: probability above which a cell counts.
    """

    method: str = "p3p-ransac"
    iterations: int = 10_000  # enough for nine outliers in ten
    reprojection_px: float = 3.0
    min_correspondences: int = 6
    mask_threshold: float = 0.5

    def __post_init__(self) -> None:
        counts = self.iterations >= 1 and self.min_correspondences >= MIN_CORRESPONDENCES
        if not (counts and self.reprojection_px > 0 and 0 <= self.mask_threshold < 1):
            raise InputError(
                "solver",
                got=str(self),
                expected=f"iterations >= 1, min_correspondences >= {MIN_CORRESPONDENCES}, reprojection_px > 0, "
                "mask_threshold from 0 to below 1",
                remedy="Correct the solver section of the recipe.",
            )


@dataclass(frozen=True)
class Rejection:
    """Below which score an object's pose is no answer, and what that was measured on.

    false_accept_rate: share of n_negative crops of other objects and backgrounds that it lets through.
    false_reject_rate: share of n_positive crops of the object that it refuses.
    """

    threshold: float
    false_accept_rate: float
    false_reject_rate: float
    n_negative: int
    n_positive: int


@dataclass(frozen=True)
class PathEntry:
    """One way from a crop to a pose.

    kind "bank": `graph` is an embedder, `matcher` scores its descriptors against `banks` (object id -> member).
    kind "regressor": `graph` is a pose graph.   kind "correspondence": `graph` ends in dense maps, `solver` follows.
    object_ids: in the order of the graph's `label` input.
    rejection: by object id, of the scores that were calibrated.
    """

    kind: PathKind
    graph: str
    crop: CropPreset
    object_ids: tuple[int, ...]
    matcher: str | None = None
    banks: dict[str, str] = field(default_factory=dict)
    solver: SolverEntry | None = None
    rejection: dict[str, Rejection] = field(default_factory=dict)


@dataclass(frozen=True)
class DetectorEntry:
    """family: a row of posekit.runtime.detector.FAMILIES.  input_wh_px: letterboxed size.

    class_object_ids: the object id per class index, -1 for a class that is no object of this bundle.
    """

    graph: str
    family: str
    input_wh_px: tuple[int, int]
    letterbox_value: int
    class_object_ids: tuple[int, ...]
    score_threshold: float
    iou_threshold: float


@dataclass(frozen=True)
class Manifest:
    """manifest.json. provenance: tool versions, recipe and checkpoint hashes; strings only."""

    format: int
    name: str
    system: str
    provenance: dict[str, str]
    graphs: dict[str, GraphEntry]
    objects: tuple[ObjectEntry, ...]
    paths: dict[str, PathEntry]
    default_path: str
    files: dict[str, Member]
    detector: DetectorEntry | None = None
    reports: dict[str, str] = field(default_factory=dict)


def manifest_from_json(text: str | bytes) -> Manifest:
    """Parse and cross-check. BundleError names the key that does not fit."""
    try:
        value = json.loads(text, object_pairs_hook=distinct_keys)
        if isinstance(value, dict) and value.get("format") != FORMAT:
            raise RecordProblem("Manifest.format", value.get("format"), str(FORMAT))
        manifest = record_from(Manifest, value)
        _cross_check(manifest)
    except RecordProblem as problem:
        raise BundleError(
            f"manifest.json: {problem.where}",
            got=problem.got,
            expected=problem.expected,
            remedy="Export the bundle again with this version of posekit.",
        ) from problem
    except (ValueError, RecursionError, InputError) as error:
        raise BundleError(
            "manifest.json",
            got=str(error)[:200],
            expected="a posekit manifest",
            remedy="The bundle is damaged: copy or export it again.",
        ) from error
    return manifest


def json_from_manifest(manifest: Manifest) -> str:
    """Reproducible text: fixed order of keys, one trailing newline."""
    return json.dumps(plain_from(manifest), indent=1, ensure_ascii=False) + "\n"


def _cross_check(manifest: Manifest) -> None:
    """Every name that one part of the manifest uses is defined by another."""
    ids = {entry.id for entry in manifest.objects}
    for where, name, known in _references(manifest):
        if name not in known:
            raise RecordProblem(where, repr(name), f"one of {sorted(known)[:12]}")
    if len(ids) != len(manifest.objects):
        raise RecordProblem("Manifest.objects", "one id twice", "distinct ids")
    _check_values(manifest, ids)
    for name, path in manifest.paths.items():
        if not set(path.object_ids) <= ids:
            raise RecordProblem(f"Manifest.paths.{name}.object_ids", path.object_ids, f"ids among {sorted(ids)}")
        if path.kind == "bank" and (path.matcher is None or set(path.banks) != {str(i) for i in path.object_ids}):
            raise RecordProblem(f"Manifest.paths.{name}", "no matcher or bank", "a matcher and one bank per object id")
        if path.kind == "correspondence" and path.solver is None:
            raise RecordProblem(f"Manifest.paths.{name}", "no solver", "a solver section")
        if path.kind != "bank" and (path.matcher or path.banks):
            raise RecordProblem(
                f"Manifest.paths.{name}", "a matcher or bank", f"none: a {path.kind} has no use for them"
            )
        if path.kind != "correspondence" and path.solver:
            raise RecordProblem(f"Manifest.paths.{name}", "a solver", f"none: a {path.kind} path has no use for it")
        if not path.rejection.keys() <= {str(i) for i in path.object_ids}:
            raise RecordProblem(f"Manifest.paths.{name}.rejection", sorted(path.rejection), "ids of the path's objects")
        for i, rejection in path.rejection.items():
            if not 0 <= rejection.threshold <= 1:
                where = f"Manifest.paths.{name}.rejection.{i}.threshold"
                raise RecordProblem(where, rejection.threshold, "0 to 1")
        if path.kind == "bank" and "fp32" not in manifest.graphs[path.graph].variants:
            raise RecordProblem(f"Manifest.graphs.{path.graph}.variants", "no fp32", "fp32, which banks are bound to")


def _check_values(manifest: Manifest, ids: set[int]) -> None:
    """What types alone do not say."""
    for name, graph in manifest.graphs.items():
        if not graph.variants:
            raise RecordProblem(f"Manifest.graphs.{name}.variants", "none", f"one of {', '.join(get_args(Precision))}")
        if not set(graph.held_back) < set(graph.variants) or not all(map(str.strip, graph.held_back.values())):
            where = f"Manifest.graphs.{name}.held_back"
            raise RecordProblem(where, graph.held_back, "a sentence for some of the variants, not for all")
        least, usual, most = graph.crops_per_pass or DEFAULT_CROPS_PER_PASS
        if not 1 == least <= usual <= most:
            where = f"Manifest.graphs.{name}.crops_per_pass"
            raise RecordProblem(where, graph.crops_per_pass, "1, the usual number and the most, in that order")
        if graph.views is not None and graph.views < 1:
            raise RecordProblem(f"Manifest.graphs.{name}.views", graph.views, "at least 1")
        for spec in (*graph.inputs, *graph.outputs):
            if spec.dtype not in DTYPES or any(isinstance(n, int) and n < 1 for n in spec.shape):
                raise RecordProblem(f"Manifest.graphs.{name}", str(spec), f"sizes >= 1 of {', '.join(DTYPES)}")
    for entry in manifest.objects:
        if any(len(matrix) != 16 for matrix in entry.symmetries_discrete):
            raise RecordProblem(f"Manifest.objects.{entry.id}.symmetries_discrete", "other sizes", "16 numbers each")
        if not entry.diameter_m > 0:
            raise RecordProblem(f"Manifest.objects.{entry.id}.diameter_m", entry.diameter_m, "more than 0")
    if manifest.detector:
        _check_detector(manifest.detector, ids)


def _check_detector(entry: DetectorEntry, ids: set[int]) -> None:
    if not set(entry.class_object_ids) <= {-1, *ids}:
        got = entry.class_object_ids
        raise RecordProblem("Manifest.detector.class_object_ids", got, f"-1 or ids among {sorted(ids)}")
    for name, low, high in (("letterbox_value", 0, 255), ("score_threshold", 0, 1), ("iou_threshold", 0, 1)):
        if not low <= getattr(entry, name) <= high:
            raise RecordProblem(f"Manifest.detector.{name}", getattr(entry, name), f"{low} to {high}")


def _references(manifest: Manifest) -> list[tuple[str, str, set[str]]]:
    files, graphs = set(manifest.files), set(manifest.graphs)
    found = [("Manifest.default_path", manifest.default_path, set(manifest.paths))]
    for name, graph in manifest.graphs.items():
        found += [(f"Manifest.graphs.{name}.variants.{p}", member, files) for p, member in graph.variants.items()]
    found += [(f"Manifest.objects.{o.id}.model", o.model, files) for o in manifest.objects]
    found += [(f"Manifest.reports.{name}", member, files) for name, member in manifest.reports.items()]
    for name, path in manifest.paths.items():
        found.append((f"Manifest.paths.{name}.graph", path.graph, graphs))
        found += [(f"Manifest.paths.{name}.matcher", path.matcher, graphs)] if path.matcher else []
        found += [(f"Manifest.paths.{name}.banks.{i}", member, files) for i, member in path.banks.items()]
    if manifest.detector:
        found.append(("Manifest.detector.graph", manifest.detector.graph, graphs))
    return found
