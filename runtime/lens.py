"""Lens models: how a lens bends ideal rays, and back. A ray is its x, y on the plane z = 1, shape (..., 2).

A lens model is a fit: it holds for the rays that the camera sees and may fold back beyond them, so that two rays land on
one pixel. The rays inside the fold have a pixel each and are the only ones that an image shows; a pixel that none of them
reaches has no ray, which is NaN here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from posekit.runtime.pose import Array

Coefficients = tuple[float, ...]
Flags = npt.NDArray[np.bool_]

FARTHEST_RAY = 1e3  # 89.94 degrees off the axis; the plane z = 1 ends at 90
CANCELLED = 0.05  # of a pole: how near a zero of the numerator takes it away
DIRECTIONS = 128  # in which the fold of a lens is looked for that is not the same all round
NEWTON_STEPS, HALVINGS = 30, 6
CONVERGED, SOLVED = 1e-11, 1e-9  # of a ray: a millionth of a pixel is 1e-9 at a focal length of 1000


@dataclass(frozen=True)
class LensModel:
    """How one kind of lens is described.

    lengths: how many coefficients it may have.   bend: rays -> distorted rays.   unbend: back, NaN where there is none.
    fold: the distance from the axis, in each of n directions from -pi on, at which the model stops being one to one.
    lost: which distorted rays it does not reach before it folds; those more than 90 degrees off the axis it may reach.
    """

    lengths: tuple[int, ...]
    bend: Callable[[Array, Coefficients], Array]
    unbend: Callable[[Array, Coefficients], Array]
    fold: Callable[[Coefficients], Array]
    lost: Callable[[Array, Coefficients], Flags]


def distort(xy: Array, coefficients: Coefficients, model: str = "opencv") -> Array:
    """Ideal rays (..., 2) -> where the lens puts them on the plane z = 1. What is beyond the fold lands anywhere."""
    return MODELS[model].bend(xy, coefficients)


def undistort(xy: Array, coefficients: Coefficients, model: str = "opencv") -> Array:
    """The inverse of `distort` within the fold (..., 2), NaN for what no ray there reaches."""
    return MODELS[model].unbend(xy, coefficients)


def within_fold(xy: Array, coefficients: Coefficients, model: str = "opencv") -> Flags:
    """Whether ideal rays (..., 2) lie where the model is one to one, so that an image can show them."""
    fold, far = MODELS[model].fold(coefficients), np.hypot(xy[..., 0], xy[..., 1])
    if far.max(initial=0.0) < fold.min():  # most crops: nothing more to work out
        return np.ones(far.shape, np.bool_)
    return np.asarray(far < _in_direction_of(xy, fold))


def fold_towards(xy: Array, coefficients: Coefficients, model: str = "opencv") -> Array:
    """How far from the axis the model is one to one, in the directions of ideal rays (..., 2)."""
    return np.broadcast_to(_in_direction_of(xy, MODELS[model].fold(coefficients)), xy.shape[:-1])


def folds_before(xy: Array, coefficients: Coefficients, model: str = "opencv") -> bool:
    """Whether the model folds back before it reaches some of these distorted rays (..., 2)."""
    return bool(MODELS[model].lost(xy, coefficients).any())


def _in_direction_of(xy: Array, fold: Array) -> Array:
    if len(fold) == 1:
        return fold
    angles = np.linspace(-np.pi, np.pi, len(fold), endpoint=False)
    return np.interp(np.arctan2(xy[..., 1], xy[..., 0]), angles, fold, period=2 * np.pi)


# The pinhole: no lens at all.


def _unbent(xy: Array, coefficients: Coefficients) -> Array:
    return xy


def _never(coefficients: Coefficients) -> Array:
    return np.array([np.inf])


def _nothing_lost(xy: Array, coefficients: Coefficients) -> Flags:
    return np.zeros(xy.shape[:-1], np.bool_)


# OpenCV's rational, tangential, thin-prism and tilt model (documentation of calib3d, detailed description).


def _opencv_bend(xy: Array, coefficients: Coefficients) -> Array:
    if not coefficients:
        return xy
    k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4, tx, ty = _all_of(coefficients)
    x, y = xy[..., 0], xy[..., 1]
    r2 = x * x + y * y
    radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    xd = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x) + r2 * (s1 + s2 * r2)
    yd = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y + r2 * (s3 + s4 * r2)
    bent = np.stack([xd, yd], axis=-1)
    return bent if tx == 0.0 and ty == 0.0 else _projected(bent, _tilt(tx, ty))


def _opencv_slopes(xy: Array, coefficients: Coefficients) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Before the tilt: derivatives dxd/dx, dxd/dy, dyd/dx, dyd/dy, their determinant, and the radial part's denominator."""
    k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4, _, _ = _all_of(coefficients)
    x, y = xy[..., 0], xy[..., 1]
    r2 = x * x + y * y
    below = 1 + r2 * (k4 + r2 * (k5 + r2 * k6))
    radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / below
    slope = (k1 + r2 * (2 * k2 + r2 * 3 * k3) - radial * (k4 + r2 * (2 * k5 + r2 * 3 * k6))) / below  # d radial / d r2
    across = 2 * (x * y * slope + p1 * x + p2 * y)
    prism_x, prism_y = 2 * (s1 + 2 * s2 * r2), 2 * (s3 + 2 * s4 * r2)
    xd_x = radial + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x + x * prism_x
    yd_y = radial + 2 * y * y * slope + 6 * p1 * y + 2 * p2 * x + y * prism_y
    xd_y, yd_x = across + y * prism_x, across + x * prism_y
    return xd_x, xd_y, yd_x, yd_y, xd_x * yd_y - xd_y * yd_x, below


def _opencv_unbend(xy: Array, coefficients: Coefficients) -> Array:
    """Newton's method from the radial part's inverse, each step halved until it leads nearer without leaving the fold."""
    if not any(coefficients):
        return xy
    *bending, tx, ty = _all_of(coefficients)
    upright = xy if tx == 0.0 and ty == 0.0 else _projected(xy, np.asarray(np.linalg.inv(_tilt(tx, ty)), np.float64))
    target = upright.reshape(-1, 2)
    before_tilt, fold = tuple(bending), _opencv_fold(coefficients)
    with np.errstate(all="ignore"):  # a step may run away: it is halved
        rays, missed = _newton(_radial_guess(target, before_tilt, fold), target, before_tilt)
        solved = (missed < SOLVED) & (np.hypot(rays[:, 0], rays[:, 1]) <= _in_direction_of(rays, fold))
    return np.where(solved[:, None], rays, np.nan).reshape(xy.shape)


def _opencv_lost(xy: Array, coefficients: Coefficients) -> Flags:
    return np.asarray(np.isnan(_opencv_unbend(xy, coefficients)[..., 0]))


def _newton(rays: Array, target: Array, coefficients: Coefficients) -> tuple[Array, Array]:
    """Rays (n, 2) from which the lens leads to the targets, as far as they were found, and by how much each misses."""
    off = _opencv_bend(rays, coefficients) - target
    missed = np.abs(off).max(axis=1, initial=0.0)
    todo = np.arange(len(rays))
    for _ in range(NEWTON_STEPS):
        todo = todo[missed[todo] > CONVERGED]
        if len(todo) == 0:
            break
        xd_x, xd_y, yd_x, yd_y, determinant, _ = _opencv_slopes(rays[todo], coefficients)
        u, v = off[todo, 0], off[todo, 1]
        step = np.stack([yd_y * u - xd_y * v, xd_x * v - yd_x * u], axis=1) / determinant[:, None]
        waiting = np.ones(len(todo), np.bool_)
        for _ in range(HALVINGS):
            at = todo[waiting]
            tried = rays[at] - step[waiting]
            tried_off = _opencv_bend(tried, coefficients) - target[at]
            tried_missed = np.abs(tried_off).max(axis=1)
            nearer = (tried_missed < missed[at]) & (_opencv_slopes(tried, coefficients)[4] > 0)
            at, tried, tried_off, tried_missed = (found[nearer] for found in (at, tried, tried_off, tried_missed))
            rays[at], off[at], missed[at] = tried, tried_off, tried_missed
            waiting[waiting] = ~nearer
            if not waiting.any():
                break
            step /= 2
        todo = todo[~waiting]  # for the others there is no way, or floats get no nearer
    return rays, missed


def _radial_guess(target: Array, coefficients: Coefficients, fold: Array) -> Array:
    """Where the lens would lead to the targets (n, 2) if it bent along the radius only, just inside the fold."""
    radii, bent = _radial_table(coefficients)
    far = np.hypot(target[:, 0], target[:, 1])
    ratio = np.interp(far, bent, radii) / np.maximum(far, 1e-300)
    inside = 0.999 * _in_direction_of(target, fold) / np.maximum(far, 1e-300)
    return target * np.minimum(ratio, inside)[:, None]


@lru_cache(maxsize=32)
def _radial_table(coefficients: Coefficients) -> tuple[Array, Array]:
    """Distances from the axis within the radial part's fold, and where it puts them: both grow."""
    k1, k2, _, _, *rational = _without_cancelled_poles(coefficients)[:8]
    radial = (k1, k2, 0.0, 0.0, *rational)
    radii = np.concatenate([[0.0], _radii()])
    radii = radii[radii <= _opencv_fold(radial)[0]]
    return radii, _opencv_bend(np.stack([radii, np.zeros_like(radii)], axis=1), radial)[:, 0]


def _radii() -> Array:
    return np.geomspace(1e-3, FARTHEST_RAY, 1000)


@lru_cache(maxsize=32)
def _opencv_fold(coefficients: Coefficients) -> Array:
    """Walk out from the axis in each direction, to where the Jacobian's determinant or the denominator turns negative."""
    _, _, p1, p2, _, _, _, _, *prism, _, _ = _all_of(coefficients)
    smooth = _without_cancelled_poles(coefficients)
    n = DIRECTIONS if any((p1, p2, *prism)) else 1
    angles = np.linspace(-np.pi, np.pi, n, endpoint=False)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    radii = _radii()
    with np.errstate(all="ignore"):  # poles
        folded = ~_one_to_one(directions[:, None] * radii[:, None], smooth)
        first = np.where(folded.any(axis=1), folded.argmax(axis=1), len(radii) - 1)
        low, high = np.where(first > 0, radii[first - 1], 0.0), radii[first]
        for _ in range(50):
            middle = (low + high) / 2
            inside = _one_to_one(directions * middle[:, None], smooth)
            low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return np.asarray(np.where(folded.any(axis=1), low, FARTHEST_RAY))


def _one_to_one(xy: Array, coefficients: Coefficients) -> Flags:
    """Where the model neither folds (its Jacobian's determinant is positive) nor has jumped over a pole."""
    determinant, below = _opencv_slopes(xy, coefficients)[4:]
    return np.asarray((determinant > 0) & (below > 0))


def _without_cancelled_poles(coefficients: Coefficients) -> Coefficients:
    """The radial part without the poles beside which its numerator has a zero.

    A fit of the rational model often has such a pair, which would cancel but for the digits that were written: a hair's
    breadth of nonsense, on both sides of which the lens is the same.
    """
    k1, k2, p1, p2, k3, k4, k5, k6, *rest = _all_of(coefficients)
    zeros, poles = _roots(k1, k2, k3), _roots(k4, k5, k6)
    pairs = [(zero, pole) for pole in poles if pole.real > 0 and abs(pole.imag) < 1e-9 for zero in zeros]
    pairs = [(zero, pole) for zero, pole in pairs if abs(zero - pole) < CANCELLED * abs(pole)]
    if not pairs:
        return coefficients
    for zero, pole in pairs:
        if zero in zeros and pole in poles:
            zeros.remove(zero)
            poles.remove(pole)
    (k1, k2, k3), (k4, k5, k6) = _from_roots(zeros), _from_roots(poles)
    return (k1, k2, p1, p2, k3, k4, k5, k6, *rest)


def _roots(a: float, b: float, c: float) -> list[complex]:
    """In r2, of 1 + a r2 + b r2^2 + c r2^3; what is too small to matter within `FARTHEST_RAY` is not there."""
    powers = [0.0 if abs(x) * FARTHEST_RAY ** (2 * n) < 1e-9 else x for n, x in ((3, c), (2, b), (1, a))]
    return [complex(root) for root in np.roots([*powers, 1.0])]


def _from_roots(roots: list[complex]) -> tuple[float, float, float]:
    """The product of 1 - r2 / root: what stands with r2, its square and its cube."""
    product = np.poly1d([1.0])
    for root in roots:
        product *= np.poly1d([-1.0 / root, 1.0])
    a, b, c = (float(product[power].real) for power in (1, 2, 3))
    return a, b, c


def _all_of(coefficients: Coefficients) -> Coefficients:
    """k1 k2 p1 p2 k3 k4 k5 k6 s1 s2 s3 s4 tx ty; those that are left out are zero."""
    return (*coefficients, *(0.0,) * (14 - len(coefficients)))


def _tilt(tx_rad: float, ty_rad: float) -> Array:
    """Scheimpflug sensor tilt: (3, 3) homography of distorted rays."""
    cx, sx, cy, sy = np.cos(tx_rad), np.sin(tx_rad), np.cos(ty_rad), np.sin(ty_rad)
    R = np.array([[cy, sy * sx, -sy * cx], [0, cx, sx], [sy, -cy * sx, cy * cx]])
    return np.asarray(np.array([[R[2, 2], 0, -R[0, 2]], [0, R[2, 2], -R[1, 2]], [0, 0, 1]]) @ R)


def _projected(xy: Array, homography: Array) -> Array:
    moved = xy @ homography[:, :2].T + homography[:, 2]
    return np.asarray(moved[..., :2] / moved[..., 2:])


# The equidistant fisheye of Kannala and Brandt (IEEE PAMI 2006) with OpenCV's four coefficients (cv2.fisheye): an angle
# theta off the axis lands at theta (1 + k1 theta^2 + k2 theta^4 + k3 theta^6 + k4 theta^8).


def _fisheye_bend(xy: Array, coefficients: Coefficients) -> Array:
    far = np.hypot(xy[..., 0], xy[..., 1])
    bent = _fisheye_radius(np.arctan(far), coefficients)
    return xy * np.divide(bent, far, out=np.ones_like(far), where=far > 0)[..., None]


def _fisheye_radius(theta_rad: Array, coefficients: Coefficients) -> Array:
    k1, k2, k3, k4 = coefficients or (0.0,) * 4
    t2 = theta_rad * theta_rad
    return np.asarray(theta_rad * (1 + t2 * (k1 + t2 * (k2 + t2 * (k3 + t2 * k4)))))


def _fisheye_slope(theta_rad: Array, coefficients: Coefficients) -> Array:
    k1, k2, k3, k4 = coefficients or (0.0,) * 4
    t2 = theta_rad * theta_rad
    return np.asarray(1 + t2 * (3 * k1 + t2 * (5 * k2 + t2 * (7 * k3 + t2 * 9 * k4))))


def _fisheye_unbend(xy: Array, coefficients: Coefficients) -> Array:
    """Newton's method on the angle, kept between two entries of a table."""
    angles, bent = _fisheye_table(coefficients)
    far = np.hypot(xy[..., 0], xy[..., 1])
    right = np.clip(np.searchsorted(bent, far), 1, len(bent) - 1)
    low, high = angles[right - 1], angles[right]
    theta = low
    for _ in range(NEWTON_STEPS):
        off = _fisheye_radius(theta, coefficients) - far
        if np.abs(off).max(initial=0.0, where=far <= bent[-1]) < CONVERGED:
            break
        slope = np.maximum(_fisheye_slope(theta, coefficients), 1e-12)
        theta = np.clip(theta - off / slope, low, high)
    ratio = np.divide(np.tan(theta), far, out=np.ones_like(far), where=far > 0)
    return np.where((far <= bent[-1])[..., None], xy * ratio[..., None], np.nan)


@lru_cache(maxsize=32)
def _fisheye_table(coefficients: Coefficients) -> tuple[Array, Array]:
    """Angles up to the fold and where the lens puts them: both grow."""
    angles = np.linspace(0.0, float(np.arctan(_fisheye_fold(coefficients)[0])), 500)
    return angles, _fisheye_radius(angles, coefficients)


@lru_cache(maxsize=32)
def _fisheye_fold(coefficients: Coefficients) -> Array:
    return np.array([np.tan(min(_fisheye_fold_rad(coefficients), np.arctan(FARTHEST_RAY)))])


def _fisheye_fold_rad(coefficients: Coefficients) -> float:
    """The first angle at which the slope, a polynomial in theta^2, is zero; infinite where it never is."""
    roots = np.roots(
        [0.0 if abs(k) < 1e-12 else k * n for k, n in zip(coefficients[::-1], (9, 7, 5, 3), strict=False)] + [1.0]
    )
    real = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0)]
    return float(np.sqrt(real.min(initial=np.inf)))


def _fisheye_lost(xy: Array, coefficients: Coefficients) -> Flags:
    fold_rad = _fisheye_fold_rad(coefficients)
    farthest = _fisheye_radius(np.array(fold_rad), coefficients) if np.isfinite(fold_rad) else np.inf
    return np.asarray(np.hypot(xy[..., 0], xy[..., 1]) > farthest)


# A lens model is a row.
MODELS: dict[str, LensModel] = {
    "pinhole": LensModel((0,), _unbent, _unbent, _never, _nothing_lost),
    "opencv": LensModel((0, 4, 5, 8, 12, 14), _opencv_bend, _opencv_unbend, _opencv_fold, _opencv_lost),
    "fisheye": LensModel((0, 4), _fisheye_bend, _fisheye_unbend, _fisheye_fold, _fisheye_lost),
}
