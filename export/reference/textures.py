"""Procedural colour: patterns over points in the plane or in space. Everything follows from the generator passed in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from posekit.runtime.pose import Array

Image = npt.NDArray[np.uint8]
Pattern = Callable[[Array], Array]  # points (N, D) in units of the pattern -> mixing weight (N,), 0..1


def random_colours(rng: np.random.Generator, count: int) -> Array:
    """(count, 3) 0..255: half of them vivid, half of them muted."""
    colours = rng.uniform(10, 245, size=(count, 3))
    grey = colours.mean(axis=1, keepdims=True)
    keep = np.where(rng.random((count, 1)) < 0.5, 1.0, rng.uniform(0.1, 0.5, size=(count, 1)))
    return np.asarray(grey + keep * (colours - grey))


def noise(rng: np.random.Generator, dimensions: int, octaves: int = 4) -> Pattern:
    """Smooth noise as a sum of plane waves in random directions, finer octaves fainter."""
    waves = 6 * octaves
    octave = np.repeat(np.arange(octaves), 6)
    direction = rng.normal(size=(waves, dimensions))
    direction *= (2 * np.pi * 2.0**octave / np.linalg.norm(direction, axis=1))[:, None]
    phase, strength = rng.uniform(0, 2 * np.pi, waves), 0.6**octave
    spread = np.sqrt((strength**2).sum() / 2)

    def weight(points: Array) -> Array:
        raw = np.zeros(len(points), np.float32)  # single precision: sines are the cost of a picture
        for wave, start, amplitude in zip(direction, phase, strength, strict=True):
            raw += np.float32(amplitude) * np.sin((points @ wave + start).astype(np.float32))
        return np.asarray(np.clip(0.5 + 0.3 * raw / spread, 0, 1), np.float64)

    return weight


def _stripes(rng: np.random.Generator, dimensions: int) -> Pattern:
    direction = rng.normal(size=dimensions)
    direction /= np.linalg.norm(direction)
    return lambda points: (np.mod(points @ direction, 1.0) < 0.5).astype(np.float64)


def _checks(rng: np.random.Generator, dimensions: int) -> Pattern:
    turn = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0]
    return lambda points: np.floor(points @ turn).sum(axis=1) % 2


def _spots(rng: np.random.Generator, dimensions: int) -> Pattern:
    turn = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0]
    return lambda points: (np.linalg.norm(np.mod(points @ turn, 1.0) - 0.5, axis=1) < 0.33).astype(np.float64)


def _blobs(rng: np.random.Generator, dimensions: int) -> Pattern:
    smooth = noise(rng, dimensions, 3)
    return lambda points: (smooth(points) > 0.5).astype(np.float64)


def _gradient(rng: np.random.Generator, dimensions: int) -> Pattern:
    direction = rng.normal(size=dimensions)
    return lambda points: 0.5 + 0.5 * np.sin(points @ direction)


def _plain(rng: np.random.Generator, dimensions: int) -> Pattern:
    return lambda points: np.zeros(len(points))


PATTERNS: dict[str, Callable[[np.random.Generator, int], Pattern]] = {
    "plain": _plain,
    "stripes": _stripes,
    "checks": _checks,
    "spots": _spots,
    "blobs": _blobs,
    "gradient": _gradient,
    "noise": noise,
}


def random_paint(rng: np.random.Generator, dimensions: int, period: float) -> Callable[[Array], Image]:
    """A colouring of points (N, D) -> (N, 3) uint8: two nested patterns of random colours plus faint noise."""
    names = list(PATTERNS)
    outer, inner = (PATTERNS[names[int(rng.integers(len(names)))]](rng, dimensions) for _ in range(2))
    grain, grain_strength = noise(rng, dimensions), float(rng.uniform(0, 40))
    a, b, c = random_colours(rng, 3)
    finer = float(rng.uniform(1.5, 4.0))

    def paint(points: Array) -> Image:
        q = points / period
        w, v = outer(q)[:, None], inner(q * finer)[:, None]
        colour = a * (1 - w) + (b * (1 - v) + c * v) * w + grain_strength * (grain(q)[:, None] - 0.5)
        return np.asarray(np.clip(colour, 0, 255), np.uint8)

    return paint


def random_texture(rng: np.random.Generator, size_px: int) -> Image:
    """(size, size, 3) uint8 picture of a random paint, for floors and walls."""
    axis = np.arange(size_px, dtype=np.float64)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    paint = random_paint(rng, 2, float(size_px * rng.uniform(0.05, 0.5)))
    return paint(points).reshape(size_px, size_px, 3)
