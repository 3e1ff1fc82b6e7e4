"""Between the views of a bank: what its most alike views agree on, in rotation and in the box that they fill.

Views of the usual bank are 10 degrees apart, so the nearest is 4 degrees off on average; the mean of those around it,
weighted by how much more alike than the rest they are, is 1 degree off or less.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, radians
from typing import Any

import numpy as np
import numpy.typing as npt

from posekit.runtime.pose import Array

REACH_DEG = 25.0  # views farther than this from their mean do not count: an opposite view is no neighbour
REACH = cos(radians(REACH_DEG) / 2) ** 2
MOST_STEPS, SETTLED = 50, 1e-15
LEAST_ALONG = 1e-9  # below, every angle about an axis is as near


@dataclass(frozen=True, eq=False)
class View:
    """R: (3, 3) allocentric.  box_xyxy_px: (4,), t_m: (3,) in the template camera."""

    R: Array
    box_xyxy_px: Array
    t_m: Array


def blended_view(
    quaternions: npt.NDArray[np.floating],
    boxes_xyxy_px: npt.NDArray[np.floating],
    t_m: npt.NDArray[np.floating],
    scores: npt.NDArray[np.floating],
) -> View:
    """The view that candidates (k, 4), (k, 4), (k, 3), best first, agree on. scores: (k,), falling.

    Weights fall to 0 at the last candidate, so that whoever enters or leaves the list changes nothing, and at REACH_DEG
    from the mean. The mean is where it no longer moves (mean shift), hence the same from whichever neighbour it starts.
    """
    weights = np.maximum(scores - scores[-1], 0.0).astype(np.float64)
    if not weights[0] > 0:  # all are equally alike: no reason to prefer any mean to the first
        weights[0] = 1.0
    mean = quaternions[0].astype(np.float64)
    for _ in range(MOST_STEPS):
        along = quaternions @ mean  # cosine of half the angle, up to the sign that quaternions do not have
        near = weights * np.maximum(along * along - REACH, 0.0)
        shifted = (near * np.sign(along)) @ quaternions
        shifted /= np.sqrt(shifted @ shifted)
        moved = 1.0 - abs(float(shifted @ mean))
        mean = shifted
        if moved < SETTLED:
            break
    share = near / near.sum()
    return View(_rotation(mean.tolist()), share @ boxes_xyxy_px, share @ t_m)


def nearest_copies(quaternions: Array, flips: Array, axes: Array) -> Array:
    """Replace each view (k, 4) of a symmetric object by that of its symmetric copies which is nearest to the first view.

    Copies are one picture with one score, so that rounding says which of them comes first. When all lie on one side, the
    blend is the same whichever it is, but for a symmetry.
    flips: (D, 4) discrete symmetries, the identity first.   axes: (A, 3) of continuous ones.
    """
    if len(flips) == 1 and not len(axes):
        return quaternions
    first = quaternions[0]
    copies = _product(quaternions[:, None], flips)  # (k, D, 4)
    for axis in axes:
        opposite = _product(copies, np.array([0.0, *axis]))  # half a turn further; every angle is a mix of the two
        along, across = copies @ first, opposite @ first
        length = np.hypot(along, across)[..., None]
        mixed = along[..., None] * copies + across[..., None] * opposite
        copies = np.where(length > LEAST_ALONG, mixed / np.maximum(length, LEAST_ALONG), copies)
    nearest = np.abs(copies @ first).argmax(axis=1)
    return np.asarray(copies[np.arange(len(copies)), nearest])


def _product(p: Array, q: Array) -> Array:
    """Multiply quaternions (..., 4) w, x, y, z: the rotation of q, then that of p."""
    a, b = p[..., :1], q[..., :1]
    v, u = p[..., 1:], q[..., 1:]
    return np.concatenate([a * b - (v * u).sum(axis=-1, keepdims=True), a * u + b * v + np.cross(v, u)], axis=-1)


def quaternions_from_rotations(R: npt.NDArray[np.floating]) -> Array:
    """(N, 3, 3) -> (N, 4) unit quaternions w, x, y, z, of either sign.

    The column of 4 q q' with the largest diagonal, which is read off R (Shepperd, 1978).
    """
    r = R.astype(np.float64)
    trace = np.trace(r, axis1=1, axis2=2)
    outer = np.empty((len(r), 4, 4))
    outer[:, 0, 0] = 1 + trace
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        outer[:, 0, 1 + i] = outer[:, 1 + i, 0] = r[:, k, j] - r[:, j, k]
        outer[:, 1 + i, 1 + i] = 1 - trace + 2 * r[:, i, i]
        outer[:, 1 + i, 1 + j] = outer[:, 1 + j, 1 + i] = r[:, i, j] + r[:, j, i]
    largest = np.diagonal(outer, axis1=1, axis2=2).argmax(axis=1)
    column = outer[np.arange(len(r)), largest]
    return np.asarray(column / np.linalg.norm(column, axis=1, keepdims=True))


def _rotation(quaternion: Any) -> Array:
    w, x, y, z = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
