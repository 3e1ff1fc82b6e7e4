"""Overlays: drawn where the object is, nowhere else, through the lens, whatever the pose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posekit.runtime.errors import InputError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.object_model import ObjectModel
from posekit.runtime.overlay import AXIS_SHARE, MUTED_COLOUR, TRUTH_COLOUR, Drawing, MarkedBox, draw_poses, outline_from
from posekit.runtime.pose import Pose
from posekit.runtime.sources import frames_from

W, H = 320, 240
CAMERA = Intrinsics(np.array([[300.0, 0, 159.5], [0, 300, 119.5], [0, 0, 1]]), W, H)
FISHY = Intrinsics(CAMERA.K, W, H, (-0.3, 0.1, 0.001, -0.001))
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * 0.05
QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
FACES = np.array([triangle for a, b, c, d in QUADS for triangle in ((a, b, c), (a, c, d))], np.int32)
CUBE = ObjectModel(CORNERS, FACES)
RED = (255, 0, 0)


def blank() -> npt.NDArray[np.uint8]:
    return np.full((H, W, 3), 128, np.uint8)


def drawn(pose: Pose, camera: Intrinsics = CAMERA, **options: object) -> npt.NDArray[np.bool_]:
    """Where the picture changed."""
    drawing = Drawing(outline_from(CUBE), pose, RED, **({"axes": False, "fill": 0.0} | options))  # type: ignore[arg-type]
    return np.asarray((draw_poses(blank(), camera, [drawing]) != 128).any(axis=2))


def test_a_cube_has_twelve_sharp_edges_also_when_its_faces_share_no_vertex() -> None:
    split = ObjectModel(CUBE.vertices_m[CUBE.faces].reshape(-1, 3), np.arange(36, dtype=np.int32).reshape(12, 3))
    for model in (CUBE, split):
        outline = outline_from(model)
        assert outline.edges_m.shape == (12, 2, 3)
        np.testing.assert_allclose(np.linalg.norm(np.diff(outline.edges_m, axis=1), axis=2), 0.1)


def test_nothing_is_drawn_of_what_lies_beyond_the_fold_of_the_lens() -> None:
    """r - 0.35 r^3 folds at 0.976: a cube at 1.2, 50 degrees off, is outside the picture, and its mirrored copy inside."""
    camera = Intrinsics(CAMERA.K * [[0.5, 1, 1], [1, 0.5, 1], [1, 1, 1]], W, H, (-0.35, 0.0, 0.0, 0.0))
    beyond, within = (Pose(np.eye(3), np.array([x, 0.0, 1.0])) for x in (1.2, 0.7))
    assert np.abs(camera.project(beyond.t_m) - [159.5, 119.5]).max() < 110  # what the formula says is in the picture
    assert not drawn(beyond, camera, axes=True).any()
    assert drawn(within, camera).any()


def test_a_fisheye_shows_what_is_far_off_its_axis() -> None:
    """75 degrees to the right: 3.7 focal lengths on the plane z = 1, and 1.3 in the picture."""
    camera = Intrinsics(CAMERA.K * [[1 / 3, 1, 1], [1, 1 / 3, 1], [1, 1, 1]], W, H, (), "fisheye")
    angle = np.deg2rad(75)
    pose = Pose(np.eye(3), 0.8 * np.array([np.sin(angle), 0, np.cos(angle)]))
    ys, xs = np.nonzero(drawn(pose, camera))
    assert xs.mean() == pytest.approx(159.5 + 100 * angle, abs=3)
    assert ys.mean() == pytest.approx(119.5, abs=2)


@pytest.mark.parametrize("camera", [CAMERA, FISHY], ids=["ideal", "distorted"])
def test_the_silhouette_lies_on_the_projected_outline(camera: Intrinsics) -> None:
    """A cube seen face on: the contour is the projected front square, to half a pixel and the line's width."""
    pose = Pose(np.eye(3), np.array([0.05, -0.02, 0.5]))
    ys, xs = np.nonzero(drawn(pose, camera))
    front = camera.project(pose.apply(CORNERS[CORNERS[:, 2] < 0]))
    sides = np.array([xs.min(), ys.min(), xs.max(), ys.max()])
    expected = np.concatenate([front.min(axis=0), front.max(axis=0)])
    line = np.array([-1.5, -1.5, 1.5, 1.5])
    np.testing.assert_allclose(sides, expected + line, atol=1.6)
    np.testing.assert_allclose(sides[:2] + sides[2:], expected[:2] + expected[2:], atol=1.1)  # no offset: pixel centres


def test_fill_tints_the_inside_only() -> None:
    pose = Pose.from_rotvec([0.3, 0.4, 0.1], [0, 0, 0.5])
    tinted = drawn(pose, fill=0.5)
    assert tinted[H // 2 - 10 : H // 2 + 10, W // 2 - 10 : W // 2 + 10].all()
    assert not tinted[:20].any()
    assert not drawn(pose)[H // 2 - 2 : H // 2 + 2, :20].any()


def test_hidden_edges_are_not_drawn() -> None:
    """Seen face on, the far face is behind the near one: nothing but the outline shows."""
    seen = drawn(Pose(np.eye(3), np.array([0, 0, 0.5])))
    ys, xs = np.nonzero(seen)
    inside = seen[ys.min() + 9 : ys.max() - 8, xs.min() + 9 : xs.max() - 8]
    assert not inside.any()


@pytest.mark.parametrize("box", [[40, 60, 120, 140], [-1e6, -1e6, 1e6, 1e6], [5, 5, 5, 5], [900, 50, 950, 90]])
def test_a_box_without_a_pose_is_muted_and_its_reason_stays_in_the_picture(box: list[float]) -> None:
    pose = Pose(np.eye(3), np.array([0, 0, 0.5]))
    drawing = Drawing(outline_from(CUBE), pose, RED, axes=False)
    image = draw_poses(blank(), CAMERA, [drawing], [MarkedBox(np.array(box), "cube no_consensus")])
    assert (image == MUTED_COLOUR).all(axis=2).sum() > 400  # the label's plate
    assert (draw_poses(blank(), CAMERA, [drawing]) == MUTED_COLOUR).all(axis=2).sum() == 0


def test_axes_show_x_red_y_green_z_blue() -> None:
    pose = Pose(np.eye(3), np.array([0, 0, 0.5]))
    outline = outline_from(CUBE)
    image = draw_poses(blank(), CAMERA, [Drawing(outline, pose, (128, 128, 128), axes=True, fill=0.0)])
    for axis, strongest in ((np.array([1.0, 0, 0]), 0), (np.array([0, 1.0, 0]), 1)):
        u, v = np.rint(CAMERA.project(pose.apply(axis * AXIS_SHARE * outline.size_m))).astype(int)
        assert int(image[v, u].argmax()) == strongest


@settings(max_examples=30)
@given(
    st.tuples(*[st.floats(-4, 4)] * 3), st.tuples(*[st.floats(-2, 2)] * 3), st.sampled_from([CAMERA, FISHY])
)  # fmt: skip
def test_any_pose_draws_without_failing_and_leaves_the_frame_alone(
    rotvec: tuple[float, float, float], t_m: tuple[float, float, float], camera: Intrinsics
) -> None:
    """Behind the camera, around it, far outside: absent from the picture, never an error."""
    frame = blank()
    box = np.array([-50.0, -50.0, 900.0, 30.0])
    drawing = Drawing(outline_from(CUBE), Pose.from_rotvec(rotvec, t_m), RED, "cube 0.93", box)
    image = draw_poses(frame, camera, [drawing])
    assert image.shape == frame.shape
    assert (frame == 128).all()


def test_an_object_behind_the_camera_leaves_no_mark() -> None:
    assert not drawn(Pose(np.eye(3), np.array([0, 0, -0.5])), axes=True, label="behind").any()


def test_the_label_stays_in_the_picture() -> None:
    for x, y in ((0, 0), (W - 2, 0), (0, H - 2), (W - 2, H - 2)):
        box = np.array([x, y, x + 1.5, y + 1.5])
        behind = Pose(np.eye(3), np.array([0, 0, -1.0]))
        assert drawn(behind, label="cube 0.93", box_xyxy_px=box).sum() > 300


def test_a_frame_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match="frame"):
        draw_poses(blank()[:100], CAMERA, [])


def test_meshes_that_index_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="object model"):
        ObjectModel(CORNERS, np.array([[0, 1, 99]], np.int32))


def test_true_poses_cover_the_visible_masks(data_dir: Path) -> None:
    """On a real frame the filled silhouette and the data set's own mask agree."""
    import cv2

    trimesh = pytest.importorskip("trimesh")
    scene = data_dir / "ycbv" / "test" / "000001"
    frame = next(frames_from(scene))
    for k, true in list(enumerate(frame.truth or ()))[:2]:
        mesh = trimesh.load(data_dir / "ycbv" / "models" / f"obj_{true.object_id:06d}.ply", process=False)
        outline = outline_from(ObjectModel(np.asarray(mesh.vertices) / 1000, np.asarray(mesh.faces)))
        grey = np.full_like(frame.image_rgb_u8, 128)
        drawing = Drawing(outline, true.cam_from_obj, TRUTH_COLOUR, axes=False, fill=1.0)
        filled = (draw_poses(grey, frame.intrinsics, [drawing]) != 128).any(axis=2)
        mask = cv2.imread(str(scene / "mask_visib" / f"{frame.im_id:06d}_{k:06d}.png"), cv2.IMREAD_GRAYSCALE)
        assert mask is not None
        assert filled[mask > 0].mean() > 0.99
        if (true.visible_fraction or 0) > 0.98:
            assert (mask[filled] > 0).mean() > 0.88
