"""Camera intrinsics: pinhole plus OpenCV's distortion. Pixel centres are at integer coordinates."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from posekit.runtime.errors import InputError
from posekit.runtime.pose import Array, numbers_from
from posekit.runtime.records import record_from

INVERSE_TOLERANCE = 1e-6  # normalised coordinates: below a thousandth of a pixel
DISTORTION_LENGTHS = (0, 4, 5, 8, 12, 14)  # what cv2.projectPoints accepts


@dataclass(frozen=True, eq=False)
class Intrinsics:
    """K: (3, 3) float64 in pixels. distortion: OpenCV order k1 k2 p1 p2 [k3 [k4 k5 k6 [s1 s2 s3 s4 [tx ty]]]]."""

    K: Array
    width_px: int
    height_px: int
    distortion: tuple[float, ...] = field(default=())

    def __post_init__(self) -> None:
        K = numbers_from(self.K)
        problem = _problem(K, self.width_px, self.height_px, self.distortion)
        if problem:
            raise InputError(
                "intrinsics",
                got=problem,
                expected="K (3, 3) = [fx s cx; 0 fy cy; 0 0 1] with positive focal lengths, and the image size",
                remedy="Check the camera file.",
            )
        object.__setattr__(self, "K", K)
        object.__setattr__(self, "distortion", tuple(float(d) for d in self.distortion))

    @property
    def is_distorted(self) -> bool:
        return any(d != 0.0 for d in self.distortion)

    def undistorted(self) -> Intrinsics:
        """The ideal camera with the same K."""
        return replace(self, distortion=()) if self.is_distorted else self

    def project(self, points_m: npt.ArrayLike) -> Array:
        """Camera-frame points (..., 3), metres -> pixels (..., 2), through the distortion."""
        p = np.asarray(points_m, dtype=np.float64)
        xy = p[..., :2] / p[..., 2:]
        return pixels_from_rays(distort(xy, self.distortion), self.K)

    def rays(self, pixels: npt.ArrayLike) -> Array:
        """Ideal (undistorted) pixels (..., 2) -> rays with z = 1, (..., 3)."""
        uv = np.asarray(pixels, dtype=np.float64)
        homogeneous = np.concatenate([uv, np.ones_like(uv[..., :1])], axis=-1)
        return np.asarray(homogeneous @ np.linalg.inv(self.K).T)

    def ideal_from_distorted(self, pixels: npt.ArrayLike) -> Array:
        """Pixels (..., 2) of the real image -> pixels of the ideal camera with the same K (fixed-point iteration).

        InputError where the lens model has no inverse, as models of strong distortion have not far from the centre.
        """
        uv = np.asarray(pixels, dtype=np.float64)
        if not self.is_distorted:
            return uv
        target = self.rays(uv)[..., :2]
        xy = target.copy()
        step = target
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # it runs away: refused below
            for _ in range(50):
                step = target - distort(xy, self.distortion)
                xy += step
                if float(np.abs(step).max(initial=0.0)) < 1e-10:
                    break
        if not float(np.abs(step).max(initial=0.0)) < INVERSE_TOLERANCE:
            raise InputError(
                "pixels of a distorted image",
                got="some to which the distortion takes no ideal pixel",
                expected="pixels within the reach of the lens model",
                remedy="Check the distortion coefficients, or drop boxes that leave the image.",
            )
        return pixels_from_rays(xy, self.K)


def _problem(K: Array | None, width_px: int, height_px: int, distortion: tuple[float, ...]) -> str | None:
    if K is None or K.shape != (3, 3):
        return "K that is no array of numbers" if K is None else f"K of shape {K.shape}"
    if not np.isfinite(K).all():
        return "K with NaN or infinity"
    if K[0, 0] <= 0 or K[1, 1] <= 0:
        return f"focal lengths {K[0, 0]:g}, {K[1, 1]:g}"
    if not np.allclose(K[2], [0, 0, 1]) or K[1, 0] != 0:
        return f"K with rows {K[1].tolist()}, {K[2].tolist()}"
    whole = all(isinstance(n, (int, np.integer)) for n in (width_px, height_px))
    if not whole or width_px <= 0 or height_px <= 0:
        return f"image size {width_px} x {height_px}"
    if len(distortion) not in DISTORTION_LENGTHS or not np.isfinite(distortion).all():
        return f"distortion {distortion}"
    return None


def pixels_from_rays(xy: Array, K: Array) -> Array:
    """Normalised image coordinates (..., 2) -> pixels (..., 2)."""
    x, y = xy[..., 0], xy[..., 1]
    return np.stack([K[0, 0] * x + K[0, 1] * y + K[0, 2], K[1, 1] * y + K[1, 2]], axis=-1)


def distort(xy: Array, coefficients: tuple[float, ...]) -> Array:
    """Apply OpenCV's rational, tangential, thin-prism and tilt distortion to normalised coordinates (..., 2)."""
    if not coefficients:
        return xy
    k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4, tx, ty = (*coefficients, *(0.0,) * (14 - len(coefficients)))
    x, y = xy[..., 0], xy[..., 1]
    r2 = x * x + y * y
    radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    xd = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x) + r2 * (s1 + s2 * r2)
    yd = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y + r2 * (s3 + s4 * r2)
    if tx == 0.0 and ty == 0.0:
        return np.stack([xd, yd], axis=-1)
    tilted = np.stack([xd, yd, np.ones_like(xd)], axis=-1) @ _tilt(tx, ty).T
    return np.asarray(tilted[..., :2] / tilted[..., 2:])


def _tilt(tx_rad: float, ty_rad: float) -> Array:
    """Scheimpflug sensor tilt (OpenCV documentation, calib3d, detailed description)."""
    cx, sx, cy, sy = np.cos(tx_rad), np.sin(tx_rad), np.cos(ty_rad), np.sin(ty_rad)
    R = np.array([[cy, sy * sx, -sy * cx], [0, cx, sx], [sy, -cy * sx, cy * cx]])
    return np.asarray(np.array([[R[2, 2], 0, -R[0, 2]], [0, R[2, 2], -R[1, 2]], [0, 0, 1]]) @ R)


@dataclass(frozen=True)
class _CameraFile:
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    skew: float = 0.0
    distortion: tuple[float, ...] = ()
    depth_scale: float | None = None


def intrinsics_from_json(path: Path | str) -> Intrinsics:
    """Read a camera file: {"fx", "fy", "cx", "cy", "width", "height", ["skew"], ["distortion": [...]]}.

    The same keys as BOP's camera.json, plus distortion. Unknown keys are refused, except BOP's "depth_scale".
    """
    try:
        row = record_from(_CameraFile, json.loads(Path(path).read_text()), "camera")
        K = np.array([[row.fx, row.skew, row.cx], [0.0, row.fy, row.cy], [0.0, 0.0, 1.0]])
        return Intrinsics(K, row.width, row.height, row.distortion)
    except InputError as error:
        raise InputError(
            f"camera file {path}", got=error.got, expected=error.expected, remedy="Correct the file."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"camera file {path}",
            got=error,
            expected='JSON with "fx", "fy", "cx", "cy", "width", "height" and, if any, "distortion"',
            remedy="Write the camera's intrinsics in pixels into that form.",
        ) from error
