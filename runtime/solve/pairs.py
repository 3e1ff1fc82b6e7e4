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
    """Object points (N, 3), in any unit, seen at ideal pixels (N, 2) of a camera K (3, 3) without skew.

    threshold_px: distance at which a pair no longer agrees with a pose.
    """

    points: Array
    pixels: Array
    K: Array
    threshold_px: float

    def __len__(self) -> int:
        return len(self.points)

    def part(self, chosen: npt.NDArray[np.intp] | npt.NDArray[np.bool_] | slice) -> Pairs:
        return Pairs(self.points[chosen], self.pixels[chosen], self.K, self.threshold_px)


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
    z = placed[:, 2]
    front = z > LEAST_DEPTH
    per_depth = 1 / z if front.all() else front / np.where(front, z, 1.0)
    slopes = placed[:, :2] * per_depth[:, None]
    errors = slopes * np.array([[pairs.K[0, 0]], [pairs.K[1, 1]]]) - (pairs.pixels - pairs.K[:2, 2]).T
    squared = (errors * errors).sum(axis=1)
    squared[~front] = np.inf
    return Seen(turned, per_depth, slopes, errors, squared)
