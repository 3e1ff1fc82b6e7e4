"""Letterboxes and crops of a picture made of integers alone, by name: whose bytes are the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np

from posekit.runtime.crop import PRESETS, CropPreset, Image, crop
from posekit.runtime.detector import Placement, letterbox
from posekit.runtime.intrinsics import Intrinsics

CENTRE: Placement = "centre"
TOP_LEFT: Placement = "top-left"
STRETCH: Placement = "stretch"
# Image, input, placement. Scales just below 1 on both axes, odd sides, powers of two, enlargements, extremes.
LETTERBOXES: tuple[tuple[tuple[int, int], tuple[int, int], Placement], ...] = (
    ((640, 480), (320, 240), CENTRE),
    ((640, 480), (320, 320), CENTRE),
    ((640, 480), (416, 416), TOP_LEFT),
    ((640, 480), (640, 640), CENTRE),
    ((640, 480), (639, 479), CENTRE),
    ((640, 480), (639, 479), TOP_LEFT),
    ((1281, 961), (1280, 960), CENTRE),
    ((1281, 961), (1280, 960), TOP_LEFT),
    ((321, 480), (320, 479), CENTRE),
    ((321, 480), (320, 479), TOP_LEFT),
    ((1920, 1080), (640, 640), CENTRE),
    ((1280, 720), (320, 192), TOP_LEFT),
    ((641, 479), (416, 416), TOP_LEFT),
    ((101, 77), (96, 64), CENTRE),
    ((77, 101), (96, 64), CENTRE),
    ((64, 48), (320, 320), CENTRE),
    ((97, 53), (416, 320), TOP_LEFT),
    ((3, 2), (96, 64), CENTRE),
    ((1, 1), (32, 32), CENTRE),
    ((2000, 3), (64, 64), CENTRE),
    ((640, 480), (640, 640), STRETCH),
    ((1281, 961), (320, 192), STRETCH),
    ((53, 97), (96, 64), STRETCH),
)
BOXES_XYXY_PX = {
    "inside": (211.3, 140.7, 330.1, 301.9),
    "over the edge": (560.2, -20.4, 668.8, 97.3),
    "small": (300.0, 200.0, 311.5, 219.25),
}
LENSES: dict[str, tuple[float, ...]] = {
    "plain": (),
    "distorted": (-0.28, 0.09, 0.0012, -0.0007),
    "eight coefficients": (0.31, -0.12, 0.0003, 0.0009, 0.02, 0.28, -0.05, 0.01),
}
CROPS: dict[str, CropPreset] = {
    **PRESETS,
    "square 64": CropPreset("square", 64, pad=1.2),
    "dzi 96": CropPreset("dzi", 96, pad=1.5),
    "square 97": CropPreset("square", 97),
    "aspect-pad 224": CropPreset("square", 224, blank_outside_box=True),
}


@cache
def picture(width_px: int, height_px: int) -> Image:
    """(H, W, 3) uint8: squares of 32 px that are smooth and rough by turns, in integers, so that it is the same anywhere."""
    y, x, channel = np.ogrid[:height_px, :width_px, :3]
    smooth = (3 * x + 2 * y + 60 * channel) % 256
    rough = (7 * x * x + 13 * x * y + 33 * y * y + 29 * channel) // 8 % 256
    return np.asarray(np.where((x // 32 + y // 32) % 2 == 0, smooth, rough), np.uint8)


def camera(distortion: tuple[float, ...]) -> Intrinsics:
    return Intrinsics(np.array([[603.2, 0, 322.7], [0, 601.9, 238.4], [0, 0, 1]]), 640, 480, distortion)


def letterboxed(image_wh_px: tuple[int, int], input_wh_px: tuple[int, int], placement: Placement) -> Image:
    return letterbox(picture(*image_wh_px), input_wh_px, 114, placement).pixels


def cropped(lens: str, preset: CropPreset, box: str) -> Image:
    return crop(picture(640, 480), BOXES_XYXY_PX[box], camera(LENSES[lens]), preset).pixels


def cases() -> dict[str, Callable[[], Image]]:
    found: dict[str, Callable[[], Image]] = {}
    for image, target, placement in LETTERBOXES:
        name = f"letterbox {image[0]}x{image[1]} in {target[0]}x{target[1]}, {placement}"
        found[name] = partial(letterboxed, image, target, placement)
    for lens in LENSES:
        for preset, how in CROPS.items():
            for box in BOXES_XYXY_PX if how.rule != "full" else ("inside",):
                found[f"crop {preset}, {lens}, {box}"] = partial(cropped, lens, how, box)
    return found
