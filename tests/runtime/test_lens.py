"""Lens models: equal to OpenCV's, inverted wherever they can be, and never beyond the fold."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from posekit.runtime.lens import MODELS, distort, folds_before, undistort, within_fold

Rays = npt.NDArray[np.float64]

# A 3840 x 2160 camera calibrated with OpenCV's rational model, as printed in opencv/opencv#20736.
WIDE_4K = (2.99722, -6.09288, 0.000574625, -4.85703e-05, -1.261876, 3.534094, -4.270794, -5.302352)
WIDE_4K_K = np.array([[2421.79, 0, 1919.61], [0, 2421.79, 1090.35], [0, 0, 1]])


def pixel_grid(width: int, height: int, K: Rays, n: int = 33) -> Rays:
    """Distorted rays (n * n, 2) of pixels all over an image, corners among them."""
    x, y = np.meshgrid(np.linspace(0, width - 1, n), np.linspace(0, height - 1, n))
    return np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1]], axis=-1).reshape(-1, 2)


@pytest.mark.parametrize(
    ("coefficients", "K", "wh"),
    [
        (WIDE_4K, WIDE_4K_K, (3840, 2160)),
        ((0.8, 0.0, 0.0, 0.0), np.array([[300.0, 0, 320], [0, 300, 240], [0, 0, 1]]), (640, 480)),
    ],
)
def test_every_pixel_of_an_invertible_lens_has_a_ray(
    coefficients: tuple[float, ...], K: Rays, wh: tuple[int, int]
) -> None:
    pixels = pixel_grid(*wh, K)
    rays = undistort(pixels, coefficients)
    assert np.abs(distort(rays, coefficients) - pixels).max() < 1e-10
    assert within_fold(rays, coefficients).all()
    far, bent = np.hypot(*rays.T), np.hypot(*pixels.T)
    assert (np.diff(far[np.argsort(bent)]) > -0.05).all()  # tangential terms aside, farther out is farther out


def test_a_pole_that_a_zero_cancels_is_no_fold() -> None:
    """The 4K lens's denominator is zero at 0.8088, and its numerator beside it: the corners, 68 degrees off, lie beyond."""
    below = 1 + np.polyval([*WIDE_4K[:4:-1], 0.0], 0.8088**2)
    assert abs(below) < 1e-3
    corner = undistort(pixel_grid(3840, 2160, WIDE_4K_K, 2), WIDE_4K)
    np.testing.assert_allclose(np.hypot(*corner[0]), 2.5083, atol=1e-3)  # by Newton's method from 0.8 of the pixel


@pytest.mark.parametrize("seed", range(8))
def test_opencvs_inverse_gives_back_every_ray_within_the_fold(seed: int) -> None:
    """Strong radial terms, with tangential and prism terms as large as real lenses have them or ten times so."""
    rng = np.random.default_rng(seed)
    (k1, k2, k3), (p1, p2, *prism) = rng.uniform([-0.5, -0.3, -0.2], [1.0, 0.5, 0.2]), rng.uniform(-0.01, 0.01, 6)
    coefficients = (k1, k2, p1, p2, k3, 0.0, 0.0, 0.0, *prism)
    angles = np.linspace(0, 2 * np.pi, 20)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    fold = np.array([folds_at(direction, coefficients) for direction in directions])
    for share in (0.0, 0.3, 0.7, 0.9, 0.99):
        rays = directions * (share * np.minimum(fold, 2.0))[:, None]
        assert within_fold(rays, coefficients).all()
        np.testing.assert_allclose(undistort(distort(rays, coefficients), coefficients), rays, atol=1e-6)


@pytest.mark.parametrize("model", MODELS)
@given(coefficients=st.lists(st.floats(-1e12, 1e12), min_size=14, max_size=14), x=st.floats(-1e3, 1e3))
@settings(max_examples=30, deadline=None, phases=[Phase.generate])
def test_whatever_the_coefficients_a_pixel_has_a_ray_or_none(model: str, coefficients: list[float], x: float) -> None:
    few = tuple(coefficients[: MODELS[model].lengths[-1]])
    with np.errstate(all="ignore"):
        ray = undistort(np.array([x, 0.5]), few, model)
        assert np.isnan(ray).all() or np.abs(distort(ray, few, model) - [x, 0.5]).max() < 1e-6


def folds_at(direction: Rays, coefficients: tuple[float, ...]) -> float:
    """How far along a direction the Jacobian, by differences, first has no positive determinant."""
    far = np.linspace(0.001, 3, 3000)[:, None] * direction
    dx, dy = (
        (distort(far + e, coefficients) - distort(far - e, coefficients)) / 2e-6
        for e in (np.array([1e-6, 0]), np.array([0, 1e-6]))
    )
    folded = dx[:, 0] * dy[:, 1] - dx[:, 1] * dy[:, 0] <= 0
    return float(np.hypot(*far[folded.argmax()])) if folded.any() else 3.0


@pytest.mark.parametrize(
    "coefficients", [(-0.35, 0.0, 0.0, 0.0), (-0.35, 0.02, 0.01, -0.02), (-0.2, 0, 0.03, 0.0, 0.0)]
)
def test_the_fold_is_where_the_jacobian_loses_its_sign(coefficients: tuple[float, ...]) -> None:
    for angle in np.linspace(0, 6.28, 29):
        direction = np.array([np.cos(angle), np.sin(angle)])
        fold = folds_at(direction, coefficients)
        assert within_fold((fold - 0.003) * direction, coefficients)
        assert not within_fold((fold + 0.003) * direction, coefficients)


@pytest.mark.parametrize(("model", "fold"), [("opencv", 1.0), ("fisheye", np.tan(1.0))])
def test_the_fold_of_one_cubic_term_is_known(model: str, fold: float) -> None:
    """r - r^3 / 3 has its maximum, 2 / 3, at r = 1: no ray reaches a pixel beyond, and each within has the inner ray."""
    coefficients = (-1 / 3, 0.0, 0.0, 0.0)
    assert MODELS[model].fold(coefficients)[0] == pytest.approx(fold, rel=1e-9)
    ray = undistort(np.array([[0.66, 0.0], [0.67, 0.0], [0.0, -5.0], [0.0, 0.0]]), coefficients, model)
    assert 0 < ray[0, 0] < fold
    assert np.isnan(ray[1:3]).all()
    assert (ray[3] == 0).all()


def test_beyond_a_real_pole_there_is_no_ray() -> None:
    """1 / (1 - r^2): every pixel is reached before the pole at 1, and none of the rays beyond it is given."""
    coefficients = (0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0)
    pixels = np.stack([np.linspace(0, 20, 50), np.zeros(50)], axis=1)
    rays = undistort(pixels, coefficients)
    assert (rays[:, 0] < 1).all()
    np.testing.assert_allclose(distort(rays, coefficients), pixels, rtol=1e-8)
    assert not within_fold(np.array([1.01, 0.0]), coefficients)


FISHEYES = [(0.0, 0.0, 0.0, 0.0), (-0.02, 0.005, -0.01, 0.001), (0.08, -0.03, 0.01, 0.0)]


@pytest.mark.parametrize("coefficients", FISHEYES)
def test_the_fisheye_is_opencvs(coefficients: tuple[float, ...]) -> None:
    angles = np.linspace(0, 20, 200)
    rays = np.tan(np.linspace(0, 1.55, 200))[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    bent = distort(rays, coefficients, "fisheye")
    expected = cv2.fisheye.distortPoints(rays[None], np.eye(3), np.array(coefficients))[0]
    np.testing.assert_allclose(bent, expected, atol=1e-12)
    inside = within_fold(rays, coefficients, "fisheye")
    assert inside.sum() > 150
    np.testing.assert_allclose(undistort(bent, coefficients, "fisheye")[inside], rays[inside], rtol=1e-8)


def test_a_fisheye_pixel_more_than_90_degrees_off_has_no_ray() -> None:
    pixels = np.array([[np.deg2rad(89), 0.0], [np.deg2rad(91), 0.0], [0.0, np.deg2rad(120)]])
    rays = undistort(pixels, (), "fisheye")
    assert rays[0, 0] == pytest.approx(np.tan(np.deg2rad(89)))
    assert np.isnan(rays[1:]).all()


def test_a_fisheye_may_reach_beyond_90_degrees_without_folding() -> None:
    """A pixel 120 degrees off has no ray on the plane z = 1, yet the model holds there; theta - theta^3 / 3 folds at 1."""
    pixels = np.array([[np.deg2rad(120), 0.0]])
    assert np.isnan(undistort(pixels, (0.0,) * 4, "fisheye")).all()
    assert not folds_before(pixels, (0.0,) * 4, "fisheye")
    assert folds_before(np.array([[0.67, 0.0]]), (-1 / 3, 0.0, 0.0, 0.0), "fisheye")
    assert not folds_before(np.array([[0.66, 0.0]]), (-1 / 3, 0.0, 0.0, 0.0), "fisheye")
    assert folds_before(np.array([[0.67, 0.0]]), (-1 / 3, 0.0, 0.0, 0.0))
    assert not folds_before(pixels, (), "pinhole")


@pytest.mark.parametrize("model", MODELS)
def test_shapes_are_kept(model: str) -> None:
    rays = np.full((2, 3, 2), 0.1)
    assert distort(rays, (), model).shape == undistort(rays, (), model).shape == rays.shape
    assert within_fold(rays, (), model).shape == (2, 3)
    assert undistort(np.zeros((0, 2)), (), model).shape == (0, 2)
