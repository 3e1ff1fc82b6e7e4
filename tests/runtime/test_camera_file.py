"""Camera files of every kind are the same camera; what they say that is not read, or contradicts itself, is refused."""

from __future__ import annotations

import json
import random
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from posekit.runtime.camera_file import intrinsics_from_file, intrinsics_from_json
from posekit.runtime.errors import InputError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.plausible_camera import CameraWarning

K = np.array([[600.0, 0, 310], [0, 590, 250], [0, 0, 1]])
D = (-0.1, 0.02, 0.001, -0.0005, 0.01)
OWN = {"fx": 600, "fy": 590, "cx": 310, "cy": 250, "width": 640, "height": 480}

ROS = """image_width: 640
image_height: 480
camera_name: head camera
camera_matrix:
  rows: 3
  cols: 3
  data: [600.0, 0., 310.0,
         0., 590.0, 250.0, 0., 0., 1.]
distortion_model: plumb_bob
distortion_coefficients:
  rows: 1
  cols: 5
  data: [-0.1, 0.02, 0.001, -0.0005, 0.01]
rectification_matrix:
  rows: 3
  cols: 3
  data: [1., 0., 0., 0., 1., 0., 0., 0., 1.]
"""
ROS_PROJECTION = """projection_matrix:
  rows: 3
  cols: 4
  data: [580., 0., 312., 0., 0., 575., 251., 0., 0., 0., 1., 0.]
"""
ECHO = """header:
  stamp:
    sec: 12
    nanosec: 5
  frame_id: ''
height: 480
width: 640
distortion_model: plumb_bob
d:
- -0.1
- 0.02
- 0.001
- -0.0005
- 0.01
k: [600.0, 0.0, 310.0, 0.0, 590.0, 250.0, 0.0, 0.0, 1.0]
binning_x: 0
binning_y: 0
roi:
  x_offset: 0
  y_offset: 0
  height: 0
  width: 0
  do_rectify: false
---
"""
KALIBR = """cam0:
  T_cam_imu:
  - [0.01, 0.99, -0.02, 0.06]
  - [0.0, 0.0, 0.0, 1.0]
  cam_overlaps: [1]
  camera_model: pinhole
  distortion_coeffs: [-0.1, 0.02, 0.001, -0.0005]
  distortion_model: radtan
  intrinsics: [600.0, 590.0, 310.0, 250.0]
  resolution: [640, 480]
  rostopic: /cam0/image_raw
"""


MATRIX = "camera_matrix: [600, 0, 310, 0, 590, 250, 0, 0, 1]\nimage_width: 640\nimage_height: 480\n"
NESTED = """cameraMatrix: [[600., 0, 310.], [0, 590., 250.], [0, 0, 1]]
dist_coeffs: [[-0.1, 0.02, 0.001, -0.0005, 0.01]]
image_size: [640, 480]
"""


def realsense(**changes: Any) -> str:
    camera = {"width": 640, "height": 480, "fx": 600.0, "fy": 590.0, "ppx": 310.0, "ppy": 250.0}
    return json.dumps(camera | {"model": "Brown Conrady", "coeffs": list(D)} | changes)


def opencv_file(path: Path, **more: Any) -> Path:
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    storage.write("calibration_time", "Sat Nov 28 10:00:01 2026")
    storage.write("image_width", 640)
    storage.write("image_height", 480)
    for name, value in ({"camera_matrix": K, "distortion_coefficients": np.array([D])} | more).items():
        storage.write(name, value)
    storage.release()
    return path


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def is_the_camera(camera: Intrinsics, n: int = 5, model: str = "opencv") -> None:
    assert np.array_equal(camera.K, K)
    assert (camera.width_px, camera.height_px, camera.distortion, camera.model) == (640, 480, D[:n], model)


@pytest.mark.parametrize("name", ["c.yml", "c.yaml", "c.xml", "c.json", "c.txt"])
def test_opencvs_own_files_are_read(tmp_path: Path, name: str) -> None:
    is_the_camera(intrinsics_from_file(opencv_file(tmp_path / name)))


@pytest.mark.parametrize(
    ("text", "n", "model"),
    [
        (json.dumps(OWN | {"depth_scale": 1, "distortion": D}), 5, "opencv"),
        (json.dumps(OWN | {"distortion": D[:4], "model": "fisheye"}), 4, "fisheye"),
        (json.dumps(OWN), 0, "opencv"),
        (ROS, 5, "opencv"),
        (ROS.replace("plumb_bob", "equidistant").replace(", 0.01]", "]"), 4, "fisheye"),
        (ECHO, 5, "opencv"),
        (ECHO.replace("d:\n", "D:\n").replace("k: [", "K: ["), 5, "opencv"),
        (json.dumps({"K": K.tolist(), "D": D, "distortion_model": "plumb_bob", "width": 640, "height": 480}), 5, "opencv"),
        (KALIBR, 4, "opencv"),
        (KALIBR.replace("radtan", "equidistant"), 4, "fisheye"),
        (realsense(), 5, "opencv"),
        (realsense(model="distortion.brown_conrady"), 5, "opencv"),
        (realsense(model="Kannala Brandt4", coeffs=[*D[:4], 0.0]), 4, "fisheye"),
        (realsense(model="RS2_DISTORTION_INVERSE_BROWN_CONRADY", coeffs=[0.0] * 5), 0, "pinhole"),
        (realsense(model="None", coeffs=[0.0] * 5), 0, "pinhole"),
        (NESTED, 5, "opencv"),
    ],
)  # fmt: skip
def test_all_kinds_say_the_same(tmp_path: Path, text: str, n: int, model: str) -> None:
    for byte_order_mark in ("", "\ufeff"):
        is_the_camera(intrinsics_from_file(written(tmp_path / "camera", byte_order_mark + text)), n, model)


def test_skew_is_read(tmp_path: Path) -> None:
    for text in (json.dumps(OWN | {"skew": 0.5}), NESTED.replace("[600., 0, 310.]", "[600., 0.5, 310.]")):
        assert intrinsics_from_file(written(tmp_path / "camera", text)).K[0].tolist() == [600, 0.5, 310]


def test_of_ros_the_raw_images_camera_is_read_and_said(tmp_path: Path) -> None:
    with pytest.warns(CameraWarning, match=r"K and D are read.*image_rect"):
        is_the_camera(intrinsics_from_file(written(tmp_path / "c.yaml", ROS + ROS_PROJECTION)))


def test_opencvs_programs_say_when_it_is_a_fisheye(tmp_path: Path) -> None:
    path = opencv_file(tmp_path / "c.yml", fisheye_model=1, distortion_coefficients=np.array(D[:4])[:, None])
    is_the_camera(intrinsics_from_file(path), 4, "fisheye")


def test_the_lens_model_may_be_said_in_a_word(tmp_path: Path) -> None:
    text = MATRIX + "dist: [-0.1, 0.02, 0.001, -0.0005]\n"
    for word, model in (("fisheye", "fisheye"), ("opencv", "opencv"), ("pinhole", "opencv")):
        is_the_camera(intrinsics_from_file(written(tmp_path / "camera.yaml", f"{text}model: {word}\n")), 4, model)


def test_euroc_and_four_coefficients_of_kannala_and_brandt_are_read(tmp_path: Path) -> None:
    euroc = KALIBR.replace("cam0:\n", "").replace("\n  ", "\n").removeprefix("  ")
    euroc = euroc.replace("radtan", "radial-tangential").replace("distortion_coeffs", "distortion_coefficients")
    is_the_camera(intrinsics_from_file(written(tmp_path / "sensor.yaml", euroc)), 4)
    four = realsense(model="Kannala Brandt4", coeffs=D[:4])
    is_the_camera(intrinsics_from_file(written(tmp_path / "camera.json", four)), 4, "fisheye")


def test_the_older_name_reads_the_same(tmp_path: Path) -> None:
    is_the_camera(intrinsics_from_json(written(tmp_path / "camera.json", json.dumps(OWN))), 0)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "got nothing"),
        ("[]", "list instead of a table"),
        ("{}", "no key 'cx'"),
        ("<html></html>", "XML that OpenCV does not read"),
        ("just words", "line 1"),
        ('{"width": 640, "height": 480, "focal": 600}', "keys width, height, focal"),
        ('{"fx": 600}', "no key"),
        (json.dumps(OWN | {"focal": 3}), "unknown key 'focal'"),
        (json.dumps(OWN | {"model": "omni"}), "omni"),
        (json.dumps(OWN)[:-1] + ', "fx": 500}', "a key twice"),
        ("[" * 100_000, "camera file"),
        ("a: [1, 2", "bracket"),
        (KALIBR.replace("pinhole", "omni"), "cam0: omni-radtan"),
        (KALIBR.replace("pinhole", "ds").replace("radtan", "none"), "cam0: ds-none"),
        (KALIBR.replace("radtan", "fov"), "pinhole-fov"),
        (KALIBR + KALIBR.replace("cam0:", "cam1:"), "2 cameras (cam0, cam1)"),
        (KALIBR.replace("  resolution: [640, 480]\n", ""), "image size None"),
        (KALIBR.replace("[600.0, ", "["), "intrinsics"),
        (ROS.replace("plumb_bob", "omni"), "distortion_model omni"),
        (ROS.replace("0., 1.]\ndistortion_model", "0.]\ndistortion_model"), "8 numbers in camera_matrix"),
        (ROS.replace("590.0, 250.0", "590.0, bad"), "camera_matrix"),
        (ECHO.replace("binning_x: 0", "binning_x: 2"), "binning [2, 1]"),
        (ECHO.replace("x_offset: 0", "x_offset: 16"), "roi"),
        (ECHO.replace("[600.0, ", "[0.0, "), "focal lengths 0"),  # a driver that was never calibrated
        (realsense(model="Inverse Brown Conrady"), "Inverse Brown Conrady"),
        (realsense(model="Modified Brown Conrady"), "Modified"),
        (realsense(model="Ftheta"), "Ftheta"),
        (realsense(width=None), "width"),
        ("camera_matrix: [600, 0, 310, 0, 590, 250, 0, 0, 1]\n", "no image size"),
        (MATRIX + "K: [500, 0, 310, 0, 590, 250, 0, 0, 1]\n", "camera_matrix and K that differ"),
        (MATRIX + "fx: 600\n", "K twice"),
        (MATRIX + "dist: [0.1, 0, 0, 0]\nD: [0.2, 0, 0, 0]\n", "dist and D that differ"),
        (MATRIX + "width: 320\nheight: 480\n", "image_width and width that differ"),
        (MATRIX + "image_size: [320, 480]\n", "image_size [320, 480] and 640 x 480 that differ"),
        (MATRIX + "model: omni\n", "model 'omni'"),
        (MATRIX + "fisheye_model: 2\n", "fisheye_model 2"),
        (MATRIX + "fisheye_model: 0\nmodel: fisheye\n", "fisheye_model 0, model 'fisheye'"),
        (KALIBR.replace("  distortion_coeffs: [-0.1, 0.02, 0.001, -0.0005]\n", ""), "radtan without distortion_coeffs"),
        (ECHO.replace("\nd:\n- -0.1\n- 0.02\n- 0.001\n- -0.0005\n- 0.01", ""), "plumb_bob without coefficients"),
        (json.dumps(OWN | {"distortion": [0.1]}), "which has no or 4 or 5 or 8 or 12 or 14 coefficients"),
        ("xi: 0.8\nK: [600, 0, 310, 0, 590, 250, 0, 0, 1]\nimage_size: [640, 480]\n", "xi of an omnidirectional"),
    ],
)
def test_what_is_no_camera_or_another_kind_is_refused(tmp_path: Path, text: str, cause: str) -> None:
    path = written(tmp_path / "camera.json", text)
    with pytest.raises(InputError, match=r"camera file .*camera\.json") as caught:
        intrinsics_from_file(path)
    assert cause in str(caught.value)


def bad(**changes: Any) -> str:
    return json.dumps(OWN | changes)


@pytest.mark.parametrize(
    "text",
    [
        bad(fx=0),
        bad(fx="600"),
        bad(fx=float("nan")),
        bad(fx=float("inf")),
        bad(width="640"),
        bad(width=640.5),
        bad(width=True),
        bad(distortion="12345"),
        bad(distortion=[1]),
        bad(whole_wh_px=[640.0, 480.0]),
        bad(fx=10**400),
    ],
)
def test_values_are_not_converted(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"camera file .*camera\.json"):
        intrinsics_from_file(written(tmp_path / "camera.json", text))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match="camera file"):
            intrinsics_from_file(path)
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(InputError, match="camera file"):
        intrinsics_from_file(tmp_path / "binary")


def test_coefficients_that_only_a_fisheye_can_have_are_refused_with_both_readings(tmp_path: Path) -> None:
    """The third coefficient of a fisheye is a strong tangential one of OpenCV's, which folds 0.5 focal lengths off."""
    kb = OWN | {"fx": 300, "fy": 300, "distortion": [-0.05, 0.02, 0.3, -0.004]}
    path = written(tmp_path / "camera.json", json.dumps(kb))
    with pytest.raises(InputError, match=r"read as OpenCV's .* it folds back inside the image, read as a fisheye's"):
        intrinsics_from_file(path)
    assert intrinsics_from_file(written(path, json.dumps(kb | {"model": "fisheye"}))).model == "fisheye"
    with pytest.warns(CameraWarning, match="folds back inside the image"):
        assert intrinsics_from_file(written(path, json.dumps(kb | {"model": "opencv"}))).model == "opencv"
    mild = json.dumps(OWN | {"distortion": [-0.1, 0.02, 0.001, -0.0005]})
    assert intrinsics_from_file(written(path, mild)).model == "opencv"


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        (
            {"width": 320, "height": 240},
            "in the middle of an image 2.01 times as large as 320 x 240",
        ),  # image halved, K not
        ({"width": 1280, "height": 960}, "0.503 times as large"),
        ({"width": 480, "height": 360}, "1.34 times as large"),
        (
            {"width": 480, "height": 640},
            "in the middle of 640 x 480 px, the image turned by 90 degrees, not of 480 x 640",
        ),
        ({"fx": 600 / 640, "fy": 590 / 480, "cx": 0.48, "cy": 0.52}, "focal lengths 0.9375"),
        ({"fx": 3.6, "fy": 3.6, "cx": 2.4, "cy": 1.8}, "focal lengths 3.6"),
        ({"fx": 100000}, "differ 169 times"),
        ({"fx": 1066778, "fy": 1067487}, "1667 times an image"),  # a decimal point lost
        ({"cx": 3000}, "no pixel is within 60 degrees"),
        ({"cx": -400}, "outside 640 x 480"),
        ({"whole_wh_px": [320, 240]}, "cut from one of 320 x 240"),
        ({"whole_wh_px": [1280, 960]}, "0.503 times as large as 1280 x 960"),
    ],
)
def test_a_camera_that_contradicts_itself_is_refused(tmp_path: Path, changes: dict[str, Any], cause: str) -> None:
    with pytest.raises(InputError) as caught:
        intrinsics_from_file(written(tmp_path / "camera.json", json.dumps(OWN | changes)))
    assert cause in caught.value.got


def test_a_part_of_a_larger_image_can_be_said(tmp_path: Path) -> None:
    """The left upper quarter looks like a halved image, unless the file says what it was cut from."""
    quarter = OWN | {"width": 320, "height": 240, "whole_wh_px": [640, 480]}
    camera = intrinsics_from_file(written(tmp_path / "camera.json", json.dumps(quarter)))
    assert (camera.width_px, camera.height_px, camera.K[0, 2]) == (320, 240, 310)


def test_an_odd_camera_is_read_with_a_word(tmp_path: Path) -> None:
    odd = OWN | {"cx": 480}
    with pytest.warns(CameraWarning, match="far from the middle"):
        assert intrinsics_from_file(written(tmp_path / "camera.json", json.dumps(odd))).K[0, 2] == 480
    resized = OWN | {"width": 512, "height": 384}
    with pytest.warns(CameraWarning, match=r"1\.26 times as large"):
        assert intrinsics_from_file(written(tmp_path / "camera.json", json.dumps(resized))).width_px == 512


@pytest.mark.parametrize("text", [ROS + ROS_PROJECTION, ECHO, KALIBR, realsense(), json.dumps(OWN | {"distortion": D})])
def test_a_damaged_file_is_a_camera_or_refused(tmp_path: Path, text: str) -> None:
    rng, path = random.Random(0), tmp_path / "camera"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CameraWarning)
        for _ in range(150):
            at = rng.randrange(len(text))
            damaged = text[:at] + rng.choice(["", "-", "[", ": ", "\n", "9", "null", "{}", '"'])
            damaged += text[at + rng.randrange(8) :]
            with suppress(InputError):
                assert intrinsics_from_file(written(path, damaged)).width_px > 0
