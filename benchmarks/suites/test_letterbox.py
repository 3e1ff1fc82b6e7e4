"""Scaling a 720p frame into a detector's input."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from posekit.runtime.crop import Image
from posekit.runtime.detector import letterbox


@pytest.mark.parametrize("input_wh_px", [(320, 240), (640, 640)], ids=["reference", "yolo"])
def test_letterbox(benchmark: BenchmarkFixture, picture: Image, input_wh_px: tuple[int, int]) -> None:
    width, height = input_wh_px
    out = np.zeros((height, width, 3), np.uint8)
    boxed = benchmark(letterbox, picture, input_wh_px, 114, "centre", out)
    assert boxed.pixels is out
    assert (out[0] == 114).all(), "a 16:9 frame leaves a bar above"
