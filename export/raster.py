"""First hits of pixel rays without Embree: a z-buffer in NumPy, for machines that have no wheel of it.

Slower than Embree and without shadows; good for the views of a bank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from posekit.runtime.errors import BackendError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Array, Pose

NEAR_M = 1e-3
PAIRS_AT_ONCE = 1 << 21  # of a triangle and a pixel that it may cover
ON_THE_EDGE = -1e-9  # a pixel on a common edge belongs to both triangles: no cracks

Hits = tuple[npt.NDArray[np.intp], Array, npt.NDArray[np.intp], Array, Array]


@dataclass(frozen=True, eq=False)
class _Projected:
    """A mesh in the image of one camera: what every grid of pixels starts from.

    corners_px: (2, 3, F), x and y of each face's corners.  nearness: (3, F), their 1 / z.
    low_px, high_px: (2, F), the box around each face.  behind: (F,), which faces reach behind the camera.
    """

    corners_px: Array
    nearness: Array
    low_px: Array
    high_px: Array
    behind: npt.NDArray[np.bool_]


class RasterScene:
    """One mesh. vertices_m: (V, 3), faces: (F, 3)."""

    def __init__(self, vertices_m: npt.NDArray[np.floating], faces: npt.NDArray[np.integer]) -> None:
        self._vertices_m = vertices_m.astype(np.float64)
        self._corners = np.ascontiguousarray(faces.T)  # (3, F): sums over three corners are three long sums
        self._last: tuple[Pose, Intrinsics, _Projected] | None = None  # the shifted grids of one picture share it

    def first_hits(self, pixels: Array, cam_from_obj: Pose, intrinsics: Intrinsics) -> Hits:
        """Of rays through pixels (N, 2), which lie on one grid of integers plus a common shift.

        -> ray (M,) index into the pixels, depth_m (M,), face (M,), and u, v (M,): the point (1 - u - v) A + u B + v C.
        Faces that reach behind the camera are left out.
        """
        projected = self._projected(cam_from_obj, intrinsics)
        shift = pixels[0] - np.round(pixels[0])
        cells = np.round(pixels - shift).astype(np.intp)
        first = cells.min(axis=0)
        width, height = (int(n) for n in cells.max(axis=0) - first + 1)
        origin = (shift + first)[:, None]
        low, high = projected.low_px - origin, projected.high_px - origin
        low_x, columns = _span(low[0], high[0], width)
        low_y, rows = _span(low[1], high[1], height)
        columns[projected.behind] = 0
        faces = np.flatnonzero(columns * rows)  # most triangles of a scan lie between the pixels
        boxes = (low_x[faces], columns[faces], low_y[faces], rows[faces])
        lines = _lines(projected.corners_px[:, :, faces] - origin[..., None])
        nearness = projected.nearness[:, faces]
        owner, depth = np.full(width * height, -1), np.full(width * height, np.inf)
        weights = np.zeros((2, width * height))
        for face, column, row in _pairs(*boxes):
            inside, u, v, z_m = _hit(lines, nearness, face, column, row)
            at = row[inside] * width + column[inside]
            farthest_first = np.argsort(-z_m)
            nearest = np.full(width * height, -1)
            nearest[at[farthest_first]] = farthest_first  # the last one that is written stays
            pixel = np.flatnonzero(nearest >= 0)
            winner = nearest[pixel]
            closer = z_m[winner] < depth[pixel]
            pixel, winner = pixel[closer], winner[closer]
            depth[pixel], weights[:, pixel] = z_m[winner], (u[winner], v[winner])
            owner[pixel] = faces[face[inside[winner]]]
        flat = (cells[:, 1] - first[1]) * width + cells[:, 0] - first[0]
        ray = np.flatnonzero(owner[flat] >= 0)
        met = flat[ray]
        return ray, depth[met], owner[met], weights[0, met], weights[1, met]

    def _projected(self, cam_from_obj: Pose, intrinsics: Intrinsics) -> _Projected:
        last = self._last
        if last is None or last[0] is not cam_from_obj or last[1] is not intrinsics:
            last = self._last = (
                cam_from_obj,
                intrinsics,
                _projected(self._vertices_m, self._corners, cam_from_obj, intrinsics),
            )
        return last[2]

    def occluded(
        self, origins: npt.NDArray[np.floating], directions: npt.NDArray[np.floating]
    ) -> npt.NDArray[np.bool_]:
        """BackendError: shadows need rays that start anywhere."""
        raise BackendError(
            "shadows", got="no Embree", expected="embreex", remedy="Render scenes where embreex has a wheel."
        )


def _projected(
    vertices_m: Array, faces: npt.NDArray[np.integer], cam_from_obj: Pose, intrinsics: Intrinsics
) -> _Projected:
    """faces: (3, F)."""
    seen = cam_from_obj.apply(vertices_m)
    uv, z = intrinsics.project(np.where(seen[:, 2:] > NEAR_M, seen, 1.0)), seen[:, 2]
    corners_px = np.stack([uv[:, 0][faces], uv[:, 1][faces]])
    a, b, c = corners_px.transpose(1, 0, 2)
    low, high = np.minimum(np.minimum(a, b), c), np.maximum(np.maximum(a, b), c)
    behind = (z[faces] <= NEAR_M).any(axis=0)
    return _Projected(corners_px, (1 / np.where(z > NEAR_M, z, 1.0))[faces], low, high, behind)


def _span(low_px: Array, high_px: Array, size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """First grid line and number of grid lines, of `size`, between the extremes (F,) of each triangle."""
    low = np.maximum(np.ceil(low_px + ON_THE_EDGE), 0).astype(np.intp)
    high = np.minimum(np.floor(high_px - ON_THE_EDGE), size - 1).astype(np.intp)
    return low, np.maximum(high - low + 1, 0)


def _pairs(
    low_x: npt.NDArray[np.intp],
    columns: npt.NDArray[np.intp],
    low_y: npt.NDArray[np.intp],
    rows: npt.NDArray[np.intp],
) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """(index of a triangle, column, row) of all pixels in the boxes around triangles, some triangles at a time."""
    counts = columns * rows
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        done = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, done + PAIRS_AT_ONCE, side="right")), start + 1)
        face = np.repeat(np.arange(start, stop), counts[start:stop])
        k = np.arange(len(face)) - (ends - counts)[face] + done
        row, column = np.divmod(k, columns[face])
        yield face, low_x[face] + column, low_y[face] + row
        start = stop


def _lines(corners_px: Array) -> Array:
    """(6, F) of triangles (2, 3, F): corner a, and how the shares of b and of c grow along x and y from there."""
    (ax, bx, cx), (ay, by, cy) = corners_px
    with np.errstate(divide="ignore", invalid="ignore"):  # a triangle seen from its edge covers nothing
        per_area = 1 / ((bx - ax) * (cy - ay) - (by - ay) * (cx - ax))
        growth = np.stack([cy - ay, ax - cx, ay - by, bx - ax]) * per_area
    return np.concatenate([[ax, ay], growth])


def _hit(
    lines: Array, nearness: Array, face: npt.NDArray[np.intp], x: npt.NDArray[np.intp], y: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.intp], Array, Array, Array]:
    """Which of the pixels lie in their triangles; and of those u, v and depth, perspective corrected.

    face: (P,), the column of `lines` and of `nearness`, 1 / z of the corners, (3, F).
    """
    from_a_x, from_a_y = x - lines[0][face], y - lines[1][face]
    with np.errstate(invalid="ignore"):
        b = from_a_x * lines[2][face] + from_a_y * lines[3][face]
        c = from_a_x * lines[4][face] + from_a_y * lines[5][face]
        inside = np.flatnonzero((b >= ON_THE_EDGE) & (c >= ON_THE_EDGE) & (b + c <= 1 - ON_THE_EDGE))
    b, c, near = b[inside], c[inside], nearness[:, face[inside]]
    depth = 1 / ((1 - b - c) * near[0] + b * near[1] + c * near[2])
    return inside, b * near[1] * depth, c * near[2] * depth, depth
