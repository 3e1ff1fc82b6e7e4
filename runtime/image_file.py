"""One encoded image -> pixels: complete, upright, 8-bit colour, or a sentence that says what it is instead."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from posekit.runtime.errors import SourceError

Image = npt.NDArray[np.uint8]
PNG_SIGNATURE, JPEG_SIGNATURE = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
EXIF_ORIENTATION, UPRIGHT = 0x0112, 1


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
    return rgb_from_decoded(pixels, str(path))


def rgb_from_decoded(pixels: npt.NDArray[Any], name: str) -> Image:
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


@contextmanager
def quiet_cv2() -> Iterator[None]:
    """Keep OpenCV and its FFmpeg from writing to stderr: the errors raised here say the same, with the file's name."""
    import cv2

    log: Any = getattr(cv2.utils, "logging", cv2)  # OpenCV 4 has the two functions in cv2 itself
    level = log.getLogLevel()
    ffmpeg = os.environ.get("OPENCV_FFMPEG_LOGLEVEL")
    log.setLogLevel(0)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        yield
    finally:
        log.setLogLevel(level)
        if ffmpeg is None:
            del os.environ["OPENCV_FFMPEG_LOGLEVEL"]


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
