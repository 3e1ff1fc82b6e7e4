"""Plausible inputs for a graph, drawn from its specs: what tracing and parity run on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from posekit.runtime.crop import CropPreset, crop_warp
from posekit.runtime.errors import ExportError
from posekit.runtime.tensor import TensorSpec

Arrays = dict[str, npt.NDArray[Any]]
Shape = tuple[int, ...]

IMAGE_WH_PX = (640, 480)
FOCAL_PX = 600.0
BOX_SIDE_PX = (60.0, 220.0)
HALF_EXTENT_M = (0.02, 0.12)
FOREGROUND = (0.3, 0.9)  # of a template's places
EXAMPLE_SIZES = {"batch": 2, "views": 150}  # never 1: torch.export makes a constant of it; views: more than a shortlist
PATCH_PX = 4  # neighbouring pixels of real images are alike


def example_feed(specs: Sequence[TensorSpec], sizes: Mapping[str, int], seed: int = 0) -> Arrays:
    """Arrays for all inputs. Geometry is consistent: `warp` cuts `box` from an image of `image_wh` seen with `K`.

    sizes: of the dynamic axes.  Equal arguments, equal arrays. ExportError for an input of a kind nobody can invent.
    """
    rng = np.random.default_rng(seed)
    unknown = [spec for spec in specs if not {n for n in spec.shape if isinstance(n, str)} <= set(sizes)]
    if unknown:
        raise ExportError(
            f"graph input {unknown[0].name!r}",
            got=unknown[0],
            expected=f"dynamic axes among {', '.join(sizes)}",
            remedy="Rename the axis or fix its size.",
        )
    shapes = {spec.name: tuple(sizes[n] if isinstance(n, str) else n for n in spec.shape) for spec in specs}
    feed: Arrays = {}
    for spec in specs:
        make = MAKERS.get(spec.name) or MAKERS_BY_DTYPE.get(spec.dtype)
        if make is None:
            raise ExportError(
                f"graph input {spec}",
                got=spec.dtype,
                expected=f"an input among {', '.join(MAKERS)}, or of type {', '.join(MAKERS_BY_DTYPE)}",
                remedy="Give the graph inputs that posekit can feed.",
            )
        feed[spec.name] = make(rng, shapes[spec.name], feed).astype(spec.dtype)
    if "warp" in feed and "box" in feed:
        height, width = shapes["crops"][1:3] if "crops" in shapes else (128, 128)
        preset = CropPreset("square", (width, height))
        feed["warp"] = np.stack([crop_warp(box, preset, IMAGE_WH_PX) for box in feed["box"]]).astype(np.float32)
    return {name: np.ascontiguousarray(array) for name, array in feed.items()}


def _pixels(rng: np.random.Generator, shape: Shape, _: Arrays) -> npt.NDArray[Any]:
    """Coloured patches with a little noise: neither flat nor white noise."""
    *lead, height, width, channels = shape
    rows, columns = -(-height // PATCH_PX), -(-width // PATCH_PX)
    patches = rng.integers(0, 256, (*lead, rows, columns, channels))
    image = patches.repeat(PATCH_PX, axis=-3).repeat(PATCH_PX, axis=-2)[..., :height, :width, :]
    return np.asarray(np.clip(image + rng.integers(-8, 9, shape), 0, 255))


def _boxes(rng: np.random.Generator, shape: Shape, _: Arrays) -> npt.NDArray[Any]:
    sides = rng.uniform(*BOX_SIDE_PX, (shape[0], 2))
    centres = rng.uniform((160, 120), (480, 360), (shape[0], 2))
    return np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)


def _warps(rng: np.random.Generator, shape: Shape, _: Arrays) -> npt.NDArray[Any]:
    preset = CropPreset("square", 128)
    return np.stack([crop_warp(box, preset, IMAGE_WH_PX) for box in _boxes(rng, (shape[0], 4), {})])


def _cameras(rng: np.random.Generator, shape: Shape, _: Arrays) -> npt.NDArray[Any]:
    K = np.tile(np.eye(3), (shape[0], 1, 1))
    K[:, 0, 0] = K[:, 1, 1] = FOCAL_PX * rng.uniform(0.8, 1.2, shape[0])
    K[:, :2, 2] = np.array(IMAGE_WH_PX) / 2 + rng.uniform(-5, 5, (shape[0], 2))
    return K


def _extents(rng: np.random.Generator, shape: Shape, _: Arrays) -> npt.NDArray[Any]:
    half = rng.uniform(*HALF_EXTENT_M, (shape[0], 3))
    return np.stack([-half, half], axis=1)


def _unit(axis: int) -> Callable[[np.random.Generator, Shape, Arrays], npt.NDArray[Any]]:
    def make(rng: np.random.Generator, shape: Shape, _: Arrays) -> npt.NDArray[Any]:
        vectors = rng.normal(size=shape)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=axis, keepdims=True))

    return make


def _view_weights(rng: np.random.Generator, shape: Shape, fed: Arrays) -> npt.NDArray[Any]:
    """1 / places seen."""
    places = fed["descriptors"].shape[1] if "descriptors" in fed else 1
    return np.asarray(1 / np.ceil(rng.uniform(*FOREGROUND, shape) * places))


def _orthonormal(rng: np.random.Generator, shape: Shape, _: Arrays) -> npt.NDArray[Any]:
    return np.asarray(np.linalg.qr(rng.normal(size=shape))[0])


def _sketches(rng: np.random.Generator, shape: Shape, fed: Arrays) -> npt.NDArray[Any]:
    """Of the templates (N, L, C) that were fed, if any were."""
    if not {"templates", "weights", "projection"} <= fed.keys():
        return rng.normal(size=shape)
    rows = fed["templates"].reshape(shape[1], -1) * fed["weights"][:, None]
    return np.asarray((rows @ fed["projection"]).T)


def _constant(value: Any) -> Callable[[np.random.Generator, Shape, Arrays], npt.NDArray[Any]]:
    return lambda rng, shape, _: np.broadcast_to(np.asarray(value), shape)


Maker = Callable[[np.random.Generator, Shape, Arrays], npt.NDArray[Any]]
MAKERS: dict[str, Maker] = {
    "crops": _pixels,
    "image": _pixels,
    "box": _boxes,
    "warp": _warps,
    "K": _cameras,
    "image_wh": _constant(IMAGE_WH_PX),
    "label": _constant(0),  # the one class that every graph has
    "bbox_m": _extents,
    "descriptors": _unit(-1),
    "templates": _unit(1),
    "weights": _view_weights,
    "projection": _orthonormal,
    "sketches": _sketches,
}
MAKERS_BY_DTYPE: dict[str, Maker] = {
    "uint8": lambda rng, shape, _: rng.integers(0, 256, shape),
    "float32": lambda rng, shape, _: rng.normal(size=shape),
    "int64": _constant(0),
}
