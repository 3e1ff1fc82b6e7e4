"""Camera files, recognised by what is in them: posekit's and BOP's, OpenCV's, ROS's, RealSense's and Kalibr's.

All of them put pixel centres at integers and give pixels, as posekit does. What a file says that would change the
picture and is not read (a region of interest, another lens model) is refused, never passed over.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from posekit.runtime.errors import InputError
from posekit.runtime.image_file import quiet_cv2
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.lens import folds_before
from posekit.runtime.plain_yaml import plain_from_yaml
from posekit.runtime.plausible_camera import CameraWarning, contradiction, oddity
from posekit.runtime.records import RecordProblem, distinct_keys, record_from

KEEP_ONE = "Keep the one that is right."
MOST_BYTES = 16 << 20  # OpenCV's files hold every corner of every picture of the chessboard
NONE_READ = (
    "a camera file: posekit's or BOP's JSON (fx, fy, cx, cy, width, height), OpenCV's YAML or XML (camera_matrix), "
    "ROS's camera_info, RealSense's JSON (ppx, ppy) or Kalibr's camchain"
)
Table = Mapping[str, Any]


@dataclass(frozen=True)
class _Camera:
    """What posekit's own camera file says; all others are turned into it.

    model: of the lens; without one, `distortion` is OpenCV's.   whole_wh_px: of the image that this one was cut from.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    skew: float = 0.0
    distortion: tuple[float, ...] = ()
    depth_scale: float | None = None
    model: Literal["pinhole", "opencv", "fisheye"] | None = None
    whole_wh_px: tuple[int, int] | None = None


class _Refused(ValueError):
    """What is wrong in a file; whoever opened it adds its name."""

    def __init__(self, got: object, expected: str, remedy: str = "Correct the file.") -> None:
        self.got, self.expected, self.remedy = got, expected, remedy
        super().__init__(str(got))


def intrinsics_from_file(path: Path | str) -> Intrinsics:
    """Read a camera file; which kind it is, its content says (docs/cameras.md).

    Raises InputError for what is no camera file, for intrinsics that contradict themselves, and for distortion
    coefficients without a lens model that fit a fisheye's and not OpenCV's. Warns with CameraWarning of what is odd.
    """
    what = f"camera file {path}"
    try:
        table = _table(Path(path))
        camera = _reader(table)(table)
        K = np.array([[camera.fx, camera.skew, camera.cx], [0.0, camera.fy, camera.cy], [0.0, 0.0, 1.0]])
        intrinsics = Intrinsics(K, camera.width, camera.height, camera.distortion, camera.model or "opencv")
        _check(camera, intrinsics)
    except (InputError, RecordProblem, _Refused) as error:
        got = f"{error.where}: {error.got}" if isinstance(error, RecordProblem) else error.got
        remedy = "Correct the file." if isinstance(error, RecordProblem) else error.remedy
        raise InputError(what, got=got, expected=error.expected, remedy=remedy) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            what,
            got=error,
            expected=NONE_READ,
            remedy="Write the camera's intrinsics in pixels into one of these forms.",
        ) from error
    odd = oddity(K, camera.whole_wh_px or (camera.width, camera.height))
    if odd:
        warnings.warn(CameraWarning(f"{what}: {odd}. Check that K and size belong together."), stacklevel=2)
    if _folds(intrinsics):
        message = (
            "the lens model folds back inside the image. Crops are black beyond; check the distortion coefficients"
        )
        warnings.warn(CameraWarning(f"{what}: {message}."), stacklevel=2)
    return intrinsics


intrinsics_from_json = intrinsics_from_file  # its name when there was one kind


def _check(camera: _Camera, intrinsics: Intrinsics) -> None:
    problem = contradiction(intrinsics.K, (camera.width, camera.height), camera.whole_wh_px)
    if problem:
        raise _Refused(
            problem,
            "intrinsics in pixels for an image of the size that the file states",
            "Resized images need K resized with them (fx, cx with the width, fy, cy with the height), turned ones K turned. "
            'Where the image is a part cut from a larger one, say so in posekit\'s JSON: "whole_wh_px": [WIDTH, HEIGHT] of that.',
        )
    if camera.model is None and len(camera.distortion) == 4 and _folds(intrinsics):
        fisheye = replace(intrinsics, model="fisheye")
        if not _folds(fisheye):
            raise _Refused(
                f"distortion {list(camera.distortion)} without a lens model: read as OpenCV's k1 k2 p1 p2 it folds back "
                "inside the image, read as a fisheye's k1 k2 k3 k4 it does not",
                "a lens model beside coefficients that can be read in two ways",
                'State "model": "fisheye" in posekit\'s JSON (fisheye_model: 1 in OpenCV\'s file) if they are an '
                'equidistant fisheye\'s, "model": "opencv" (fisheye_model: 0) if they are not.',
            )


def _folds(intrinsics: Intrinsics) -> bool:
    """Whether the lens model folds back before it reaches the whole border of the image."""
    right, bottom = intrinsics.width_px - 0.5, intrinsics.height_px - 0.5
    across, down = np.linspace(-0.5, right, 33), np.linspace(-0.5, bottom, 33)
    border = [(x, y) for x in across for y in (-0.5, bottom)] + [(x, y) for x in (-0.5, right) for y in down]
    return folds_before(intrinsics.rays(np.array(border))[:, :2], intrinsics.distortion, intrinsics.model)


# From a file to a table.


def _table(path: Path) -> Table:
    with path.open("rb") as file:
        encoded = file.read(MOST_BYTES + 1)
    if len(encoded) > MOST_BYTES:
        raise _Refused(f"more than {MOST_BYTES >> 20} MiB", NONE_READ)
    text = encoded.decode("utf-8-sig").strip()
    if text.startswith(("{", "[")):
        table = json.loads(text, object_pairs_hook=distinct_keys)
    else:
        table = _from_xml(text) if text.startswith("<") else plain_from_yaml(text)
    if not isinstance(table, dict):
        raise _Refused("nothing" if table is None else f"{type(table).__name__} instead of a table", NONE_READ)
    return table


def _from_xml(text: str) -> Any:
    import cv2

    def plain(node: Any) -> Any:
        if node.isMap():
            return {key: plain(node.getNode(key)) for key in node.keys()}  # noqa: SIM118
        if node.isSeq():
            return [plain(node.at(i)) for i in range(node.size())]
        if node.isString():
            return node.string()
        return int(node.real()) if node.isInt() else node.real()

    try:
        with quiet_cv2():
            storage = cv2.FileStorage(text, cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)  # owns its nodes
            return plain(storage.root())
    except (cv2.error, SystemError) as error:  # the constructor raises the latter
        raise _Refused("XML that OpenCV does not read", NONE_READ) from error


# From the table of one kind of file to the camera.


def _own(table: Table) -> _Camera:
    return record_from(_Camera, table, "camera")


def _opencv(table: Table) -> _Camera:
    """cv2.FileStorage, with the keys of OpenCV's calibration programs."""
    refused = [key for key in ("xi", "xi_matrix") if key in table]
    if refused:
        raise _Refused(
            f"{refused[0]} of an omnidirectional camera", "a pinhole or fisheye camera", "Calibrate it as one."
        )
    width = _found(table, "image_width", "image_Width", "imageWidth", "width")
    height = _found(table, "image_height", "image_Height", "imageHeight", "height")
    size = _found(table, "image_size", "imageSize", "image_Size") or (width, height)
    if width is not None and list(size) != [width, height]:
        raise _Refused(f"image_size {size} and {width} x {height} that differ", "one of them", KEEP_ONE)
    if not (isinstance(size, Sequence) and len(size) == 2) or None in size:
        raise _Refused("no image size", "image_width and image_height", "Add them to the file.")
    distortion = _numbers(table, *DISTORTIONS)
    return _camera(_matrix(table, *CAMERA_MATRICES), size, distortion, _opencv_model(table))


def _opencv_model(table: Table) -> str | None:
    """The lens model that an OpenCV file states: calibration programs write a flag, others a word."""
    said = {key: table[key] for key in ("fisheye_model", "fisheye", "model", "lens_model") if key in table}
    unknown = [key for key, value in said.items() if not isinstance(value, (int, str)) or value not in OPENCV_MODELS]
    models = {OPENCV_MODELS[value] for value in said.values()} if not unknown else set()
    if unknown or len(models) > 1:
        got = ", ".join(f"{key} {said[key]!r}" for key in unknown or said)
        raise _Refused(got, f"one lens model: one of {', '.join(map(str, OPENCV_MODELS))}")
    return next(iter(models), None)


def _ros(table: Table) -> _Camera:
    """sensor_msgs/CameraInfo, as camera_calibration writes it and as `topic echo` shows it: K and D, of the raw image."""
    model = str(table.get("distortion_model") or "none")
    distortion = _numbers(table, *DISTORTIONS)
    if model not in ROS_MODELS:
        raise _Refused(f"distortion_model {model}", f"one of {', '.join(ROS_MODELS)}")
    if ROS_MODELS[model] != "pinhole" and _found(table, *DISTORTIONS) is None:
        raise _Refused(
            f"distortion_model {model} without coefficients", "them, an empty list where the lens does nothing"
        )
    size = (_found(table, "image_width", "width"), _found(table, "image_height", "height"))
    window = table.get("roi") or {}
    whole = {"x_offset": (0,), "y_offset": (0,), "width": (0, size[0]), "height": (0, size[1])}
    binning = [table.get(key) or 1 for key in ("binning_x", "binning_y")]
    if binning != [1, 1] or not isinstance(window, dict) or any(window.get(key, 0) not in whole[key] for key in whole):
        raise _Refused(
            f"binning {binning}, roi {window}",
            "the whole image, not binned",
            "Write the K of the images as they come into a file of posekit's form.",
        )
    K = _matrix(table, *CAMERA_MATRICES)
    P = _numbers(table, "projection_matrix", "P", "p")
    if len(P) == 12 and any(P) and not np.allclose(np.reshape(P, (3, 4))[:, :3], K, rtol=1e-3):
        message = "K and D are read, which are the raw image's (image_raw); rectified images (image_rect) have P"
        warnings.warn(CameraWarning(f"ROS camera file: {message}."), stacklevel=3)
    return _camera(K, size, distortion, ROS_MODELS[model])


def _realsense(table: Table) -> _Camera:
    """rs2_intrinsics."""
    said = re.sub(r"[\s_.-]+", "_", str(table.get("model", "none")).lower()).removeprefix("rs2_")
    name = said.removeprefix("distortion_")
    coefficients = _numbers(table, "coeffs")
    if name == "kannala_brandt4" and len(coefficients) in (4, 5) and not any(coefficients[4:]):
        return _of_realsense(table, coefficients[:4], "fisheye")
    if name != "kannala_brandt4" and not any(coefficients):
        return _of_realsense(table, (), "pinhole")
    if name == "brown_conrady" or (name == "modified_brown_conrady" and not any(coefficients[2:4])):
        return _of_realsense(table, coefficients, "opencv")
    raise _Refused(
        f"model {table.get('model')!r} with coeffs {list(coefficients)}",
        "Brown Conrady, Kannala Brandt4, or coefficients that are all zero",
        "Inverse models take pixels to rays, not rays to pixels: calibrate the camera with OpenCV, or undistort the images "
        "with the camera's SDK and leave the coefficients out.",
    )


def _of_realsense(table: Table, distortion: Sequence[float], model: str) -> _Camera:
    fx, fy, cx, cy = (table.get(key) for key in ("fx", "fy", "ppx", "ppy"))
    return _camera(
        [[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]], (table.get("width"), table.get("height")), distortion, model
    )


def _kalibr(table: Table) -> _Camera:
    """camchain.yaml; EuRoC's sensor.yaml says the same with other words."""
    cameras = _kalibr_cameras(table)
    if len(cameras) > 1:
        raise _Refused(
            f"{len(cameras)} cameras ({', '.join(cameras)})",
            "one",
            "Copy the lines of the one that is meant into a file.",
        )
    ((name, camera),) = cameras.items()
    lens = (str(camera.get("camera_model")), str(camera.get("distortion_model") or "none"))
    if lens not in KALIBR_MODELS:
        known = ", ".join("-".join(pair) for pair in KALIBR_MODELS)
        raise _Refused(f"{name}: {'-'.join(lens)}", f"one of {known}", "Calibrate with one of these models.")
    intrinsics = _numbers(camera, "intrinsics")
    if len(intrinsics) != 4:
        raise _Refused(f"{name}: intrinsics {list(intrinsics)}", "fx, fy, cx, cy")
    fx, fy, cx, cy = intrinsics
    K = [[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]
    distortion = _numbers(camera, "distortion_coeffs", "distortion_coefficients")
    if not distortion and lens[1] != "none":
        raise _Refused(f"{name}: {lens[1]} without distortion_coeffs", "its coefficients")
    return _camera(K, camera.get("resolution"), distortion, KALIBR_MODELS[lens])


def _kalibr_cameras(table: Table) -> dict[str, Table]:
    if "camera_model" in table:
        return {"camera": table}
    return {key: value for key, value in table.items() if isinstance(value, dict) and "camera_model" in value}


ROS_MODELS = {
    "none": "pinhole", "plumb_bob": "opencv", "rational_polynomial": "opencv", "thin_prism": "opencv",
    "equidistant": "fisheye", "fisheye": "fisheye",
}  # fmt: skip
KALIBR_MODELS = {
    ("pinhole", "none"): "pinhole", ("pinhole", "radtan"): "opencv", ("pinhole", "equidistant"): "fisheye",
    ("pinhole", "radial-tangential"): "opencv",
}  # fmt: skip
OPENCV_MODELS: dict[int | str, str] = {  # beside a matrix "pinhole" means no fisheye: the coefficients say what it does
    0: "opencv", 1: "fisheye", "pinhole": "opencv", "opencv": "opencv", "fisheye": "fisheye",
}  # fmt: skip
CAMERA_MATRICES = ("camera_matrix", "cameraMatrix", "Camera_Matrix", "cameraMat", "mtx", "K", "k")
DISTORTIONS = (
    "distortion_coefficients", "dist_coeffs", "distCoeffs", "Distortion_Coefficients", "distortionCoefficients", "dist", "D", "d",
)  # fmt: skip


def _found(table: Table, *names: str) -> Any:
    """What is said under these keys, which are names of one thing; None where none of them is there."""
    there = [name for name in names if name in table]
    differing = [name for name in there if table[name] != table[there[0]]]
    if differing:
        raise _Refused(f"{there[0]} and {differing[0]} that differ", "one of them", KEEP_ONE)
    return table[there[0]] if there else None


def _has_matrix(table: Table) -> bool:
    return any(name in table for name in CAMERA_MATRICES)


def _matrix(table: Table, *names: str) -> list[list[float]]:
    """A (3, 3) matrix: nested, flat, or as rows, cols and data."""
    numbers = _numbers(table, *names)
    if len(numbers) != 9:
        raise _Refused(f"{len(numbers)} numbers in {names[0]}", "nine, row by row")
    return [list(numbers[row : row + 3]) for row in (0, 3, 6)]


def _numbers(table: Table, *names: str) -> tuple[float, ...]:
    """The numbers under the first of these keys that is there, however they are nested; none where there is none."""
    value = _found(table, *names)
    if isinstance(value, dict):
        value = value.get("data")
    flat: list[Any] = [value] if value is not None else []
    while any(isinstance(one, list) for one in flat):
        flat = [inner for one in flat for inner in (one if isinstance(one, list) else [one])]
    if not all(type(one) in (int, float) for one in flat):
        raise _Refused(f"{names[0]} {flat!r}"[:100], "numbers")
    return tuple(float(one) for one in flat)


def _camera(K: Sequence[Sequence[Any]], size: Any, distortion: Sequence[float], model: str | None) -> _Camera:
    (fx, skew, cx), (low, fy, cy), last = K
    if [low, *last] != [0, 0, 0, 1]:
        raise _Refused(f"K {K}", "[fx s cx; 0 fy cy; 0 0 1]")
    if not isinstance(size, Sequence) or len(size) != 2:
        raise _Refused(f"image size {size}", "width and height")
    if model == "pinhole" and not any(distortion):  # zeros are often written all the same
        distortion = ()
    plain = {"fx": fx, "fy": fy, "cx": cx, "cy": cy, "skew": skew, "width": size[0], "height": size[1], "model": model}
    return record_from(_Camera, plain | {"distortion": list(distortion)}, "camera")


def _reader(table: Table) -> Callable[[Table], _Camera]:
    """How to read the one kind of file that this is."""
    if _has_matrix(table) and "fx" in table:
        raise _Refused("K twice, as a matrix and as fx, fy", "one of them", KEEP_ONE)
    read = next((kind.read for kind in KINDS if kind.fits(table)), None)
    if read is None:
        raise _Refused(f"keys {', '.join(map(str, list(table)[:8]))}"[:200] or "no key", NONE_READ)
    return read


@dataclass(frozen=True)
class _Kind:
    """One kind of camera file: how to tell it, and how to read it."""

    fits: Callable[[Table], bool]
    read: Callable[[Table], _Camera]


KINDS = (
    _Kind(lambda table: "ppx" in table, _realsense),
    _Kind(lambda table: bool(_kalibr_cameras(table)), _kalibr),
    _Kind(lambda table: "distortion_model" in table and _has_matrix(table), _ros),
    _Kind(_has_matrix, _opencv),
    _Kind(lambda table: "fx" in table or not table, _own),
)
