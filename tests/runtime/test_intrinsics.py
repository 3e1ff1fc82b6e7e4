"""The camera model against OpenCV, and its refusals."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from posekit.runtime.errors import InputError
from posekit.runtime.intrinsics import Intrinsics

K = np.array([[600.0, 0, 310], [0, 590, 250], [0, 0, 1]])
DISTORTIONS = [
    (),
    (-0.2, 0.05, 0.001, -0.002),
    (-0.2, 0.05, 0.001, -0.002, 0.01),
    (0.1, 0.02, 0.001, -0.002, 0.01, 0.05, 0.01, 0.002),
    (-0.2, 0.05, 0.001, -0.002, 0.01, 0.02, 0.0, 0.0, 0.001, 0.002, -0.001, 0.0005),
    (-0.2, 0.05, 0.001, -0.002, 0.01, 0.02, 0.0, 0.0, 0.001, 0.002, -0.001, 0.0005, 0.02, -0.03),
]


@pytest.mark.parametrize("distortion", DISTORTIONS)
def test_projection_is_opencvs(distortion: tuple[float, ...]) -> None:
    points = np.random.default_rng(0).uniform([-0.4, -0.3, 0.8], [0.4, 0.3, 2.0], (50, 3))
    expected = cv2.projectPoints(points, np.zeros(3), np.zeros(3), K, np.array(distortion) if distortion else None)[0]
    assert np.allclose(Intrinsics(K, 640, 480, distortion).project(points), expected[:, 0], atol=1e-9)


@pytest.mark.parametrize("distortion", DISTORTIONS)
def test_undistortion_inverts_distortion(distortion: tuple[float, ...]) -> None:
    camera = Intrinsics(K, 640, 480, distortion)
    ideal = np.stack(np.meshgrid(np.linspace(60, 580, 9), np.linspace(40, 440, 7)), axis=-1).reshape(-1, 2)
    real = camera.project(camera.rays(ideal))
    assert np.allclose(camera.ideal_from_distorted(real), ideal, atol=1e-6)


def with_K(**changes: float) -> np.ndarray:
    k = K.copy()
    for place, value in changes.items():
        k[int(place[1]), int(place[2])] = value
    return k


@pytest.mark.parametrize(
    ("K", "size", "distortion", "cause"),
    [
        (with_K(k00=0.0), (640, 480), (), "focal lengths 0"),
        (with_K(k11=-5.0), (640, 480), (), "focal lengths"),
        (with_K(k02=np.nan), (640, 480), (), "NaN"),
        (np.eye(4), (640, 480), (), "shape"),
        (K.astype(str), (640, 480), (), "no array of numbers"),
        ([[600.0], [0, 600]], (640, 480), (), "no array of numbers"),
        (K, (640.5, 480), (), "image size"),
        (K, (np.nan, 480), (), "image size"),
        (K, ("640", 480), (), "image size"),
        (with_K(k20=1.0), (640, 480), (), "rows"),
        (K, (0, 480), (), "image size"),
        (K, (640, 480), (0.1, 0.2), "distortion"),
        (K, (640, 480), (0.1, 0.2, 0.0, np.nan), "distortion"),
        (K, (640, 480), (0.1, 0.2, 0.0, 1e9), "distortion"),
        (K, (640, 480), ("0.1", "0.2", "0", "0"), "distortion"),
        (K, (640, 480), ((0.1, 0.2, 0.0, 0.0),), "distortion"),
        (
            np.diag([1 / 640, 1 / 480, 1.0]) @ K,
            (640, 480),
            (),
            "focal lengths 0.9375, 1.22917 for an image of 640 x 480",
        ),
        (np.diag([0.006, 0.006, 1.0]) @ K, (640, 480), (), "focal lengths 3.6, 3.54 for an image"),  # a lens in mm
        (with_K(k00=50.0, k11=50.0), (640, 480), (), "focal lengths 50, 50 for an image"),
    ],
)
def test_impossible_cameras_are_refused(
    K: np.ndarray, size: tuple[int, int], distortion: tuple[float, ...], cause: str
) -> None:
    with pytest.raises(InputError, match=cause):
        Intrinsics(K, *size, distortion)


@pytest.mark.parametrize(
    ("distortion", "model", "cause"),
    [
        ((), "omni", "lens model 'omni'"),
        ((0.1, 0.2, 0.3, 0.4, 0.5), "fisheye", "distortion .* of lens model fisheye"),
        ((0.0, 0.0, 0.0, 0.0), "pinhole", "distortion .* of lens model pinhole"),
    ],
)
def test_a_lens_model_has_its_own_coefficients(distortion: tuple[float, ...], model: str, cause: str) -> None:
    with pytest.raises(InputError, match=cause):
        Intrinsics(K, 640, 480, distortion, model)


def test_what_no_image_shows_is_told() -> None:
    """Behind the camera, on its plane, and beyond the lens's fold, here at a ray of 0.976, a point has no pixel."""
    camera = Intrinsics(K, 640, 480, (-0.35, 0.0, 0.0, 0.0))
    points = [[0, 0, 1.0], [0.5, 0, -1.0], [0.1, 0, 0.0], [0.97, 0, 1.0], [0.98, 0, 1.0], [-9, 9, 1.0]]
    assert camera.shows(points).tolist() == [True, False, False, True, False, False]
    assert camera.undistorted().shows(points).tolist() == [True, False, False, True, True, True]
    assert not camera.shows([0, 0, 0.5], nearest_m=0.5)


def test_pixels_without_a_ray_are_nan_or_refused() -> None:
    camera = Intrinsics(K, 640, 480, (-1.2, 0.0, 0.0, 0.0))
    pixels = np.array([[310.0, 250], [0, 0]])
    ideal = camera.ideal_or_nan(pixels)
    assert ideal[0].tolist() == [310, 250]
    assert np.isnan(ideal[1]).all()
    with pytest.raises(InputError, match="no ideal pixel"):
        camera.ideal_from_distorted(pixels)


def test_the_ideal_camera_has_square_pixels_and_sees_the_same() -> None:
    """Rows 4/3 as far apart: a point's x stays, and the image's upper edge at y = -0.5 stays an edge."""
    camera = Intrinsics(np.array([[800.0, 2, 310], [0, 600, 250], [0, 0, 1]]), 640, 480, (-0.2, 0.05, 0.0, 0.0))
    ideal = camera.ideal
    assert (ideal.width_px, ideal.height_px, ideal.is_distorted) == (640, 640, False)
    assert ideal.K[0, 0] == ideal.K[1, 1]
    points = np.random.default_rng(0).uniform([-0.4, -0.3, 0.8], [0.4, 0.3, 2.0], (20, 3))
    x, y = camera.undistorted().project(points).T
    assert np.allclose(ideal.project(points), np.stack([x, (y + 0.5) * 4 / 3 - 0.5], axis=1))
    assert Intrinsics(K, 640, 480).ideal.K[1, 1] == 600  # 600 / 590: more than calibration's noise
    same = Intrinsics(np.array([[600.0, 0, 310], [0, 596, 250], [0, 0, 1]]), 640, 480)
    assert same.ideal is same
