"""The camera model against OpenCV, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from posekit.runtime.errors import InputError
from posekit.runtime.intrinsics import Intrinsics, intrinsics_from_json

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
    ],
)
def test_impossible_cameras_are_refused(
    K: np.ndarray, size: tuple[int, int], distortion: tuple[float, ...], cause: str
) -> None:
    with pytest.raises(InputError, match=cause):
        Intrinsics(K, *size, distortion)


def test_camera_file(tmp_path: Path) -> None:
    path = tmp_path / "camera.json"
    path.write_text(
        json.dumps({"fx": 600, "fy": 590, "cx": 310, "cy": 250, "width": 640, "height": 480, "depth_scale": 1})
    )
    camera = intrinsics_from_json(path)
    assert np.array_equal(camera.K, K)
    assert (camera.width_px, camera.height_px, camera.distortion) == (640, 480, ())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"fx": 600}',
        '{"fx": 0, "fy": 1, "cx": 1, "cy": 1, "width": 4, "height": 4}',
        '{"fx": 1, "fy": 1, "cx": 1, "cy": 1, "width": 4, "height": 4, "focal": 3}',
        '{"fx": "a", "fy": 1, "cx": 1, "cy": 1, "width": 4, "height": 4}',
        '{"fx": "600", "fy": 1, "cx": 1, "cy": 1, "width": 4, "height": 4}',
        '{"fx": NaN, "fy": 1, "cx": 1, "cy": 1, "width": 4, "height": 4}',
        '{"fx": 1, "fy": 1, "cx": 1, "cy": 1, "width": "4", "height": 4}',
        '{"fx": 1, "fy": 1, "cx": 1, "cy": 1, "width": 4.5, "height": 4}',
        '{"fx": 1, "fy": 1, "cx": 1, "cy": 1, "width": Infinity, "height": 4}',
        '{"fx": 1, "fy": 1, "cx": 1, "cy": 1, "width": true, "height": 4}',
        '{"fx": 1, "fy": 1, "cx": 1, "cy": 1, "width": 4, "height": 4, "distortion": "12345"}',
        '{"fx": 1, "fy": 1, "cx": 1, "cy": 1, "width": 4, "height": 4, "distortion": [1]}',
        '{"fx": 1' + "0" * 400 + ', "fy": 1, "cx": 1, "cy": 1, "width": 4, "height": 4}',
        "[" * 100_000,
    ],
)
def test_bad_camera_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "camera.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"camera file .*camera\.json"):
        intrinsics_from_json(path)


def test_missing_camera_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="camera file"):
        intrinsics_from_json(tmp_path / "none.json")
