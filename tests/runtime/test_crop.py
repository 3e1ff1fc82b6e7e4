"""The crop function: geometry as laws, pixels against an independent sampler, refusals."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posekit.runtime.crop import (
    PRESETS,
    SIDES_PX,
    CropPreset,
    crop,
    crop_K,
    crop_warp,
    has_crop,
    rgb_from_bgr,
    virtual_box_homography,
)
from posekit.runtime.detection import BoxError, Detection, Reason
from posekit.runtime.errors import InputError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Pose

WH = (640, 480)
CAMERA = Intrinsics(np.array([[600.0, 0, 319.5], [0, 600, 239.5], [0, 0, 1]]), *WH)
DISTORTED = Intrinsics(CAMERA.K, *WH, (-0.25, 0.08, 0.001, -0.002))
PRESET = CropPreset("square", 64, pad=1.2)
boxes = st.tuples(st.floats(5, 500), st.floats(5, 350), st.floats(5, 300), st.floats(5, 300)).map(
    lambda b: np.array([b[0], b[1], b[0] + b[2], b[1] + b[3]])
)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Smooth colours, so that sampling differences stay small."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    return np.asarray(cv2.resize(noise, WH, interpolation=cv2.INTER_CUBIC), np.uint8)


@given(boxes, st.sampled_from(sorted(PRESETS)))
def test_the_square_is_centred_and_upright(box: np.ndarray, name: str) -> None:
    preset = PRESETS[name]
    warp = crop_warp(box, preset, WH)
    assert warp[0, 1] == warp[1, 0] == 0
    assert warp[0, 0] == warp[1, 1] > 0
    middle = (np.array(WH) - 1) / 2 if preset.rule == "full" else (box[:2] + box[2:]) / 2
    assert np.allclose(warp @ [*middle, 1], (preset.side_px - 1) / 2)


@given(boxes)
def test_the_box_fills_what_its_rule_says(box: np.ndarray) -> None:
    longer = max(box[2] - box[0], box[3] - box[1])
    assert crop_warp(box, PRESETS["1.2-max-224"], WH)[0, 0] * 1.2 * longer == pytest.approx(224)
    assert crop_warp(box, PRESETS["obb-256"], WH)[0, 0] * longer == pytest.approx(246)
    assert crop_warp(box, PRESETS["dzi-1.5-256"], WH)[0, 0] == pytest.approx(256 / min(1.5 * longer, 640))


@given(boxes)
def test_crop_K_projects_into_the_crop(box: np.ndarray) -> None:
    warp = crop_warp(box, PRESET, WH)
    point = np.array([0.1, -0.05, 0.8])
    u = CAMERA.project(point)
    p = crop_K(warp, CAMERA.K) @ point
    assert np.allclose(p[:2] / p[2], warp @ [*u, 1])


def test_pixels_are_bilinear_samples(image: np.ndarray) -> None:
    one = crop(image, [100, 80, 300, 260], CAMERA, PRESET)
    u = (np.arange(64) - one.warp[0, 2]) / one.warp[0, 0]
    v = (np.arange(64) - one.warp[1, 2]) / one.warp[1, 1]
    grid = np.stack(np.meshgrid(u, v), axis=-1).astype(np.float32)
    expected = cv2.remap(image, grid[..., 0], grid[..., 1], cv2.INTER_LINEAR)
    assert np.abs(one.pixels.astype(int) - expected).max() <= 3  # fixed-point interpolation


def test_identity_crop_copies_pixels(image: np.ndarray) -> None:
    """A 64 px box without padding at whole pixels: every crop pixel is an image pixel."""
    one = crop(image, [99.5, 79.5, 163.5, 143.5], CAMERA, CropPreset("square", 64))
    assert np.array_equal(one.pixels, image[80:144, 100:164])


def test_outside_the_image_is_black(image: np.ndarray) -> None:
    one = crop(image, [-100, -100, 100, 100], CAMERA, CropPreset("square", 64))
    assert not one.pixels[:31].any()
    assert not one.pixels[:, :31].any()


def test_blank_outside_box(image: np.ndarray) -> None:
    """A box twice as high as wide: the outer quarters of the square are zero, the inside is not."""
    one = crop(image, [100, 80, 200, 280], CAMERA, CropPreset("square", 64, blank_outside_box=True))
    assert not one.pixels[:, :16].any()
    assert not one.pixels[:, 48:].any()
    assert one.pixels[:, 17:47].any(axis=2).all()


def test_buffer_is_written_in_place(image: np.ndarray) -> None:
    batch = np.zeros((3, 64, 64, 3), np.uint8)
    one = crop(image, [100, 80, 300, 260], CAMERA, PRESET, out=batch[1])
    assert np.shares_memory(one.pixels, batch)
    assert np.array_equal(batch[1], crop(image, [100, 80, 300, 260], CAMERA, PRESET).pixels)
    assert not batch[0].any()
    assert not batch[2].any()


def test_buffer_is_written_in_place_through_distortion(image: np.ndarray) -> None:
    batch = np.zeros((2, 64, 64, 3), np.uint8)
    assert np.shares_memory(crop(image, [100, 80, 300, 260], DISTORTED, PRESET, out=batch[1]).pixels, batch)


def test_other_memory_layouts_give_the_same_pixels(image: np.ndarray) -> None:
    expected = crop(image, [100, 80, 300, 260], CAMERA, PRESET).pixels
    assert np.array_equal(crop(np.asfortranarray(image), [100, 80, 300, 260], CAMERA, PRESET).pixels, expected)
    assert np.array_equal(crop(rgb_from_bgr(image[..., ::-1]), [100, 80, 300, 260], CAMERA, PRESET).pixels, expected)


def test_distortion_is_undone_in_the_crop(image: np.ndarray) -> None:
    """The crop of a distorted camera is the crop of OpenCV's undistorted image."""
    ideal_image = cv2.undistort(image, DISTORTED.K, np.array(DISTORTED.distortion))
    one = crop(image, [120, 100, 300, 260], DISTORTED, PRESET)
    same = crop(np.asarray(ideal_image, np.uint8), one.box_xyxy_px, CAMERA, PRESET)
    assert np.allclose(one.warp, same.warp)
    assert np.abs(one.pixels.astype(int) - same.pixels).mean() < 1.5
    assert not np.allclose(one.box_xyxy_px, [120, 100, 300, 260], atol=1)  # it really was distorted


def test_virtual_box_looks_at_the_object() -> None:
    """The object's centre lands in the middle; a square of the metric side fills the crop; z points up."""
    pose = Pose.from_rotvec([0.3, -0.2, 0.5], [0.2, -0.1, 0.9])
    H = virtual_box_homography(CAMERA, pose, side_m=0.2, size_px=128)

    def seen(point_m: np.ndarray) -> np.ndarray:
        p = H @ CAMERA.K @ pose.apply(point_m)
        return np.asarray(p[:2] / p[2])

    assert np.allclose(seen(np.zeros(3)), 63.5)
    up = seen(np.array([0, 0, 0.01])) - 63.5
    assert up[1] < 0
    assert abs(up[0]) < 1e-9
    across = np.linalg.norm(seen(np.array([0.001, 0, 0])) - seen(np.array([-0.001, 0, 0])))
    assert across <= 128 / 0.2 * 0.002 * 1.01


@pytest.mark.parametrize(
    ("box", "cause"),
    [
        ([10, 10, 5, 20], "box"),
        ([10, 10, 10, 20], "0 x 10"),
        ([10, np.nan, 50, 60], "nan"),
        ([10, 10, np.inf, 60], "inf"),
        ([700, 10, 800, 60], "overlaps"),
        ([-50, -60, -10, -20], "overlaps"),
        ([10, 10, 50], "shape"),
        (["10", "10", "50", "50"], "'10'"),
        ([[10, 10], [50]], "box"),
        (None, "None"),
        ([-1e300, -1e300, 1e300, 1e300], "within a million"),
    ],
)
def test_bad_boxes_are_refused(image: np.ndarray, box: list[float], cause: str) -> None:
    with pytest.raises(InputError, match=cause):
        crop(image, box, CAMERA, PRESET)


def test_bad_boxes_are_no_detections() -> None:
    with pytest.raises(InputError, match="box"):
        Detection(1, 0.5, np.array([5.0, 5.0, 1.0, 9.0]))
    with pytest.raises(InputError, match="score"):
        Detection(1, float("nan"), np.array([5.0, 5.0, 9.0, 9.0]))


def test_a_box_where_the_lens_model_has_no_inverse_is_refused() -> None:
    camera = Intrinsics(CAMERA.K, 640, 480, (9.0, -50.0, 0.0, 0.0))
    with pytest.raises(BoxError, match="lens model") as caught:
        crop(np.zeros((480, 640, 3), np.uint8), [5, 5, 60, 60], camera, PRESET)
    assert caught.value.reason is Reason.BOX_BEYOND_LENS


def test_a_box_outside_the_image_has_its_reason() -> None:
    with pytest.raises(BoxError, match="overlaps") as caught:
        crop(np.zeros((480, 640, 3), np.uint8), [700, 10, 800, 60], CAMERA, PRESET)
    assert caught.value.reason is Reason.BOX_OUTSIDE_IMAGE


@pytest.mark.parametrize("box", [[10, 10, 10, 20], [10, 10, 10.9, 20], [10, 10, 20, 10.5]])
def test_a_box_thinner_than_a_pixel_has_its_reason(box: list[float]) -> None:
    """It is a detection, of which no crop can be cut."""
    detection = Detection(1, 0.5, np.array(box))
    with pytest.raises(BoxError, match="at least 1 px") as caught:
        crop(np.zeros((480, 640, 3), np.uint8), detection.box_xyxy_px, CAMERA, PRESET)
    assert caught.value.reason is Reason.BOX_TOO_THIN
    with pytest.raises(BoxError):
        crop_warp(box, PRESET, WH)
    assert not has_crop(detection.box_xyxy_px, CAMERA)


def test_a_box_that_the_lens_squeezes_is_too_thin() -> None:
    """A lens that magnifies its edge: a pixel there is less than one in the ideal image."""
    camera = Intrinsics(CAMERA.K, 640, 480, (0.5, 0.0, 0.0, 0.0))
    with pytest.raises(BoxError) as caught:
        crop(np.zeros((480, 640, 3), np.uint8), [10, 10, 11, 11], camera, PRESET)
    assert caught.value.reason is Reason.BOX_TOO_THIN


def test_a_box_partly_outside_is_cropped(image: np.ndarray) -> None:
    inside, across = (crop(image, box, CAMERA, PRESET).pixels for box in ([0, 0, 64, 64], [-64, -64, 64, 64]))
    assert inside.any()
    assert across.any()
    assert not across[:20, :20].any()


def test_a_corner_that_undistorts_to_outside_the_image_is_cropped() -> None:
    camera = Intrinsics(CAMERA.K, 640, 480, (-0.35, 0.1, 0.0, 0.0))
    bright = np.full((480, 640, 3), 200, np.uint8)
    cut = crop(bright, [-0.5, -0.5, 11.5, 9.5], camera, PRESET)
    assert cut.box_xyxy_px.max() < 0
    assert cut.pixels.mean() > 50


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((480, 640), np.uint8),
        np.zeros((480, 640, 4), np.uint8),
        np.zeros((480, 640, 3), np.float32),
        np.zeros((640, 480, 3), np.uint8),
        np.zeros((0, 0, 3), np.uint8),
        None,
    ],
)
def test_bad_frames_are_refused(frame: np.ndarray) -> None:
    with pytest.raises(InputError, match="frame"):
        crop(frame, [1, 1, 9, 9], CAMERA, PRESET)


@pytest.mark.parametrize(
    "preset", [("round", 64, 1.0, 0.0), ("square", 4, 1.0, 0.0), ("square", 64, 0.0, 0.0), ("border", 64, 1.0, 32.0)]
)
def test_bad_presets_are_refused(preset: tuple[str, int, float, float]) -> None:
    with pytest.raises(InputError, match="crop preset"):
        CropPreset(*preset)


def test_every_rule_has_a_preset() -> None:
    assert {preset.rule for preset in PRESETS.values()} == set(SIDES_PX)


sizes = st.tuples(st.integers(8, 200), st.integers(8, 200))
rules = st.sampled_from(sorted(SIDES_PX))


@given(boxes, sizes, rules)
def test_a_crop_of_any_shape_is_centred_upright_and_keeps_pixels_square(
    box: np.ndarray, wh_px: tuple[int, int], rule: str
) -> None:
    warp = crop_warp(box, CropPreset(rule, wh_px), WH)
    assert warp[0, 1] == warp[1, 0] == 0
    assert warp[0, 0] == warp[1, 1] > 0
    middle = (np.array(WH) - 1) / 2 if rule == "full" else (box[:2] + box[2:]) / 2
    assert np.allclose(warp @ [*middle, 1], (np.array(wh_px) - 1) / 2)


@given(boxes, sizes, st.floats(1, 2))
def test_the_padded_box_just_fits_into_a_crop_of_any_shape(box: np.ndarray, wh_px: tuple[int, int], pad: float) -> None:
    scale = crop_warp(box, CropPreset("square", wh_px, pad=pad), WH)[0, 0]
    sides = scale * pad * (box[2:] - box[:2])
    assert (sides <= np.array(wh_px) * (1 + 1e-9)).all()
    assert np.isclose(sides, wh_px).any()


@given(boxes, st.integers(8, 200), rules)
def test_a_square_stated_by_both_sides_is_the_square(box: np.ndarray, side: int, rule: str) -> None:
    both, one = CropPreset(rule, (side, side)), CropPreset(rule, side)
    assert both == one
    np.testing.assert_array_equal(crop_warp(box, both, WH), crop_warp(box, one, WH))


@pytest.mark.parametrize("blank", [False, True])
def test_an_oblong_crop_is_the_middle_of_the_square_one(blank: bool, image: np.ndarray) -> None:
    box = np.array([220.0, 100, 300, 250])  # of the crop's aspect ratio: both show it at one scale
    oblong = crop(image, box, CAMERA, CropPreset("square", (64, 120), blank_outside_box=blank))
    square = crop(image, box, CAMERA, CropPreset("square", 120, blank_outside_box=blank))
    assert oblong.pixels.shape == (120, 64, 3)
    np.testing.assert_allclose(oblong.pixels.astype(int), square.pixels[:, 28:92].astype(int), atol=1)
    np.testing.assert_allclose(oblong.K[0, 2], square.K[0, 2] - 28)
    np.testing.assert_allclose(oblong.K[1], square.K[1])
    out = np.zeros((120, 64, 3), np.uint8)
    crop(image, box, CAMERA, CropPreset("square", (64, 120), blank_outside_box=blank), out=out)
    np.testing.assert_array_equal(out, oblong.pixels)


def test_an_oblong_crop_of_a_distorted_camera_is_undistorted_alike(image: np.ndarray) -> None:
    box = np.array([220.0, 100, 300, 250])
    oblong = crop(image, box, DISTORTED, CropPreset("full", (64, 48)))
    square = crop(image, box, DISTORTED, CropPreset("full", 64))
    np.testing.assert_allclose(oblong.pixels.astype(int), square.pixels[8:56].astype(int), atol=1)


def test_an_oblong_crop_has_no_side() -> None:
    assert CropPreset("square", 96).side_px == 96
    assert CropPreset("square", (96, 64)).written_size == "96 x 64 px"
    with pytest.raises(InputError, match="96 x 64 px, expected a square"):
        _ = CropPreset("square", (96, 64)).side_px
    with pytest.raises(InputError, match="size_px >= 8"):
        CropPreset("square", (96, 4))
