"""Pairs of object points and pixels as a crop of 96 px gives them, with a known pose: cells of kinds, noise and outliers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posekit.export.render import random_rotation
from posekit.runtime.pose import Array, Pose, rotation_about_ray

PAIRS, CROP_PX, OBJECT_PX = 200, 96.0, 64.0
HALF_EXTENT_M = (0.06, 0.05, 0.06)
DIAMETER_M = float(2 * np.linalg.norm(HALF_EXTENT_M))
THICKNESS = {"solid": 1.0, "thin": 0.05, "flat": 0.0}  # of the object's third axis
MIN_THRESHOLD_PX, THRESHOLD_OF_NOISE = 3.0, 2.0


@dataclass(frozen=True)
class Cell:
    """One kind of problem.

    shape: a row of THICKNESS.   tilt_deg: between the third axis and the viewing ray; None: any rotation.
    far: diameter / distance.   offset_m: of the object's origin from its points.   outliers: share of the pairs, anywhere
    in the crop.
    """

    shape: str = "solid"
    tilt_deg: float | None = None
    far: float = 0.25
    offset_m: float = 0.0
    noise_px: float = 1.0
    outliers: float = 0.25

    @property
    def threshold_px(self) -> float:
        return max(MIN_THRESHOLD_PX, THRESHOLD_OF_NOISE * self.noise_px)


@dataclass(frozen=True, eq=False)
class Problem:
    """points_m: (N, 3) object frame.   pixels: (N, 2).   K: (3, 3).   good: (N,) pairs that are no outliers."""

    points_m: Array
    pixels: Array
    K: Array
    cam_from_obj: Pose
    good: npt.NDArray[np.bool_]

    def add_of_diameter(self, found: Pose) -> float:
        """Mean distance between the points under the two poses, as a share of the diameter."""
        moved = found.apply(self.points_m) - self.cam_from_obj.apply(self.points_m)
        return float(np.linalg.norm(moved, axis=1).mean() / DIAMETER_M)


def made_problem(cell: Cell, seed: int, pairs: int = PAIRS) -> Problem:
    rng = np.random.default_rng(seed)
    local_m = rng.uniform(-1, 1, (pairs, 3)) * HALF_EXTENT_M * [1, 1, THICKNESS[cell.shape]]
    z = DIAMETER_M / cell.far
    middle_m = np.array([*rng.uniform(-0.1, 0.1, 2) * z, z])
    R = random_rotation(rng) if cell.tilt_deg is None else rotation_about_ray(middle_m) @ _tilted(rng, cell.tilt_deg)
    focal = OBJECT_PX * z / DIAMETER_M  # the crop shows the object equally large at every distance
    centre = CROP_PX / 2 - focal * middle_m[:2] / z
    K = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
    projected = (local_m @ R.T + middle_m) @ K.T
    pixels = projected[:, :2] / projected[:, 2:] + rng.normal(size=(pairs, 2)) * cell.noise_px
    good = rng.random(pairs) >= cell.outliers
    pixels[~good] = rng.uniform(0, CROP_PX, (int((~good).sum()), 2))
    direction = rng.normal(size=3)
    offset_m = cell.offset_m * direction / np.linalg.norm(direction)
    return Problem(local_m + offset_m, pixels, K, Pose(R, middle_m - R @ offset_m), good)


def _tilted(rng: np.random.Generator, tilt_deg: float) -> Array:
    """Rotations that leave the third axis tilted so far against the optical axis, towards the camera."""
    azimuth, spin = rng.uniform(0, 2 * np.pi, 2)
    tilt = np.radians(tilt_deg) * np.array([np.cos(azimuth), np.sin(azimuth), 0])
    return np.asarray(Pose.from_rotvec(tilt).R @ Pose.from_rotvec([0, 0, spin]).R @ np.diag([1.0, -1, -1]))
