"""How far an estimated pose is from the true one, by the field's standard measures.

Notation: x a vertex of the object, (R̂, t̂) the estimate, (R, t) the truth, S the object's symmetry transforms, identity
included. Formulas: ADD(-S), Hinterstoisser et al. 2012; MSSD, MSPD, Hodaň et al. 2020 (BOP). All are over every vertex
of the object's mesh, as published. OpenCV opens late, for ADD-S.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import InputError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import ObjectEntry
from posekit.runtime.object_model import object_points_m, symmetries_from_entry
from posekit.runtime.pose import Array, Pose, rotation_angle_rad
from posekit.runtime.symmetry import Symmetries

EXACT_TREE = {"algorithm": 4, "leaf_max_size": 10}  # FLANN_INDEX_KDTREE_SINGLE: nothing is approximated
EVERY_LEAF = {"checks": -1}
SAMPLE = 64  # vertices whose worst error bounds that of all from below


@dataclass(frozen=True, eq=False)
class ScoredObject:
    """What the errors of one object need, prepared once.

    vertices_m: (V, 3).   diameter_m: as the data set states it.   transforms: (S, 4, 4) symmetries, identity first.
    """

    object_id: int
    name: str
    diameter_m: float
    vertices_m: Array
    transforms: Array = field(default_factory=lambda: np.eye(4)[None])

    def __post_init__(self) -> None:
        vertices = np.asarray(self.vertices_m, dtype=np.float64)
        fits = vertices.ndim == 2 and vertices.shape[1] == 3 and len(vertices) >= 1 and self.diameter_m > 0
        if not fits or self.transforms.shape[1:] != (4, 4) or not np.allclose(self.transforms[0], np.eye(4)):
            raise InputError(
                f"scored object {self.object_id}",
                got=f"vertices {vertices.shape}, diameter {self.diameter_m} m, transforms {self.transforms.shape}",
                expected="vertices (V, 3), a diameter, transforms (S, 4, 4) with the identity first",
                remedy="Make it from a bundle with scored_object().",
            )
        object.__setattr__(self, "vertices_m", vertices)

    @property
    def is_symmetric(self) -> bool:
        return len(self.transforms) > 1

    @cached_property
    def sample_m(self) -> Array:
        """(<= SAMPLE, 3) extreme vertices, one per direction of a spiral over the sphere."""
        k = np.arange(SAMPLE) + 0.5
        polar, azimuth = np.arccos(1 - 2 * k / SAMPLE), np.pi * (1 + 5**0.5) * k
        directions = np.stack([np.cos(azimuth) * np.sin(polar), np.sin(azimuth) * np.sin(polar), np.cos(polar)], axis=1)
        return np.asarray(self.vertices_m[np.unique((self.vertices_m @ directions.T).argmax(axis=0))])

    @cached_property
    def sample_copies_m(self) -> Array:
        """(S, n, 3) the sample moved by every symmetry."""
        R, t_m = self.transforms[:, :3, :3], self.transforms[:, :3, 3]
        return np.asarray(self.sample_m @ R.transpose(0, 2, 1) + t_m[:, None])

    @cached_property
    def _tree(self) -> Any:
        """A search tree over vertices_m, and the float32 array that it looks into."""
        import cv2

        vertices = np.ascontiguousarray(self.vertices_m, dtype=np.float32)
        return cv2.flann_Index(vertices, EXACT_TREE), vertices  # type: ignore[attr-defined]

    def nearest_m(self, points_m: Array) -> Array:
        """Distances (N,) from points (N, 3) to the vertex nearest to each, found in float32."""
        tree, _ = self._tree
        indices, _ = tree.knnSearch(np.ascontiguousarray(points_m, dtype=np.float32), 1, params=EVERY_LEAF)
        return _distances_m(points_m, self.vertices_m[indices[:, 0]])


@dataclass(frozen=True)
class PoseErrors:
    """All measures of one estimate against one truth. mspd_px and reprojection_px: infinite behind the camera.

    adds_m: None for an object without symmetries, whose measure is ADD.
    """

    rotation_rad: float
    translation_m: float
    add_m: float
    adds_m: float | None
    mssd_m: float
    mspd_px: float
    reprojection_px: float


def scored_object(bundle: Bundle, entry: ObjectEntry) -> ScoredObject:
    """An object of a bundle, with the symmetries and all vertices of the mesh that it carries."""
    points_m, symmetries = object_points_m(bundle, entry), symmetries_from_entry(entry)
    return scored_object_from(entry.id, entry.name, entry.diameter_m, points_m, symmetries)


def scored_object_from(
    object_id: int, name: str, diameter_m: float, vertices_m: Array, symmetries: Symmetries
) -> ScoredObject:
    """With the symmetries discretised once, about as finely as BOP does (315 steps a turn)."""
    return ScoredObject(object_id, name, diameter_m, vertices_m, symmetries.transforms())


def pose_errors(estimate: Pose, true: Pose, scored: ScoredObject, intrinsics: Intrinsics) -> PoseErrors:
    """Every measure at once."""
    rotation_rad, translation_m = rotation_translation_errors(estimate, true, scored.transforms)
    mspd_px, nearest = _mspd(estimate, true, scored, intrinsics)
    return PoseErrors(
        rotation_rad=rotation_rad,
        translation_m=translation_m,
        add_m=add_m(estimate, true, scored.vertices_m),
        adds_m=adds_m(estimate, true, scored) if scored.is_symmetric else None,
        mssd_m=mssd_m(estimate, true, scored),
        mspd_px=mspd_px,
        reprojection_px=_mean_px(estimate, nearest, scored, intrinsics),
    )


def rotation_translation_errors(estimate: Pose, true: Pose, transforms: Array) -> tuple[float, float]:
    """Geodesic angle, radians, and distance of the origins, metres, to that symmetric copy of the truth which is
    nearest in rotation: min over S of angle(R̂, R S_R), then |t̂ - (R S_t + t)| for that S.
    """
    angles = rotation_angle_rad(estimate.R, true.R @ transforms[:, :3, :3])
    best = int(np.argmin(angles))
    copy_t_m = true.R @ transforms[best, :3, 3] + true.t_m
    return float(angles[best]), float(np.linalg.norm(estimate.t_m - copy_t_m))


def add_m(estimate: Pose, true: Pose, vertices_m: Array) -> float:
    """ADD: mean over x of |R̂x + t̂ - (Rx + t)|."""
    return float(_distances_m(estimate.apply(vertices_m), true.apply(vertices_m)).mean())


def adds_m(estimate: Pose, true: Pose, scored: ScoredObject) -> float:
    """ADD-S (ADI): mean over x of min over y of |R̂y + t̂ - (Rx + t)|."""
    # Seen from the estimate's object frame, so that one search tree serves all poses.
    seen = (estimate.inverse() @ true).apply(scored.vertices_m)
    return float(scored.nearest_m(seen).mean())


def mssd_m(estimate: Pose, true: Pose, scored: ScoredObject) -> float:
    """MSSD: min over S of max over x of |R̂x + t̂ - (R Sx + t)|."""
    return _min_max_over_copies(_distances_m, estimate, true, scored)[0]


def mspd_px(estimate: Pose, true: Pose, scored: ScoredObject, intrinsics: Intrinsics) -> float:
    """MSPD: min over S of max over x of |proj(R̂x + t̂) - proj(R Sx + t)|, in pixels of the ideal camera."""
    return _mspd(estimate, true, scored, intrinsics)[0]


def reprojection_px(estimate: Pose, true: Pose, scored: ScoredObject, intrinsics: Intrinsics) -> float:
    """Mean over x of the pixel distance, to the symmetric copy of the truth that MSPD takes."""
    nearest = _mspd(estimate, true, scored, intrinsics)[1]
    return _mean_px(estimate, nearest, scored, intrinsics)


def _mean_px(estimate: Pose, copy: Pose, scored: ScoredObject, intrinsics: Intrinsics) -> float:
    measure = partial(_distances_px, intrinsics.undistorted())
    return float(measure(estimate.apply(scored.vertices_m), copy.apply(scored.vertices_m)).mean())


def _mspd(estimate: Pose, true: Pose, scored: ScoredObject, intrinsics: Intrinsics) -> tuple[float, Pose]:
    return _min_max_over_copies(partial(_distances_px, intrinsics.undistorted()), estimate, true, scored)


def _distances_m(a_m: Array, b_m: Array) -> Array:
    return np.asarray(np.linalg.norm(a_m - b_m, axis=-1))


def _distances_px(ideal: Intrinsics, a_m: Array, b_m: Array) -> Array:
    """Between the projections of camera-frame points (..., 3); infinite where either lies behind the camera."""
    in_front = (a_m[..., 2] > 0) & (b_m[..., 2] > 0)
    ahead = np.array([0.0, 0.0, 1.0])  # stands in for points that have no projection
    a, b = (ideal.project(np.where(in_front[..., None], points, ahead)) for points in (a_m, b_m))
    return np.where(in_front, np.linalg.norm(a - b, axis=-1), np.inf)


def _min_max_over_copies(
    measure: Callable[[Array, Array], Array], estimate: Pose, true: Pose, scored: ScoredObject
) -> tuple[float, Pose]:
    """Min over symmetric copies of the truth of the max over vertices, and the copy that has it. Exact.

    A few vertices bound a copy's maximum from below; copies are tried in that order until the bound says that no better
    one can follow. With 315 copies of a scanned mesh this saves nearly all of the work.
    """
    bounds = measure(estimate.apply(scored.sample_m), true.apply(scored.sample_copies_m)).max(axis=1)
    seen = estimate.apply(scored.vertices_m)
    best, nearest = np.inf, true
    for i in np.argsort(bounds, kind="stable"):
        if bounds[i] >= best:
            break
        copy = true @ Pose.from_matrix(scored.transforms[i])
        worst = float(measure(seen, copy.apply(scored.vertices_m)).max())
        if worst < best:
            best, nearest = worst, copy
    return best, nearest
