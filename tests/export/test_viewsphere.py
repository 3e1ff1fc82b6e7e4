"""Viewspheres: counts and angles of systems table P7."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from posekit.export.viewsphere import SUBDIVISIONS, view_rotations, viewsphere
from posekit.runtime.errors import InputError
from posekit.runtime.pose import Array, Pose


def degrees_from_chord(chord: Array) -> Array:
    return np.asarray(np.degrees(2 * np.arcsin(chord / 2)))


@pytest.mark.parametrize("n", list(SUBDIVISIONS))
def test_directions_are_unit_and_start_at_the_pole(n: int) -> None:
    directions = viewsphere(n)
    assert directions.shape == (n, 3)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0, atol=1e-12)
    np.testing.assert_array_equal(directions[0], [0, 0, 1])


@pytest.mark.parametrize(
    ("n", "gap_median", "gap_max", "covering_mean", "covering_max"),
    [(42, 31.7, 31.7, 11.9, 20.9), (162, 15.9, 16.4, 6.0, 10.8), (642, 8.0, 9.1, 3.0, 5.4), (2562, 4.0, 4.7, 1.5, 2.7)],
)
def test_spacing_and_covering(
    n: int, gap_median: float, gap_max: float, covering_mean: float, covering_max: float
) -> None:
    tree = cKDTree(viewsphere(n))
    gaps = degrees_from_chord(tree.query(viewsphere(n), k=2)[0][:, 1])
    assert np.median(gaps) == pytest.approx(gap_median, abs=0.06)
    assert gaps.max() == pytest.approx(gap_max, abs=0.06)
    random = np.random.default_rng(0).normal(size=(100_000, 3))
    covering = degrees_from_chord(tree.query(random / np.linalg.norm(random, axis=1, keepdims=True))[0])
    assert covering.mean() == pytest.approx(covering_mean, abs=0.06)
    assert covering.max() <= covering_max + 0.06


@pytest.mark.parametrize(("n", "mean", "p95", "largest"), [(162, 6.7, 9.7, 11.6), (642, 4.2, 6.0, 7.2)])
def test_residual_rotation_with_36_in_plane_steps(n: int, mean: float, p95: float, largest: float) -> None:
    bank = view_rotations(n, 36).reshape(-1, 9)
    random = Rotation.from_quat(np.random.default_rng(1).normal(size=(400, 4))).as_matrix().reshape(-1, 9)
    best = np.max([(random @ part.T).max(axis=1) for part in np.array_split(bank, 8)], axis=0)
    angle = np.degrees(np.arccos((best - 1) / 2))
    assert angle.mean() == pytest.approx(mean, abs=0.25)
    assert np.percentile(angle, 95) == pytest.approx(p95, abs=0.35)
    assert angle.max() <= largest


def test_rotations_look_at_the_object_from_their_direction_with_z_up() -> None:
    directions, rotations = viewsphere(162), view_rotations(162)
    np.testing.assert_allclose(rotations @ rotations.transpose(0, 2, 1), np.tile(np.eye(3), (162, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0)
    np.testing.assert_allclose(
        np.einsum("nij,nj->ni", rotations, directions), np.tile([0, 0, -1.0], (162, 1)), atol=1e-12
    )
    up = rotations[:, :, 2]  # the object's z in camera axes
    poles = np.abs(directions[:, 2]) > 1 - 1e-9
    assert (up[~poles, 1] < 0).all()  # y points down: z is up in the image
    np.testing.assert_allclose(up[~poles, 0], 0.0, atol=1e-12)
    np.testing.assert_allclose(rotations[poles][:, :, 1], [[0, -1, 0], [0, -1, 0]], atol=1e-12)


def test_in_plane_steps_turn_the_image_counter_clockwise_and_leave_out_the_full_turn() -> None:
    upright, turned = view_rotations(42, 4)[20:22]
    right = Pose(upright, np.array([0, 0, 1.0])).inverse().apply([0.1, 0.0, 1.0])  # seen on the right
    np.testing.assert_allclose(Pose(turned, np.array([0, 0, 1.0])).apply(right), [0.0, -0.1, 1.0], atol=1e-12)  # on top
    steps = view_rotations(42, 36)[:36]
    angles = np.arccos(np.clip((np.einsum("nij,ij->n", steps, steps[0]) - 1) / 2, -1, 1))
    assert np.sum(angles < 1e-6) == 1


@pytest.mark.parametrize("n", [0, 12, 301, 640])
def test_other_counts_are_refused(n: int) -> None:
    with pytest.raises(InputError, match="viewsphere"):
        viewsphere(n)


def test_no_in_plane_step_is_refused() -> None:
    with pytest.raises(InputError, match="in-plane"):
        view_rotations(42, 0)
