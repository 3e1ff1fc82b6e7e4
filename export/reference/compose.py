"""Training pictures from the view bank: light, background, occluders and the camera's faults are added here.

Every random choice comes from the caller's generator. Patches are square, uint8 RGB; the crop itself is cut by the one
crop function of the runtime, from a canvas that shows the full image around the object at the patch's scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from posekit.export.reference.objects import ReferenceObject, reference_objects
from posekit.export.reference.views import REFERENCE_CAMERA, ViewSet, read_views
from posekit.export.render import DISPLAY_GAMMA, encoded, headlight
from posekit.runtime.crop import CropPreset, crop, crop_warp
from posekit.runtime.detection import box_from_mask
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Array, Pose, rotation_from_rotvec

Rgb = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Alpha = npt.NDArray[np.float32]

CANVAS_PX = 240  # room around a 144 px patch for padded and jittered boxes
BACKGROUNDS = 200
MIN_VISIBLE = 0.35  # share of the silhouette that must stay visible
BLUR_PX = 6  # how far blur reaches
OCCLUDER_PX = (50, 150)  # side of an occluder's patch on the canvas


@dataclass(frozen=True, eq=False)
class Views:
    """The opened bank: one set per reference object, in the order of their ids, and the clutter."""

    objects: tuple[ViewSet, ...]
    clutter: ViewSet

    @staticmethod
    def read(folder: Path) -> Views:
        sets = read_views(folder)
        clutter = sets.pop("clutter")
        return Views(tuple(sorted(sets.values(), key=lambda s: s.object_id)), clutter)


@dataclass(frozen=True, eq=False)
class Sprite:
    """A lit patch with its truth. rgb: (P, P, 3), premultiplied by alpha.  alpha: (P, P) coverage, 0..1.
    mask: (P, P), whose centres are covered.  coords_m: (P, P, 3), object frame, where mask."""

    rgb: Rgb
    alpha: Alpha
    mask: Mask
    coords_m: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TrainingCrop:
    """One example. pixels: (S, S, 3) uint8.  mask: (g, g) bool, visible.  coords_m: (g, g, 3).
    cam_from_obj: in the full image's camera, symmetric objects in their canonical turn.
    box_xyxy_px, warp, K: of the full image, as the estimator would feed them.  label: index of the object.
    view: index in its set."""

    pixels: Rgb
    mask: Mask
    coords_m: npt.NDArray[np.float32]
    cam_from_obj: Pose
    box_xyxy_px: Array
    warp: Array
    K: Array
    label: int
    view: int


@dataclass(frozen=True)
class Jitter:
    """How far a detector's box may be off: standard deviations relative to the box's size, and of log scale."""

    shift: float = 0.06
    scale: float = 0.08


def training_crop(
    views: Views,
    preset: CropPreset,
    grid: int,
    rng: np.random.Generator,
    jitter: Jitter = Jitter(),
    occlusion: float = 0.5,
    label: int | None = None,
    view: int | None = None,
) -> TrainingCrop:
    """One random example: an object somewhere in the reference camera's image, on clutter, partly hidden.

    label: which object; the clutter is one more.  view: index in its set.
    """
    label = int(rng.integers(len(views.objects))) if label is None else label
    view_set = (*views.objects, views.clutter)[label]
    i = int(rng.integers(len(view_set))) if view is None else view
    angle = rng.uniform(-np.pi, np.pi)
    sprite = turned(lit_sprite(view_set, i, rng), angle)
    picture, visible = _composed(sprite, views, occlusion, rng)
    canvas_from_image = _canvas_from_image(view_set, i, angle)
    pose, coords_m = _turned_truth(view_set, i, angle, sprite.coords_m)
    box = jittered(box_from_mask(visible), jitter, rng)
    camera = Intrinsics(canvas_from_image @ REFERENCE_CAMERA.K, CANVAS_PX, CANVAS_PX)
    seen = _read_by(crop_warp(box, preset, (CANVAS_PX, CANVAS_PX)), preset.side_px)
    picture[seen] = photographed(picture[seen], rng)
    one = crop(picture, box, camera, preset)
    rows, columns = _pixels_of_cells(one.warp, preset.side_px, grid)
    margin = _margin(sprite)
    return TrainingCrop(
        pixels=one.pixels,
        mask=sampled(visible, rows, columns),
        coords_m=sampled(coords_m, rows - margin, columns - margin),
        cam_from_obj=pose,
        box_xyxy_px=(box - np.tile(canvas_from_image[:2, 2], 2)) / canvas_from_image[0, 0],
        warp=one.warp @ canvas_from_image,
        K=REFERENCE_CAMERA.K,
        label=label,
        view=i,
    )


def _margin(sprite: Sprite) -> int:
    """Canvas pixels beside the sprite, which lies in the middle."""
    return (CANVAS_PX - len(sprite.mask)) // 2


def _composed(sprite: Sprite, views: Views, occlusion: float, rng: np.random.Generator) -> tuple[Rgb, Mask]:
    """The canvas before it is photographed, and where the sprite is seen on it."""
    picture = background(rng, CANVAS_PX)
    owner = np.zeros(picture.shape[:2], np.int32)
    margin = _margin(sprite)
    paste(picture, owner, sprite.rgb, sprite.alpha, (margin, margin), 1)
    visible = np.pad(sprite.mask, margin)
    if rng.random() < occlusion:
        picture, visible = _occluded(picture, visible, views, rng)
    return picture, visible


def _read_by(crop_from_canvas: Array, size_px: int) -> tuple[slice, slice]:
    """Rows and columns of the canvas that a crop shows, and what blur brings in from beside them."""
    scale, corner = crop_from_canvas[0, 0], crop_from_canvas[:, 2]
    x0, y0 = np.clip(-corner / scale - BLUR_PX, 0, CANVAS_PX - 1).astype(int)
    x1, y1 = np.clip((size_px - corner) / scale + BLUR_PX, 1, CANVAS_PX).astype(int)
    return np.s_[y0:y1, x0:x1]


def _occluded(picture: Rgb, visible: Mask, views: Views, rng: np.random.Generator) -> tuple[Rgb, Mask]:
    """One or two other things pasted over the object; left out where too much of it would be hidden."""
    enough = MIN_VISIBLE * np.count_nonzero(visible)
    sets = (*views.objects, views.clutter, views.clutter, views.clutter)
    for _ in range(int(rng.integers(1, 3))):
        view_set = sets[int(rng.integers(len(sets)))]
        sprite = lit_sprite(view_set, int(rng.integers(len(view_set))), rng)
        size = int(rng.uniform(*OCCLUDER_PX))
        x, y = (int(v) for v in rng.uniform(CANVAS_PX * 0.15, CANVAS_PX * 0.85, 2) - size / 2)
        over, owner = picture.copy(), np.zeros(visible.shape, np.int32)
        paste(over, owner, *resized(sprite, size), (x, y), 1)
        still = visible & (owner == 0)
        if np.count_nonzero(still) >= enough:
            picture, visible = over, still
    return picture, visible


def _canvas_from_image(view_set: ViewSet, i: int, angle_rad: float) -> Array:
    """(3, 3): the patch's scale, and its middle where the centre of the box projects after the camera's roll."""
    scale = view_set.arrays["warp"][i][0, 0]
    box = view_set.arrays["box_xyxy_px"][i]
    principal = REFERENCE_CAMERA.K[:2, 2]
    turn = rotation_from_rotvec([0.0, 0.0, angle_rad])[:2, :2]
    centre = turn @ ((box[:2] + box[2:]) / 2 - principal) + principal
    x, y = (CANVAS_PX - 1) / 2 - scale * centre
    return np.array([[scale, 0.0, x], [0.0, scale, y], [0.0, 0.0, 1.0]])


def _turned_truth(
    view_set: ViewSet, i: int, angle_rad: float, coords_m: npt.NDArray[np.float32]
) -> tuple[Pose, npt.NDArray[np.float32]]:
    """Pose after the camera's roll, and coordinates, both in the canonical turn of a symmetric object."""
    pose = Pose.from_rotvec([0.0, 0.0, angle_rad]) @ Pose(view_set.arrays["R"][i], view_set.arrays["t_m"][i])
    if view_set.object_id < 0:
        return pose, coords_m
    return canonical(label_object(view_set.object_id), pose, coords_m)


def _pixels_of_cells(
    crop_from_canvas: Array, size_px: int, grid: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Canvas rows and columns (g,) nearest to the centres of the crop's cells."""
    cells = (np.arange(grid) + 0.5) * size_px / grid - 0.5
    columns, rows = (np.rint((cells - crop_from_canvas[k, 2]) / crop_from_canvas[k, k]).astype(int) for k in (0, 1))
    return rows, columns


def sampled(array: npt.NDArray[Any], rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """array[rows x columns], zero outside."""
    height, width = array.shape[:2]
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None, :]
    out = array[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)[None, :]].copy()
    out[~inside] = 0
    return out


@cache
def label_object(object_id: int) -> ReferenceObject:
    return reference_objects()[object_id]


def canonical(
    thing: ReferenceObject, pose: Pose, coords_m: npt.NDArray[np.float32]
) -> tuple[Pose, npt.NDArray[np.float32]]:
    """A freely turning object is turned so that the camera lies in its x-z half plane, x > 0: one truth per picture."""
    for axis, offset_m in thing.symmetries.continuous:
        assert np.allclose(axis, [0, 0, 1]), "reference objects turn about z"
        camera_in_object = pose.inverse().t_m - offset_m
        angle = float(np.arctan2(camera_in_object[1], camera_in_object[0]))
        turn = Pose.from_rotvec([0.0, 0.0, angle])
        new_from_old = Pose(np.eye(3), offset_m) @ turn.inverse() @ Pose(np.eye(3), -np.asarray(offset_m))
        pose = pose @ new_from_old.inverse()
        coords_m = new_from_old.apply(coords_m).astype(np.float32)
    return pose, coords_m


def lit_sprite(view_set: ViewSet, i: int, rng: np.random.Generator) -> Sprite:
    """Lambert and Blinn-Phong under one random lamp and ambient light, with a small random tint of the material."""
    mask = view_set.arrays["mask"][i].astype(bool)
    window = _covered(mask)  # two thirds of a patch are empty
    albedo = view_set.arrays["albedo"][i][window].astype(np.float32)
    normal = view_set.arrays["normal"][i][window].astype(np.float32) * np.float32(1 / 127)
    lamp = rng.normal((0.0, -0.3, -1.2), 1.0)
    lamp = (lamp / np.linalg.norm(lamp)).astype(np.float32)
    half = lamp + np.array([0, 0, -1], np.float32)
    half /= np.linalg.norm(half)
    ambient, diffuse, gloss = rng.uniform(0.25, 0.7), rng.uniform(0.3, 1.0), rng.uniform(0, 60) * (rng.random() < 0.5)
    shade = np.float32(ambient) + np.float32(diffuse) * np.maximum(normal @ lamp, 0)
    tint = (rng.uniform(0.85, 1.15, 3)).astype(np.float32)
    lit = albedo * shade[..., None] * tint
    if gloss:
        lit += np.float32(gloss) * np.maximum(normal @ half, 0)[..., None] ** int(rng.integers(8, 40))
    rgb, coords = np.zeros((*mask.shape, 3), np.uint8), np.zeros((*mask.shape, 3), np.float32)
    rgb[window] = np.clip(lit, 0, 255) * mask[window][..., None]
    if view_set.object_id >= 0:
        coords[window] = view_set.coords_obj_m((i, *window))
    return Sprite(rgb, mask.astype(np.float32), mask, coords)


def _covered(mask: Mask) -> tuple[slice, slice]:
    """Rows and columns of the smallest window that holds all of the mask."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return np.s_[y : y + height, x : x + width]


def template_sprite(view_set: ViewSet, i: int) -> Sprite:
    """The view as a template bank shows it: headlight, black background."""
    mask = view_set.arrays["mask"][i].astype(bool)
    albedo = (view_set.arrays["albedo"][i].astype(np.float32) / 255) ** DISPLAY_GAMMA
    facing = np.maximum(view_set.arrays["normal"][i][..., 2].astype(np.float32) * np.float32(-1 / 127), 0)
    lamp = headlight()
    shade = lamp.ambient.astype(np.float32) + lamp.colours[0].astype(np.float32) * facing[..., None]
    rgb = encoded(albedo * shade) * mask[..., None]
    return Sprite(rgb, mask.astype(np.float32), mask, np.zeros_like(albedo))


def turned(sprite: Sprite, angle_rad: float) -> Sprite:
    """Turn the picture about the patch's centre, as a camera roll would: pixels by Rz(angle), y down."""
    size = sprite.mask.shape[0]
    c, s, m = np.cos(angle_rad), np.sin(angle_rad), (size - 1) / 2
    warp = np.array([[c, -s, m - c * m + s * m], [s, c, m - s * m - c * m]])
    shape = (size, size)
    rgb, alpha = (cv2.warpAffine(a, warp, shape, flags=cv2.INTER_LINEAR) for a in (sprite.rgb, sprite.alpha))
    mask = cv2.warpAffine(sprite.mask.astype(np.uint8), warp, shape, flags=cv2.INTER_NEAREST)
    coords = cv2.warpAffine(sprite.coords_m, warp, shape, flags=cv2.INTER_NEAREST)
    return Sprite(
        np.asarray(rgb, np.uint8), np.asarray(alpha, np.float32), np.asarray(mask) > 0, np.asarray(coords, np.float32)
    )


def resized(sprite: Sprite, size_px: int) -> tuple[Rgb, Alpha]:
    """The picture at another size, premultiplied by its coverage: no dark fringe where `paste` blends it."""
    mode = cv2.INTER_AREA if size_px < len(sprite.mask) else cv2.INTER_LINEAR
    rgb, alpha = (cv2.resize(a, (size_px, size_px), interpolation=mode) for a in (sprite.rgb, sprite.alpha))
    return np.asarray(rgb, np.uint8), np.asarray(alpha, np.float32)


def paste(picture: Rgb, owner: npt.NDArray[np.int32], rgb: Rgb, alpha: Alpha, xy: tuple[int, int], name: int) -> None:
    """Blend premultiplied colours over the picture, in place; what is outside falls off.

    xy: column and row of the sprite's corner.  owner: (H, W), `name` where the sprite covers more than half a pixel.
    """
    height, width = owner.shape
    x, y = xy
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + alpha.shape[1], width), min(y + alpha.shape[0], height)
    if x0 >= x1 or y0 >= y1:
        return
    part = np.s_[y0 - y : y1 - y, x0 - x : x1 - x]
    below = picture[y0:y1, x0:x1] * (1 - alpha[part][..., None])
    picture[y0:y1, x0:x1] = np.clip(below + rgb[part] + 0.5, 0, 255).astype(np.uint8)
    owner[y0:y1, x0:x1][alpha[part] > 0.5] = name


def jittered(box_xyxy_px: Array, jitter: Jitter, rng: np.random.Generator) -> Array:
    size = box_xyxy_px[2:] - box_xyxy_px[:2]
    centre = (box_xyxy_px[:2] + box_xyxy_px[2:]) / 2 + size * rng.normal(0, jitter.shift, 2)
    half = size / 2 * np.exp(rng.normal(0, jitter.scale) + rng.normal(0, jitter.scale / 2, 2))
    return np.concatenate([centre - half, centre + half])


def background(rng: np.random.Generator, size_px: int) -> Rgb:
    """A random window of a random procedural picture, (size_px, size_px, 3), writable."""
    pool = _background_pool()
    picture = pool[int(rng.integers(len(pool)))]
    x, y = rng.integers(0, picture.shape[0] - size_px, 2)
    window = picture[y : y + size_px, x : x + size_px]
    if rng.random() < 0.5:
        window = window[:, ::-1]
    gain, lift = rng.uniform(0.5, 1.3), rng.uniform(-30, 30)
    return np.asarray(cv2.convertScaleAbs(window, alpha=gain, beta=lift), np.uint8)


@cache
def _background_pool() -> tuple[Rgb, ...]:
    rng = np.random.default_rng(12345)
    return tuple(_procedural(rng, 384) for _ in range(BACKGROUNDS))


def _procedural(rng: np.random.Generator, size: int) -> Rgb:
    """Octaves of noise with random hard shapes: what a network must not mistake for an object."""
    picture = np.zeros((size, size, 3), np.float32)
    for cells in (2, 5, 12, 40, 120):
        octave = rng.uniform(0, 255, (cells, cells, 3 if rng.random() < 0.6 else 1)).astype(np.float32)
        octave = np.broadcast_to(octave, (cells, cells, 3)).copy()
        mode = cv2.INTER_CUBIC if rng.random() < 0.7 else cv2.INTER_NEAREST
        picture += np.asarray(cv2.resize(octave, (size, size), interpolation=mode)) * np.float32(
            rng.dirichlet(np.ones(3))[0]
        )
    picture = np.clip(picture, 0, 255)
    for _ in range(int(rng.integers(0, 25))):
        colour = [float(c) for c in rng.uniform(0, 255, 3)]
        x, y, r = (int(v) for v in rng.uniform(0, size, 3))
        if rng.random() < 0.5:
            corners = rng.normal((x, y), r / 4, (int(rng.integers(3, 7)), 2)).astype(np.int32)
            cv2.fillPoly(picture, [corners], colour)
        else:
            cv2.circle(picture, (x, y), r // 4, colour, thickness=-1 if rng.random() < 0.6 else int(rng.integers(1, 8)))
    return np.asarray(picture, np.uint8)


def photographed(rgb: Rgb, rng: np.random.Generator) -> Rgb:
    """Defocus or motion blur, exposure, white balance, gamma, sensor noise, sometimes JPEG."""
    image = rgb
    if rng.random() < 0.6:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.6)), np.uint8)
    if rng.random() < 0.15:
        length = int(rng.integers(3, 8))
        kernel = np.zeros((length, length), np.float32)
        a = rng.uniform(0, np.pi)
        m = (length - 1) / 2
        for s in np.linspace(-m, m, 2 * length):
            kernel[round(m + s * np.sin(a)), round(m + s * np.cos(a))] = 1
        image = np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), np.uint8)
    levels = np.arange(256, dtype=np.float32) / 255
    curves = [
        255 * np.clip(levels ** rng.uniform(0.7, 1.4) * rng.uniform(0.6, 1.35) * g, 0, 1)
        for g in rng.uniform(0.85, 1.15, 3)
    ]
    image = np.asarray(cv2.LUT(image, np.stack(curves, axis=-1).astype(np.uint8)[None]), np.uint8)
    if rng.random() < 0.8:
        noise: npt.NDArray[np.int16] = np.empty(image.shape, np.int16)
        cv2.setRNGSeed(int(rng.integers(2**31)))
        cv2.randn(noise, np.zeros(3), np.full(3, rng.uniform(1, 12)))
        image = np.asarray(cv2.add(image, noise, dtype=cv2.CV_8U), np.uint8)
    if rng.random() < 0.2:
        coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 95))])[1]
        image = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return image
