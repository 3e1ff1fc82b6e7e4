"""Small pictures on disk, for what reads images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

W, H = 64, 48
Image = npt.NDArray[np.uint8]


def picture(shade: int = 0) -> Image:
    """A smooth (H, W, 3) RGB image; red grows to the right, green downwards."""
    y, x = np.mgrid[0:H, 0:W]
    return np.stack([x * 4, y * 5, np.full((H, W), shade)], axis=-1).astype(np.uint8)


def save(path: Path, rgb: npt.NDArray[Any]) -> Path:
    bgr = rgb if rgb.ndim == 2 else rgb[..., [2, 1, 0, *range(3, rgb.shape[2])]]
    assert cv2.imwrite(str(path), bgr)
    return path
