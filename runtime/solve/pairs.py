"""2D-3D pairs, many poses at once, and how far each pose leaves each pair from its pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from posekit.runtime.pose import Array

LEAST_DEPTH = 1e-6  # of a point, in the unit of the points: below, it is not in front of the camera


@dataclass(frozen=True, eq=False)
class Pairs:
    """Object points (N, 3), in any unit, seen at pixels (N, 2) that count from the principal point of an ideal camera.

    focal_px: (2,) of columns and rows.   threshold_px: distance at which a pair no longer agrees with a pose.
    """

    points: Array
    pixels: Array
    focal_px: Array
    threshold_px: float

    def __len__(self) -> int:
        return len(self.points)

    @property
    def K(self) -> Array:
        """(3, 3), with its principal point at 0."""
        return np.diag([*self.focal_px, 1.0])

    def part(self, chosen: npt.NDArray[np.intp] | npt.NDArray[np.bool_] | slice) -> Pairs:
        return Pairs(self.points[chosen], self.pixels[chosen], self.focal_px, self.threshold_px)


@dataclass(frozen=True, eq=False)
class Poses:
    """S poses. R: (S, 3, 3).  t: (S, 3), in the unit of the pairs' points."""

    R: Array
    t: Array

    def __len__(self) -> int:
        return len(self.R)

    def part(self, chosen: npt.NDArray[np.intp] | npt.NDArray[np.bool_] | slice) -> Poses:
        return Poses(self.R[chosen], self.t[chosen])


def together(parts: list[Poses]) -> Poses:
    return Poses(np.concatenate([part.R for part in parts]), np.concatenate([part.t for part in parts]))


class Seen(NamedTuple):
    """N points as S poses put them before the camera.

    turned: (S, 3, N) R x.   per_depth: (S, N) 1 / z, 0 for a point that is not in front of the camera.
    slopes: (S, 2, N) x / z and y / z.   squared_px: (S, N) of the distance to the pixel, infinite where not in front.
    errors_px: (S, 2, N).
    """

    turned: Array
    per_depth: Array
    slopes: Array
    errors_px: Array
    squared_px: Array


def seen(poses: Poses, pairs: Pairs) -> Seen:
    turned = (poses.R.reshape(-1, 3) @ pairs.points.T).reshape(len(poses), 3, len(pairs))
    placed = turned + poses.t[:, :, None]
    front = placed[:, 2] > LEAST_DEPTH
    per_depth = 1 / placed[:, 2] if front.all() else front / np.where(front, placed[:, 2], 1.0)
    slopes = placed[:, :2] * per_depth[:, None]
    errors = slopes * pairs.focal_px[:, None] - pairs.pixels.T
    squared = np.einsum("sin,sin->sn", errors, errors)
    squared[~front] = np.inf
    return Seen(turned, per_depth, slopes, errors, squared)


def squared_px(poses: Poses, pairs: Pairs) -> Array:
    """Measure what `seen` calls squared_px, (S, N), up to rounding, and nothing else: what choosing among poses needs."""
    focal = np.array([[*pairs.focal_px, 1.0]]).T
    rows = (poses.R * focal).transpose(1, 0, 2).reshape(-1, 3)
    u, v, z = (rows @ pairs.points.T).reshape(3, len(poses), len(pairs)) + (poses.t.T * focal)[:, :, None]
    behind = z <= LEAST_DEPTH
    with np.errstate(all="ignore"):  # what is behind is set below
        per_depth = np.reciprocal(z, out=z)
        for row, pixels in ((u, pairs.pixels[:, 0]), (v, pairs.pixels[:, 1])):
            row *= per_depth
            row -= pixels
            row *= row
        u += v
    u[behind] = np.inf
    return np.asarray(u)
