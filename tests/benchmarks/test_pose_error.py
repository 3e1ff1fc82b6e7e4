"""Pose errors obey their laws: zero when exact, blind to symmetry where they should be, ordered as the formulas say."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posekit.benchmarks.pose_error import (
    ScoredObject,
    add_m,
    adds_m,
    mspd_px,
    mssd_m,
    pose_errors,
    reprojection_px,
    rotation_translation_errors,
    scored_object_from,
)
from posekit.runtime.errors import InputError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Array, Pose, rotation_from_rotvec
from posekit.runtime.symmetry import Symmetries

CAMERA = Intrinsics(np.array([[600.0, 0, 320], [0, 600, 240], [0, 0, 1]]), 640, 480)
rng = np.random.default_rng(0)
CLOUD = rng.normal(size=(300, 3)) * [0.03, 0.05, 0.02]
NO_SYMMETRY = ScoredObject(1, "cloud", 0.2, CLOUD)

small = st.floats(-1, 1)
rotvecs = st.tuples(*[st.floats(-2, 2)] * 3)
poses = st.builds(
    lambda r, x, y, z: Pose.from_rotvec(r, (0.2 * x, 0.2 * y, 0.7 + 0.2 * z)), rotvecs, small, small, small
)


def bottle(offset_m: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> ScoredObject:
    """Turns freely about z through offset; 24-fold rings of vertices, and 48 steps of symmetry keep them in place."""
    angles = np.arange(24) * np.pi / 12
    rings = [
        np.stack([r * np.cos(angles), r * np.sin(angles), np.full(24, z)], 1)
        for r, z in ((0.03, 0), (0.03, 0.1), (0.01, 0.15))
    ]
    about = Symmetries((), ((np.array([0, 0, 1.0]), np.array(offset_m)),))
    return ScoredObject(2, "bottle", 0.16, np.concatenate(rings) + offset_m, about.transforms(n_steps=24))


def turned(pose: Pose, transform: Array) -> Pose:
    return pose @ Pose.from_matrix(transform)


@settings(max_examples=30)
@given(poses)
def test_exact_poses_have_no_error(pose: Pose) -> None:
    for scored in (NO_SYMMETRY, bottle()):
        errors = pose_errors(pose, pose, scored, CAMERA)
        for name, value in vars(errors).items():
            assert value is None or value == pytest.approx(0, abs=1e-7), name


@settings(max_examples=30)
@given(poses, st.integers(0, 23))
def test_symmetric_copies_are_exact_too(pose: Pose, k: int) -> None:
    scored = bottle((0.01, -0.02, 0.0))
    errors = pose_errors(turned(pose, scored.transforms[k]), pose, scored, CAMERA)
    assert errors.rotation_rad == pytest.approx(0, abs=1e-6)
    assert errors.translation_m == pytest.approx(0, abs=1e-9)
    assert errors.mssd_m == pytest.approx(0, abs=1e-9)
    assert errors.mspd_px == pytest.approx(0, abs=1e-5)
    assert errors.adds_m == pytest.approx(0, abs=1e-9)
    assert errors.reprojection_px == pytest.approx(0, abs=1e-5)


@settings(max_examples=30)
@given(poses, poses, st.integers(0, 23), st.integers(0, 23))
def test_turning_either_pose_by_a_symmetry_changes_nothing(a: Pose, b: Pose, i: int, j: int) -> None:
    scored = bottle()
    ta, tb = turned(a, scored.transforms[i]), turned(b, scored.transforms[j])
    assert mssd_m(ta, tb, scored) == pytest.approx(mssd_m(a, b, scored), abs=1e-9)
    assert mspd_px(ta, tb, scored, CAMERA) == pytest.approx(mspd_px(a, b, scored, CAMERA), abs=1e-5)
    assert adds_m(ta, tb, scored) == pytest.approx(adds_m(a, b, scored), abs=1e-7)
    expected = rotation_translation_errors(a, b, scored.transforms)
    assert rotation_translation_errors(ta, tb, scored.transforms)[0] == pytest.approx(expected[0], abs=1e-6)


@settings(max_examples=30)
@given(poses, poses)
def test_the_order_of_the_measures(a: Pose, b: Pose) -> None:
    """Nearest <= corresponding <= worst; symmetry only helps; the mean in pixels is not above the worst."""
    errors = pose_errors(a, b, NO_SYMMETRY, CAMERA)
    assert adds_m(a, b, NO_SYMMETRY) <= errors.add_m + 1e-12
    assert errors.add_m <= errors.mssd_m + 1e-12
    assert errors.reprojection_px <= errors.mspd_px + 1e-9
    plain, symmetric = ScoredObject(2, "x", 0.16, bottle().vertices_m), bottle()
    assert mssd_m(a, b, symmetric) <= mssd_m(a, b, plain) + 1e-12
    assert pose_errors(a, b, symmetric, CAMERA).adds_m == adds_m(a, b, symmetric)
    assert adds_m(a, b, symmetric) == pytest.approx(adds_m(a, b, plain))


@settings(max_examples=30)
@given(poses, poses, poses)
def test_distances_obey_the_triangle_inequality(a: Pose, b: Pose, c: Pose) -> None:
    measures: list[Callable[[Pose, Pose], float]] = [
        lambda x, y: add_m(x, y, CLOUD),
        lambda x, y: mssd_m(x, y, NO_SYMMETRY),
        lambda x, y: mssd_m(x, y, bottle()),
    ]
    for d in measures:
        assert d(a, c) <= d(a, b) + d(b, c) + 1e-9
        assert d(a, b) == pytest.approx(d(b, a), abs=1e-9)


@settings(max_examples=30)
@given(poses, poses, poses)
def test_the_choice_of_world_does_not_matter(a: Pose, b: Pose, world: Pose) -> None:
    for scored in (NO_SYMMETRY, bottle()):
        assert add_m(world @ a, world @ b, scored.vertices_m) == pytest.approx(add_m(a, b, scored.vertices_m))
        assert mssd_m(world @ a, world @ b, scored) == pytest.approx(mssd_m(a, b, scored), abs=1e-9)


@settings(max_examples=30)
@given(poses, poses)
def test_the_search_over_symmetries_is_exhaustive(a: Pose, b: Pose) -> None:
    """The early stop loses nothing against trying all copies."""
    scored = bottle((0.01, 0.0, 0.0))
    copies = [turned(b, m) for m in scored.transforms]
    worst = [np.linalg.norm(a.apply(scored.vertices_m) - c.apply(scored.vertices_m), axis=1).max() for c in copies]
    assert mssd_m(a, b, scored) == pytest.approx(min(worst))
    pixels = [
        np.linalg.norm(
            CAMERA.project(a.apply(scored.vertices_m)) - CAMERA.project(c.apply(scored.vertices_m)), axis=1
        ).max()
        for c in copies
    ]
    assert mspd_px(a, b, scored, CAMERA) == pytest.approx(min(pixels))


@settings(max_examples=30)
@given(poses, rotvecs.filter(lambda r: 1e-3 < float(np.linalg.norm(r)) < 3), st.tuples(small, small, small))
def test_rotation_and_translation_are_what_was_put_in(pose: Pose, rotvec: Any, shift: Any) -> None:
    moved = Pose(pose.R @ rotation_from_rotvec(rotvec), pose.t_m + np.array(shift))
    angle, distance = rotation_translation_errors(moved, pose, NO_SYMMETRY.transforms)
    assert angle == pytest.approx(np.linalg.norm(rotvec), abs=1e-6)
    assert distance == pytest.approx(np.linalg.norm(shift))


def test_a_shift_is_the_same_by_every_distance() -> None:
    pose, moved = Pose.from_rotvec([1, 0, 0], [0, 0, 1]), Pose.from_rotvec([1, 0, 0], [0.004, 0, 1.003])
    assert add_m(moved, pose, CLOUD) == pytest.approx(0.005)
    assert mssd_m(moved, pose, NO_SYMMETRY) == pytest.approx(0.005)


def test_pixels_scale_with_the_focal_length() -> None:
    a, b = Pose.from_rotvec([0, 0, 0], [0, 0, 1]), Pose.from_rotvec([0, 0, 0], [0.01, 0, 1])
    flat = ScoredObject(1, "flat", 0.1, np.array([[x, y, 0.0] for x in (-0.05, 0.05) for y in (-0.05, 0.05)]))
    assert mspd_px(b, a, flat, CAMERA) == pytest.approx(6.0)
    assert reprojection_px(b, a, flat, CAMERA) == pytest.approx(6.0)


def test_a_pose_behind_the_camera_is_infinitely_far_in_pixels() -> None:
    front, behind = Pose.from_rotvec([0, 0, 0], [0, 0, 1]), Pose.from_rotvec([0, 0, 0], [0, 0, -1])
    errors = pose_errors(behind, front, NO_SYMMETRY, CAMERA)
    assert errors.mspd_px == np.inf
    assert errors.mssd_m == pytest.approx(2)


def test_symmetries_of_a_data_set_are_discretised_once() -> None:
    about = Symmetries((), ((np.array([0, 0, 1.0]), np.zeros(3)),))
    assert scored_object_from(1, "can", 0.1, CLOUD, about).transforms.shape == (315, 4, 4)
    assert not scored_object_from(1, "x", 0.1, CLOUD, Symmetries()).is_symmetric


def test_unusable_objects_are_refused() -> None:
    for vertices, diameter, transforms in (
        (CLOUD[:, :2], 0.1, np.eye(4)[None]),
        (CLOUD, 0.0, np.eye(4)[None]),
        (CLOUD, 0.1, np.diag([-1.0, -1, 1, 1])[None]),
        (CLOUD[:0], 0.1, np.eye(4)[None]),
    ):
        with pytest.raises(InputError, match="scored object 1"):
            ScoredObject(1, "x", diameter, vertices, transforms)


def tetrahedron(*transforms: Array) -> ScoredObject:
    """A corner of three edges of a centimetre."""
    corners = np.vstack([np.eye(3), np.zeros(3)]) * 0.01
    return ScoredObject(1, "corner", 0.0142, corners, np.stack([np.eye(4), *transforms]))


def test_golden_values_by_hand() -> None:
    """The estimate is a quarter turn about z and 3 mm too far. Two corners move by sqrt(2) cm aside, two do not.

    ADD-S: the corner on x is nearest to the corner at the origin, 1 cm away; the others find themselves. With the
    quarter turn as a symmetry only the 3 mm are left: in pixels 600 * 0.01 * (1 - 1 / 1.003) for a corner 1 cm aside.
    """
    true, estimate = Pose(np.eye(3), np.array([0, 0, 1.0])), Pose.from_rotvec([0, 0, np.pi / 2], [0, 0, 1.003])
    quarter = np.eye(4)
    quarter[:3, :3] = estimate.R
    plain, symmetric = tetrahedron(), tetrahedron(quarter)
    assert add_m(estimate, true, plain.vertices_m) == pytest.approx((2 * (2e-4 + 9e-6) ** 0.5 + 2 * 0.003) / 4)
    assert adds_m(estimate, true, plain) == pytest.approx(((1e-4 + 9e-6) ** 0.5 + 3 * 0.003) / 4)
    assert mssd_m(estimate, true, plain) == pytest.approx((2e-4 + 9e-6) ** 0.5)
    assert mssd_m(estimate, true, symmetric) == pytest.approx(0.003)
    assert mspd_px(estimate, true, symmetric, CAMERA) == pytest.approx(6 * (1 - 1 / 1.003))


@settings(max_examples=30)
@given(poses, poses, st.integers(1, 60), st.integers(1, 5))
def test_the_nearest_vertex_is_found_however_many_there_are(a: Pose, b: Pose, n: int, times: int) -> None:
    """Also where vertices coincide, as at the seams of a texture."""
    vertices = np.repeat(CLOUD[:n], times, axis=0)
    scored = ScoredObject(1, "x", 0.2, vertices)
    apart = np.linalg.norm(a.apply(vertices)[None] - b.apply(vertices)[:, None], axis=2)
    assert adds_m(a, b, scored) == pytest.approx(apart.min(axis=1).mean(), abs=1e-7)


def test_many_equal_vertices_are_no_trouble() -> None:
    scored = ScoredObject(1, "x", 0.2, np.zeros((500, 3)))
    assert adds_m(Pose.identity(), Pose(np.eye(3), np.array([0.3, 0, 0])), scored) == pytest.approx(0.3)


def test_the_measure_of_an_object_without_symmetries_is_add() -> None:
    assert pose_errors(Pose.identity(), Pose.identity(), NO_SYMMETRY, CAMERA).adds_m is None


def test_nothing_but_opencv_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device has no SciPy."""
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.spatial", None)
    moved = Pose(np.eye(3), np.array([0.0, 0.0, 1e-4]))
    assert adds_m(moved, Pose.identity(), ScoredObject(1, "x", 0.2, CLOUD)) == pytest.approx(1e-4, rel=1e-3)
