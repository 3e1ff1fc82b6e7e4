"""Where frames come from: an image, a folder, a video, a camera or a BOP data set, all as RGB with intrinsics.

Nothing is converted silently: what is not 8-bit colour at the size of the intrinsics is refused, with the frame's name.
"""

from __future__ import annotations

import os
import re
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from posekit.runtime.bop import Scene, TrueObject, is_bop, scenes_from_bop
from posekit.runtime.errors import InputError, SourceError
from posekit.runtime.intrinsics import Intrinsics

Image = npt.NDArray[np.uint8]
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
COUNT_SLACK = 2  # containers without an index estimate their count from duration and rate
PNG_SIGNATURE, JPEG_SIGNATURE = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
EXIF_ORIENTATION, UPRIGHT = 0x0112, 1


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
    if not path.exists():
        if name.isdecimal():
            return _camera_frames(int(name), _required(intrinsics, f"camera {name}"))
        raise SourceError(
            f"source {source}",
            got="nothing there",
            expected="an image, folder, video or camera index",
            remedy="Check it.",
        )
    if path.is_dir():
        return _bop_frames(path, intrinsics) if is_bop(path) else _folder_frames(path, _required(intrinsics, name))
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return Frames(_image_frames([path], _required(intrinsics, name)), 1)
    return _video_frames(path, _required(intrinsics, name))


def read_image(path: Path | str) -> Image:
    """One image file -> (H, W, 3) uint8 RGB, pixels as stored. SourceError names the file and what is wrong with it."""
    import cv2

    path = Path(path)
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    problem = _damage(encoded)
    if problem:
        raise _unreadable(path, problem)
    try:
        with quiet_cv2():
            pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise _unreadable(path, error) from error
    if pixels is None:
        raise _unreadable(path, "bytes that do not decode")
    return _rgb(pixels, str(path))


@contextmanager
def quiet_cv2() -> Iterator[None]:
    """Keep OpenCV and its FFmpeg from writing to stderr: the errors raised here say the same, with the file's name."""
    import cv2

    level = cv2.utils.logging.getLogLevel()
    ffmpeg = os.environ.get("OPENCV_FFMPEG_LOGLEVEL")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
        if ffmpeg is None:
            del os.environ["OPENCV_FFMPEG_LOGLEVEL"]


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


def _rgb(pixels: npt.NDArray[Any], name: str) -> Image:
    """BGR becomes RGB where it enters; anything but 8-bit BGR is refused."""
    import cv2

    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        channels = pixels.shape[2] if pixels.ndim == 3 else 1
        raise SourceError(
            f"frame {name}",
            got=f"{pixels.dtype}, {channels} channel{'s' * (channels != 1)}",
            expected="8-bit colour, 3 channels, no alpha",
            remedy="Convert it yourself, so that the conversion is the one the model was trained with.",
        )
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)


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


def _unreadable(path: Path, got: object) -> SourceError:
    return SourceError(
        f"image {path}", got=got, expected="a complete image file", remedy="Write or copy the image again."
    )


# Decoders fill the missing part of a cut file with grey and say so on stderr only, so completeness is checked first.


def _damage(encoded: bytes) -> str | None:
    """What is wrong with an encoded image as a container, None if nothing is known to be."""
    if not encoded:
        return "an empty file"
    for signature, damage in DAMAGE_BY_SIGNATURE.items():
        if encoded.startswith(signature):
            return damage(encoded)
    return None


def _png_damage(encoded: bytes) -> str | None:
    """Walk the chunks: length, type, bytes, CRC-32 of type and bytes (PNG specification, 5.3)."""
    at = len(PNG_SIGNATURE)
    while at + 12 <= len(encoded):
        length = int.from_bytes(encoded[at : at + 4], "big")
        body = encoded[at + 4 : at + 8 + length]
        checksum = int.from_bytes(encoded[at + 8 + length : at + 12 + length], "big")
        if at + 12 + length > len(encoded):
            break
        if zlib.crc32(body) != checksum:
            return f"a wrong checksum at byte {at}"
        if body[:4] == b"IEND":
            return None
        at += 12 + length
    return f"a file cut off after {len(encoded)} bytes"


def _jpeg_damage(encoded: bytes) -> str | None:
    """Walk the header segments to the scan, then look for the end marker (ITU T.81, B.1); read Exif on the way."""
    at = 2
    while at + 4 <= len(encoded) and encoded[at] == 0xFF:
        marker, length = encoded[at + 1], int.from_bytes(encoded[at + 2 : at + 4], "big")
        segment = encoded[at + 4 : at + 2 + length]
        if marker == 0xE1 and _exif_orientation(segment) != UPRIGHT:
            return f"a photograph stored turned (Exif orientation {_exif_orientation(segment)}); save it upright"
        if marker == 0xDA:
            return None if encoded.find(b"\xff\xd9", at) > 0 else f"a file cut off after {len(encoded)} bytes"
        at += 2 + length
    return f"a broken header at byte {at}"


def _exif_orientation(segment: bytes) -> int:
    """Tag 0x0112 of an Exif segment's first directory; upright if there is none."""
    if not segment.startswith(b"Exif\0\0"):
        return UPRIGHT
    tiff = segment[6:]
    order: Any = "little" if tiff[:2] == b"II" else "big"
    start = int.from_bytes(tiff[4:8], order)
    for row in range(int.from_bytes(tiff[start : start + 2], order)):
        entry = tiff[start + 2 + 12 * row : start + 14 + 12 * row]
        if int.from_bytes(entry[:2], order) == EXIF_ORIENTATION:
            return int.from_bytes(entry[8:10], order)
    return UPRIGHT


DAMAGE_BY_SIGNATURE: dict[bytes, Callable[[bytes], str | None]] = {
    PNG_SIGNATURE: _png_damage,
    JPEG_SIGNATURE: _jpeg_damage,
}


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
            image = _sized(_rgb(pixels, name), intrinsics, name)
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
            image = _sized(_rgb(pixels, name), intrinsics, name)
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
    for im_id, path in scene.images.items():
        image = read_image(path)
        intrinsics = Intrinsics(scene.K[im_id], image.shape[1], image.shape[0])
        truth = None if scene.truth is None else scene.truth[im_id]
        name = f"{scene.id:06d}/{im_id:06d}"
        yield Frame(image, intrinsics, name, 0, scene_id=scene.id, im_id=im_id, truth=truth)
