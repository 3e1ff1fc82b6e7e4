"""Where things stand in a scene: reference objects on or above a floor, clutter around and in front of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from posekit.export.mesh import ObjectModel
from posekit.export.reference.objects import reference_objects
from posekit.export.reference.views import DEPTH_RANGE_M, MIN_INSIDE
from posekit.export.render import Placement, projected_box
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Array, Pose

CROWDING = 0.7  # bounding spheres may overlap down to this share of the sum of radii


@dataclass(frozen=True, eq=False)
class Floor:
    """A plane in the camera frame: normal (3,) towards the camera, distance_m from the camera along -normal."""

    normal: Array
    distance_m: float

    def height_m(self, points_cam_m: npt.ArrayLike) -> Array:
        """Height of points (..., 3) above the plane."""
        return np.asarray(np.asarray(points_cam_m) @ self.normal + self.distance_m)


@dataclass(frozen=True, eq=False)
class Layout:
    """What stands where. The first `reference_count` placements are reference objects, the rest is clutter."""

    placements: tuple[Placement, ...]
    reference_count: int
    floor: Floor


def random_layout(
    rng: np.random.Generator, models: Mapping[int, ObjectModel], difficulty: float, camera: Intrinsics
) -> Layout:
    """One to three reference objects, each at most once, then clutter, some of it in front of them."""
    floor = _random_floor(rng)
    references = sorted(reference_objects())
    clutter = [object_id for object_id in models if object_id not in references]
    chosen = rng.permutation(references)[: int(rng.integers(1, 4))]
    placed: list[Placement] = []
    for object_id in chosen:
        placed += _try_to_place(int(object_id), rng, models, camera, floor, placed)
    reference_count = len(placed)
    for object_id in rng.choice(clutter, 3 + int(rng.integers(0, 2 + round(4 * difficulty))), replace=False):
        placed += _try_to_place(int(object_id), rng, models, camera, floor, placed)
    for target in range(reference_count):
        if rng.random() < difficulty:
            placed += _occluder(int(rng.choice(clutter)), placed[target], rng, models)
    return Layout(tuple(placed), reference_count, floor)


def _random_floor(rng: np.random.Generator) -> Floor:
    """From steep desk to frontal wall, behind everything on the optical axis."""
    tilt, roll = np.radians(rng.uniform(15, 90)), np.radians(rng.normal(0, 12))
    normal = np.array([np.sin(roll) * np.cos(tilt), -np.cos(roll) * np.cos(tilt), -np.sin(tilt)])
    return Floor(
        normal,
        float(rng.uniform(0.6, 0.95) * np.sin(tilt) + 0.12 * np.cos(tilt)),
    )


def _try_to_place(
    object_id: int,
    rng: np.random.Generator,
    models: Mapping[int, ObjectModel],
    camera: Intrinsics,
    floor: Floor,
    placed: Sequence[Placement],
) -> list[Placement]:
    """[placement], standing on the floor or hovering above it; [] when 60 draws found no free place."""
    model = models[object_id]
    for _ in range(60):
        R = Rotation.from_quat(rng.normal(size=4)).as_matrix()
        ray = camera.rays(rng.uniform(0, (camera.width_px - 1, camera.height_px - 1)))
        z = rng.uniform(*DEPTH_RANGE_M)
        lowest = float((model.vertices_m @ (floor.normal @ R)).min())
        slope = float(ray @ floor.normal)
        if rng.random() < 0.7 and slope < -1e-3:
            z = (-floor.distance_m - lowest) / slope
        pose = Pose(R, ray * z)
        if _fits(model, pose, camera, floor, lowest) and not _crowded(object_id, pose, models, placed):
            return [(object_id, pose)]
    return []


def _fits(model: ObjectModel, pose: Pose, camera: Intrinsics, floor: Floor, lowest_m: float) -> bool:
    if not DEPTH_RANGE_M[0] <= pose.t_m[2] <= DEPTH_RANGE_M[1] or floor.height_m(pose.t_m) + lowest_m < -1e-6:
        return False
    x0, y0, x1, y1 = projected_box(model, pose, camera)
    w, h = min(x1, camera.width_px) - max(x0, 0.0), min(y1, camera.height_px) - max(y0, 0.0)
    return bool(min(w, h) > 0 and w * h >= MIN_INSIDE * (x1 - x0) * (y1 - y0))


def _crowded(object_id: int, pose: Pose, models: Mapping[int, ObjectModel], placed: Sequence[Placement]) -> bool:
    reach = CROWDING * models[object_id].diameter_m / 2
    return any(
        np.linalg.norm(pose.t_m - other.t_m) < reach + CROWDING * models[other_id].diameter_m / 2
        for other_id, other in placed
    )


def _occluder(
    object_id: int, target: Placement, rng: np.random.Generator, models: Mapping[int, ObjectModel]
) -> list[Placement]:
    """A piece of clutter between the camera and part of the target."""
    target_id, pose = target
    radius, reach = models[object_id].diameter_m / 2, models[target_id].diameter_m / 2
    away = rng.normal(size=3)
    away[2] = 0
    aside = away / np.linalg.norm(away) * reach * rng.uniform(0.5, 1.1)
    distance = float(np.linalg.norm(pose.t_m))
    nearer = distance - (reach + radius) * rng.uniform(0.9, 1.5)
    if nearer < 0.15 + radius:
        return []
    R = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    return [(object_id, Pose(R, (pose.t_m + aside) * (nearer / distance)))]
