"""Build template banks: render an object from all sides, embed the views, keep what the matcher needs.

posekit.runtime.bank reads what is written here.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from posekit.export.bank_ceiling import Ceiling
from posekit.export.bank_recipe import BankRecipe, bank_rotations
from posekit.export.bank_search import matched_arrays
from posekit.export.mesh import ObjectModel
from posekit.export.render import Image, Renderer, headlight, shade
from posekit.export.tensor_file import write_tensor_file
from posekit.export.viewsphere import viewsphere
from posekit.runtime.atomic import replacing
from posekit.runtime.bank import FORMAT
from posekit.runtime.crop import CropPreset, crop
from posekit.runtime.detection import box_from_mask
from posekit.runtime.errors import ExportError, OutputError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Array, Pose
from posekit.runtime.records import json_from_record
from posekit.runtime.session import Session

Progress = Callable[[int, int], None]
T = TypeVar("T")

DISTANCE_DIAMETERS = 4.5  # a 20 cm object seen from 90 cm
FILL = 0.9  # of the template camera's side that the object's circumscribed sphere covers
OVERSIZE = 1.25  # template image per crop: the box of a slender view is enlarged to the crop
OPAQUE = 255
BATCH = 32
DIRECTIONS = 642  # 5 degrees to the next: a sphere's box is 0.1 % too small, a box's is exact
IN_MEMORY_BYTES = 256 << 20
DTYPES: dict[str, type[np.floating[Any]]] = {"fp32": np.float32, "fp16": np.float16}


@dataclass(frozen=True, eq=False)
class Template:
    """One rendered view. image_rgb_u8: (H, W, 3), black background.   mask: (H, W) bool.   R: (3, 3).

    box_xyxy_px: (4,) around the mask.
    """

    image_rgb_u8: Image
    mask: npt.NDArray[np.bool_]
    R: Array
    box_xyxy_px: Array


@dataclass(frozen=True)
class BuiltBank:
    """views: N.  places: L.  channels: C.  size: of the file in bytes.  ceiling: of its poses, where it was reckoned."""

    views: int
    places: int
    channels: int
    size: int
    ceiling: Ceiling | None = None


def build_bank(
    path: Path,
    embedder: Session,
    embedder_sha256: str,
    model: ObjectModel,
    object_id: int,
    crop_preset: CropPreset,
    recipe: BankRecipe,
    progress: Progress = lambda done, total: None,
) -> BuiltBank:
    """Render, crop, embed and write one object's bank to `path`, whole or not at all.

    embedder: the fp32 embedder graph, whose file has `embedder_sha256`.  progress: called with (views done, all views).
    Memory is bounded: large banks are gathered in a temporary file. ExportError for views that show nothing.
    """
    rotations = bank_rotations(recipe)
    camera, distance_m = template_camera(model, crop_preset, recipe.distance_m)
    places, channels = _descriptor_shape(embedder, crop_preset.wh_px)
    count = len(rotations)
    with _scratch((count, places, channels), DTYPES[recipe.precision], path.parent) as descriptors:
        weights, boxes = np.empty(count, np.float32), np.empty((count, 4), np.float32)
        views = templates(model, rotations, camera, distance_m, recipe)

        def next_cut() -> _Cut | None:
            return _cropped(list(islice(views, BATCH)), camera, crop_preset, places)

        done = 0
        for cut in _one_ahead(next_cut):
            at = slice(done, done + len(cut.boxes))
            seen = _finite(embedder.run({"crops": cut.pixels})["descriptors"], done) * (cut.weights > 0)[..., None]
            descriptors[at], weights[at], boxes[at] = seen, cut.weights.max(axis=1), cut.boxes
            done = at.stop
            progress(done, count)
        arrays = matched_arrays(descriptors, weights, recipe.search) | {
            "R": rotations.astype(np.float32),
            "t_m": np.tile(np.array([0.0, 0.0, distance_m], np.float32), (count, 1)),
            "box_xyxy_px": boxes,
            "centre_m": model.bbox_centre_m.astype(np.float32),
            "outermost_m": outermost_points(model).astype(np.float32),
            "K": camera.K.astype(np.float32),
        }
        metadata = {
            "format": FORMAT,
            "object_id": str(object_id),
            "embedder_sha256": embedder_sha256,
            "precision": recipe.precision,
            "crop": json_from_record(crop_preset),
            "views": json_from_record(replace(recipe, distance_m=distance_m)),
            "search": recipe.search,
        }
        with replacing(path) as file:
            write_tensor_file(file, arrays, metadata)
    return BuiltBank(count, places, channels, path.stat().st_size)


def outermost_points(model: ObjectModel) -> Array:
    """(P, 3), metres: the vertices that lie farthest in each of DIRECTIONS, every one once. They span the object's boxes."""
    surface = model.vertices_m[np.unique(model.faces)]
    return np.asarray(surface[np.unique((surface @ viewsphere(DIRECTIONS).T).argmax(axis=0))])


def _finite(descriptors: npt.NDArray[Any], first_view: int) -> npt.NDArray[Any]:
    if not np.isfinite(descriptors).all():
        raise ExportError(
            f"bank, views from {first_view}",
            got="descriptors with NaN or infinity",
            expected="finite numbers",
            remedy="Check the embedder's weights, and that it takes pictures with a black background.",
        )
    return descriptors


def template_camera(model: ObjectModel, preset: CropPreset, distance_m: float | None) -> tuple[Intrinsics, float]:
    """(camera, distance of the object's centre): the sphere about the centre that holds the object fills FILL of it.

    The centre is that of the mesh's box, wherever its origin is.
    """
    radius = float(np.linalg.norm(model.vertices_m - model.bbox_centre_m, axis=1).max())
    distance = DISTANCE_DIAMETERS * 2 * radius if distance_m is None else distance_m
    if distance <= radius * 1.05:
        raise ExportError(
            "bank distance_m",
            got=f"{distance:g} m",
            expected=f"more than {radius * 1.05:.3g} m: the object reaches {radius:.3g} m from its centre",
            remedy="Increase distance_m or leave it out.",
        )
    side = round(OVERSIZE * max(preset.wh_px))
    focal = FILL * side / 2 * np.sqrt(distance**2 - radius**2) / radius
    centre = (side - 1) / 2
    return Intrinsics(np.array([[focal, 0, centre], [0, focal, centre], [0, 0, 1]]), side, side), distance


def templates(
    model: ObjectModel, rotations: Array, camera: Intrinsics, distance_m: float, recipe: BankRecipe
) -> Iterator[Template]:
    """Rendered views, object centre on the optical axis. ExportError for a view that shows nothing."""
    renderer, lighting = Renderer({0: model}), headlight()
    t_m = np.array([0.0, 0.0, distance_m])
    upright: tuple[Image, Array] | None = None
    for index, R in enumerate(rotations):
        if upright is None or recipe.in_plane == "render" or index % recipe.in_plane_steps == 0:
            centred = Pose(R, t_m - R @ model.bbox_centre_m)
            rendering = renderer.render([(0, centred)], camera, recipe.supersample)
            alpha = np.where(rendering.mask, OPAQUE, 0).astype(np.uint8)
            upright = np.dstack([shade(rendering, lighting), alpha]), R
        turned = _turned(*upright, R, camera)
        image, mask = np.asarray(cv2.cvtColor(turned, cv2.COLOR_RGBA2RGB), np.uint8), turned[..., 3] > OPAQUE // 2
        yield Template(image, mask, R, template_box(mask, f"view {index}"))


def template_box(mask: npt.NDArray[np.bool_], what: str) -> Array:
    """(4,) box of a view's mask. ExportError where it is empty."""
    if not mask.any():
        raise ExportError(
            f"bank, {what}",
            got="a picture that shows nothing",
            expected="the object",
            remedy="Check the mesh: its unit, and that its surface is closed.",
        )
    return box_from_mask(mask)


def place_weights(
    mask: npt.NDArray[np.bool_], warp: Array, wh_px: tuple[int, int], places: int
) -> npt.NDArray[np.float32]:
    """(L,) mask / |mask| on the crop's grid of places. A place counts that any of the object's pixels reaches.

    S1, S2: the template's alpha resized to the grid, > 0; places are square cells of the crop, row by row.
    """
    alpha = cv2.warpAffine(mask.astype(np.float32), warp, wh_px, flags=cv2.INTER_LINEAR)
    cells = cv2.resize(alpha, grid_wh(places, wh_px), interpolation=cv2.INTER_AREA).ravel() > 0
    return np.asarray(cells / max(cells.sum(), 1), np.float32)


def grid_wh(places: int, wh_px: tuple[int, int]) -> tuple[int, int]:
    """Columns and rows of a crop's places, which are square cells. ExportError where they are none."""
    width, height = wh_px
    columns = math.isqrt(places * width // height)
    if places == 1:
        return 1, 1
    if not columns or columns * columns * height != places * width or places % columns:
        raise ExportError(
            "embedder",
            got=f"{places} places of a {width} x {height} px crop",
            expected="a grid of places in the crop's aspect ratio, such as 1, 196 or 784 of a square",
            remedy="Give descriptors of a map whose cells are square, or another size_px.",
        )
    return columns, places // columns


@dataclass(frozen=True, eq=False)
class _Cut:
    """Views as the embedder takes them. pixels: (B, h, w, 3).  weights: (B, L).  boxes: (B, 4)."""

    pixels: Image
    weights: npt.NDArray[np.float32]
    boxes: Array


def _cropped(views: list[Template], camera: Intrinsics, preset: CropPreset, places: int) -> _Cut | None:
    """Through the one crop function. None of none."""
    if not views:
        return None
    cut = [crop(view.image_rgb_u8, view.box_xyxy_px, camera, preset) for view in views]
    weights = [place_weights(v.mask, c.warp, preset.wh_px, places) for v, c in zip(views, cut, strict=True)]
    return _Cut(np.stack([c.pixels for c in cut]), np.stack(weights), np.stack([v.box_xyxy_px for v in views]))


def _one_ahead(make: Callable[[], T | None]) -> Iterator[T]:
    """What `make` returns until that is None. The next is made in a thread while this one is used."""
    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(make)
        while (current := following.result()) is not None:
            following = ahead.submit(make)
            yield current


def _turned(image_rgba_u8: Image, R_from: Array, R_to: Array, camera: Intrinsics) -> Image:
    """A picture (H, W, 4) turned about the optical axis, from one in-plane rotation to another."""
    if R_from is R_to:
        return image_rgba_u8
    turn = (R_to @ R_from.T)[:2, :2]
    centre = camera.K[:2, 2]
    warp = np.hstack([turn, (centre - turn @ centre)[:, None]])
    size = (camera.width_px, camera.height_px)
    return np.asarray(cv2.warpAffine(image_rgba_u8, warp, size, flags=cv2.INTER_LINEAR), np.uint8)


def _descriptor_shape(embedder: Session, crop_wh_px: tuple[int, int]) -> tuple[int, int]:
    shape = next((spec.shape for spec in embedder.outputs if spec.name == "descriptors"), ())
    if len(shape) != 3 or not all(isinstance(n, int) for n in shape[1:]):
        raise ExportError(
            "embedder",
            got=f"outputs {', '.join(map(str, embedder.outputs))}",
            expected="descriptors (batch, L, C) with fixed L and C",
            remedy="Pass the embedder graph.",
        )
    grid_wh(int(shape[1]), crop_wh_px)
    return int(shape[1]), int(shape[2])


@contextmanager
def _scratch(shape: tuple[int, ...], dtype: type[np.floating[Any]], folder: Path) -> Iterator[npt.NDArray[Any]]:
    """An array: in memory while it is small, else in a file that goes with it."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size <= IN_MEMORY_BYTES:
        yield np.empty(shape, dtype)
        return
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is noticed here, not by a bus error later
            yield np.memmap(file, dtype, "w+", shape=shape)
    except OSError as error:
        raise OutputError(
            f"temporary file in {folder}",
            got=error,
            expected="a writable folder with room",
            remedy="Make room or build a smaller bank.",
        ) from error
