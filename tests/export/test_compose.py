"""Training crops: their truth projects onto themselves, training cuts as the runtime cuts, and seeds decide everything."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from posekit.export.reference import compose
from posekit.export.reference.compose import (
    CANVAS_PX,
    MIN_VISIBLE,
    Jitter,
    Mask,
    Rgb,
    TrainingCrop,
    Views,
    background,
    canonical,
    label_object,
    lit_sprite,
    paste,
    photographed,
    resized,
    sampled,
    template_sprite,
    training_crop,
    turned,
)
from posekit.export.reference.views import REFERENCE_CAMERA
from posekit.runtime.crop import Crop, CropPreset, crop, crop_warp
from posekit.runtime.detection import box_from_mask
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Array, Pose

SQUARE, DZI = CropPreset("square", 96), CropPreset("dzi", 96, pad=1.5)
GRID = 24
SEEDS = range(30)
STILL = Jitter(0.0, 0.0)
BOTTLE = 3  # its id; label 2
IMAGE_WH = (REFERENCE_CAMERA.width_px, REFERENCE_CAMERA.height_px)


def crops_of(views: Views, preset: CropPreset, **options: Any) -> list[TrainingCrop]:
    return [training_crop(views, preset, GRID, np.random.default_rng(seed), **options) for seed in SEEDS]


@pytest.mark.parametrize("preset", [SQUARE, DZI], ids=lambda p: p.rule)
@pytest.mark.parametrize("label", range(3))
def test_coordinates_project_onto_their_own_cells(small_views: Views, preset: CropPreset, label: int) -> None:
    centres = (np.arange(GRID) + 0.5) * preset.side_px / GRID - 0.5
    for one in crops_of(small_views, preset, label=label):
        assert one.label == label
        rows, columns = np.nonzero(one.mask)
        assert len(rows) > 10
        seen = REFERENCE_CAMERA.project(one.cam_from_obj.apply(one.coords_m[one.mask]))
        pixels = seen @ one.warp[:, :2].T + one.warp[:, 2]
        np.testing.assert_allclose(pixels, np.stack([centres[columns], centres[rows]], axis=-1), atol=1.5)


@pytest.mark.parametrize("preset", [SQUARE, DZI], ids=lambda p: p.rule)
def test_training_cuts_as_the_runtime_cuts(small_views: Views, preset: CropPreset) -> None:
    for one in crops_of(small_views, preset):
        assert preset.pad * (one.box_xyxy_px[2:] - one.box_xyxy_px[:2]).max() < max(IMAGE_WH)  # "dzi" not clamped
        np.testing.assert_allclose(one.warp, crop_warp(one.box_xyxy_px, preset, IMAGE_WH), rtol=1e-9, atol=1e-7)
        np.testing.assert_array_equal(one.K, REFERENCE_CAMERA.K)


def test_pixels_are_those_of_the_runtimes_crop(small_views: Views, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Crop] = []

    def spy(image: Rgb, box: Array, camera: Intrinsics, preset: CropPreset) -> Crop:
        assert (camera.width_px, camera.height_px) == (CANVAS_PX, CANVAS_PX)
        assert image.shape == (CANVAS_PX, CANVAS_PX, 3)
        calls.append(crop(image, box, camera, preset))
        return calls[-1]

    monkeypatch.setattr(compose, "crop", spy)
    one = training_crop(small_views, DZI, GRID, np.random.default_rng(0))
    assert len(calls) == 1
    np.testing.assert_array_equal(one.pixels, calls[0].pixels)
    np.testing.assert_allclose(np.vstack([one.warp, [0, 0, 1]]) @ one.K, calls[0].K, rtol=1e-9)
    assert one.pixels.shape == (96, 96, 3)
    assert one.pixels.dtype == np.uint8


def test_the_pixels_show_the_object_where_the_truth_says(small_views: Views, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a blue background, unphotographed: what is not blue is the object, cell by cell but for the rim."""
    blue = np.array([0, 0, 255], np.uint8)
    monkeypatch.setattr(compose, "background", lambda rng, size_px: np.tile(blue, (size_px, size_px, 1)))
    monkeypatch.setattr(compose, "photographed", lambda rgb, rng: rgb)
    cells = np.rint((np.arange(GRID) + 0.5) * DZI.side_px / GRID - 0.5).astype(int)
    for one in crops_of(small_views, DZI, occlusion=0.0, label=0):
        shown = (one.pixels[cells[:, None], cells] != blue).any(axis=-1)
        assert (shown == one.mask).mean() > 0.9
        assert 0.05 < one.mask.mean() < 0.8


@pytest.mark.parametrize("seed", range(5))
def test_canonical_pose_is_the_same_view_of_the_same_points(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bottle = label_object(BOTTLE)
    pose = Pose.from_rotvec(rng.normal(size=3), [*rng.normal(0, 0.1, 2), 0.6])
    points = rng.normal(0, 0.05, (2, 3, 3)).astype(np.float32)
    turned_pose, coords_m = canonical(bottle, pose, points)
    np.testing.assert_allclose(turned_pose.apply(coords_m), pose.apply(points), atol=1e-6)
    np.testing.assert_allclose(turned_pose.R[:, 2], pose.R[:, 2], atol=1e-12)
    np.testing.assert_allclose(turned_pose.t_m, pose.t_m, atol=1e-12)
    camera = turned_pose.inverse().t_m
    assert camera[0] > 0
    assert camera[1] == pytest.approx(0, abs=1e-12)
    again, same = canonical(bottle, turned_pose, coords_m)
    np.testing.assert_allclose(again.R, turned_pose.R, atol=1e-9)
    np.testing.assert_allclose(same, coords_m, atol=1e-7)


@pytest.mark.parametrize("turn_rad", [0.3, 2.0, -3.0])
def test_any_turn_of_a_symmetric_object_has_one_truth(turn_rad: float) -> None:
    bottle = label_object(BOTTLE)
    pose = Pose.from_rotvec([0.4, -1.0, 0.2], [0.05, -0.1, 0.5])
    nothing = np.zeros((1, 1, 3), np.float32)
    one, other = (canonical(bottle, p, nothing)[0] for p in (pose, pose @ Pose.from_rotvec([0, 0, turn_rad])))
    np.testing.assert_allclose(one.R, other.R, atol=1e-9)


def test_an_object_without_symmetry_keeps_its_pose() -> None:
    pose, coords_m = Pose.from_rotvec([1.0, 2.0, 3.0], [0, 0, 0.5]), np.ones((2, 2, 3), np.float32)
    same, points = canonical(label_object(1), pose, coords_m)
    assert same is pose
    assert points is coords_m


def test_without_jitter_the_box_is_that_of_the_mask(small_views: Views, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: list[Array] = []

    def spy(mask: Mask) -> Array:
        boxes.append(box_from_mask(mask))
        return boxes[-1]

    monkeypatch.setattr(compose, "box_from_mask", spy)
    for label, view_set in enumerate((*small_views.objects, small_views.clutter)):
        for view in range(3):
            rng = np.random.default_rng(view)
            one = training_crop(small_views, SQUARE, GRID, rng, STILL, label=label, view=view)
            assert (one.label, one.view) == (label, view)
            size = boxes[-1][2:] - boxes[-1][:2]
            np.testing.assert_allclose(
                one.box_xyxy_px[2:] - one.box_xyxy_px[:2], size / view_set.arrays["warp"][view][0, 0]
            )
    assert len(boxes) == 12


@pytest.mark.parametrize("least", [MIN_VISIBLE, 0.6, 0.8])
def test_occlusion_leaves_enough_of_the_silhouette(
    small_views: Views, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after two occluders, and where large ones would hide all of it."""
    monkeypatch.setattr(compose, "MIN_VISIBLE", least)
    monkeypatch.setattr(compose, "OCCLUDER_PX", (50, 250))
    shares = []
    for seed in range(120):
        whole = np.pad(small_views.objects[seed % 3].arrays["mask"][seed % 8] > 0, 48)
        picture = np.full((CANVAS_PX, CANVAS_PX, 3), 7, np.uint8)
        before = picture.copy()
        over, visible = compose._occluded(picture, whole, small_views, np.random.default_rng(seed))
        np.testing.assert_array_equal(picture, before)
        assert not (visible & ~whole).any()
        assert (over[visible] != before[visible]).any(axis=-1).mean() < 0.15  # the rims of occluders, at most
        shares.append(np.count_nonzero(visible) / np.count_nonzero(whole))
    assert least <= min(shares) < least + 0.2
    assert max(shares) == 1.0


def test_the_seed_decides_every_byte(small_views: Views) -> None:
    first, second, other = (
        training_crop(small_views, DZI, GRID, np.random.default_rng(seed), occlusion=1.0) for seed in (4, 4, 5)
    )
    for field in fields(TrainingCrop):
        a, b = getattr(first, field.name), getattr(second, field.name)
        pairs = [(a.R, b.R), (a.t_m, b.t_m)] if isinstance(a, Pose) else [(a, b)]
        assert all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs), field.name
    assert first.pixels.tobytes() != other.pixels.tobytes()


def test_sprites_are_black_where_nothing_covers(small_views: Views) -> None:
    rng = np.random.default_rng(0)
    for view_set in (*small_views.objects, small_views.clutter):
        for i in range(4):
            for sprite in (lit_sprite(view_set, i, rng), template_sprite(view_set, i)):
                assert not sprite.rgb[~sprite.mask].any()
                np.testing.assert_array_equal(sprite.alpha, sprite.mask)


@pytest.mark.parametrize("angle_rad", [0.0, 0.5, np.pi / 2, -2.0])
def test_turning_moves_points_as_a_roll_of_the_camera(small_views: Views, angle_rad: float) -> None:
    sprite = lit_sprite(small_views.objects[0], 0, np.random.default_rng(0))
    other = turned(sprite, angle_rad)
    middle = (len(sprite.mask) - 1) / 2
    y, x = (np.mean(np.nonzero(sprite.mask), axis=1) - middle).tolist()
    y1, x1 = (np.mean(np.nonzero(other.mask), axis=1) - middle).tolist()
    assert complex(x1, y1) == pytest.approx(complex(x, y) * np.exp(1j * angle_rad), abs=0.3)
    assert np.count_nonzero(other.mask) == pytest.approx(np.count_nonzero(sprite.mask), rel=0.02)


def test_blended_edges_have_no_dark_fringe(small_views: Views) -> None:
    """A white thing on white stays white, however it was turned and resized."""
    sprite = lit_sprite(small_views.objects[0], 0, np.random.default_rng(0))
    white = replace(sprite, rgb=np.tile(np.where(sprite.mask, np.uint8(255), np.uint8(0))[..., None], 3))
    around = turned(white, 0.7)
    for rgb, alpha in ((around.rgb, around.alpha), resized(white, 60), resized(white, 200)):
        picture, owner = np.full((*alpha.shape, 3), 255, np.uint8), np.zeros(alpha.shape, np.int32)
        paste(picture, owner, rgb, alpha, (0, 0), 1)
        assert picture.min() >= 253
        np.testing.assert_array_equal(owner == 1, alpha > 0.5)


def test_sampling_outside_gives_zero() -> None:
    array = np.arange(1, 7).reshape(2, 3)
    out = sampled(array, np.array([-1, 0, 1, 2]), np.array([2, 0, 3]))
    np.testing.assert_array_equal(out, [[0, 0, 0], [3, 1, 0], [6, 4, 0], [0, 0, 0]])
    assert array.min() == 1


@pytest.mark.parametrize("seed", range(20))
def test_photographed_keeps_form_and_input(seed: int) -> None:
    picture = np.random.default_rng(99).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    before = picture.copy()
    shot, again = (photographed(picture, np.random.default_rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(picture, before)
    assert (shot.shape, shot.dtype.name) == (picture.shape, "uint8")
    np.testing.assert_array_equal(shot, again)
    assert not np.shares_memory(shot, picture)


def test_backgrounds_are_fresh_windows_of_a_pool(few_backgrounds: None) -> None:
    pool = [picture.copy() for picture in compose._background_pool()]
    windows = [background(np.random.default_rng(seed), 64) for seed in range(10)]
    for window in windows:
        assert (window.shape, window.dtype.name) == ((64, 64, 3), "uint8")
        window[:] = 0  # writable, and a copy
    for kept, now in zip(pool, compose._background_pool(), strict=True):
        np.testing.assert_array_equal(kept, now)


def test_jitter_has_the_spread_it_says() -> None:
    box, rng = np.array([10.0, 20.0, 50.0, 100.0]), np.random.default_rng(0)
    np.testing.assert_allclose(compose.jittered(box, STILL, rng), box)
    many = np.stack([compose.jittered(box, Jitter(0.1, 0.0), rng) for _ in range(2000)])
    np.testing.assert_allclose(many[:, 2:] - many[:, :2], np.tile([40.0, 80.0], (2000, 1)))
    np.testing.assert_allclose((many - box)[:, :2].std(axis=0), [4, 8], rtol=0.1)
