"""A camera: linear light becomes a uint8 photograph with the faults of one."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from posekit.export.render import encoded

Floats = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]


def photographed(linear: Floats, rng: np.random.Generator, difficulty: float) -> Image:
    """Linear light -> a uint8 photograph of it: exposure, colour cast, blur, vignetting, noise, gamma, JPEG."""
    brightness = float(np.percentile(linear, 90))
    gain = rng.uniform(0.45, 1.05) / max(brightness, 0.05)
    light = linear * np.float32(min(gain, 3.0)) * rng.uniform(0.9, 1.1, size=3).astype(np.float32)
    light = _blurred(light, rng, difficulty) * _vignette(linear.shape[:2], float(rng.uniform(0, 0.35)))
    shot, read = rng.uniform(1e-4, 1e-3) * (0.3 + difficulty), rng.uniform(1e-3, 6e-3) * (0.3 + difficulty)
    deviation = np.sqrt(np.maximum(light, 0) * shot + read**2)
    noisy = light + deviation * rng.standard_normal(light.shape, dtype=np.float32)
    picture = encoded(np.asarray(noisy, np.float32))
    quality = int(rng.integers(round(90 - 40 * difficulty), 99))
    _, packed = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.ascontiguousarray(np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)[..., ::-1])


def _blurred(light: Floats, rng: np.random.Generator, difficulty: float) -> Floats:
    """Defocus always, motion sometimes."""
    blurred = cv2.GaussianBlur(light, (0, 0), float(rng.uniform(0.35, 0.5 + 0.8 * difficulty)))
    if rng.random() < 0.4 * difficulty:
        length, angle = rng.uniform(2, 7), rng.uniform(0, np.pi)
        kernel = np.zeros((9, 9), np.float32)
        for at in np.linspace(-length / 2, length / 2, 33):
            kernel[round(4 + at * np.sin(angle)), round(4 + at * np.cos(angle))] += 1
        blurred = cv2.filter2D(blurred, -1, kernel / kernel.sum())
    return np.asarray(blurred, np.float32)


def _vignette(shape: tuple[int, int], strength: float) -> Floats:
    h, w = shape
    y, x = np.mgrid[:h, :w]
    r2 = ((x - w / 2) ** 2 + (y - h / 2) ** 2) / (w * w / 4 + h * h / 4)
    return np.asarray(1 - strength * r2, np.float32)[..., None]
