"""Laws of the pose algebra."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posekit.runtime.errors import InputError
from posekit.runtime.pose import (
    Pose,
    allo_from_ego,
    ego_from_allo,
    nearest_rotation,
    rotation_about_ray,
    rotation_angle_rad,
    rotation_from_6d,
    rotation_from_rotvec,
    rotation_near,
)

numbers = st.floats(-3, 3, allow_nan=False)
vectors = st.tuples(numbers, numbers, numbers)
poses = st.builds(lambda r, t: Pose.from_rotvec(r, t), vectors, vectors)
centres = st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(0.2, 3.0))


def close(a: Pose, b: Pose) -> bool:
    return np.allclose(a.R, b.R, atol=1e-12) and np.allclose(a.t_m, b.t_m, atol=1e-11)


@given(poses, poses, poses)
def test_group_laws(a: Pose, b: Pose, c: Pose) -> None:
    assert close(a @ a.inverse(), Pose.identity())
    assert close(a.inverse() @ a, Pose.identity())
    assert close(a @ Pose.identity(), a)
    assert close((a @ b) @ c, a @ (b @ c))
    assert close((a @ b).inverse(), b.inverse() @ a.inverse())


@given(poses, poses, vectors)
def test_product_applies_right_to_left(a: Pose, b: Pose, point: tuple[float, float, float]) -> None:
    assert np.allclose((a @ b).apply(point), a.apply(b.apply(point)))
    assert np.allclose(np.array([*point, 1.0]) @ a.as_matrix().T, [*a.apply(point), 1.0])


@given(poses)
def test_matrix_round_trip(pose: Pose) -> None:
    assert close(Pose.from_matrix(pose.as_matrix()), pose)
    assert np.allclose(nearest_rotation(pose.R * 1.7), pose.R)


@given(st.floats(1e-9, np.pi), vectors.filter(lambda v: np.linalg.norm(v) > 0.1))
def test_angle_of_a_turn_is_its_angle(angle: float, axis: tuple[float, float, float]) -> None:
    R = rotation_from_rotvec(np.array(axis) / np.linalg.norm(axis) * angle)
    assert rotation_angle_rad(R, np.eye(3)) == pytest.approx(angle, abs=1e-7)


@given(poses)
def test_rotation_from_6d_of_two_columns(pose: Pose) -> None:
    """Any positive scale of the first column and any shear of the second give the same rotation."""
    r6 = np.concatenate([2.5 * pose.R[:, 0], pose.R[:, 1] + 0.3 * pose.R[:, 0]])
    assert np.allclose(rotation_from_6d(r6), pose.R, atol=1e-12)


@given(poses, centres)
def test_allocentric_round_trip(pose: Pose, centre: tuple[float, float, float]) -> None:
    assert np.allclose(allo_from_ego(ego_from_allo(pose.R, centre), centre), pose.R)
    ray = np.array(centre) / np.linalg.norm(centre)
    assert np.allclose(rotation_about_ray(centre) @ [0, 0, 1], ray)


def test_object_on_the_axis_looks_as_it_is() -> None:
    assert np.array_equal(rotation_about_ray([0.0, 0.0, 2.0]), np.eye(3))


@given(centres)
def test_allocentric_turn_has_no_roll(centre: tuple[float, float, float]) -> None:
    """The shortest rotation to the ray: its axis is in the image plane (the Euler forms roll by up to 3.8 degrees)."""
    R = rotation_about_ray(centre)
    assert R[1, 0] == pytest.approx(R[0, 1], abs=1e-12)  # no component of the rotation vector along z


@pytest.mark.parametrize(
    ("R", "t", "cause"),
    [
        (np.eye(3) * 1.1, np.zeros(3), "orthonormal"),
        (np.diag([1.0, 1.0, -1.0]), np.zeros(3), "det"),
        (np.full((3, 3), np.nan), np.zeros(3), "NaN"),
        (np.eye(3), np.array([0, 0, np.inf]), "infinity"),
        (np.eye(4), np.zeros(3), r"\(4, 4\)"),
    ],
)
def test_what_is_no_pose_is_refused(R: np.ndarray, t: np.ndarray, cause: str) -> None:
    with pytest.raises(InputError, match=cause):
        Pose(R, t)


@given(st.tuples(*[st.floats(-3, 3)] * 3), st.integers(0, 2**32 - 1), st.floats(0, 0.05))
def test_the_rotation_near_a_matrix_is_the_nearest(rotvec: tuple[float, float, float], seed: int, noise: float) -> None:
    matrix = rotation_from_rotvec(rotvec) + np.random.default_rng(seed).normal(scale=noise, size=(3, 3))
    found = rotation_near(matrix.tolist())
    assert found is not None
    assert np.allclose(found, nearest_rotation(matrix), atol=1e-13)


@pytest.mark.parametrize("matrix", [np.zeros((3, 3)), -np.eye(3), np.diag([1.0, 1, 0]), np.full((3, 3), np.nan)])
def test_no_rotation_is_near_what_has_no_positive_determinant(matrix: np.ndarray) -> None:
    assert rotation_near(matrix.tolist()) is None


@given(st.lists(st.floats(-1e3, 1e3), min_size=9, max_size=9))
def test_the_rotation_near_anything_ends(values: list[float]) -> None:
    """Also of what is far from any: the caller compares."""
    rotation_near(np.reshape(values, (3, 3)).tolist())
