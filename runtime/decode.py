"""From what a graph says to a pose: the box rule for templates and SITE. Pure NumPy, one object at a time."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot
from typing import Any

import numpy as np
import numpy.typing as npt

from posekit.runtime.errors import InputError
from posekit.runtime.pose import Array, Pose, ego_from_allo

ORIGIN = (0.0, 0.0, 0.0)
BOX_STEPS = 5  # of fitting an object into its box: what is left is far below a pixel
NEAREST_OF_DISTANCE = 0.05  # a point nearer than this part of the object's distance projects to nowhere in particular


def box_translation(
    box_xyxy_px: npt.ArrayLike,
    K: npt.ArrayLike,
    template_box_xyxy_px: npt.ArrayLike,
    template_K: npt.ArrayLike,
    template_t_m: npt.ArrayLike,
) -> Array:
    """Translation (3,), metres, of an object that looks like a template, from the two boxes.

    z scales with the ratio of the boxes' diagonals on the plane z = 1, each side divided by its own focal length, so that
    pixels need not be square; x, y are those of the box centre, less the template's own offset between box centre and
    object centre, which in metres is the same at every distance (Sundermeyer et al., Augmented Autoencoders, ECCV 2018;
    systems P2).
    A perfect template with perfect boxes is still 1.4 % off in z on average: perspective foreshortens. `pose_within_box`
    goes on from here.
    """
    box, template_box = _plain(box_xyxy_px), _plain(template_box_xyxy_px)
    K_q, K_t, (tx, ty, tz) = _plain(K), _plain(template_K), _plain(template_t_m)
    z = tz * _diagonal(template_box, K_t) / _diagonal(box, K_q)
    (x, y), (template_x, template_y) = _on_plane(_centre(box), K_q), _on_plane(_centre(template_box), K_t)
    return np.array([x * z - (template_x * tz - tx), y * z - (template_y * tz - ty), z])  # less the offset, in metres


def pose_from_template(
    R_allo: npt.ArrayLike,
    box_xyxy_px: npt.ArrayLike,
    K: npt.ArrayLike,
    template_box_xyxy_px: npt.ArrayLike,
    template_K: npt.ArrayLike,
    template_t_m: npt.ArrayLike,
    centre_m: npt.ArrayLike = ORIGIN,
) -> Pose:
    """The best template's rotation, seen where the box is: box rule, then allocentric to egocentric.

    centre_m: (3,) the point in the object frame that the template camera looked at; template_t_m is of that point.
    A mesh's origin may be at its corner: the rays that matter go through its middle.
    """
    t_m = box_translation(box_xyxy_px, K, template_box_xyxy_px, template_K, template_t_m)
    R = ego_from_allo(R_allo, t_m)
    return Pose(R, t_m - R @ np.asarray(centre_m, np.float64))


def pose_within_box(
    start: Pose,
    R_allo: npt.ArrayLike,
    box_xyxy_px: npt.ArrayLike,
    K: npt.ArrayLike,
    centre_m: npt.ArrayLike,
    offsets_m: Array,
) -> Pose:
    """Move `start`, the pose of a view that the box rule gives, to where the object itself fills the box.

    Perspective changes an object's box with its distance and its place in the image, which the box rule does not know.
    So the points that span the box are projected, and z is scaled by the ratio of diagonals, x, y shifted by the gap
    of centres, on the plane z = 1, a fixed number of times.

    R_allo: (3, 3) allocentric rotation of the view.   box_xyxy_px: of the whole object in the ideal image of K (3, 3).
    centre_m: (3,) as of the bank.   offsets_m: (P, 3) from there to the object's outermost points. `start` is kept where
    a point would come to lie at the camera.
    """
    edges, camera = _plain(box_xyxy_px), _plain(K)
    centre, rotation = np.asarray(centre_m, np.float64), np.asarray(R_allo, np.float64)
    (x0, y0), (x1, y1) = (_on_plane(corner, camera) for corner in (edges[:2], edges[2:]))
    R, t_m = start.R, start.apply(centre)
    for _ in range(BOX_STEPS):
        p = offsets_m @ R.T + t_m
        if p[:, 2].min() < NEAREST_OF_DISTANCE * t_m[2]:
            return start
        slopes = p[:, :2] / p[:, 2:]
        (u0, v0), (u1, v1) = slopes.min(axis=0).tolist(), slopes.max(axis=0).tolist()
        shift = np.array([x0 + x1 - u0 - u1, y0 + y1 - v0 - v1]) / 2
        t_m = t_m * (hypot(u1 - u0, v1 - v0) / hypot(x1 - x0, y1 - y0))
        t_m[:2] += shift * t_m[2]
        R = ego_from_allo(rotation, t_m)
    return Pose(R, t_m - R @ centre)


def site_from_translation(
    t_m: npt.ArrayLike, box_xyxy_px: npt.ArrayLike, crop_scale: float, K: npt.ArrayLike, crop_px: int, grid: int
) -> Array:
    """Scale-invariant translation (3,) of an object centre: (ox - cx) / w, (oy - cy) / h, z s / grid.

    crop_scale: crop pixels per image pixel, so that s = crop_px / crop_scale is the crop's side in the image.
    Raw detection box; K of the full image (Li et al., CDPN, ICCV 2019; GDR-Net; systems P5).
    """
    t, K_full, box = np.asarray(t_m, np.float64), np.asarray(K, np.float64), np.asarray(box_xyxy_px, np.float64)
    o = (K_full @ (t / t[2]))[:2]
    return np.array([*((o - _centre(_plain(box))) / (box[2:] - box[:2])), t[2] / _zoom(crop_scale, crop_px, grid)])


def translation_from_site(
    site: npt.ArrayLike, box_xyxy_px: npt.ArrayLike, crop_scale: float, K: npt.ArrayLike, crop_px: int, grid: int
) -> Array:
    """Inverse of `site_from_translation`. Raises InputError when the site says "behind the camera"."""
    s, box, K_full = (np.asarray(a, np.float64) for a in (site, box_xyxy_px, K))
    if not np.isfinite(s).all() or s[2] <= 0:
        raise InputError("site", got=s.tolist(), expected="finite, z > 0", remedy="Treat this object as not found.")
    o = s[:2] * (box[2:] - box[:2]) + np.array(_centre(_plain(box)))
    return np.asarray(s[2] * _zoom(crop_scale, crop_px, grid) * np.linalg.solve(K_full, np.array([*o, 1.0])))


def _zoom(crop_scale: float, crop_px: int, grid: int) -> float:
    """r = grid / s with s the crop's side in image pixels."""
    return grid * crop_scale / crop_px


def _plain(array: npt.ArrayLike) -> Any:
    """Python's floats: of so few numbers they are faster than NumPy, most of all right after a network ran."""
    return np.asarray(array, np.float64).tolist()


def _centre(box: Sequence[float]) -> tuple[float, float]:
    x0, y0, x1, y1 = box
    return (x0 + x1) / 2, (y0 + y1) / 2


def _diagonal(box: Sequence[float], K: Sequence[Sequence[float]]) -> float:
    """Of the box on the plane z = 1."""
    x0, y0, x1, y1 = box
    return hypot((x1 - x0) / K[0][0], (y1 - y0) / K[1][1])


def _on_plane(pixel: tuple[float, float], K: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Pixel -> x, y on the plane z = 1. K: upper triangular, its last row 0, 0, 1."""
    (fx, skew, cx), (_, fy, cy), _ = K
    y = (pixel[1] - cy) / fy
    return (pixel[0] - cx - skew * y) / fx, y
