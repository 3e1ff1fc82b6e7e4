"""Poses from three pairs, for many triples at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from posekit.runtime.pose import Array
from posekit.runtime.solve.pairs import Poses

BOTH_SIGNS = np.array([[1.0], [-1.0]])
NEWTON_STEPS, MOST_STEP = 2, 0.1  # what Ferrari's formula leaves is far smaller; a double root would throw it far off


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
        w, kept = _roots(quartic[1:] / quartic[0])
        distance0 = np.sqrt(b / _value(D, w))
        distances = np.stack([distance0, distance0 * _value(P, w) / _value(q2, w), distance0 * (1 + w)], axis=-1)
        kept &= (distances > 0).all(axis=-1) & np.isfinite(distances).all(axis=-1)
        triple = np.nonzero(kept)[1]
        found = rays[triple] * distances[kept][:, :, None]
        R = _frames(found) @ _frames(points).transpose(0, 2, 1)[triple]
    t = (found - points[triple] @ R.transpose(0, 2, 1)).mean(axis=1)
    finite = np.isfinite(R).all(axis=(1, 2)) & np.isfinite(t).all(axis=1)
    return Poses(R[finite], t[finite])


def _roots(quartic: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Solve w^4 + a w^3 + b w^2 + c w + d = 0, coefficients in rows (4, B): roots (4, B), and which of them to use.

    Noise makes a pair of complex roots of a double one: their real part stands in the first, the second is not used.
    Ferrari's formula, the largest root of the resolvent cubic in Cardano's form or, of three, in Viete's; then Newton.
    """
    a, b, c, d = quartic
    shift = a / 4
    p = b - 6 * shift**2  # of the quartic in w + shift, which has no cubic term
    q = c - 2 * shift * b + 8 * shift**3
    r = d - shift * c + shift**2 * b - 3 * shift**4
    third, half = p**2 / 36 + r / 3, p**3 / 216 - p * r / 6 + q**2 / 16
    bend = half**2 - third**3
    u = np.cbrt(half + np.copysign(np.sqrt(np.maximum(bend, 0)), half))
    n = np.where(bend > 0, u + third / u, 2 * np.sqrt(third) * np.cos(np.arccos(half / third**1.5) / 3))
    split = np.sqrt(2 * n - 2 * p / 3) * BOTH_SIGNS
    inner = -(4 * p / 3 + 2 * n + 2 * q / split)
    root, real = np.sqrt(np.maximum(inner, 0)), np.tile(inner >= 0, (2, 1))
    w = np.concatenate([split + root, split - root]) / 2 - shift
    for _ in range(NEWTON_STEPS):
        step = ((((w + a) * w + b) * w + c) * w + d) / (((4 * w + 3 * a) * w + 2 * b) * w + c)
        w -= np.where(real & (np.abs(step) < MOST_STEP), step, 0)
    real[:2] = True
    return w, real


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


def _frames(triangles: Array) -> Array:
    """Orthonormal axes (M, 3, 3), in columns, of triangles (M, 3, 3): along the first side, in the plane, its normal."""
    along = _unit(triangles[:, 1] - triangles[:, 0])
    normal = _unit(_cross(along, triangles[:, 2] - triangles[:, 0]))
    return np.stack([along, _cross(normal, along), normal], axis=2)


def _cross(a: Array, b: Array) -> Array:
    """Cross products of rows (M, 3): np.cross without what it does for other shapes."""
    return np.asarray(a[:, [1, 2, 0]] * b[:, [2, 0, 1]] - a[:, [2, 0, 1]] * b[:, [1, 2, 0]])


def _unit(v: Array) -> Array:
    return np.asarray(v / np.sqrt(np.einsum("mi,mi->m", v, v))[:, None])
