"""Rigid poses and the algebra of rotations. Pure NumPy, float64.

A name reads `target_from_source`: `cam_from_obj` takes object points into the camera (OpenCV axes: x right, y down,
z forward). Neighbours cancel: `cam_from_obj = cam_from_world @ world_from_obj`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from posekit.runtime.errors import InputError

Array = npt.NDArray[np.float64]

ORTHONORMAL_TOLERANCE = 1e-4  # float32 networks and text files are this good
IDENTITY = np.eye(3)
STRAIGHT_BACK = 1e-12
NEWTON_STEPS, NEWTON_LAST_STEP = 10, 1e-7  # quadratic: what is left is the square of the last step


@dataclass(frozen=True, eq=False)
class Pose:
    """A rigid transform x_target = R x_source + t_m.

    R: (3, 3) float64, orthonormal, det +1.   t_m: (3,) float64, metres.
    """

    R: Array
    t_m: Array

    def __post_init__(self) -> None:
        R, t = np.asarray(self.R, dtype=np.float64), np.asarray(self.t_m, dtype=np.float64)
        if R.shape != (3, 3) or t.shape != (3,):
            raise InputError(
                "pose", got=f"R {R.shape}, t {t.shape}", expected="R (3, 3), t (3,)", remedy="Pass one pose."
            )
        if not all(map(isfinite, (*R.ravel().tolist(), *t.tolist()))):  # of so few, faster than NumPy
            raise InputError(
                "pose", got="NaN or infinity", expected="finite numbers", remedy="Drop this pose at its source."
            )
        off = float(np.abs(R @ R.T - IDENTITY).max())
        if off > ORTHONORMAL_TOLERANCE or _determinant(R) < 0:
            raise InputError(
                "pose rotation",
                got=f"|R R' - I| = {off:.2g}, det {_determinant(R):.3g}",
                expected="an orthonormal matrix with det +1",
                remedy="Use nearest_rotation() if it is only rounded.",
            )
        object.__setattr__(self, "R", R)
        object.__setattr__(self, "t_m", t)

    @staticmethod
    def identity() -> Pose:
        return Pose(np.eye(3), np.zeros(3))

    @staticmethod
    def from_matrix(matrix: npt.ArrayLike) -> Pose:
        """From a (4, 4) or (3, 4) matrix [R | t_m]."""
        m = np.asarray(matrix, dtype=np.float64)
        if m.shape not in ((4, 4), (3, 4)):
            raise InputError(
                "pose matrix", got=m.shape, expected="(4, 4) or (3, 4)", remedy="Pass a homogeneous matrix."
            )
        return Pose(m[:3, :3], m[:3, 3])

    @staticmethod
    def from_rotvec(rotvec_rad: npt.ArrayLike, t_m: npt.ArrayLike = (0.0, 0.0, 0.0)) -> Pose:
        """From an axis-angle vector (radians) and a translation (metres)."""
        return Pose(rotation_from_rotvec(rotvec_rad), np.asarray(t_m, dtype=np.float64))

    def as_matrix(self) -> Array:
        """(4, 4) homogeneous matrix."""
        m = np.eye(4)
        m[:3, :3], m[:3, 3] = self.R, self.t_m
        return m

    def inverse(self) -> Pose:
        return Pose(self.R.T, -self.R.T @ self.t_m)

    def apply(self, points_m: npt.ArrayLike) -> Array:
        """Transform points of shape (..., 3)."""
        return np.asarray(np.asarray(points_m, dtype=np.float64) @ self.R.T + self.t_m)

    def __matmul__(self, other: Pose) -> Pose:
        return Pose(self.R @ other.R, self.R @ other.t_m + self.t_m)


def _determinant(R: Array) -> float:
    """Of a (3, 3): a library call takes longer than the sum."""
    a, b, c = R.tolist()
    return float(sum(x * y for x, y in zip(a, _cross(b, c), strict=True)))


def numbers_from(value: npt.ArrayLike) -> Array | None:
    """The value as float64, None unless it is an array of numbers: text that spells numbers is not read."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        return None
    return array.astype(np.float64, copy=False) if array.dtype.kind in "iuf" else None


def rotation_from_rotvec(rotvec_rad: npt.ArrayLike) -> Array:
    """Rodrigues' formula: (3,) axis times angle in radians -> (3, 3)."""
    v = np.asarray(rotvec_rad, dtype=np.float64)
    angle = float(np.linalg.norm(v))
    k = skew(v)
    if angle < 1e-8:  # second-order series; the division below would lose digits
        return np.eye(3) + k + 0.5 * k @ k
    return np.asarray(np.eye(3) + np.sin(angle) / angle * k + (1 - np.cos(angle)) / angle**2 * k @ k)


def skew(v: Array) -> Array:
    """(3,) -> the matrix that takes w to the cross product v x w."""
    x, y, z = v
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


def rotation_from_6d(r6: npt.ArrayLike) -> Array:
    """Gram-Schmidt of two 3-vectors, (..., 6) -> (..., 3, 3), columns c1, c2, c3 (Zhou et al. 2019; GDR-Net order).

    c1 = a/|a|, c3 = (c1 x b)/|c1 x b|, c2 = c3 x c1.
    """
    r = np.asarray(r6, dtype=np.float64)
    a, b = r[..., :3], r[..., 3:]
    c1 = a / np.linalg.norm(a, axis=-1, keepdims=True)
    c3 = np.cross(c1, b)
    c3 = c3 / np.linalg.norm(c3, axis=-1, keepdims=True)
    return np.stack([c1, np.cross(c3, c1), c3], axis=-1)


def nearest_rotation(matrix: npt.ArrayLike) -> Array:
    """The rotation closest in the Frobenius norm (orthogonal Procrustes), (3, 3) -> (3, 3)."""
    u, _, vt = np.linalg.svd(np.asarray(matrix, dtype=np.float64))
    return np.asarray(u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt)


def rotation_near(matrix: Sequence[Sequence[float]]) -> Array | None:
    """`nearest_rotation` of a (3, 3) that nearly is one, to 1e-14; None where the determinant is not positive.

    Newton's iteration X <- (X + X^-T) / 2 to the polar factor, X^-T being the cofactors over the determinant (Higham,
    "Computing the polar decomposition", SIAM J. Sci. Stat. Comput. 7, 1986). On plain floats: right after a network ran,
    LAPACK's code alone takes 0.2 ms to come back into the caches.
    """
    a, b, c = matrix
    for _ in range(NEWTON_STEPS):
        cofactors = _cross(b, c), _cross(c, a), _cross(a, b)
        determinant = sum(x * y for x, y in zip(a, cofactors[0], strict=True))
        if not determinant > 0:
            return None
        rows = zip((a, b, c), cofactors, strict=True)
        new = [[(x + y / determinant) / 2 for x, y in zip(*pair, strict=True)] for pair in rows]
        step = max(abs(x - y) for old, row in zip((a, b, c), new, strict=True) for x, y in zip(old, row, strict=True))
        a, b, c = new
        if step < NEWTON_LAST_STEP:
            break
    return np.array([a, b, c])


def _cross(u: Sequence[float], v: Sequence[float]) -> tuple[float, float, float]:
    return u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]


def rotation_about_ray(t_m: npt.ArrayLike) -> Array:
    """The shortest rotation that takes the optical axis e_z to the viewing ray t/|t|, (3,) -> (3, 3).

    Axis e_z x ray, angle acos(ray_z) (GDR-Net's allocentric correction, systems P3): Rodrigues' formula for that axis.
    Of a ray straight back every half turn about an axis in the image is the shortest; the one about x is taken.
    """
    tx, ty, tz = np.asarray(t_m, dtype=np.float64).tolist()
    length = hypot(tx, ty, tz)
    x, y, z = tx / length, ty / length, tz / length
    if 1 + z < STRAIGHT_BACK:
        return np.diag([1.0, -1.0, -1.0])
    a = 1 / (1 + z)
    return np.array([[1 - a * x * x, -a * x * y, x], [-a * x * y, 1 - a * y * y, y], [-x, -y, z]])


def ego_from_allo(R_allo: npt.ArrayLike, t_m: npt.ArrayLike) -> Array:
    """Allocentric to egocentric rotation: what a crop shows -> what the camera frame says. Shapes (3, 3), (3,)."""
    return np.asarray(rotation_about_ray(t_m) @ np.asarray(R_allo, dtype=np.float64))


def allo_from_ego(R_ego: npt.ArrayLike, t_m: npt.ArrayLike) -> Array:
    """Inverse of `ego_from_allo` for the same translation."""
    return np.asarray(rotation_about_ray(t_m).T @ np.asarray(R_ego, dtype=np.float64))


def rotation_angle_rad(R_a: npt.ArrayLike, R_b: npt.ArrayLike) -> Any:
    """Geodesic distance between rotations, (..., 3, 3) each -> (...), radians; exact also near 0 and pi."""
    a, b = np.asarray(R_a, dtype=np.float64), np.asarray(R_b, dtype=np.float64)
    chord = np.linalg.norm(a - b, axis=(-2, -1)) / (2 * np.sqrt(2.0))  # |Ra - Rb|_F = 2 sqrt(2) sin(angle / 2)
    return 2 * np.arcsin(np.clip(chord, 0.0, 1.0))
