"""Cutting crops out of a 720p frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from posekit.runtime.crop import CropPreset, Image, crop
from posekit.runtime.crop_batch import CropBatch
from posekit.runtime.detection import Detection
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.manifest import ObjectEntry

BOX_XYXY_PX = np.array([500.0, 300.0, 690.0, 440.0])
OBJECT = ObjectEntry(1, "box", 0.2, (-0.1, -0.1, -0.1), (0.1, 0.1, 0.1), "box.safetensors")


@pytest.mark.parametrize("size_px", [96, 128, 256])
def test_one_crop(benchmark: BenchmarkFixture, picture: Image, camera: Intrinsics, size_px: int) -> None:
    cut = benchmark(crop, picture, BOX_XYXY_PX, camera, CropPreset("square", size_px, pad=1.2))
    assert cut.pixels.shape == (size_px, size_px, 3)
    assert cut.pixels.std() > 0


def test_one_crop_of_a_distorted_camera(benchmark: BenchmarkFixture, picture: Image, camera: Intrinsics) -> None:
    bent = replace(camera, distortion=(-0.1, 0.02, 0.0, 0.0, 0.0))
    cut = benchmark(crop, picture, BOX_XYXY_PX, bent, CropPreset("square", 128, pad=1.2))
    assert cut.pixels.std() > 0


@pytest.mark.parametrize("count", [1, 8])
def test_a_batch_with_its_geometry(benchmark: BenchmarkFixture, picture: Image, camera: Intrinsics, count: int) -> None:
    batch = CropBatch(CropPreset("square", 128, pad=1.2), [OBJECT], count)
    detections = [Detection(1, 1.0, BOX_XYXY_PX + 20.0 * i) for i in range(count)]
    benchmark(batch.cut, picture, camera, detections)
    assert len(batch.crops) == count
