"""The training view bank: every object ray-traced from thousands of random poses, once, into memory-mapped arrays.

A view is a square patch around the object, cut as the crop preset VIEW_PATCH cuts: its pixels are those of a camera with
K_patch = warp K. Light, background, occluders and noise are added in training, so that no two epochs are alike.
Usage: python -m posekit.export.reference.views OUT_DIR --views 5000 --seed 0
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from posekit.export.mesh import ObjectModel
from posekit.export.reference.clutter import clutter_models
from posekit.export.reference.objects import reference_objects
from posekit.export.render import Renderer, projected_box
from posekit.runtime.crop import CropPreset, crop_warp
from posekit.runtime.errors import SourceError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Array, Pose
from posekit.runtime.symmetry import bop_from_symmetries

FORMAT = "posekit-views-1"
REFERENCE_CAMERA = Intrinsics(np.array([[600.0, 0.0, 319.5], [0.0, 600.0, 239.5], [0.0, 0.0, 1.0]]), 640, 480)
DEPTH_RANGE_M = (0.35, 0.9)
MIN_INSIDE = 0.7  # share of the object's box that lies in the image
VIEW_PATCH = CropPreset("square", 144, pad=1.6)
SUPERSAMPLE = 2
CLUTTER_COUNT, CLUTTER_VIEWS = 60, 40
VIEWS_PER_COMMIT = 100

S = VIEW_PATCH.side_px
CHANNELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "albedo": ("u1", (S, S, 3)),
    "normal": ("i1", (S, S, 3)),
    "coords": ("u1", (S, S, 3)),
    "depth": ("<f2", (S, S)),
    "mask": ("u1", (S, S)),
    "R": ("<f8", (3, 3)),
    "t_m": ("<f8", (3,)),
    "warp": ("<f8", (2, 3)),
    "box_xyxy_px": ("<f8", (4,)),
    "object_id": ("<i4", ()),
}


@dataclass(frozen=True, eq=False)
class ViewSet:
    """N views of one object (or of all clutter), opened without reading them.

    arrays: those of CHANNELS, each (N, ...): albedo RGB; normal in the camera frame x 127; coords over the object's
    bounding box, 0..255; depth = z minus t_m[2], metres; mask 0/1; R and t_m: cam_from_obj in the full image's camera;
    warp: patch_from_image; box_xyxy_px: the whole silhouette in the full image.
    """

    name: str
    object_id: int
    bbox_min_m: Array
    extents_m: Array
    arrays: dict[str, npt.NDArray[Any]]

    def __len__(self) -> int:
        return len(self.arrays["mask"])

    def coords_obj_m(self, index: Any) -> npt.NDArray[np.float32]:
        """Object coordinates of views (index as in NumPy), metres; good to extents / 510 per axis; only where mask."""
        unit = self.arrays["coords"][index].astype(np.float32) / 255
        return np.asarray(unit * self.extents_m.astype(np.float32) + self.bbox_min_m.astype(np.float32))


def random_pose(model: ObjectModel, camera: Intrinsics, rng: np.random.Generator) -> Pose:
    """Any rotation alike, z within DEPTH_RANGE_M, the box of the silhouette at least MIN_INSIDE in the image."""
    while True:
        R = Rotation.from_quat(rng.normal(size=4)).as_matrix()
        pixel = rng.uniform(0, (camera.width_px - 1, camera.height_px - 1))
        pose = Pose(R, camera.rays(pixel) * rng.uniform(*DEPTH_RANGE_M))
        x0, y0, x1, y1 = projected_box(model, pose, camera)
        inside_x = min(x1, camera.width_px) - max(x0, 0.0)
        inside_y = min(y1, camera.height_px) - max(y0, 0.0)
        if min(inside_x, inside_y) > 0 and inside_x * inside_y >= MIN_INSIDE * (x1 - x0) * (y1 - y0):
            return pose


def view(renderer: Renderer, object_id: int, cam_from_obj: Pose, camera: Intrinsics) -> dict[str, npt.NDArray[Any]]:
    """One view as the arrays of CHANNELS."""
    model = renderer.models[object_id]
    box = projected_box(model, cam_from_obj, camera)
    warp = crop_warp(box, VIEW_PATCH, (camera.width_px, camera.height_px))
    seen = renderer.render([(object_id, cam_from_obj)], patch_camera(camera, warp), SUPERSAMPLE)
    mask = seen.mask
    unit = (seen.coords_obj_m - model.bbox_min_m) / np.maximum(model.extents_m, 1e-9)
    return {
        "albedo": seen.albedo_rgb_u8,
        "normal": np.rint(seen.normal_cam * 127).astype(np.int8),
        "coords": (np.rint(np.clip(unit, 0, 1) * 255) * mask[..., None]).astype(np.uint8),
        "depth": ((seen.depth_m - cam_from_obj.t_m[2]) * mask).astype(np.float16),
        "mask": mask.astype(np.uint8),
        "R": cam_from_obj.R,
        "t_m": cam_from_obj.t_m,
        "warp": warp,
        "box_xyxy_px": box,
        "object_id": np.array(object_id),
    }


def patch_camera(camera: Intrinsics, warp: Array) -> Intrinsics:
    """The camera whose image is the patch: K_patch = [warp; 0 0 1] K."""
    return Intrinsics(np.vstack([warp, [0.0, 0.0, 1.0]]) @ camera.K, S, S)


def write_views(
    folder: Path,
    views: int,
    seed: int,
    advance: Callable[[str, int, int], None] = lambda name, done, total: None,
    clutter_count: int = CLUTTER_COUNT,
    clutter_views: int = CLUTTER_VIEWS,
) -> None:
    """Render the bank into `folder`; what an interrupted run finished is kept. `advance` hears (set, done, total)."""
    folder.mkdir(parents=True, exist_ok=True)
    objects = reference_objects()
    clutter = clutter_models(clutter_count, seed)
    renderer = Renderer({object_id: o.model for object_id, o in objects.items()} | clutter)
    for object_id, thing in objects.items():
        _write_set(folder / thing.name, renderer, [object_id] * views, seed, advance)
    _write_set(folder / "clutter", renderer, [i for i in clutter for _ in range(clutter_views)], seed, advance)
    index = {
        "format": FORMAT,
        "seed": seed,
        "camera": {"K": REFERENCE_CAMERA.K.tolist(), "width_px": 640, "height_px": 480},
        "patch_px": S,
        "pad": VIEW_PATCH.pad,
        "objects": {
            thing.name: {
                "object_id": object_id,
                "views": views,
                "diameter_m": thing.model.diameter_m,
                "bbox_min_m": thing.model.bbox_min_m.tolist(),
                "extents_m": thing.model.extents_m.tolist(),
            }
            | bop_from_symmetries(thing.symmetries)
            for object_id, thing in objects.items()
        },
        "clutter": {"objects": clutter_count, "views_each": clutter_views},
    }
    _replace(folder / "views.json", json.dumps(index, indent=1))


def read_views(folder: Path) -> dict[str, ViewSet]:
    """Open a finished bank: a ViewSet per object, and "clutter" (object_id -1). SourceError for anything else."""
    try:
        index = json.loads((folder / "views.json").read_text())
        if index["format"] != FORMAT:
            raise ValueError(f"format {index['format']}")
        sets = {
            name: ViewSet(
                name, row["object_id"], np.array(row["bbox_min_m"]), np.array(row["extents_m"]), _opened(folder / name)
            )
            for name, row in index["objects"].items()
        }
        clutter = ViewSet("clutter", -1, np.zeros(3), np.zeros(3), _opened(folder / "clutter"))
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(
            f"view bank {folder}",
            got=f"{type(error).__name__}: {error}",
            expected=f"a finished bank of format {FORMAT}",
            remedy="Render it: python -m posekit.export.reference.views OUT_DIR",
        ) from error
    return sets | {"clutter": clutter}


def _opened(folder: Path) -> dict[str, npt.NDArray[Any]]:
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in CHANNELS}


def _write_set(
    folder: Path, renderer: Renderer, object_ids: list[int], seed: int, advance: Callable[[str, int, int], None]
) -> None:
    total = len(object_ids)
    if folder.is_dir():
        advance(folder.name, total, total)
        return
    partial = folder.with_name(folder.name + ".partial")
    arrays, done = _partial_arrays(partial, total, seed)
    for i in range(done, total):
        rng = np.random.default_rng([seed, object_ids[i], i])
        pose = random_pose(renderer.models[object_ids[i]], REFERENCE_CAMERA, rng)
        for name, value in view(renderer, object_ids[i], pose, REFERENCE_CAMERA).items():
            arrays[name][i] = value
        if (i + 1) % VIEWS_PER_COMMIT == 0 or i + 1 == total:
            for array in arrays.values():
                array.flush()
            _replace(partial / "done.json", json.dumps({"done": i + 1, "total": total, "seed": seed}))
            advance(folder.name, i + 1, total)
    (partial / "done.json").unlink()
    os.replace(partial, folder)


def _partial_arrays(partial: Path, total: int, seed: int) -> tuple[dict[str, np.memmap[Any, Any]], int]:
    """The arrays of an unfinished set and how many of its views are there; fresh ones unless they belong to this run."""
    state = partial / "done.json"
    found = json.loads(state.read_text()) if state.is_file() else {}
    resumed = (found.get("total"), found.get("seed")) == (total, seed)
    partial.mkdir(exist_ok=True)
    arrays = {
        name: np.lib.format.open_memmap(
            partial / f"{name}.npy", mode="r+" if resumed else "w+", dtype=dtype, shape=(total, *shape)
        )
        for name, (dtype, shape) in CHANNELS.items()
    }
    return arrays, int(found["done"]) if resumed else 0


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    os.replace(fresh, path)


def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Yields an `advance` that draws one bar per name."""
    from rich.progress import Progress

    with Progress() as progress:
        tasks: dict[str, Any] = {}

        def advance(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done)

        yield advance


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m posekit.export.reference.views", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--views", type=int, default=5000, help="per object")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for advance in progress_bars():
        write_views(options.folder, options.views, options.seed, advance)


if __name__ == "__main__":
    main()
