"""BOP data sets: units, boxes and conventions hold on real frames; what is absent stays absent; damage is named."""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posekit.runtime.bop import box_from_bop, is_bop, objects_from_models_info, scenes_from_bop
from posekit.runtime.boxes import boxes_from
from posekit.runtime.errors import InputError, SourceError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.plausible_camera import CameraWarning
from posekit.runtime.sources import Frame, frames_from

trimesh = pytest.importorskip("trimesh")
GT = {"cam_R_m2c": [1, 0, 0, 0, 1, 0, 0, 0, 1], "cam_t_m2c": [10, 20, 500], "obj_id": 4}
GT_FACTS = {"bbox_obj": [10, 12, 20, 16], "bbox_visib": [-1, -1, -1, -1], "visib_fract": 0.0}


def write_scene(root: Path, scene: str = "test/000003", **files: Any) -> Path:
    """A data set of one scene with two images; files: name without .json -> content, None leaves it out."""
    folder = root / scene
    (folder / "rgb").mkdir(parents=True)
    for im_id in (2, 11):
        cv2.imwrite(str(folder / "rgb" / f"{im_id:06d}.png"), np.full((48, 64, 3), im_id, np.uint8))

    def both(entry: Any) -> dict[str, Any]:
        return {"2": entry, "11": entry}

    contents = {
        "scene_camera": both({"cam_K": [60, 0, 31.5, 0, 60, 23.5, 0, 0, 1], "depth_scale": 1.0}),
        "scene_gt": both([GT]),
        "scene_gt_info": both([GT_FACTS]),
    } | files
    for name, content in contents.items():
        if content is not None:
            (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize("part", ["", "test", "test/000003"])
def test_a_scene_a_split_and_a_data_set_give_the_same_frames(tmp_path: Path, part: str) -> None:
    write_scene(tmp_path)
    assert is_bop(tmp_path / part)
    frames = frames_from(tmp_path / part)
    assert frames.count == 2
    seen = [(f.name, f.index, f.scene_id, f.im_id, int(f.image_rgb_u8[0, 0, 0])) for f in frames]
    assert seen == [("000003/000002", 0, 3, 2, 2), ("000003/000011", 1, 3, 11, 11)]


def test_millimetres_become_metres_once(tmp_path: Path) -> None:
    write_scene(tmp_path)
    frame = next(frames_from(tmp_path))
    assert frame.truth is not None
    np.testing.assert_allclose(frame.truth[0].cam_from_obj.t_m, [0.01, 0.02, 0.5])
    assert (frame.intrinsics.width_px, frame.intrinsics.height_px) == (64, 48)


def test_what_is_not_seen_has_no_visible_box_and_does_not_count(tmp_path: Path) -> None:
    write_scene(tmp_path)
    frame = next(frames_from(tmp_path))
    assert frame.truth is not None
    true = frame.truth[0]
    assert true.visible_box_xyxy_px is None
    assert not true.counts
    assert boxes_from("gt")(frame) == []


def test_boxes_span_whole_pixels() -> None:
    mask = np.zeros((20, 30), bool)
    mask[3:7, 5:12] = True
    ys, xs = np.nonzero(mask)
    x, y, w, h = xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1
    np.testing.assert_array_equal(box_from_bop([x, y, w, h]), [4.5, 2.5, 11.5, 6.5])


def test_absent_ground_truth_stays_absent(tmp_path: Path) -> None:
    write_scene(tmp_path, scene_gt=None, scene_gt_info=None)
    frame = next(frames_from(tmp_path))
    assert frame.truth is None
    with pytest.raises(InputError, match="no ground truth"):
        boxes_from("gt")(frame)


def test_absent_boxes_stay_absent_and_are_asked_for(tmp_path: Path) -> None:
    write_scene(tmp_path, scene_gt_info=None)
    frame = next(frames_from(tmp_path))
    assert frame.truth is not None
    assert frame.truth[0].amodal_box_xyxy_px is None
    assert frame.truth[0].visible_fraction is None
    assert frame.truth[0].counts
    with pytest.raises(InputError, match="object 4: got no true box"):
        boxes_from("gt")(frame)


def test_amodal_boxes_stand_in_where_visible_ones_are_unknown(tmp_path: Path) -> None:
    facts = [{"bbox_obj": [10, 12, 20, 16]}]
    write_scene(tmp_path, scene_gt_info={"2": facts, "11": facts})
    (detection,) = boxes_from("gt")(next(frames_from(tmp_path)))
    np.testing.assert_array_equal(detection.box_xyxy_px, [9.5, 11.5, 29.5, 27.5])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"scene_camera": "{"}, "scene_camera.json"),
        ({"scene_camera": "[]"}, "keyed by numbers"),
        ({"scene_camera": {"two": {}}}, "keyed by numbers"),
        ({"scene_camera": {"2": {"cam_K": [1] * 9}}}, "scene_camera.json, entry 11: got no entry"),
        ({"scene_camera": {"2": {"cam_K": [1] * 9}, "11": {}}}, "scene_camera.json, entry 11"),
        ({"scene_camera": {"2": {"cam_K": [1] * 8}, "11": {"cam_K": [1] * 9}}}, "entry 2"),
        ({"scene_gt": {"2": [GT]}}, "scene_gt.json, entry 11: got no entry"),
        ({"scene_gt": {"2": [GT], "11": [GT, GT]}}, "got 1 objects, expected 2"),
        ({"scene_gt": {"2": [GT | {"cam_R_m2c": [2.0] * 9}], "11": [GT]}}, "no rotation"),
        ({"scene_gt": {"2": [GT | {"cam_R_m2c": [float("nan")] * 9}], "11": [GT]}}, "scene_gt.json, entry 2"),
        ({"scene_gt": {"2": [GT | {"cam_t_m2c": [1, 2]}], "11": [GT]}}, "scene_gt.json, entry 2"),
        ({"scene_gt": {"2": 5, "11": [GT]}}, "scene_gt.json, entry 2"),
        ({"scene_gt": {"2": [5], "11": [GT]}}, "a list of tables"),
        ({"scene_gt": {"2": [{"obj_id": 1}], "11": [GT]}}, "cam_R_m2c"),
    ],
)
def test_a_damaged_data_set_is_named_by_file_and_entry(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    write_scene(tmp_path, **files)
    with pytest.raises(SourceError) as caught:
        frames_from(tmp_path)
    assert message in str(caught.value)


def test_folders_that_are_not_scenes_say_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no scene"):
        scenes_from_bop(tmp_path)
    with pytest.raises(SourceError, match="a number for a name"):
        scenes_from_bop(write_scene(tmp_path / "named", "kitchen"))
    folder = write_scene(tmp_path / "empty")
    for image in folder.glob("rgb/*"):
        image.unlink()
    with pytest.raises(SourceError, match="no image in rgb/"):
        scenes_from_bop(tmp_path / "empty")


def test_a_data_set_takes_no_camera_file(tmp_path: Path) -> None:
    write_scene(tmp_path)
    camera = Intrinsics(np.diag([60.0, 60.0, 1.0]), 64, 48)
    with pytest.raises(InputError, match="Leave the camera file out"):
        frames_from(tmp_path, camera)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["2", "11", *GT]), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["scene_camera", "scene_gt", "scene_gt_info"]), JSON)
def test_any_other_json_is_refused_or_read(tmp_path_factory: Any, name: str, content: Any) -> None:
    folder = write_scene(tmp_path_factory.mktemp("any"), **{name: content if content is not None else "null"})
    with contextlib.suppress(SourceError):
        scenes_from_bop(folder)


def test_models_info_is_read_in_metres(tmp_path: Path) -> None:
    flip = [-1, 0, 0, 2, 0, -1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    entry = {"diameter": 100, **{f"min_{a}": -10 for a in "xyz"}, **{f"size_{a}": 30 for a in "xyz"}}
    (tmp_path / "models_info.json").write_text(json.dumps({"7": entry | {"symmetries_discrete": [flip]}}))
    facts = objects_from_models_info(tmp_path / "models_info.json")[7]
    assert facts.diameter_m == pytest.approx(0.1)
    np.testing.assert_allclose(facts.bbox_max_m, 0.02)
    np.testing.assert_allclose(facts.symmetries.discrete[0][0, 3], 0.002)
    (tmp_path / "models_info.json").write_text(json.dumps({"7": {}}))
    with pytest.raises(SourceError, match="entry 7"):
        objects_from_models_info(tmp_path / "models_info.json")


def camera(cx: float, cy: float, **more: Any) -> dict[str, Any]:
    entry = {"cam_K": [60, 0, cx, 0, 60, cy, 0, 0, 1], "depth_scale": 1.0} | more
    return {"2": entry, "11": entry}


@pytest.mark.parametrize(
    ("files", "cause"),
    [
        (
            {"scene_camera": camera(63.5, 47.5)},
            "the middle of an image 2 times as large as 64 x 48",
        ),  # halved, K is not
        ({"scene_camera": camera(62, 49.5)}, "times as large"),  # no camera's principal point is exactly in the middle
        ({"scene_camera": camera(15.5, 11.5)}, "0.5 times as large"),  # doubled
        ({"scene_camera": camera(70, 23.5)}, "outside 64 x 48"),
        ({"scene_camera": camera(31.5, 23.5, width=128, height=96)}, "a K for 128 x 96"),
        ({"scene_camera": camera(31.5, 23.5, whole_wh_px=[32, 24])}, "cut from one of 32 x 24"),
        (
            {"scene_gt_info": {i: [GT_FACTS | {"bbox_visib": [50, 10, 20, 16]}] for i in ("2", "11")}},
            r"visible objects up to \(69.5, 25.5\)",
        ),
    ],
)
def test_images_that_are_not_their_cameras_are_refused(tmp_path: Path, files: dict[str, Any], cause: str) -> None:
    write_scene(tmp_path, **files)
    with pytest.raises(InputError, match=f"frame 000003/000002 and its camera: got .*{cause}"):
        next(frames_from(tmp_path))


def test_the_general_camera_says_which_size_its_K_is_for(tmp_path: Path) -> None:
    write_scene(tmp_path)
    general = {"fx": 60, "fy": 60, "cx": 31.5, "cy": 23.5, "width": 128, "height": 96}
    (tmp_path / "camera.json").write_text(json.dumps(general))
    with pytest.raises(InputError, match="a K for 128 x 96"):
        next(frames_from(tmp_path))
    others: list[Any] = [general | {"cx": 63.5}, general | {"width": 64, "height": 48}, {}, []]  # of another K, or none
    for other in others:
        (tmp_path / "camera.json").write_text(json.dumps(other))
        assert next(frames_from(tmp_path)).intrinsics.width_px == 64


@pytest.mark.parametrize("scene", [camera(63.5, 47.5, whole_wh_px=[128, 96]), camera(70, 23.5, width=64, height=48)])
def test_what_the_data_set_says_about_its_images_counts(tmp_path: Path, scene: dict[str, Any]) -> None:
    """Images cut from larger ones are fine where the data set says so; a size beside K is believed a little further."""
    write_scene(tmp_path, scene_camera=scene)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CameraWarning)
        assert len(list(frames_from(tmp_path))) == 2


def test_an_odd_camera_is_said_once_a_scene(tmp_path: Path) -> None:
    write_scene(tmp_path, scene_camera=camera(52, 23.5))
    with pytest.warns(CameraWarning, match="frame 000003/000002: .*far from the middle") as said:
        assert len(list(frames_from(tmp_path))) == 2
    assert len(said) == 1


@pytest.mark.parametrize("factor", [0.5, 0.25, 2.0])
def test_real_frames_resized_without_their_K_are_refused(data_dir: Path, tmp_path: Path, factor: float) -> None:
    for name, scene in (("ycbv", "000000"), ("opencv_box", "000001"), ("cube_video", "000001")):
        original, folder = data_dir / name / "test" / scene, tmp_path / name / "test" / scene
        (folder / "rgb").mkdir(parents=True)
        (folder / "scene_camera.json").write_bytes((original / "scene_camera.json").read_bytes())
        path = next(original.glob("rgb/*"))
        image = cv2.imread(str(path))
        assert image is not None
        cv2.imwrite(str(folder / "rgb" / path.name), cv2.resize(image, None, fx=factor, fy=factor))
        with pytest.raises(InputError, match="times as large") as caught:
            next(frames_from(folder))
        times = float(caught.value.got.split("an image ")[1].split(" times")[0])
        assert times == pytest.approx(1 / factor, rel=0.03)


# Real frames.

IOU_FLOOR = {"ycbv": 0.90, "opencv_box": 0.98, "cube_video": 0.97}  # measured minima 0.912, 0.986, 0.975
OFFSET_PX = 1.2  # measured mean of corners at most 0.99 (masks are rasterised with up to a pixel of margin)


@pytest.mark.parametrize("name", list(IOU_FLOOR))
def test_true_poses_project_into_their_boxes(data_dir: Path, name: str) -> None:
    """The whole chain at once: millimetres, rotation order, intrinsics, pixel centres and boxes."""
    vertices_m = {
        int(path.stem[4:]): np.asarray(trimesh.load(path, process=False).vertices) / 1000
        for path in (data_dir / name / "models").glob("*.ply")
    }
    offsets = []
    for scene in scenes_from_bop(data_dir / name):
        assert scene.truth is not None
        for im_id, trues in scene.truth.items():
            camera = Intrinsics(scene.K[im_id], 640, 480)
            for true in trues:
                pixels = camera.project(true.cam_from_obj.apply(vertices_m[true.object_id]))
                projected = np.concatenate([pixels.min(axis=0), pixels.max(axis=0)])
                assert true.amodal_box_xyxy_px is not None
                assert iou(projected, true.amodal_box_xyxy_px) > IOU_FLOOR[name]
                offsets.append(true.amodal_box_xyxy_px - projected)
    assert np.abs(np.mean(offsets, axis=0)).max() < OFFSET_PX


def iou(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    shared = float(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod())
    return shared / (float((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod()) - shared)


def test_visible_boxes_are_those_of_the_visible_masks(data_dir: Path) -> None:
    frame: Frame
    for frame in list(frames_from(data_dir / "ycbv" / "test" / "000001"))[::7]:
        for k, true in enumerate(frame.truth or ()):
            folder = data_dir / "ycbv" / "test" / "000001" / "mask_visib"
            mask = cv2.imread(str(folder / f"{frame.im_id:06d}_{k:06d}.png"), cv2.IMREAD_GRAYSCALE)
            assert mask is not None
            ys, xs = np.nonzero(mask)
            expected = [xs.min() - 0.5, ys.min() - 0.5, xs.max() + 0.5, ys.max() + 0.5]
            np.testing.assert_array_equal(true.visible_box_xyxy_px, expected)


@pytest.mark.parametrize("name", ["ycbv", "lm_models"])
def test_real_models_info_is_read(data_dir: Path, name: str) -> None:
    folder = data_dir / name / "models" if name == "ycbv" else data_dir / name
    for facts in objects_from_models_info(folder / "models_info.json").values():
        assert 0.05 < facts.diameter_m < 0.5
        assert np.linalg.norm(facts.bbox_max_m - facts.bbox_min_m) < 1.5 * facts.diameter_m
