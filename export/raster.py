"""First hits of pixel rays without Embree: a z-buffer in NumPy, for machines that have no wheel of it.

Slower than Embree and without shadows; good for the views of a bank.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from posekit.runtime.errors import BackendError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Array, Pose

NEAR_M = 1e-3
PAIRS_AT_ONCE = 1 << 21  # of a triangle and a pixel that it may cover
ON_THE_EDGE = -1e-9  # a pixel on a common edge belongs to both triangles: no cracks

Hits = tuple[npt.NDArray[np.intp], Array, npt.NDArray[np.intp], Array, Array]


class RasterScene:
    """One mesh. vertices_m: (V, 3), faces: (F, 3)."""

    def __init__(self, vertices_m: npt.NDArray[np.floating], faces: npt.NDArray[np.integer]) -> None:
        self._vertices_m = vertices_m.astype(np.float64)
        self._corners = np.ascontiguousarray(faces.T)  # (3, F): sums over three corners are three long sums

    def first_hits(self, pixels: Array, cam_from_obj: Pose, intrinsics: Intrinsics) -> Hits:
        """Of rays through pixels (N, 2), which lie on one grid of integers plus a common shift.

        -> ray (M,) index into the pixels, depth_m (M,), face (M,), and u, v (M,): the point (1 - u - v) A + u B + v C.
        Faces that reach behind the camera are left out.
        """
        seen = cam_from_obj.apply(self._vertices_m)
        uv, z = intrinsics.project(np.where(seen[:, 2:] > NEAR_M, seen, 1.0)), seen[:, 2]
        shift = pixels[0] - np.round(pixels[0])
        cells = np.round(pixels - shift).astype(np.intp)
        first = cells.min(axis=0)
        width, height = (int(n) for n in cells.max(axis=0) - first + 1)
        x, y = ((uv[:, k] - shift[k] - first[k])[self._corners] for k in range(2))
        low_x, columns = _span(x, width)
        low_y, rows = _span(y, height)
        if float(z.min()) <= NEAR_M:
            columns[(z[self._corners] <= NEAR_M).any(axis=0)] = 0
        faces = np.flatnonzero(columns * rows)  # most triangles of a scan lie between the pixels
        boxes = (low_x[faces], columns[faces], low_y[faces], rows[faces])
        x, y, nearness = x[:, faces], y[:, faces], 1 / z[self._corners[:, faces]]
        owner, depth = np.full(width * height, -1), np.full(width * height, np.inf)
        weights = np.zeros((2, width * height))
        for face, column, row in _pairs(*boxes):
            inside, u, v, z_m = _hit(x[:, face], y[:, face], nearness[:, face], column, row)
            at = (row * width + column)[inside]
            farthest_first = np.argsort(-z_m)
            nearest = np.full(width * height, -1)
            nearest[at[farthest_first]] = farthest_first  # the last one that is written stays
            pixel = np.flatnonzero(nearest >= 0)
            winner = nearest[pixel]
            closer = z_m[winner] < depth[pixel]
            pixel, winner = pixel[closer], winner[closer]
            depth[pixel], weights[:, pixel] = z_m[winner], (u[winner], v[winner])
            owner[pixel] = faces[face[inside][winner]]
        flat = (cells[:, 1] - first[1]) * width + cells[:, 0] - first[0]
        ray = np.flatnonzero(owner[flat] >= 0)
        met = flat[ray]
        return ray, depth[met], owner[met], weights[0, met], weights[1, met]

    def occluded(
        self, origins: npt.NDArray[np.floating], directions: npt.NDArray[np.floating]
    ) -> npt.NDArray[np.bool_]:
        """BackendError: shadows need rays that start anywhere."""
        raise BackendError(
            "shadows", got="no Embree", expected="embreex", remedy="Render scenes where embreex has a wheel."
        )


def _span(corners_px: Array, size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """First grid line and number of grid lines, of `size`, between the corners (3, F) of each triangle."""
    a, b, c = corners_px
    low = np.maximum(np.ceil(np.minimum(np.minimum(a, b), c) + ON_THE_EDGE), 0).astype(np.intp)
    high = np.minimum(np.floor(np.maximum(np.maximum(a, b), c) - ON_THE_EDGE), size - 1).astype(np.intp)
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


def _hit(
    corners_x: Array, corners_y: Array, nearness: Array, x: npt.NDArray[np.intp], y: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.bool_], Array, Array, Array]:
    """inside (P,) of pixels in their triangles (3, P); and of those inside u, v and depth, perspective corrected.

    nearness: (3, P), 1 / z of the corners.
    """
    (ax, bx, cx), (ay, by, cy) = corners_x, corners_y
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    with np.errstate(divide="ignore", invalid="ignore"):  # a triangle seen from its edge covers nothing
        b = ((x - ax) * (cy - ay) - (y - ay) * (cx - ax)) / area
        c = ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / area
        inside = (b >= ON_THE_EDGE) & (c >= ON_THE_EDGE) & (b + c <= 1 - ON_THE_EDGE)
    b, c, near = b[inside], c[inside], nearness[:, inside]
    depth = 1 / ((1 - b - c) * near[0] + b * near[1] + c * near[2])
    return inside, b * near[1] * depth, c * near[2] * depth, depth
