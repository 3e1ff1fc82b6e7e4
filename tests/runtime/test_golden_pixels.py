"""Letterboxes and crops are the same bytes on every machine: golden values were made once, on x86-64 (tests/golden)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from pixel_cases import LETTERBOXES, cases, letterboxed, picture

from posekit.runtime.detector import Placement

GOLDENS = json.loads((Path(__file__).parents[1] / "golden/pixels.json").read_text())
MADE = cases()


def test_the_picture_itself_is_the_same() -> None:
    assert hashlib.sha256(picture(640, 480).tobytes()).hexdigest() == GOLDENS["provenance"]["picture_640x480_sha256"]


def test_every_case_has_a_golden_value() -> None:
    assert set(MADE) == set(GOLDENS["sha256"])


@pytest.mark.parametrize("name", MADE)
def test_bytes_are_golden(name: str) -> None:
    assert hashlib.sha256(MADE[name]().tobytes()).hexdigest() == GOLDENS["sha256"][name]


@pytest.mark.parametrize(("image_wh_px", "input_wh_px", "placement"), LETTERBOXES)
def test_a_letterbox_is_bilinear(
    image_wh_px: tuple[int, int], input_wh_px: tuple[int, int], placement: Placement
) -> None:
    """As float64 says, value at the pixel's centre, edges repeated: weights are whole 256ths, which makes at most half a
    grey level per axis, and the result is rounded."""
    image, boxed = picture(*image_wh_px).astype(np.float64), letterboxed(image_wh_px, input_wh_px, placement)
    ratio = min(input_wh_px[0] / image_wh_px[0], input_wh_px[1] / image_wh_px[1])
    width, height = (max(round(s * ratio) if placement == "centre" else int(s * ratio), 1) for s in image_wh_px)
    if placement == "stretch":
        width, height = input_wh_px
    left, top = ((input_wh_px[0] - width) // 2, (input_wh_px[1] - height) // 2) if placement == "centre" else (0, 0)
    for axis, (size, inner) in enumerate(((image_wh_px[1], height), (image_wh_px[0], width))):
        at = np.clip((np.arange(inner) + 0.5) * size / inner - 0.5, 0, size - 1)
        low = np.minimum(at.astype(int), max(size - 2, 0))
        share = (at - low).reshape(-1, *[1] * (2 - axis))
        high = np.minimum(low + 1, size - 1)
        image = np.take(image, low, axis) * (1 - share) + np.take(image, high, axis) * share
    assert np.abs(boxed[top : top + height, left : left + width] - image).max() <= 1.5
