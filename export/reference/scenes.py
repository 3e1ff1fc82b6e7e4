"""Full synthetic photographs of the reference objects among clutter, with exact poses; written in BOP's layout.

A scene is ray-traced in linear light (floor, backdrop, shadows), then goes through a camera: exposure, white balance,
blur, vignetting, Poisson-Gauss noise, gamma, JPEG. Everything follows from the seed.
Usage: python -m posekit.export.reference.scenes OUT_DIR --count 200 --seed 100000
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from posekit.export.mesh import write_ply
from posekit.export.reference.clutter import clutter_models
from posekit.export.reference.layouts import Floor, Layout, random_layout
from posekit.export.reference.objects import ReferenceObject, reference_objects
from posekit.export.reference.photograph import photographed
from posekit.export.reference.textures import random_texture
from posekit.export.reference.views import REFERENCE_CAMERA, progress_bars
from posekit.export.render import (
    SHADOW_OFFSET_M,
    Lighting,
    Renderer,
    Rendering,
    projected_box,
    random_lighting,
    ray_map,
    shaded_linear,
)
from posekit.runtime.detection import box_from_mask
from posekit.runtime.errors import OutputError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Array, Pose, rotation_about_ray
from posekit.runtime.symmetry import MM_PER_M, bop_from_symmetries

Floats = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]

CLUTTER_COUNT, CLUTTER_SEED = 80, 77  # other shapes than the view bank's
SUPERSAMPLE = 2
BAND_ROWS = 40
MIN_VISIBLE = 0.3  # of each reference object, or the layout is drawn again
BACKDROP_M = 2.5
TEXTURE_PX = 320


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One reference object in a scene.

    box_xyxy_px: (4,) of the visible pixels.   box_amodal_xyxy_px: (4,) of the whole silhouette, may leave the image.
    visib_fract: visible pixels over all pixels of the silhouette, those outside the image included.
    """

    object_id: int
    cam_from_obj: Pose
    box_xyxy_px: Array
    box_amodal_xyxy_px: Array
    visib_fract: float
    silhouette_px: int


@dataclass(frozen=True, eq=False)
class Scene:
    """image_rgb_u8: (480, 640, 3).   mask_index: (480, 640) int32, which of `objects` is seen, -1 none of them."""

    image_rgb_u8: Image
    intrinsics: Intrinsics
    objects: tuple[SceneObject, ...]
    mask_index: npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What the floor and the backdrop look like. texture_m: side of one tile of the floor."""

    floor: Floor
    texture: Image
    texture_m: float
    backdrop: Image


@cache
def scene_renderer() -> Renderer:
    """The renderer of all reference objects and of the scenes' own clutter."""
    models = {object_id: o.model for object_id, o in reference_objects().items()}
    return Renderer(models | clutter_models(CLUTTER_COUNT, CLUTTER_SEED))


def make_scene(
    seed: int, renderer: Renderer | None = None, difficulty: float = 0.5, camera: Intrinsics = REFERENCE_CAMERA
) -> Scene:
    """The scene of a seed. difficulty 0..1: more clutter and occluders, stronger blur and noise."""
    renderer = renderer or scene_renderer()
    rng = np.random.default_rng(seed)
    while True:
        layout = random_layout(rng, renderer.models, difficulty, camera)
        seen = renderer.render(layout.placements, camera)
        objects = tuple(_scene_object(renderer, layout, k, seen) for k in range(layout.reference_count))
        if objects and min(o.visib_fract for o in objects) >= MIN_VISIBLE:
            break
    linear = _lit(renderer, layout, random_lighting(rng), camera, rng)
    index = np.where(seen.object_index < layout.reference_count, seen.object_index, -1).astype(np.int32)
    return Scene(photographed(linear, rng, difficulty), camera, objects, index)


def _scene_object(renderer: Renderer, layout: Layout, k: int, seen: Rendering) -> SceneObject:
    """Boxes and visibility of one placement; the silhouette is counted on a canvas that holds all of it."""
    object_id, pose = layout.placements[k]
    camera = seen.intrinsics
    amodal = projected_box(renderer.models[object_id], pose, camera)
    corner = np.floor(amodal[:2])
    size = np.ceil(amodal[2:]) - corner + 1
    K = camera.K.copy()
    K[:2, 2] -= corner
    alone = renderer.render([(object_id, pose)], Intrinsics(K, int(size[0]), int(size[1])))
    silhouette = int(alone.mask.sum())
    visible = seen.object_index == k
    box = box_from_mask(visible) if visible.any() else np.full(4, np.nan)
    return SceneObject(object_id, pose, box, amodal, float(visible.sum()) / max(silhouette, 1), silhouette)


# Light


def _random_surroundings(rng: np.random.Generator, floor: Floor) -> Surroundings:
    texture, backdrop = (random_texture(rng, TEXTURE_PX) for _ in range(2))
    return Surroundings(floor, texture, float(rng.uniform(0.2, 0.8)), backdrop)


def _lit(
    renderer: Renderer, layout: Layout, lighting: Lighting, camera: Intrinsics, rng: np.random.Generator
) -> Floats:
    """(H, W, 3) linear light, supersampled and averaged; the first light throws a shadow.

    Bands of rows, because each then fits the processor's cache.
    """
    surroundings, shadow_rays = _random_surroundings(rng, layout.floor), _shadow_rays(lighting.to_light[0], rng)
    bands = [
        _rows(camera, top, min(BAND_ROWS, camera.height_px - top)) for top in range(0, camera.height_px, BAND_ROWS)
    ]
    return np.concatenate([_lit_band(renderer, layout, surroundings, lighting, shadow_rays, band) for band in bands])


def _rows(camera: Intrinsics, top: int, count: int) -> Intrinsics:
    """The camera that sees `count` rows from `top` on."""
    K = camera.K.copy()
    K[1, 2] -= top
    return Intrinsics(K, camera.width_px, count)


def _lit_band(
    renderer: Renderer,
    layout: Layout,
    surroundings: Surroundings,
    lighting: Lighting,
    shadow_rays: Array,
    camera: Intrinsics,
) -> Floats:
    fine = _with_surroundings(renderer.render(layout.placements, _finer(camera)), surroundings)
    shadow = _shadow(renderer, layout, shadow_rays, _every(fine, SUPERSAMPLE))
    h, w = fine.depth_m.shape
    visibility = np.ones((len(lighting.to_light), h, w), np.float32)
    visibility[0] = cv2.resize(1 - shadow, (w, h), interpolation=cv2.INTER_LINEAR)
    linear = shaded_linear(fine, lighting, visibility)
    return np.asarray(cv2.resize(linear, (camera.width_px, camera.height_px), interpolation=cv2.INTER_AREA), np.float32)


def _finer(camera: Intrinsics) -> Intrinsics:
    """The camera with SUPERSAMPLE x SUPERSAMPLE pixels for each one."""
    s = SUPERSAMPLE
    up = np.array([[s, 0.0, (s - 1) / 2], [0.0, s, (s - 1) / 2], [0.0, 0.0, 1.0]])
    return Intrinsics(up @ camera.K, s * camera.width_px, s * camera.height_px)


def _every(fine: Rendering, step: int) -> Rendering:
    """Every step-th pixel of each row and column, and the camera that sees just these."""
    names = ("albedo_rgb_u8", "normal_cam", "depth_m", "coords_obj_m", "object_index")
    arrays = {name: getattr(fine, name)[::step, ::step] for name in names}
    h, w = arrays["depth_m"].shape
    camera = Intrinsics(np.diag([1 / step, 1 / step, 1.0]) @ fine.intrinsics.K, w, h)
    return replace(fine, intrinsics=camera, **arrays)


def _with_surroundings(seen: Rendering, surroundings: Surroundings) -> Rendering:
    """Fill what shows no object with the floor, and what is beyond the floor's horizon with the backdrop."""
    floor = surroundings.floor
    to_plane = rotation_about_ray(-floor.normal).T  # its z axis runs away from the camera, along -normal
    rays = ray_map(seen.intrinsics, to_plane)
    slope = -rays[..., 2]
    reach = np.where(slope < -1e-3, -floor.distance_m / np.minimum(slope, -1e-3), np.inf)
    on_floor = ~seen.mask & (reach < BACKDROP_M)
    on_backdrop = ~seen.mask & ~on_floor
    depth = np.where(seen.mask, seen.depth_m, np.minimum(reach, BACKDROP_M)).astype(np.float32)
    albedo, normal = seen.albedo_rgb_u8.copy(), seen.normal_cam.copy()
    plane = rays[..., :2] * (depth * (TEXTURE_PX / surroundings.texture_m))[..., None]
    albedo[on_floor] = _tiled(surroundings.texture, plane)[on_floor]
    albedo[on_backdrop] = _tiled(surroundings.backdrop, ray_map(seen.intrinsics)[..., :2] * TEXTURE_PX)[on_backdrop]
    normal[on_floor] = floor.normal
    normal[on_backdrop] = (0.0, 0.0, -1.0)
    index = np.where(seen.mask, seen.object_index, seen.object_index.max() + 1).astype(np.int32)
    return replace(seen, albedo_rgb_u8=albedo, normal_cam=normal, depth_m=depth, object_index=index)


def _tiled(texture: Image, at: npt.NDArray[Any]) -> Image:
    side = texture.shape[0]
    folded = (side - np.abs(np.mod(at, 2 * side) - side)).astype(np.float32)  # mirrored: no seams
    looked_up = cv2.remap(texture, folded[..., 0], folded[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(looked_up, np.uint8)


def _shadow_rays(to_light: Array, rng: np.random.Generator) -> Array:
    """(K, 3) directions to one light: a single one for a point, four for a light with some width."""
    width = rng.uniform(0.0, 0.12) if rng.random() < 0.7 else 0.0
    directions = to_light + width * rng.normal(size=(4 if width else 1, 3))
    return np.asarray(directions / np.linalg.norm(directions, axis=1, keepdims=True))


def _shadow(renderer: Renderer, layout: Layout, shadow_rays: Array, seen: Rendering) -> Floats:
    """(H, W) share of the light that is blocked."""
    points = ray_map(seen.intrinsics) * seen.depth_m[..., None]
    points = (points + seen.normal_cam * (5 * SHADOW_OFFSET_M)).reshape(-1, 3)
    lit = (seen.normal_cam.reshape(-1, 3) @ shadow_rays.mean(axis=0)) > 0
    total = np.zeros(len(points), np.float32)
    for direction in shadow_rays:
        total[lit] += renderer.shadowed(layout.placements, points[lit], direction)
    return np.asarray(total / np.float32(len(shadow_rays))).reshape(seen.depth_m.shape)


# BOP files


def write_bop(scenes: Iterable[Scene], folder: Path, objects: Mapping[int, ReferenceObject] | None = None) -> None:
    """Write scenes as one BOP scene (test/000000) with models, in millimetres. The folder must not exist yet."""
    if folder.exists():
        raise OutputError(
            f"BOP folder {folder}", got="a folder that exists", expected="a new one", remedy="Choose another name."
        )
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    root = partial / "test" / "000000"
    for name in ("rgb", "mask_visib"):
        (root / name).mkdir(parents=True)
    cameras, truth, boxes = {}, {}, {}
    for i, scene in enumerate(scenes):
        cv2.imwrite(str(root / "rgb" / f"{i:06d}.png"), scene.image_rgb_u8[..., ::-1])
        for k in range(len(scene.objects)):
            visible = (scene.mask_index == k).astype(np.uint8) * 255
            cv2.imwrite(str(root / "mask_visib" / f"{i:06d}_{k:06d}.png"), visible)
        cameras[str(i)] = {"cam_K": scene.intrinsics.K.ravel().tolist(), "depth_scale": 1.0}
        truth[str(i)] = [_bop_pose(o) for o in scene.objects]
        boxes[str(i)] = [_bop_boxes(o, int((scene.mask_index == k).sum())) for k, o in enumerate(scene.objects)]
    for name, rows in (("scene_camera", cameras), ("scene_gt", truth), ("scene_gt_info", boxes)):
        (root / f"{name}.json").write_text(json.dumps(rows, indent=1))
    _write_bop_models(objects or reference_objects(), partial / "models")
    os.replace(partial, folder)


def _bop_pose(thing: SceneObject) -> dict[str, Any]:
    return {
        "obj_id": thing.object_id,
        "cam_R_m2c": thing.cam_from_obj.R.ravel().tolist(),
        "cam_t_m2c": (thing.cam_from_obj.t_m * MM_PER_M).tolist(),
    }


def _bop_boxes(thing: SceneObject, visible_px: int) -> dict[str, Any]:
    return {
        "bbox_obj": _bop_box(thing.box_amodal_xyxy_px),
        "bbox_visib": _bop_box(thing.box_xyxy_px),
        "px_count_all": thing.silhouette_px,
        "px_count_visib": visible_px,
        "visib_fract": thing.visib_fract,
    }


def _bop_box(box_xyxy_px: Array) -> list[int]:
    """Whole pixels x, y, width, height: the columns and rows whose centres are in the box."""
    first, last = np.ceil(box_xyxy_px[:2]), np.floor(box_xyxy_px[2:])
    return [int(v) for v in (*first, *(last - first + 1))]


def _write_bop_models(objects: Mapping[int, ReferenceObject], folder: Path) -> None:
    folder.mkdir()
    table = {}
    for object_id, thing in objects.items():
        write_ply(thing.model, folder / f"obj_{object_id:06d}.ply", "mm")
        low, size = thing.model.bbox_min_m * MM_PER_M, thing.model.extents_m * MM_PER_M
        row: dict[str, Any] = {"diameter": thing.model.diameter_m * MM_PER_M}
        for axis, lowest, extent in zip("xyz", low, size, strict=True):
            row |= {f"min_{axis}": float(lowest), f"size_{axis}": float(extent)}
        table[str(object_id)] = row | bop_from_symmetries(thing.symmetries)
    (folder / "models_info.json").write_text(json.dumps(table, indent=1))


def random_scenes(
    count: int, seed: int, difficulty: float | None = None, advance: Callable[[str, int, int], None] | None = None
) -> Iterable[Scene]:
    """Scenes of seed, seed + 1, ...; without a difficulty it runs through 0, 0.25, .. 1."""
    for i in range(count):
        yield make_scene(seed + i, difficulty=(i % 5) / 4 if difficulty is None else difficulty)
        if advance is not None:
            advance("scenes", i + 1, count)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m posekit.export.reference.scenes", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=100_000)
    parser.add_argument("--difficulty", type=float, help="0..1; left out: all difficulties in turn")
    options = parser.parse_args(arguments)
    for advance in progress_bars():
        write_bop(random_scenes(options.count, options.seed, options.difficulty, advance), options.folder)


if __name__ == "__main__":
    main()
