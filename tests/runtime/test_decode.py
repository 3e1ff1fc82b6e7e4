"""Box rule and SITE: exact where they must be, within the known error of the box rule elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posekit.runtime.decode import (
    box_translation,
    pose_from_template,
    pose_within_box,
    site_from_translation,
    translation_from_site,
)
from posekit.runtime.errors import InputError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Pose, allo_from_ego, ego_from_allo, rotation_angle_rad

K = np.array([[600.0, 0.2, 310], [0, 590, 250], [0, 0, 1]])
CAMERA = Intrinsics(K, 640, 480)
TEMPLATE = Intrinsics(np.array([[1075.65, 0, 360], [0, 1073.9, 270], [0, 0, 1]]), 720, 540)
centres = st.tuples(st.floats(-0.3, 0.3), st.floats(-0.2, 0.2), st.floats(0.4, 2.0)).map(np.array)
CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * [0.05, 0.03, 0.075]


def box_of(pose: Pose, camera: Intrinsics) -> np.ndarray:
    pixels = camera.project(pose.apply(CORNERS))
    return np.concatenate([pixels.min(axis=0), pixels.max(axis=0)])


@given(centres, st.floats(20, 300), st.floats(20, 300), st.floats(-20, 20), st.floats(0.2, 3.0))
def test_site_round_trip(t: np.ndarray, w: float, h: float, off: float, scale: float) -> None:
    box = np.array([200 + off, 150 - off, 200 + off + w, 150 - off + h])
    site = site_from_translation(t, box, scale, K, 256, 64)
    assert np.allclose(translation_from_site(site, box, scale, K, 256, 64), t)


def test_site_of_a_centred_object() -> None:
    """An object whose centre projects to the box centre has no offset; z is in units of crop side / grid."""
    t = np.array([0.0, 0.0, 0.8])
    u = CAMERA.project(t)
    box = np.array([*(u - 50), *(u + 50)])
    assert np.allclose(site_from_translation(t, box, 256 / 150, K, 256, 64), [0, 0, 0.8 / (64 / 150)])


@pytest.mark.parametrize("site", [[0, 0, -1.0], [0, 0, 0.0], [np.nan, 0, 1.0]])
def test_impossible_sites_are_refused(site: list[float]) -> None:
    with pytest.raises(InputError, match="site"):
        translation_from_site(site, [0, 0, 9, 9], 1.0, K, 256, 64)


@given(st.floats(0.3, 3.0), st.tuples(*[st.floats(-3, 3)] * 3))
def test_box_rule_gives_the_template_back(z: float, rotvec: tuple[float, float, float]) -> None:
    """The template itself, in its own camera, is found exactly where it was rendered."""
    pose = Pose.from_rotvec(rotvec, [0.0, 0.0, z])
    box = box_of(pose, TEMPLATE)
    found = pose_from_template(pose.R, box, TEMPLATE.K, box, TEMPLATE.K, pose.t_m)
    assert np.allclose(found.t_m, pose.t_m)
    assert np.allclose(found.R, pose.R)


@given(centres, st.floats(0.4, 3.0), st.tuples(st.floats(-0.3, 0.3), st.floats(-0.3, 0.3)))
def test_box_rule_is_exact_for_a_flat_object_wherever_its_origin_is(
    t: np.ndarray, z: float, offset: tuple[float, float]
) -> None:
    """A plate that faces the camera, its origin anywhere in its plane: nearer or farther, the offset in metres stays."""
    plate = CORNERS * [1, 1, 0] + [*offset, 0]

    def box(pose: Pose, camera: Intrinsics) -> np.ndarray:
        pixels = camera.project(pose.apply(plate))
        return np.concatenate([pixels.min(axis=0), pixels.max(axis=0)])

    camera = Intrinsics(np.diag([600.0, 450, 1]), 640, 480)
    truth, template = Pose(np.eye(3), t), Pose(np.eye(3), np.array([0.0, 0.0, z]))
    found = box_translation(box(truth, camera), camera.K, box(template, camera), camera.K, template.t_m)
    assert np.allclose(found, t)


@given(st.floats(0.5, 2.0))
def test_box_rule_scales_distance_and_focal_length(factor: float) -> None:
    """Half the box is twice the distance, of a flat object; a camera of twice the focal length sees twice the box."""
    t = np.array([0.0, 0.0, 0.7])
    box = np.array([300.0, 200, 420, 340])
    smaller = np.array([360 - 60 / factor, 270 - 70 / factor, 360 + 60 / factor, 270 + 70 / factor])
    assert box_translation(smaller, TEMPLATE.K, box, TEMPLATE.K, t)[2] == pytest.approx(0.7 * factor)
    zoomed = np.diag([factor, factor, 1]) @ TEMPLATE.K
    assert box_translation(box, zoomed, box, TEMPLATE.K, t)[2] == pytest.approx(0.7 * factor)


@given(centres, st.tuples(*[st.floats(-3, 3)] * 3), st.floats(0.5, 2.0), st.floats(0.5, 2.0))
def test_box_rule_does_not_care_for_the_shape_of_pixels(
    t: np.ndarray, rotvec: tuple[float, float, float], query: float, template: float
) -> None:
    """The same object, template and place, seen by sensors whose pixels are up to twice as high or as wide."""
    pose, rendered = Pose.from_rotvec(rotvec, t), Pose.from_rotvec(rotvec, [0.0, 0.0, 0.7])

    def found(query: float, template: float) -> np.ndarray:
        K_q = np.array([[600.0, 0, 310], [0, 600 * query, 250], [0, 0, 1]])
        K_t = np.array([[1075.0, 0, 360], [0, 1075 * template, 270], [0, 0, 1]])
        box, template_box = box_of(pose, Intrinsics(K_q, 640, 480)), box_of(rendered, Intrinsics(K_t, 720, 540))
        return box_translation(box, K_q, template_box, K_t, rendered.t_m)

    assert np.allclose(found(query, template), found(1.0, 1.0))


def test_box_rule_is_as_good_as_known() -> None:
    """Perfect boxes, perfect template, box 10 x 6 x 15 cm off axis: z off by 1.4 % on average, at most 6.5 %."""
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(500):
        t = rng.uniform([-0.3, -0.3, 1.0], [0.3, 0.3, 1.0]) * rng.uniform(0.5, 1.5)
        truth = Pose(Pose.from_rotvec(rng.normal(size=3) * 1.5).R, t)
        template = Pose(allo_from_ego(truth.R, t), np.array([0.0, 0.0, 0.7]))
        found = pose_from_template(
            template.R, box_of(truth, CAMERA), K, box_of(template, TEMPLATE), TEMPLATE.K, template.t_m
        )
        assert rotation_angle_rad(found.R, truth.R) < np.radians(3)  # the ray of the box centre, not of the object
        errors.append(abs(found.t_m[2] - t[2]) / t[2])
    assert 0.005 < np.mean(errors) < 0.02
    assert np.max(errors) < 0.08


@given(
    rotvec=st.lists(st.floats(-2, 2), min_size=3, max_size=3),
    pixel=st.tuples(st.floats(60, 580), st.floats(60, 420)),
    distance_m=st.floats(0.35, 3.0),
    wrong=st.tuples(st.floats(-0.1, 0.1), st.floats(-0.1, 0.1), st.floats(0.8, 1.25)),
)
def test_an_object_is_put_where_it_fills_its_box(
    rotvec: list[float], pixel: tuple[float, float], distance_m: float, wrong: tuple[float, float, float]
) -> None:
    """Whatever perspective does to the box: from a start that is a quarter off in distance, to a thousandth."""
    K = np.array([[600.0, 0, 319.5], [0, 600, 239.5], [0, 0, 1]])
    corners = np.array([(x, y, z) for x in (-0.03, 0.05) for y in (-0.06, 0.04) for z in (-0.02, 0.1)])
    centre = np.array([0.01, -0.01, 0.04])
    R_allo = Pose.from_rotvec(rotvec).R
    t_m = np.linalg.solve(K, np.array([*pixel, 1.0])) * distance_m
    R = ego_from_allo(R_allo, t_m)
    true = Pose(R, t_m - R @ centre)
    seen = true.apply(corners) @ K.T
    uv = seen[:, :2] / seen[:, 2:]
    box = np.concatenate([uv.min(axis=0), uv.max(axis=0)])
    moved = t_m * wrong[2] + np.array([*wrong[:2], 0.0]) * distance_m
    start = Pose(R, moved - R @ centre)
    found = pose_within_box(start, R_allo, box, K, centre, corners - centre)
    assert np.linalg.norm(found.apply(centre) - t_m) < 2e-3 * distance_m
    assert rotation_angle_rad(found.R, true.R) < 2e-3


def test_an_object_around_the_camera_stays_where_the_box_rule_puts_it() -> None:
    start = Pose(np.eye(3), np.array([0.0, 0.0, 0.05]))
    points = np.array([[0.0, 0.0, -0.06], [0.1, 0.1, 0.1]])
    assert pose_within_box(start, np.eye(3), [0, 0, 9, 9], np.eye(3), np.zeros(3), points) is start
