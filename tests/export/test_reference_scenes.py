"""Synthetic photographs: repeatable, with exact boxes and masks, readable as BOP."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from posekit.export.mesh import read_mesh
from posekit.export.reference.clutter import clutter_models
from posekit.export.reference.objects import reference_objects
from posekit.export.reference.photograph import photographed
from posekit.export.reference.scenes import MIN_VISIBLE, Scene, make_scene, write_bop
from posekit.export.render import Renderer
from posekit.runtime.bop import scenes_from_bop
from posekit.runtime.detection import box_from_mask
from posekit.runtime.errors import OutputError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.symmetry import symmetries_from_bop

CAMERA = Intrinsics(np.array([[150.0, 0, 79.5], [0, 150.0, 59.5], [0, 0, 1.0]]), 160, 120)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer({k: o.model for k, o in reference_objects().items()} | clutter_models(10, seed=5))


@pytest.fixture(scope="module")
def scenes(renderer: Renderer) -> list[Scene]:
    return [make_scene(seed, renderer, difficulty=0.8, camera=CAMERA) for seed in range(3)]


def test_a_seed_is_a_scene(renderer: Renderer, scenes: list[Scene]) -> None:
    again = make_scene(2, renderer, difficulty=0.8, camera=CAMERA)
    np.testing.assert_array_equal(again.image_rgb_u8, scenes[2].image_rgb_u8)
    assert not np.array_equal(scenes[1].image_rgb_u8, scenes[2].image_rgb_u8)


def test_objects_boxes_and_masks_belong_together(renderer: Renderer, scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image_rgb_u8.shape == (120, 160, 3)
        ids = [o.object_id for o in scene.objects]
        assert 1 <= len(ids) == len(set(ids)) <= 3
        for k, thing in enumerate(scene.objects):
            visible = scene.mask_index == k
            np.testing.assert_array_equal(thing.box_xyxy_px, box_from_mask(visible))
            alone = renderer.render([(thing.object_id, thing.cam_from_obj)], CAMERA)
            assert not (visible & ~alone.mask).any()
            assert thing.visib_fract == pytest.approx(visible.sum() / thing.silhouette_px)
            assert MIN_VISIBLE <= thing.visib_fract <= 1
            inside = thing.box_xyxy_px[:2] >= thing.box_amodal_xyxy_px[:2] - 0.51
            assert inside.all()
            assert 0.35 <= thing.cam_from_obj.t_m[2] <= 0.9


def test_pictures_show_something(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image_rgb_u8.std() > 8
        assert 20 < scene.image_rgb_u8.mean() < 235


def test_harder_cameras_are_noisier() -> None:
    grey = np.full((60, 80, 3), 0.4, np.float32)
    noise = [photographed(grey, np.random.default_rng(0), difficulty)[:, :, 1].std() for difficulty in (0.0, 1.0)]
    assert noise[0] < noise[1]


def test_bop_files_give_back_the_scene(scenes: list[Scene], tmp_path: Path) -> None:
    write_bop(scenes, tmp_path / "set")
    root = tmp_path / "set" / "test" / "000000"
    truth, boxes = (json.loads((root / f"{name}.json").read_text()) for name in ("scene_gt", "scene_gt_info"))
    camera = json.loads((root / "scene_camera.json").read_text())
    for i, scene in enumerate(scenes):
        picture = cv2.imread(str(root / "rgb" / f"{i:06d}.png"))
        assert picture is not None
        np.testing.assert_array_equal(picture[..., ::-1], scene.image_rgb_u8)
        np.testing.assert_allclose(np.reshape(camera[str(i)]["cam_K"], (3, 3)), CAMERA.K)
        for k, thing in enumerate(scene.objects):
            row, box = truth[str(i)][k], boxes[str(i)][k]
            assert row["obj_id"] == thing.object_id
            np.testing.assert_allclose(np.array(row["cam_t_m2c"]) / 1000, thing.cam_from_obj.t_m)
            np.testing.assert_allclose(np.reshape(row["cam_R_m2c"], (3, 3)), thing.cam_from_obj.R)
            x, y, w, h = box["bbox_visib"]
            np.testing.assert_allclose([x - 0.5, y - 0.5, x + w - 0.5, y + h - 0.5], thing.box_xyxy_px)
            mask = cv2.imread(str(root / "mask_visib" / f"{i:06d}_{k:06d}.png"), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(np.asarray(mask) > 0, scene.mask_index == k)
            assert box["px_count_visib"] == int((scene.mask_index == k).sum()) <= box["px_count_all"]


def test_the_runtime_reads_the_files(scenes: list[Scene], tmp_path: Path) -> None:
    write_bop(scenes, tmp_path / "set")
    (read,) = scenes_from_bop(tmp_path / "set")
    assert read.truth is not None
    for i, scene in enumerate(scenes):
        for seen, thing in zip(read.truth[i], scene.objects, strict=True):
            assert seen.visible_box_xyxy_px is not None
            np.testing.assert_allclose(seen.cam_from_obj.as_matrix(), thing.cam_from_obj.as_matrix(), atol=1e-9)
            np.testing.assert_allclose(seen.visible_box_xyxy_px, thing.box_xyxy_px)
            assert seen.visible_fraction == pytest.approx(thing.visib_fract)


def test_bop_models_are_the_objects_in_millimetres(tmp_path: Path) -> None:
    write_bop([], tmp_path / "set")
    table = json.loads((tmp_path / "set" / "models" / "models_info.json").read_text())
    for object_id, thing in reference_objects().items():
        model = read_mesh(tmp_path / "set" / "models" / f"obj_{object_id:06d}.ply", "mm")
        row = table[str(object_id)]
        assert row["diameter"] == pytest.approx(1000 * model.diameter_m, rel=1e-4)
        np.testing.assert_allclose([row[f"size_{a}"] for a in "xyz"], model.extents_m * 1000, rtol=1e-4)
        np.testing.assert_array_equal(model.colours_rgb_u8, thing.model.colours_rgb_u8)
        assert len(symmetries_from_bop(row).transforms(n_steps=8)) == len(thing.symmetries.transforms(n_steps=8))


def test_existing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists"):
        write_bop([], tmp_path)
