"""Crops of cameras whose lens bends or whose pixels are not square: what a pinhole with square pixels would have seen.

Pictures are functions of the ray, so that what each crop pixel should show is known without any lens model's inverse.
"""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from posekit.runtime.crop import CropPreset, crop, ideal_box
from posekit.runtime.crop_batch import CropBatch
from posekit.runtime.detection import BoxError, Detection, Reason
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.lens import undistort
from posekit.runtime.manifest import ObjectEntry
from posekit.runtime.tensor import TensorSpec

WH = (640, 480)
PRESET = CropPreset("square", 64, pad=1.2)
K = np.array([[300.0, 0, 319.5], [0, 300, 239.5], [0, 0, 1]])
# r - 0.35 r^3 folds at r = 0.976, which lands at 0.651: 195 px from the middle of the image
FOLDING = Intrinsics(K, *WH, (-0.35, 0.0, 0.0, 0.0))
FOLD, FOLD_PX = 1 / np.sqrt(3 * 0.35), 300 * 2 / 3 / np.sqrt(3 * 0.35)
Image = npt.NDArray[np.uint8]


def shade(rays: npt.NDArray[np.float64]) -> Image:
    """A smooth colour for every ray (..., 2), never black."""
    x, y = rays[..., 0], rays[..., 1]
    return np.stack([128 + 90 * np.sin(3 * x), 128 + 90 * np.sin(3 * y), 128 + 90 * np.cos(2 * x - y)], -1).astype(
        np.uint8
    )


def seen_by(camera: Intrinsics) -> Image:
    """The picture that a camera takes of the shades; where it has no ray, a colour that no ray has."""
    u, v = np.meshgrid(np.arange(camera.width_px), np.arange(camera.height_px))
    bent = camera.rays(np.stack([u, v], axis=-1))[..., :2]
    rays = undistort(bent, camera.distortion, camera.model)
    return np.where(np.isnan(rays[..., :1]), np.uint8(255), shade(np.nan_to_num(rays)))


def crop_rays(K_crop: npt.NDArray[np.float64], size_px: int) -> npt.NDArray[np.float64]:
    u, v = np.meshgrid(np.arange(size_px), np.arange(size_px))
    return np.stack([(u - K_crop[0, 2]) / K_crop[0, 0], (v - K_crop[1, 2]) / K_crop[1, 1]], axis=-1)


LENSES: list[Intrinsics] = [
    Intrinsics(K * [[1, 1, 1], [1, 0.5, 1], [1, 1, 1]], *WH),
    Intrinsics(K * [[1, 1, 1], [1, 2.0, 1], [1, 1, 1]], *WH),
    Intrinsics(K * [[1, 1, 1], [1, 0.75, 1], [1, 1, 1]], *WH, (-0.2, 0.05, 0.001, -0.002)),
    Intrinsics(K, *WH, (0.8, 0.0, 0.0, 0.0)),
    Intrinsics(K, *WH, (-0.02, 0.005, -0.01, 0.001), "fisheye"),
    Intrinsics(K, *WH, (), "fisheye"),
    FOLDING,
]


@pytest.mark.parametrize("camera", LENSES, ids=lambda c: f"{c.model} {c.K[1, 1]:g} {c.distortion}")
@pytest.mark.parametrize("box", [[250.0, 200, 330, 290], [180, 150, 300, 330], [330, 90, 420, 180]])
def test_a_crop_shows_what_an_ideal_camera_would(camera: Intrinsics, box: list[float]) -> None:
    one = crop(seen_by(camera), box, camera, PRESET)
    assert one.K[0, 0] == pytest.approx(one.K[1, 1])
    rays = crop_rays(one.K, 64)
    pixels = camera.project(np.concatenate([rays, np.ones_like(rays[..., :1])], axis=-1))
    held = ((pixels > 1) & (pixels < np.array(WH) - 2)).all(axis=-1)
    held &= np.hypot(rays[..., 0], rays[..., 1]) < (FOLD - 0.02 if camera is FOLDING else np.inf)
    assert held.mean() > 0.5
    assert np.abs(one.pixels.astype(int) - shade(rays))[held].max() <= 4


def test_beyond_the_fold_a_crop_is_black_and_no_mirrored_copy() -> None:
    box = [319.5 + 130, 200, 319.5 + 190, 280]  # its padding reaches beyond the fold
    one = crop(seen_by(FOLDING), box, FOLDING, CropPreset("square", 64, pad=2.0))
    rays = crop_rays(one.K, 64)
    beyond = np.hypot(rays[..., 0], rays[..., 1]) > FOLD
    assert 0.1 < beyond.mean() < 0.5
    copied = FOLDING.project(np.concatenate([rays, np.ones((64, 64, 1))], axis=-1))[beyond]
    assert ((copied > 0) & (copied < np.array(WH) - 1)).all(axis=-1).mean() > 0.9  # the formula alone would find pixels
    assert not one.pixels[beyond].any()
    assert one.pixels[~beyond].any(axis=-1).all()


def test_of_a_box_partly_beyond_the_lens_the_part_within_counts() -> None:
    """From 100 px right of the middle to the image's border: rays exist up to 195 px."""
    x0, y0, x1, y1 = ideal_box(np.array([419.5, 189.5, 639.5, 289.5]), FOLDING)
    corner_px = FOLDING.project([FOLD, 0.0, 1.0])[0] - 319.5
    assert corner_px == pytest.approx(FOLD_PX)
    assert 0.999 * FOLD < (x1 - 319.5) / 300 <= FOLD
    assert x0 - 319.5 == pytest.approx(300 * undistort(np.array([1 / 3, 0.0]), FOLDING.distortion)[0])
    assert 239.5 - y0 == pytest.approx(y1 - 239.5)


def test_a_box_beyond_the_lens_says_so() -> None:
    with pytest.raises(BoxError, match="lens model") as caught:
        crop(seen_by(FOLDING), [560, 200, 630, 280], FOLDING, PRESET)
    assert caught.value.reason is Reason.BOX_BEYOND_LENS
    wide = Intrinsics(K * [[0.5, 1, 1], [1, 0.5, 1], [1, 1, 1]], *WH, (), "fisheye")  # its corners are 152 degrees off
    with pytest.raises(BoxError) as caught:
        crop(seen_by(wide), [0, 0, 60, 60], wide, PRESET)
    assert caught.value.reason is Reason.BOX_BEYOND_LENS
    across = crop(seen_by(wide), [60, 200, 150, 280], wide, PRESET)  # 99 to 65 degrees: up to 80 it is used
    assert np.abs(across.box_xyxy_px[0] - 319.5) / 150 == pytest.approx(np.tan(np.deg2rad(80)), rel=0.002)


@pytest.mark.parametrize("camera", LENSES[2:], ids=lambda c: f"{c.model} {c.distortion}")
def test_the_ideal_box_holds_what_the_box_shows(camera: Intrinsics) -> None:
    """Every ray of a dense outline lies in it, to a twentieth of a pixel."""
    for box in np.array([[250.0, 200, 330, 290], [150, 130, 480, 350], [200, 200, 300, 460]]):
        t = np.linspace(0, 1, 101)[:, None]
        corners = box[[0, 1, 2, 1, 2, 3, 0, 3, 0, 1]].reshape(5, 2)
        outline = np.concatenate([a * (1 - t) + b * t for a, b in pairwise(corners)])
        rays = undistort(camera.rays(outline)[:, :2], camera.distortion, camera.model)
        if np.isnan(rays).any():
            continue
        ideal = camera.ideal.project(np.column_stack([rays, np.ones(len(rays))]))
        np.testing.assert_allclose(
            ideal_box(box, camera), np.concatenate([ideal.min(axis=0), ideal.max(axis=0)]), atol=0.05
        )


def test_a_fisheye_crop_is_opencvs() -> None:
    camera = Intrinsics(K, *WH, (-0.02, 0.005, -0.01, 0.001), "fisheye")
    image = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    image = np.asarray(cv2.resize(image, WH, interpolation=cv2.INTER_CUBIC), np.uint8)
    one = crop(image, [100, 80, 260, 240], camera, PRESET)
    expected = cv2.fisheye.undistortImage(image, camera.K, np.array(camera.distortion), Knew=one.K, new_size=(64, 64))
    assert np.abs(one.pixels.astype(int) - expected).max() <= 2


def test_nearly_square_pixels_are_left_as_they_are() -> None:
    """Calibrated cameras differ by parts of a thousand: their crops keep the scale of the image, and their bytes."""
    camera = Intrinsics(np.array([[1066.778, 0, 312.9869], [0, 1067.487, 241.3109], [0, 0, 1]]), *WH)
    assert camera.ideal is camera
    warp = crop(seen_by(camera), [100, 80, 300, 260], camera, PRESET).warp
    assert warp[0, 0] == warp[1, 1] == 64 / 240


def test_graphs_are_fed_the_ideal_camera() -> None:
    camera = LENSES[2]
    entry = ObjectEntry(
        id=1, name="a", diameter_m=0.1, bbox_min_m=(0, 0, 0), bbox_max_m=(1, 1, 1), model="a.safetensors"
    )
    batch = CropBatch(PRESET, [entry], 1)
    batch.cut(seen_by(camera), camera, [Detection(1, 1.0, np.array([200.0, 150, 330, 290]))])
    fed = batch.feed([TensorSpec("K", "float32", (1, 3, 3)), TensorSpec("image_wh", "float32", (1, 2))])
    np.testing.assert_allclose(
        np.concatenate([batch.crops[0].warp, [[0, 0, 1]]]) @ fed["K"][0], batch.crops[0].K, rtol=1e-5
    )
    assert fed["image_wh"][0].tolist() == [640, 640]  # 480 rows, a third farther apart
