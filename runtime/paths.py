"""The three ways from crops to poses; each manifest path kind is a row of PATHS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from posekit.runtime.backends import open_session
from posekit.runtime.bank import TemplateBank, bank_from_bytes, check_bank_fits
from posekit.runtime.bundle import Bundle
from posekit.runtime.crop_batch import CropBatch
from posekit.runtime.decode import pose_from_template
from posekit.runtime.detection import Detection
from posekit.runtime.errors import InputError, SpecError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import PathEntry, PathKind, SolverEntry
from posekit.runtime.pose import Array, Pose, nearest_rotation
from posekit.runtime.profiler import Stage
from posekit.runtime.records import json_from_record
from posekit.runtime.session import Session
from posekit.runtime.solvers import pose_from_correspondences

Found = tuple[Pose, float]


class PosePath(Protocol):
    """crops of one frame -> per crop a pose with its score, or None where none was found."""

    def poses(
        self, batch: CropBatch, detections: Sequence[Detection], intrinsics: Intrinsics, stage: Stage
    ) -> list[Found | None]: ...

    @property
    def sessions(self) -> tuple[Session, ...]: ...


class RegressorPath:
    """A pose graph says R, t and score itself."""

    def __init__(self, bundle: Bundle, entry: PathEntry, backend: str) -> None:
        self._pose = open_session(bundle, entry.graph, backend=backend)
        self.sessions: tuple[Session, ...] = (self._pose,)

    def poses(
        self, batch: CropBatch, detections: Sequence[Detection], intrinsics: Intrinsics, stage: Stage
    ) -> list[Found | None]:
        with stage("network"):
            out = self._pose.run(batch.feed(self._pose.inputs))
        with stage("decode"):
            return [_regressed(R, t, float(s)) for R, t, s in zip(out["R"], out["t"], out["score"], strict=True)]


def _regressed(R: Array, t: Array, score: float) -> Found | None:
    """A network may say nonsense: a pose behind the camera or not finite is not found."""
    if not (np.isfinite(R).all() and np.isfinite(t).all() and np.isfinite(score)) or t[2] <= 0:
        return None
    return Pose(nearest_rotation(R), t), score


class CorrespondencePath:
    """A graph ends in dense maps; one solver follows on the host."""

    def __init__(self, bundle: Bundle, entry: PathEntry, backend: str) -> None:
        assert entry.solver is not None  # the manifest's cross-check
        self._solver: SolverEntry = entry.solver
        self._maps = open_session(bundle, entry.graph, backend=backend)
        self.sessions: tuple[Session, ...] = (self._maps,)

    def poses(
        self, batch: CropBatch, detections: Sequence[Detection], intrinsics: Intrinsics, stage: Stage
    ) -> list[Found | None]:
        with stage("network"):
            out = self._maps.run(batch.feed(self._maps.inputs))
        with stage("solve"):
            K_crops = [crop.K for crop in batch.crops]
            return [
                solved(mask, coords, K, batch.preset.size_px, self._solver)
                for mask, coords, K in zip(out["mask"], out["coords_m"], K_crops, strict=True)
            ]


def solved(
    mask: npt.NDArray[Any],
    coords_m: npt.NDArray[Any],
    K_crop: Array,
    crop_px: int,
    solver: SolverEntry,
) -> Found | None:
    """Maps of one crop -> pose. mask: (h, w) probability.  coords_m: (h, w, 3) object frame.

    Score: mean mask probability of the cells used, times the share of them that the pose explains.
    """
    if mask.shape != coords_m.shape[:2]:
        raise SpecError(
            "correspondence maps",
            got=f"mask {mask.shape}, coords_m {coords_m.shape}",
            expected="(h, w) and (h, w, 3)",
            remedy="Correct the graph's outputs.",
        )
    rows, columns = np.nonzero((mask > solver.mask_threshold) & np.isfinite(coords_m).all(axis=2))
    cell_px = crop_px / np.array([mask.shape[1], mask.shape[0]])
    pixels = (np.stack([columns, rows], axis=1) + 0.5) * cell_px - 0.5
    solution = pose_from_correspondences(coords_m[rows, columns], pixels, K_crop, solver)
    if solution is None:
        return None
    return solution.cam_from_obj, float(mask[rows, columns].mean() * solution.inliers.mean())


class BankPath:
    """Descriptors of the crop against those of rendered views; the box gives the distance."""

    def __init__(self, bundle: Bundle, entry: PathEntry, backend: str) -> None:
        assert entry.matcher is not None  # the manifest's cross-check
        graph = bundle.manifest.graphs[entry.graph]
        sha256 = bundle.manifest.files[graph.variants["fp32"]].sha256
        self._embedder = open_session(bundle, entry.graph, backend=backend)
        self._matcher = open_session(bundle, entry.matcher, backend=backend)
        self.sessions: tuple[Session, ...] = (self._embedder, self._matcher)
        self._banks: dict[int, TemplateBank] = {}
        self._bound: dict[int, dict[str, npt.NDArray[np.generic]]] = {}
        for object_id, member in entry.banks.items():
            bank = bank_from_bytes(bundle.read(member), f"bank {member}")
            check_bank_fits(bank, sha256, json_from_record(entry.crop), f"bank {member}")
            self._banks[int(object_id)] = bank
            templates = np.ascontiguousarray(bank.templates, dtype=np.float32)
            self._bound[int(object_id)] = {"templates": templates, "weights": bank.weights}

    def poses(
        self, batch: CropBatch, detections: Sequence[Detection], intrinsics: Intrinsics, stage: Stage
    ) -> list[Found | None]:
        with stage("network"):
            descriptors = self._embedder.run(batch.feed(self._embedder.inputs))["descriptors"]
        found: list[Found | None] = [None] * len(detections)
        for object_id, bound in self._bound.items():
            mine = [i for i, detection in enumerate(detections) if detection.object_id == object_id]
            if mine:
                with stage("retrieve"):
                    out = self._matcher.run({"descriptors": descriptors[mine], **bound})
                with stage("decode"):
                    for i, index, score in zip(mine, out["index"][:, 0], out["score"][:, 0], strict=True):
                        found[i] = _template_pose(
                            self._banks[object_id], int(index), batch, i, intrinsics, float(score)
                        )
        return found


def _template_pose(
    bank: TemplateBank, index: int, batch: CropBatch, i: int, intrinsics: Intrinsics, score: float
) -> Found:
    if not 0 <= index < len(bank.R):
        raise InputError(
            "matcher index", got=index, expected=f"0 to {len(bank.R) - 1}", remedy="Export the matcher again."
        )
    R = nearest_rotation(bank.R[index])
    box = batch.crops[i].box_xyxy_px
    return pose_from_template(R, box, intrinsics.K, bank.box_xyxy_px[index], bank.K, bank.t_m[index]), score


PATHS: dict[PathKind, Callable[[Bundle, PathEntry, str], PosePath]] = {
    "bank": BankPath,
    "regressor": RegressorPath,
    "correspondence": CorrespondencePath,
}
