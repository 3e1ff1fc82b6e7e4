"""The three ways from crops to poses; each manifest path kind is a row of PATHS.

Between frames a path keeps nothing that changes but its graphs: threads share all the rest (`twin_path`).

A graph that breaks its contract (names, shapes, an index out of range) is refused. One that keeps it and says nonsense
of a crop (NaN, no rotation, behind the camera, nothing alike) has found nothing there: that crop alone has no pose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from math import isfinite
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from posekit.runtime.bank import (
    TemplateBank,
    bank_from_bytes,
    check_bank_fits,
    check_bank_fits_matcher,
    check_enough_views,
)
from posekit.runtime.blend import blended_view, nearest_copies
from posekit.runtime.bundle import Bundle
from posekit.runtime.crop_batch import CropBatch, check_feedable
from posekit.runtime.decode import pose_from_template, pose_within_box
from posekit.runtime.detection import Hypothesis, Reason
from posekit.runtime.errors import SpecError
from posekit.runtime.manifest import PathEntry, PathKind, Role, SolverEntry
from posekit.runtime.object_model import symmetries_from_entry
from posekit.runtime.pose import Array, Pose, rotation_near
from posekit.runtime.profiler import Stage, no_stage
from posekit.runtime.records import json_from_record
from posekit.runtime.session import Session
from posekit.runtime.solvers import Solution, check_method, solution_or_reason
from posekit.runtime.tensor import Feed, Shape, check_shapes

if TYPE_CHECKING:
    from typing_extensions import Self

Found = Hypothesis | Reason  # of one crop
OpenGraph = Callable[[str], Session]  # name of a graph -> a session of it, on whichever backend and precision
Outputs = dict[str, npt.NDArray[Any]]

ROTATION_TOLERANCE = 1e-2  # of a graph's R in reduced precision; what is farther off is no rotation
EXPORT_AGAIN = "Give the exported graph the outputs of its role (README, Graphs), or name another graph."

# Role -> outputs with their shapes; a string is an axis of any size. README, "Graphs".
OUTPUTS: dict[Role, dict[str, Shape]] = {
    "embedder": {"descriptors": ("batch", "L", "C")},
    "matcher": {"index": ("batch", "k"), "score": ("batch", "k")},
    "pose": {"R": ("batch", 3, 3), "t": ("batch", 3), "score": ("batch",)},
    "correspondence": {"mask": ("batch", "h", "w"), "coords_m": ("batch", "h", "w", 3)},
}


class PosePath(Protocol):
    """crops of one frame -> per crop a pose with its score, or why none was found."""

    def poses(self, batch: CropBatch, stage: Stage) -> list[Found]: ...

    @property
    def sessions(self) -> tuple[Session, ...]: ...


class _Graph:
    """One graph of a path on its session, whose outputs are checked when it is opened and after every run."""

    def __init__(self, name: str, open_graph: OpenGraph, role: Role) -> None:
        self._name, self._role = name, role
        self._what, self._outputs = f"{role} graph {name!r}", OUTPUTS[role]
        self.session = open_graph(name)
        shapes = {spec.name: spec.shape for spec in self.session.outputs}
        check_shapes(self._what, self._outputs, shapes, EXPORT_AGAIN)

    def opened_by(self, open_graph: OpenGraph) -> Self:
        """The same graph on another session."""
        return type(self)(self._name, open_graph, self._role)

    def run(self, feed: Feed, batch: int) -> Outputs:
        out = self.session.run(feed)
        expected = {name: (batch, *shape[1:]) for name, shape in self._outputs.items()}
        check_shapes(self._what, expected, {name: array.shape for name, array in out.items()}, EXPORT_AGAIN)
        return out


class _CropGraph(_Graph):
    """A graph that is fed with the crops of a frame."""

    def __init__(self, name: str, open_graph: OpenGraph, role: Role) -> None:
        super().__init__(name, open_graph, role)
        check_feedable(self.session.inputs)

    def of(self, batch: CropBatch) -> Outputs:
        return self.run(batch.feed(self.session.inputs), len(batch.crops))


class RegressorPath:
    """A pose graph says R, t and score itself."""

    def __init__(self, bundle: Bundle, entry: PathEntry, open_graph: OpenGraph) -> None:
        self._pose = _CropGraph(entry.graph, open_graph, "pose")
        self._centre_m = {
            thing.id: [(low + high) / 2 for low, high in zip(thing.bbox_min_m, thing.bbox_max_m, strict=True)]
            for thing in bundle.manifest.objects
        }
        self.sessions: tuple[Session, ...] = (self._pose.session,)

    def poses(self, batch: CropBatch, stage: Stage) -> list[Found]:
        with stage("network"):
            out = self._pose.of(batch)
        with stage("decode"):
            rows = zip(out["R"].tolist(), out["t"].tolist(), out["score"].tolist(), strict=True)
            centres = [self._centre_m[detection.object_id] for detection in batch.detections]
            return [_regressed(*row, centre) for row, centre in zip(rows, centres, strict=True)]


def _regressed(R: list[list[float]], t: list[float], score: float, centre_m: Sequence[float]) -> Found:
    """A network may say nonsense: what is not finite, no rotation, or behind the camera is not found.

    The nearest rotation to what is none would be an invention. centre_m: of the object's box, in the object frame; its
    origin may lie anywhere, also behind a camera that sees the object.
    """
    if not all(map(isfinite, (*R[0], *R[1], *R[2], *t, score))):
        return Reason.OUTPUT_NOT_FINITE
    if sum(r * c for r, c in zip(R[2], centre_m, strict=True)) + t[2] <= 0:
        return Reason.BEHIND_CAMERA
    rotation = rotation_near(R)
    if rotation is None or not np.abs(rotation - R).max() <= ROTATION_TOLERANCE:
        return Reason.OUTPUT_NO_ROTATION
    return Hypothesis(Pose(rotation, np.array(t)), score)


class CorrespondencePath:
    """A graph ends in dense maps; one solver follows on the host."""

    def __init__(self, bundle: Bundle, entry: PathEntry, open_graph: OpenGraph) -> None:
        assert entry.solver is not None  # the manifest's cross-check
        check_method(entry.solver)
        self._solver: SolverEntry = entry.solver
        self._maps = _CropGraph(entry.graph, open_graph, "correspondence")
        self.sessions: tuple[Session, ...] = (self._maps.session,)

    def poses(self, batch: CropBatch, stage: Stage) -> list[Found]:
        with stage("network"):
            out = self._maps.of(batch)
        with stage("solve"):
            K_crops = [crop.K for crop in batch.crops]
            return [
                solved(mask, coords, K, batch.preset.wh_px, self._solver, stage)
                for mask, coords, K in zip(out["mask"], out["coords_m"], K_crops, strict=True)
            ]


def solved(
    mask: npt.NDArray[Any],
    coords_m: npt.NDArray[Any],
    K_crop: Array,
    crop_wh_px: tuple[int, int],
    solver: SolverEntry,
    stage: Stage = no_stage,
) -> Found:
    """Maps of one crop -> pose. mask: (h, w) probability.  coords_m: (h, w, 3) object frame.

    Cells that are not finite are not used. Score: mean mask probability of the cells used, times the share of them
    that the pose explains, times how certain they leave the pose (`Solution.certainty`).
    """
    if mask.shape != coords_m.shape[:2]:
        raise SpecError(
            "correspondence maps",
            got=f"mask {mask.shape}, coords_m {coords_m.shape}",
            expected="(h, w) and (h, w, 3)",
            remedy="Correct the graph's outputs.",
        )
    rows, columns = np.nonzero((mask > solver.mask_threshold) & np.isfinite(mask) & np.isfinite(coords_m).all(axis=2))
    cell_px = np.array(crop_wh_px) / np.array([mask.shape[1], mask.shape[0]])
    pixels = (np.stack([columns, rows], axis=1) + 0.5) * cell_px - 0.5
    solution = solution_or_reason(coords_m[rows, columns], pixels, K_crop, solver, stage)
    if not isinstance(solution, Solution):
        return solution
    score = float(mask[rows, columns].mean() * solution.inliers.mean()) * solution.certainty
    return Hypothesis(solution.cam_from_obj, score, solution.alternative)


class BankPath:
    """Descriptors of the crop against those of rendered views; the box gives the distance."""

    def __init__(self, bundle: Bundle, entry: PathEntry, open_graph: OpenGraph) -> None:
        assert entry.matcher is not None  # the manifest's cross-check
        graph = bundle.manifest.graphs[entry.graph]
        sha256 = bundle.manifest.files[graph.variants["fp32"]].sha256
        self._embedder = _CropGraph(entry.graph, open_graph, "embedder")
        self._matcher = _Graph(entry.matcher, open_graph, "matcher")
        self.sessions: tuple[Session, ...] = (self._embedder.session, self._matcher.session)
        symmetries = {o.id: symmetries_from_entry(o) for o in bundle.manifest.objects}
        self._banks: dict[int, TemplateBank] = {}
        self._bound: dict[int, dict[str, npt.NDArray[np.generic]]] = {}
        for object_id, member in entry.banks.items():
            bank = bank_from_bytes(bundle.read(member), f"bank {member}", symmetries[int(object_id)])
            check_bank_fits(bank, int(object_id), sha256, json_from_record(entry.crop), f"bank {member}")
            check_bank_fits_matcher(bank, self._matcher.session.inputs, f"bank {member}")
            check_enough_views(bank, self._matcher.session.outputs, f"bank {member}")
            self._banks[int(object_id)] = bank
            self._bound[int(object_id)] = {name: bound_array(array) for name, array in bank.matched.items()}

    def poses(self, batch: CropBatch, stage: Stage) -> list[Found]:
        with stage("network"):
            descriptors = self._embedder.of(batch)["descriptors"]
        found: list[Found] = [Reason.NOTHING_ALIKE] * len(batch.detections)
        for object_id, bound in self._bound.items():
            mine = [i for i, detection in enumerate(batch.detections) if detection.object_id == object_id]
            if mine:
                with stage("retrieve"):
                    out = self._matcher.run({"descriptors": descriptors[mine], **bound}, len(mine))
                with stage("decode"):
                    bank, K = self._banks[object_id], batch.intrinsics.ideal.K
                    for i, index, scores in zip(mine, out["index"], out["score"], strict=True):
                        found[i] = template_pose(bank, index, scores, batch.crops[i].box_xyxy_px, K)
        return found


def bound_array(array: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """As the matcher takes it, read-only: so that backends take it over once."""
    bound = np.ascontiguousarray(array, dtype=np.float32)
    bound.flags.writeable = False
    return bound


def template_pose(
    bank: TemplateBank,
    index: npt.NDArray[np.integer],
    scores: npt.NDArray[np.floating],
    box_xyxy_px: Array,
    K: Array,
) -> Found:
    """The pose that a matcher's candidates (k,), best first, agree on."""
    best = float(scores[0])
    if not (np.isfinite(scores).all() and best > 0):  # nothing alike: whichever view comes first is no answer
        return Reason.NOTHING_ALIKE
    if not (index.min() >= 0 and index.max() < len(bank.R)):
        raise SpecError(
            "matcher index", got=index.tolist(), expected=f"0 to {len(bank.R) - 1}", remedy="Export the matcher again."
        )
    quaternions = nearest_copies(bank.quaternions[index], bank.flips, bank.axes)
    view = blended_view(quaternions, bank.box_xyxy_px[index], bank.t_m[index], scores)
    start = pose_from_template(view.R, box_xyxy_px, K, view.box_xyxy_px, bank.K, view.t_m, bank.centre_m)
    return Hypothesis(pose_within_box(start, view.R, box_xyxy_px, K, bank.centre_m, bank.offsets_m), best)


PATHS: dict[PathKind, Callable[[Bundle, PathEntry, OpenGraph], PosePath]] = {
    "bank": BankPath,
    "regressor": RegressorPath,
    "correspondence": CorrespondencePath,
}


def twin_path(path: PosePath, open_graph: OpenGraph) -> PosePath:
    """The same path on sessions of its own, for another thread; what never changes, its banks above all, is shared."""
    twin = copy(path)
    graphs = {name: value.opened_by(open_graph) for name, value in vars(path).items() if isinstance(value, _Graph)}
    vars(twin).update(graphs, sessions=tuple(graph.session for graph in graphs.values()))
    return twin
