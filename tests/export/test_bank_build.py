"""Banks: what is built is read by the runtime, finds the views it was made of, and says how it was made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import trimesh

from posekit.export import bank
from posekit.export.bank import (
    BATCH,
    build_bank,
    grid_wh,
    place_weights,
    template_box,
    template_camera,
)
from posekit.export.bank_recipe import BankRecipe, bank_rotations
from posekit.export.mesh import ObjectModel, model_from_arrays, transformed
from posekit.export.render import Renderer, headlight, shade
from posekit.runtime.bank import TemplateBank, bank_from_bytes, check_bank_fits
from posekit.runtime.crop import CropPreset, crop, crop_warp
from posekit.runtime.decode import pose_from_template
from posekit.runtime.detection import box_from_mask
from posekit.runtime.errors import ExportError, OutputError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Pose, rotation_angle_rad, rotation_from_rotvec
from posekit.runtime.records import json_from_record
from posekit.runtime.tensor import Feed, TensorSpec

PRESET = CropPreset("square", 64)
SMALL = BankRecipe(42, 4, "render", precision="fp32", supersample=1, search="flat")
SHA = "0" * 64


class Patches:
    """An embedder without weights: every place is its patch of 8 x 8 pixels, less its mean, at unit length."""

    backend = "numpy"
    inputs = (TensorSpec("crops", "uint8", ("batch", 64, 64, 3)),)

    def __init__(self, places: int = 64) -> None:
        self.outputs = (TensorSpec("descriptors", "float32", ("batch", places, 192)),)

    def run(self, feed: Feed) -> dict[str, Any]:
        x = np.asarray(feed["crops"], np.float32)
        patches = x.reshape(-1, 8, 8, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(len(x), 64, 192)
        patches = patches - patches.mean(axis=2, keepdims=True)
        return {"descriptors": patches / np.maximum(np.linalg.norm(patches, axis=2, keepdims=True), 1e-6)}

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def model() -> ObjectModel:
    """A box of 6 x 10 x 16 cm with a different colour at every corner."""
    box = trimesh.creation.box((0.06, 0.10, 0.16)).subdivide().subdivide()
    colours = np.clip((box.vertices / (0.03, 0.05, 0.08) + 1) * 127, 0, 255)
    return model_from_arrays(box.vertices, box.faces, colours.astype(np.uint8))


def built(model: ObjectModel, path: Path, recipe: BankRecipe = SMALL) -> TemplateBank:
    build_bank(path, Patches(), SHA, model, 7, PRESET, recipe)
    return bank_from_bytes(path.read_bytes(), "bank")


@pytest.fixture(scope="module")
def toy(model: ObjectModel, tmp_path_factory: pytest.TempPathFactory) -> TemplateBank:
    return built(model, tmp_path_factory.mktemp("bank") / "bank.safetensors")


def test_the_runtime_reads_what_was_built(toy: TemplateBank) -> None:
    assert toy.object_id == 7
    assert toy.matched["templates"].shape == (64, 192, 168)
    assert toy.matched["templates"].dtype == np.float32
    lengths = np.linalg.norm(toy.matched["templates"], axis=1)
    seen = np.isclose(lengths, 1, atol=1e-5)
    assert (seen | (lengths == 0)).all()
    np.testing.assert_allclose(toy.matched["weights"] * seen.sum(axis=0), 1, rtol=1e-5)
    assert (toy.t_m[:, :2] == 0).all()
    check_bank_fits(toy, toy.object_id, SHA, json_from_record(PRESET), "bank")
    views = json.loads(toy.metadata["views"])
    assert (views["sphere"], views["in_plane_steps"]) == (42, 4)
    assert views["distance_m"] == pytest.approx(float(toy.t_m[0, 2]))


def test_the_object_fills_the_template_camera(toy: TemplateBank) -> None:
    side = 2 * float(toy.K[0, 2]) + 1
    sizes = toy.box_xyxy_px[:, 2:] - toy.box_xyxy_px[:, :2]
    assert (toy.box_xyxy_px >= -0.5).all()
    assert (toy.box_xyxy_px <= side - 0.5).all()
    assert 0.6 * side < sizes.max() <= bank.FILL * side + 2


def scores(bank: TemplateBank, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    query = Patches().run({"crops": pixels[None]})["descriptors"][0]
    return np.asarray(np.einsum("lc,lcn,n->n", query, bank.matched["templates"], bank.matched["weights"]), np.float64)


def test_every_view_finds_itself_and_another_camera_gets_the_pose(model: ObjectModel, toy: TemplateBank) -> None:
    camera = Intrinsics(np.array([[500.0, 0, 300], [0, 500, 260], [0, 0, 1]]), 640, 480)
    renderer = Renderer({7: model})
    errors = []
    for i in range(0, toy.R.shape[0], 11):
        truth = Pose(toy.R[i], np.array([0.0, 0.0, 0.7]))
        rendering = renderer.render([(7, truth)], camera)
        cut = crop(shade(rendering, headlight()), box_from_mask(rendering.mask), camera, PRESET)
        best = int(np.argmax(scores(toy, cut.pixels)))
        found = pose_from_template(toy.R[best], cut.box_xyxy_px, camera.K, toy.box_xyxy_px[best], toy.K, toy.t_m[best])
        errors.append((rotation_angle_rad(found.R, truth.R), np.linalg.norm(found.t_m - truth.t_m)))
    angles_deg, shifts_m = np.rad2deg([a for a, _ in errors]), np.array([s for _, s in errors])
    assert np.median(angles_deg) < 1.0
    assert np.median(shifts_m) < 0.02


def test_where_the_meshs_origin_is_does_not_matter(model: ObjectModel, toy: TemplateBank, tmp_path: Path) -> None:
    """Drawn from a corner instead of the middle: the same pictures, and a pose of the other origin."""
    shift_m = np.array([0.2, -0.1, 0.05])
    moved = built(transformed(model, np.eye(3), shift_m), tmp_path / "moved.safetensors")
    np.testing.assert_allclose(moved.centre_m - toy.centre_m, shift_m, atol=1e-6)
    np.testing.assert_allclose(moved.box_xyxy_px, toy.box_xyxy_px, atol=1.0)  # float32 vertices move an edge by a pixel
    assert np.quantile(np.abs(moved.matched["templates"] - toy.matched["templates"]), 0.99) < 0.05
    K = np.array([[500.0, 0, 300], [0, 500, 260], [0, 0, 1]])
    for i in range(0, len(toy.R), 13):
        box = (toy.box_xyxy_px[i], toy.K)
        there, here = (
            pose_from_template(toy.R[i], [400, 200, 460, 280], K, *box, toy.t_m[i], centre)
            for centre in (moved.centre_m, toy.centre_m)
        )
        corner = np.array([0.03, 0.05, -0.08])
        np.testing.assert_allclose(there.apply(corner + shift_m), here.apply(corner), atol=1e-6)


def test_turning_a_picture_is_nearly_rendering_it_turned(model: ObjectModel, toy: TemplateBank, tmp_path: Path) -> None:
    turned = built(model, tmp_path / "turned.safetensors", replace(SMALL, in_plane="rotate"))
    np.testing.assert_array_equal(turned.R, toy.R)
    np.testing.assert_array_equal(
        turned.matched["templates"][..., ::4], toy.matched["templates"][..., ::4]
    )  # upright ones are rendered
    assert np.abs(turned.box_xyxy_px - toy.box_xyxy_px).max() <= 2.0
    similarity = np.einsum(
        "lcn,lcn,n->n", turned.matched["templates"], toy.matched["templates"], toy.matched["weights"]
    )
    wrong = np.einsum(
        "lcn,lcn,n->n",
        np.roll(turned.matched["templates"], 1, axis=2),
        toy.matched["templates"],
        toy.matched["weights"],
    )
    assert similarity.mean() > 0.9
    assert similarity.mean() > wrong.mean() + 0.2


def test_a_coarse_bank_has_the_same_views_and_their_sketches(
    model: ObjectModel, toy: TemplateBank, tmp_path: Path
) -> None:
    coarse = built(model, tmp_path / "coarse.safetensors", replace(SMALL, search="coarse"))
    assert (toy.search, coarse.search) == ("flat", "coarse")
    rows = coarse.matched["templates"].reshape(168, -1) * coarse.matched["weights"][:, None]
    np.testing.assert_array_equal(coarse.matched["templates"].transpose(1, 2, 0), toy.matched["templates"])
    np.testing.assert_allclose((rows @ coarse.matched["projection"]).T, coarse.matched["sketches"], atol=1e-5)
    kept = (coarse.matched["sketches"] ** 2).sum(axis=0) / (rows**2).sum(axis=1)
    assert np.median(kept) > 0.9  # of what a view is, in 64 of 12288 numbers


def test_a_coarse_bank_needs_more_views_than_a_shortlist(model: ObjectModel, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="coarse bank: got 42, expected at least 128"):
        built(model, tmp_path / "bank", replace(SMALL, in_plane_steps=1, search="coarse"))


def test_fp16_halves_the_templates_and_nothing_else(model: ObjectModel, toy: TemplateBank, tmp_path: Path) -> None:
    half = built(model, tmp_path / "half.safetensors", replace(SMALL, precision="fp16"))
    assert half.matched["templates"].dtype == np.float16
    assert half.metadata["precision"] == "fp16"
    np.testing.assert_allclose(half.matched["templates"].astype(np.float32), toy.matched["templates"], atol=5e-4)
    np.testing.assert_array_equal(half.matched["weights"], toy.matched["weights"])


def test_equal_input_gives_equal_bytes_in_memory_or_through_a_file(
    model: ObjectModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(SMALL, in_plane_steps=1, max_angle_deg=90)
    built(model, tmp_path / "memory", recipe)
    monkeypatch.setattr(bank, "IN_MEMORY_BYTES", 0)
    built(model, tmp_path / "file", recipe)
    assert (tmp_path / "memory").read_bytes() == (tmp_path / "file").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "memory"]


def test_a_full_disk_is_an_output_error(model: ObjectModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bank, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(bank.os, "posix_fallocate", full)  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match="No space left"):
        built(model, tmp_path / "bank")
    assert not list(tmp_path.iterdir())


def test_progress_ends_at_all_views(model: ObjectModel, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    recipe = replace(SMALL, in_plane_steps=1)
    build_bank(
        tmp_path / "bank", Patches(), SHA, model, 7, PRESET, recipe, lambda done, total: seen.append((done, total))
    )
    assert seen == [(BATCH, 42), (42, 42)]


@pytest.mark.parametrize(("max_angle_deg", "count"), [(180, 642), (90, 301), (30, 42)])
def test_views_within_an_angle(max_angle_deg: float, count: int) -> None:
    rotations = bank_rotations(replace(SMALL, sphere=642, in_plane_steps=2, max_angle_deg=max_angle_deg))
    directions = -rotations[:, 2]  # from the object to the camera
    angles_deg = np.rad2deg(np.arccos(np.clip(directions[:, 2], -1, 1)))
    assert (angles_deg <= max_angle_deg + 1e-9).all()
    assert len(rotations) == 2 * count or max_angle_deg == 30
    np.testing.assert_allclose(
        rotations[1::2] @ rotations[::2].transpose(0, 2, 1),
        np.tile(np.diag([-1.0, -1, 1]), (len(rotations) // 2, 1, 1)),
        atol=1e-12,
    )


def test_too_few_views_are_refused() -> None:
    with pytest.raises(ExportError, match="at least 16"):
        bank_rotations(replace(SMALL, in_plane_steps=1, max_angle_deg=20))


def test_a_camera_inside_the_object_is_refused(model: ObjectModel) -> None:
    with pytest.raises(ExportError, match="distance_m"):
        template_camera(model, PRESET, 0.05)
    camera, distance_m = template_camera(model, PRESET, 0.3)
    assert distance_m == 0.3
    corner = camera.project(rotation_from_rotvec((0.0, np.pi / 2, 0.0)) @ np.array([0.03, 0.05, 0.08]) + (0, 0, 0.3))
    assert (corner > 0).all()
    assert (corner < camera.width_px).all()


def test_a_picture_that_shows_nothing_is_refused() -> None:
    with pytest.raises(ExportError, match="view 3"):
        template_box(np.zeros((4, 4), bool), "view 3")
    mask = np.zeros((6, 8), bool)
    mask[2:4, 3:8] = True
    np.testing.assert_array_equal(template_box(mask, "view"), [2.5, 1.5, 7.5, 3.5])


@pytest.mark.parametrize("places", [2, 63, 200])
def test_places_that_are_no_square_grid_are_refused(places: int, model: ObjectModel, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"{places} places"):
        grid_wh(places, (64, 64))
    with pytest.raises(ExportError, match=f"{places} places"):
        build_bank(tmp_path / "bank", Patches(places), SHA, model, 7, PRESET, SMALL)


@pytest.mark.parametrize(
    ("places", "wh_px", "grid"),
    [(768, (192, 256), (24, 32)), (768, (256, 192), (32, 24)), (8, (32, 64), (2, 4)), (1, (32, 48), (1, 1))],
)
def test_places_are_in_the_crops_aspect_ratio(places: int, wh_px: tuple[int, int], grid: tuple[int, int]) -> None:
    assert grid_wh(places, wh_px) == grid


@pytest.mark.parametrize(("places", "wh_px"), [(64, (32, 64)), (6, (64, 64)), (2, (32, 48)), (0, (32, 48))])
def test_places_in_another_aspect_ratio_are_refused(places: int, wh_px: tuple[int, int]) -> None:
    with pytest.raises(ExportError, match="aspect ratio"):
        grid_wh(places, wh_px)


def test_a_place_counts_when_any_pixel_of_the_object_is_in_it() -> None:
    mask = np.zeros((64, 64), bool)
    mask[8:16, 8:16] = True  # exactly one place of 8 x 8
    mask[40, 63] = True  # one pixel of another
    whole = crop_warp((-0.5, -0.5, 63.5, 63.5), PRESET, (64, 64))
    weights = place_weights(mask, whole, (64, 64), 64)
    assert np.flatnonzero(weights).tolist() == [1 * 8 + 1, 5 * 8 + 7]
    assert weights.max() == 0.5
    assert place_weights(mask, whole, (64, 64), 1).tolist() == [1.0]


def test_no_view_is_without_weights(toy: TemplateBank) -> None:
    assert (toy.matched["weights"] > 0).all()
