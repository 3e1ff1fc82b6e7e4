"""Poses from three pairs, for many triples at once."""

from __future__ import annotations

import numpy as np

from posekit.runtime.pose import Array
from posekit.runtime.solve.pairs import Poses


def p3p(points: Array, rays: Array) -> Poses:
    """Object points (B, 3, 3) on unit rays (B, 3, 3) of the camera -> up to four poses of each triple, in one list.

    Grunert's quartic (Haralick et al., "Review and analysis of solutions of the three point perspective pose estimation
    problem", IJCV 13, 1994), in w = (distance of point 2) / (distance of point 0) - 1 and half the squared chords
    e = 1 - cos between the rays, in which nothing cancels where the object is small or far.
    """
    a, b, c = (((points[:, i] - points[:, j]) ** 2).sum(axis=1) for i, j in ((1, 2), (0, 2), (0, 1)))
    e12, e02, e01 = (((rays[:, i] - rays[:, j]) ** 2).sum(axis=1) / 2 for i, j in ((1, 2), (0, 2), (0, 1)))
    one = np.ones_like(a)
    with np.errstate(all="ignore"):  # degenerate triples are dropped below
        k = (a - c) / b
        D = np.stack([one, 2 * e02, 2 * e02])  # polynomials in w, highest power first: (|side 02| / distance 0)^2
        P = np.stack([one, 2 * one, 0 * one]) - k * D
        q2 = 2 * np.stack([1 - e12, e01 - e12])  # distance 1 / distance 0 = P / q2
        gap = P - np.stack([0 * one, q2[0], q2[1]])
        quartic = _product(gap, gap) + np.pad(2 * e01 * _product(P, q2), ((1, 0), (0, 0)))
        quartic -= c / b * _product(D, _product(q2, q2))
        usable = np.isfinite(quartic / quartic[0]).all(axis=0)
        quartic, P, q2, D, b = (x[..., usable] for x in (quartic, P, q2, D, b))
        companion = np.zeros((quartic.shape[1], 4, 4))
        companion[:, 0] = -(quartic[1:] / quartic[0]).T
        companion[:, [1, 2, 3], [0, 1, 2]] = 1
        roots = np.linalg.eigvals(companion).T
        w = roots.real  # of a pair of complex roots, which noise makes of a double one, the nearest real number
        distance0 = np.sqrt(b / _value(D, w))
        distances = np.stack([distance0, distance0 * _value(P, w) / _value(q2, w), distance0 * (1 + w)], axis=-1)
        kept = (roots.imag >= 0) & (distances > 0).all(axis=-1) & np.isfinite(distances).all(axis=-1)
        triple = np.flatnonzero(usable)[np.nonzero(kept)[1]]
        return _aligned(points[triple], rays[triple] * distances[kept][:, :, None])


def _product(p: Array, q: Array) -> Array:
    """Of polynomials, coefficients in rows, (m, B) and (n, B) -> (m + n - 1, B)."""
    out = np.zeros((len(p) + len(q) - 1, p.shape[1]))
    for i, row in enumerate(p):
        out[i : i + len(q)] += row * q
    return out


def _value(p: Array, w: Array) -> Array:
    """Of polynomials (m, B) at (4, B)."""
    out = np.zeros_like(w)
    for row in p:
        out = out * w + row
    return out


def _aligned(points: Array, found: Array) -> Poses:
    """Poses that take triangles (M, 3, 3) onto their equals in the camera (M, 3, 3)."""
    R = _frame(found) @ _frame(points).transpose(0, 2, 1)
    t = found.mean(axis=1) - np.einsum("mij,mj->mi", R, points.mean(axis=1))
    kept = np.isfinite(R).all(axis=(1, 2)) & np.isfinite(t).all(axis=1)
    return Poses(R[kept], t[kept])


def _frame(triangles: Array) -> Array:
    """Orthonormal axes (M, 3, 3), in columns: along the first side, in the plane, and its normal."""
    side, other = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    along, normal = _unit(side), _unit(np.cross(side, other))
    return np.stack([along, np.cross(normal, along), normal], axis=2)


def _unit(v: Array) -> Array:
    return np.asarray(v / np.linalg.norm(v, axis=-1, keepdims=True))
