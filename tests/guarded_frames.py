"""Frames whose memory ends where no memory is: reading a byte beside one ends the process. A program of its own.

Usage: python guarded_frames.py READER   (a row of READERS; prints each case before it runs, and "done" at the end)
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator

import numpy as np

from posekit.runtime.crop import CropPreset, crop, rgb_from_bgr
from posekit.runtime.detector import Placement, letterbox
from posekit.runtime.image_file import rgb_from_decoded
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.object_model import ObjectModel
from posekit.runtime.overlay import Drawing, draw_poses, outline_from
from posekit.runtime.pose import Pose

Image = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]
PROT_NONE = 0
# Whole pages (64 x 64, 640 x 480) and odd sizes; scales just below 1 are what OpenCV has read too far at.
SIZES_WH_PX = ((1281, 961), (640, 480), (321, 480), (101, 77), (64, 64), (5, 3), (1, 1))
INPUTS_WH_PX = ((1280, 960), (639, 479), (320, 479), (320, 240), (96, 64), (416, 416))


def guarded(width_px: int, height_px: int, at_end: bool) -> Image:
    """(H, W, 3) uint8 between two pages that may not be read, flush against the latter or the former."""
    size, page = width_px * height_px * 3, mmap.PAGESIZE
    pages = -(-size // page)
    memory = mmap.mmap(-1, (pages + 2) * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    library = ctypes.CDLL(None, use_errno=True)
    for guard in (start, start + (pages + 1) * page):
        if library.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), PROT_NONE) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = page + (pages * page - size if at_end else 0)
    image = np.frombuffer(memory, np.uint8, size, offset).reshape(height_px, width_px, 3)
    image[:] = np.arange(size, dtype=np.uint64).reshape(image.shape) * 37 >> 2 & 255
    return image


def camera(width_px: int, height_px: int, distortion: tuple[float, ...] = ()) -> Intrinsics:
    focal_px = max(1.1 * width_px, 60.0)
    K = np.array([[focal_px, 0, width_px / 2], [0, focal_px, height_px / 2], [0, 0, 1]])
    return Intrinsics(K, width_px, height_px, distortion)


def read_by_letterbox(image: Image) -> None:
    placements: tuple[Placement, ...] = ("centre", "top-left", "stretch")
    for input_wh_px in INPUTS_WH_PX:
        for placement in placements:
            letterbox(image, input_wh_px, 114, placement)


def read_by_crop(image: Image) -> None:
    read_in_crops(image, ())


def read_by_crop_of_distorted(image: Image) -> None:
    read_in_crops(image, (-0.1, 0.01, 0.001, -0.002))


def read_in_crops(image: Image, distortion: tuple[float, ...]) -> None:
    """Whole, enlarged, at the image's own scale, about its last pixel, and reaching over it."""
    height, width = image.shape[:2]
    boxes = [
        (-0.6, -0.6, width - 0.5, height - 0.5),
        (width * 0.25 - 0.9, height * 0.25 - 0.9, width * 0.75 + 0.1, height * 0.75 + 0.1),
        (width - 1.6, height - 1.6, width - 0.5, height - 0.5),
        (width - 1.2, height - 1.2, width * 1.1 + 1.3, height * 1.1 + 1.3),
        (-1.4 - 0.1 * width, -1.4 - 0.1 * height, 0.8, 0.8),
    ]
    for box in boxes:
        for size_px in (8, 63, 96):
            crop(image, box, camera(width, height, distortion), CropPreset("square", size_px))
    crop(image, boxes[0], camera(width, height, distortion), CropPreset("full", 64))
    side = min(width, height)
    if side >= 8:  # pixel for pixel, and a hair smaller
        for shift in (0.0, 0.01):
            box = (-0.5, -0.5, side - 0.5 + shift, side - 0.5 + shift)
            crop(image, box, camera(width, height, distortion), CropPreset("square", side))


def read_by_overlay(image: Image) -> None:
    height, width = image.shape[:2]
    corners = np.array([[0, 0, 0], [0.4, 0, 0], [0, 0.4, 0], [0, 0, 0.4]])
    faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32)
    outline = outline_from(ObjectModel(corners, faces))
    for t_m in ([0.0, 0.0, 1.0], [0.4, 0.3, 1.0], [-0.5, -0.4, 0.8]):
        box = np.array([width / 2, height / 2, width + 20.0, height + 20.0])
        pose = Pose.from_rotvec([0.3, -0.5, 0.2], t_m)
        draw_poses(image, camera(width, height), [Drawing(outline, pose, (255, 92, 64), "name 0.9", box)])


def read_by_channel_order(image: Image) -> None:
    rgb_from_bgr(image)
    rgb_from_decoded(image, "frame")


def read_beyond(image: Image) -> None:
    """What must not be, so that it is seen that it would be seen."""
    ctypes.string_at(image.ctypes.data + image.size, 1)


def read_before(image: Image) -> None:
    ctypes.string_at(image.ctypes.data - 1, 1)


READERS: dict[str, Callable[[Image], None]] = {
    "letterbox": read_by_letterbox,
    "crop": read_by_crop,
    "crop of a distorted camera": read_by_crop_of_distorted,
    "overlay": read_by_overlay,
    "channel order": read_by_channel_order,
}
OFFENDERS: dict[str, Callable[[Image], None]] = {"beyond": read_beyond, "before": read_before}


def cases(name: str) -> Iterator[str]:
    """Runs one reader over all sizes, at either end; yields what comes next."""
    reader = (READERS | OFFENDERS)[name]
    for width, height in SIZES_WH_PX:
        for at_end in (True, False) if name != "before" else (False,):
            yield f"{name}, {width} x {height}, {'end' if at_end else 'start'} at a guard"
            reader(guarded(width, height, at_end))


if __name__ == "__main__":
    for case in cases(sys.argv[1]):
        print(case, flush=True)
    print("done", flush=True)
