"""Where frames come from: an image, a folder, a video, a camera or a BOP data set, all as RGB with intrinsics.

Nothing is converted silently: what is not 8-bit colour at the size of the intrinsics is refused, with the frame's name.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from posekit.runtime.bop import Scene, TrueObject, is_bop, scenes_from_bop
from posekit.runtime.errors import InputError, SourceError
from posekit.runtime.image_file import Image, quiet_cv2, read_image, rgb_from_decoded
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.plausible_camera import CameraWarning, contradiction, oddity

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
BOX_SLACK_PX = 1.0  # by which true boxes overshoot the image's last column or row
COUNT_SLACK = 2  # containers without an index estimate their count from duration and rate


@dataclass(frozen=True, eq=False)
class Frame:
    """One image on its way in.

    image_rgb_u8: (H, W, 3).  name: unique within the source, for messages and results.  index: from 0 within the source.
    time_s: seconds since the start of a video or camera.  scene_id, im_id: BOP's numbers; elsewhere 0 and the index.
    truth: the true objects of a BOP image, None where the source has no ground truth.
    """

    image_rgb_u8: Image
    intrinsics: Intrinsics
    name: str
    index: int
    time_s: float | None = None
    scene_id: int = 0
    im_id: int = 0
    truth: tuple[TrueObject, ...] | None = None


class Frames(Iterator[Frame]):
    """An iterator of frames that knows how many there should be. count: None for a camera, which never ends."""

    def __init__(self, frames: Iterator[Frame], count: int | None) -> None:
        self._frames, self.count = frames, count

    def __next__(self) -> Frame:
        return next(self._frames)

    def close(self) -> None:
        """Give back a video or camera before its end."""
        if isinstance(self._frames, Generator):
            self._frames.close()


def frames_from(source: Path | str, intrinsics: Intrinsics | None = None) -> Frames:
    """Open a source: image file, folder of images, video file, camera index ("0"), or BOP scene, split or data set.

    intrinsics: of every frame; a BOP data set brings its own and takes none. Frames are read one by one while iterating.
    Raises SourceError for what cannot be read, InputError for frames that do not fit the intrinsics.
    """
    path, name = Path(source), str(source)
    if not os.path.exists(path):  # Path.exists raises where a folder above may not be looked into
        if name.isdecimal():
            return _camera_frames(int(name), _required(intrinsics, f"camera {name}"))
        raise SourceError(
            f"source {source}",
            got="nothing there",
            expected="an image, folder, video or camera index",
            remedy="Check it.",
        )
    if path.is_dir():
        try:
            return _bop_frames(path, intrinsics) if is_bop(path) else _folder_frames(path, _required(intrinsics, name))
        except OSError as error:
            raise SourceError(
                f"folder {path}", got=error, expected="a folder that can be read", remedy="Check its permissions."
            ) from error
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Frames(_image_frames([path], _required(intrinsics, name)), 1)
    return _video_frames(path, _required(intrinsics, name))


def _required(intrinsics: Intrinsics | None, name: str) -> Intrinsics:
    if intrinsics is None:
        raise InputError(
            f"source {name}", got="no intrinsics", expected="the camera's intrinsics", remedy="Pass a camera file."
        )
    return intrinsics


# Image files.


def _folder_frames(path: Path, intrinsics: Intrinsics) -> Frames:
    files = sorted((p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()), key=_natural)
    if not files:
        raise SourceError(
            f"folder {path}",
            got="no image",
            expected=f"files that end in {', '.join(IMAGE_SUFFIXES)}, or a BOP data set",
            remedy="Name the folder that holds the images themselves.",
        )
    return Frames(_image_frames(files, intrinsics), len(files))


def _image_frames(files: list[Path], intrinsics: Intrinsics) -> Iterator[Frame]:
    for index, path in enumerate(files):
        image = _sized(read_image(path), intrinsics, str(path))
        yield Frame(image, intrinsics, path.name, index, im_id=index)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts img2 before img10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _sized(image: Image, intrinsics: Intrinsics, name: str) -> Image:
    height, width = image.shape[:2]
    if (width, height) != (intrinsics.width_px, intrinsics.height_px):
        raise InputError(
            f"frame {name}",
            got=f"{width} x {height} px",
            expected=f"{intrinsics.width_px} x {intrinsics.height_px} px, as the intrinsics say",
            remedy="Use the intrinsics of this image size; cropped or resized images need other ones.",
        )
    return image


# Videos and cameras.


def _video_frames(path: Path, intrinsics: Intrinsics) -> Frames:
    import cv2

    with quiet_cv2():
        capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise SourceError(
            f"video {path}",
            got="a file that no decoder opens",
            expected="a video, or an image ending in " + ", ".join(IMAGE_SUFFIXES),
            remedy="Check that it is complete and that OpenCV was built with this codec.",
        )
    turned = int(capture.get(cv2.CAP_PROP_ORIENTATION_META))
    if turned % 360:
        capture.release()
        raise SourceError(
            f"video {path}",
            got=f"a video stored turned by {turned} degrees",
            expected="an upright video",
            remedy="Re-encode it without rotation; the intrinsics hold for one orientation only.",
        )
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    return Frames(_decoded(capture, path, count, intrinsics), count if count > 0 else None)


def _decoded(capture: Any, path: Path, count: int, intrinsics: Intrinsics) -> Iterator[Frame]:
    """Frames until decoding stops; SourceError if that is before the container says."""
    import cv2

    index = 0
    try:
        while True:
            with quiet_cv2():
                read, pixels = capture.read()
            if not read:
                break
            name = f"{path.name}#{index:06d}"
            image = _sized(rgb_from_decoded(pixels, name), intrinsics, name)
            time_s = float(capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000
            yield Frame(image, intrinsics, name, index, time_s, im_id=index)
            index += 1
    finally:
        capture.release()
    if index == 0 or index < count - COUNT_SLACK:
        raise SourceError(
            f"video {path}",
            got=f"{index} frames, then no more that decode",
            expected=f"{count} frames, as the container says",
            remedy="The file is cut off or damaged; the frames before that are good.",
        )


def _camera_frames(number: int, intrinsics: Intrinsics) -> Frames:
    import cv2

    with quiet_cv2():
        capture = cv2.VideoCapture(number)
    if not capture.isOpened():
        raise SourceError(
            f"camera {number}",
            got="no camera that opens",
            expected=f"a camera with index {number}",
            remedy="Check the cable, the permissions and that no other program holds it.",
        )
    capture.set(cv2.CAP_PROP_FRAME_WIDTH, intrinsics.width_px)
    capture.set(cv2.CAP_PROP_FRAME_HEIGHT, intrinsics.height_px)
    return Frames(_grabbed(capture, number, intrinsics), None)


def _grabbed(capture: Any, number: int, intrinsics: Intrinsics) -> Iterator[Frame]:
    """Frames of a camera until it fails; the caller stops it by closing the iterator."""
    start_s, index = time.monotonic(), 0
    try:
        while True:
            with quiet_cv2():
                read, pixels = capture.read()
            if not read:
                raise SourceError(
                    f"camera {number}",
                    got=f"no frame after {index}",
                    expected="a frame",
                    remedy="Check the cable; results so far are good.",
                )
            time_s = time.monotonic() - start_s
            name = f"camera{number}#{index:06d}"
            image = _sized(rgb_from_decoded(pixels, name), intrinsics, name)
            yield Frame(image, intrinsics, name, index, time_s, im_id=index)
            index += 1
    finally:
        capture.release()


# BOP data sets.


def _bop_frames(path: Path, intrinsics: Intrinsics | None) -> Frames:
    if intrinsics is not None:
        raise InputError(
            f"data set {path}",
            got="a camera file besides",
            expected="the intrinsics that scene_camera.json states, alone",
            remedy="Leave the camera file out.",
        )
    scenes = scenes_from_bop(path)
    frames = (frame for scene in scenes for frame in _scene_frames(scene))
    indexed = (replace(frame, index=index) for index, frame in enumerate(frames))
    return Frames(indexed, sum(len(scene.images) for scene in scenes))


def _scene_frames(scene: Scene) -> Iterator[Frame]:
    odd = None
    for im_id, path in scene.images.items():
        image = read_image(path)
        name = f"{scene.id:06d}/{im_id:06d}"
        wh_px = (image.shape[1], image.shape[0])
        _check_camera(scene, im_id, wh_px, f"frame {name} and its camera")
        if odd is None:  # said once a scene
            odd = oddity(scene.K[im_id], scene.whole_wh_px.get(im_id, wh_px)) or ""
            if odd:
                warnings.warn(CameraWarning(f"frame {name}: {odd}. Check that its camera is its own."), stacklevel=2)
        intrinsics = Intrinsics(scene.K[im_id], *wh_px)
        truth = None if scene.truth is None else scene.truth[im_id]
        yield Frame(image, intrinsics, name, 0, scene_id=scene.id, im_id=im_id, truth=truth)


def _check_camera(scene: Scene, im_id: int, wh_px: tuple[int, int], what: str) -> None:
    """InputError where the image found is not of the size that K or the true boxes are for: BOP's cameras state none."""
    stated = scene.wh_px.get(im_id, wh_px)
    seen = () if scene.truth is None else (true.visible_box_xyxy_px for true in scene.truth[im_id])
    reach = np.max([np.zeros(2), *(box[2:] for box in seen if box is not None)], axis=0)
    if stated != wh_px:
        got = f"an image of {wh_px[0]} x {wh_px[1]} px and a K for {stated[0]} x {stated[1]}"
    elif (reach > np.array(wh_px) + BOX_SLACK_PX).any():
        got = f"an image of {wh_px[0]} x {wh_px[1]} px and visible objects up to ({reach[0]:g}, {reach[1]:g})"
    else:
        size_is_stated = im_id in scene.wh_px
        problem = contradiction(scene.K[im_id], wh_px, scene.whole_wh_px.get(im_id), size_is_stated=size_is_stated)
        if problem is None:
            return
        got = problem
    raise InputError(
        what,
        got=got,
        expected="the image that the intrinsics of scene_camera.json are for",
        remedy="Resized images need K resized with them (fx, cx with the width, fy, cy with the height). Where they are parts "
        'cut from larger ones, say so in the entries of scene_camera.json: "whole_wh_px": [WIDTH, HEIGHT] of those.',
    )
