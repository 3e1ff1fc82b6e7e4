"""What the suites of host code run on: pictures, bundles and banks at the sizes of the reference models.

    pytest benchmarks/suites                                    # every suite; --benchmark-json FILE keeps the samples
    pytest benchmarks/suites --benchmark-compare                # against the last `--benchmark-autosave`

Only for comparisons on one machine: a figure of its own comes from `posekit bench`. The default test run leaves them out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_bundles import bank_bytes, write_toy_bundle

from posekit.runtime.crop import Image
from posekit.runtime.intrinsics import Intrinsics

IMAGE_WH_PX = (1280, 720)
VIEWS, PLACES, CHANNELS = 162 * 36, 36, 16  # the reference bank of one object


@pytest.fixture(scope="session")
def camera() -> Intrinsics:
    """720p, no distortion."""
    width, height = IMAGE_WH_PX
    return Intrinsics(np.array([[900.0, 0, width / 2], [0, 900.0, height / 2], [0, 0, 1]]), width, height)


@pytest.fixture(scope="session")
def picture() -> Image:
    """(720, 1280, 3): smooth, as photographs are, with sensor noise."""
    width, height = IMAGE_WH_PX
    y, x = np.mgrid[0:height, 0:width] / width
    waves = np.stack([np.sin(2 * np.pi * (a * x + b * y)) for a, b in ((3, 1), (1, 4), (5, 2))], axis=-1)
    noise = np.random.default_rng(0).normal(scale=2, size=waves.shape)
    return np.clip(127 + 100 * waves + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def bank_member() -> bytes:
    """A bank of the reference's size, random but for what is checked when it is read."""
    rng = np.random.default_rng(0)
    templates = rng.standard_normal((PLACES, CHANNELS, VIEWS), dtype=np.float32)
    templates /= np.linalg.norm(templates, axis=1, keepdims=True)
    return bank_bytes(
        "0" * 64,
        templates=templates.astype(np.float16),
        weights=np.full(VIEWS, 1 / PLACES, np.float32),
        R=np.tile(np.eye(3, dtype=np.float32), (VIEWS, 1, 1)),
        t_m=np.tile(np.array([0, 0, 1], np.float32), (VIEWS, 1)),
        box_xyxy_px=np.tile(np.array([40, 40, 60, 60], np.float32), (VIEWS, 1)),
    )


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory, bank_member: bytes) -> Path:
    """Small graphs, and one bank of the reference's size to verify."""
    return write_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy.posekit", bank=bank_member)
