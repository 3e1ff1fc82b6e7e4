"""Camera intrinsics: a pinhole and what its lens does. Pixel centres are at integer coordinates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from posekit.runtime.errors import InputError
from posekit.runtime.lens import MODELS, Flags, distort, undistort, within_fold
from posekit.runtime.pose import Array, numbers_from

SHORTEST_FOCAL = 0.1  # of the image's longer side: a pinhole would see 157 degrees, an equidistant fisheye 573
LARGEST_COEFFICIENT = 1e6  # real ones are within a hundred
SQUARE_PIXELS = 0.01  # focal lengths that differ by less differ by the noise of calibration


@dataclass(frozen=True, eq=False)
class Intrinsics:
    """K: (3, 3) float64 in pixels.   model: a row of `lens.MODELS`.

    distortion: of "opencv" k1 k2 p1 p2 [k3 [k4 k5 k6 [s1 s2 s3 s4 [tx ty]]]], of "fisheye" k1 k2 k3 k4, of "pinhole" none.
    The image may be a part of what the camera saw, or a crop: the principal point may lie anywhere.
    """

    K: Array
    width_px: int
    height_px: int
    distortion: tuple[float, ...] = ()
    model: str = "opencv"

    def __post_init__(self) -> None:
        K = numbers_from(self.K)
        problem = _problem(K, self.width_px, self.height_px, self.distortion, self.model)
        if problem or K is None:
            raise InputError(
                "intrinsics",
                got=problem,
                expected="K (3, 3) = [fx s cx; 0 fy cy; 0 0 1] with positive focal lengths, the image size, "
                "and a lens model with its coefficients",
                remedy="Check the camera file.",
            )
        shortest = SHORTEST_FOCAL * max(self.width_px, self.height_px)
        if min(K[0, 0], K[1, 1]) < shortest:
            raise InputError(
                "intrinsics",
                got=f"focal lengths {K[0, 0]:g}, {K[1, 1]:g} for an image of {self.width_px} x {self.height_px} px",
                expected=f"focal lengths in pixels, of at least {shortest:g} for that image",
                remedy="Multiply K by the image size if it was divided by it, or by pixels per millimetre if it is in millimetres.",
            )
        object.__setattr__(self, "K", K)
        object.__setattr__(self, "distortion", tuple(float(d) for d in self.distortion))

    @property
    def is_distorted(self) -> bool:
        """Whether the image differs from the pinhole's; a fisheye's does without coefficients too."""
        return self.model == "fisheye" or any(d != 0.0 for d in self.distortion)

    def undistorted(self) -> Intrinsics:
        """The pinhole with the same K."""
        return replace(self, distortion=(), model="pinhole") if self.is_distorted else self

    @cached_property
    def ideal(self) -> Intrinsics:
        """The camera that crops are cut for: no distortion, and equal focal lengths, as networks are trained with.

        Where pixels are not square, rows are set farther apart or nearer: y scales with fx / fy, x stays.
        """
        stretch = self.K[0, 0] / self.K[1, 1]
        if abs(stretch - 1) <= SQUARE_PIXELS:
            return self.undistorted()
        K = np.array([[1.0, 0, 0], [0, stretch, (stretch - 1) / 2], [0, 0, 1]]) @ self.K  # edges at -0.5 stay there
        return Intrinsics(K, self.width_px, max(1, round(self.height_px * stretch)), model="pinhole")

    def project(self, points_m: npt.ArrayLike) -> Array:
        """Points (..., 3) in front of the camera, metres -> pixels (..., 2), through the lens.

        Points that no image shows, behind the camera or beyond the lens's fold, land anywhere: ask `shows` before.
        """
        p = np.asarray(points_m, dtype=np.float64)
        return pixels_from_rays(distort(p[..., :2] / p[..., 2:], self.distortion, self.model), self.K)

    def shows(self, points_m: npt.ArrayLike, nearest_m: float = 0.0) -> Flags:
        """Whether points (..., 3) have a pixel, in the image or beside it: in front of the camera, within the lens's fold."""
        p = np.asarray(points_m, dtype=np.float64)
        in_front = p[..., 2] > nearest_m
        xy = np.divide(p[..., :2], p[..., 2:], out=np.zeros_like(p[..., :2]), where=in_front[..., None])
        return np.asarray(in_front & within_fold(xy, self.distortion, self.model))

    def rays(self, pixels: npt.ArrayLike) -> Array:
        """Ideal (undistorted) pixels (..., 2) -> rays with z = 1, (..., 3)."""
        uv = np.asarray(pixels, dtype=np.float64)
        homogeneous = np.concatenate([uv, np.ones_like(uv[..., :1])], axis=-1)
        return np.asarray(homogeneous @ np.linalg.inv(self.K).T)

    def ideal_or_nan(self, pixels: npt.ArrayLike) -> Array:
        """Pixels (..., 2) of the real image -> pixels of the pinhole with the same K, NaN where the lens has no ray."""
        uv = np.asarray(pixels, dtype=np.float64)
        if not self.is_distorted:
            return uv
        return pixels_from_rays(undistort(self.rays(uv)[..., :2], self.distortion, self.model), self.K)

    def ideal_from_distorted(self, pixels: npt.ArrayLike) -> Array:
        """As `ideal_or_nan`, but InputError where the lens model has no inverse, as beyond its fold it has not."""
        ideal = self.ideal_or_nan(pixels)
        if np.isnan(ideal).any():
            raise InputError(
                "pixels of a distorted image",
                got="some to which the distortion takes no ideal pixel",
                expected="pixels within the reach of the lens model",
                remedy="Check the distortion coefficients, or drop boxes that leave the image.",
            )
        return ideal


def _problem(K: Array | None, width_px: int, height_px: int, distortion: tuple[float, ...], model: str) -> str | None:
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
    if model not in MODELS:
        return f"lens model {model!r}, which is none of {', '.join(MODELS)}"
    coefficients = numbers_from(distortion)
    if (
        coefficients is None
        or not (np.abs(coefficients) < LARGEST_COEFFICIENT).all()  # NaN too
        or coefficients.shape not in [(n,) for n in MODELS[model].lengths]
    ):
        return f"distortion {distortion} of lens model {model}, which has {_counts(model)} coefficients"
    return None


def _counts(model: str) -> str:
    """For people: how many coefficients a lens model has, at choice."""
    return " or ".join(str(n) if n else "no" for n in MODELS[model].lengths)


def pixels_from_rays(xy: Array, K: Array) -> Array:
    """Normalised image coordinates (..., 2) -> pixels (..., 2)."""
    x, y = xy[..., 0], xy[..., 1]
    return np.stack([K[0, 0] * x + K[0, 1] * y + K[0, 2], K[1, 1] * y + K[1, 2]], axis=-1)
