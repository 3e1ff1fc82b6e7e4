"""Between the views: nearer than the nearest view, the same whatever the last digit says, and never between opposites."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from posekit.export.viewsphere import view_rotations
from posekit.runtime.bank import CANDIDATES
from posekit.runtime.blend import View, blended_view, nearest_copies, quaternions_from_rotations
from posekit.runtime.pose import Array, Pose, rotation_angle_rad
from posekit.runtime.symmetry import Symmetries

seeds = st.integers(0, 2**32 - 1)
SPREAD_DEG = 25.0  # over which an embedder's score falls


@cache
def usual_views() -> tuple[Array, Array]:
    R = view_rotations(642, 36)
    return R, quaternions_from_rotations(R)


def retrieved(R_true: Array, rng: np.random.Generator, noise: float) -> tuple[npt.NDArray[np.int64], Array]:
    """Best views and scores of an embedder whose score falls with the angle, as a bell with noise on it."""
    R, _ = usual_views()
    angles_deg = np.rad2deg(rotation_angle_rad(R, R_true))
    scores = np.exp(-((angles_deg / SPREAD_DEG) ** 2) / 2) + noise * rng.normal(size=len(R)) * (angles_deg < 40)
    best = np.argsort(-scores)[:CANDIDATES]
    return best, scores[best]


def blended(index: npt.NDArray[np.int64], scores: Array) -> View:
    _, quaternions = usual_views()
    return blended_view(quaternions[index], np.tile([0.0, 0, 9, 9], (len(index), 1)), np.ones((len(index), 3)), scores)


@pytest.mark.parametrize(("noise", "at_most_deg"), [(0.0, 0.8), (0.01, 1.0), (0.03, 1.8)])
def test_the_blend_is_nearer_than_the_nearest_view(noise: float, at_most_deg: float) -> None:
    rng = np.random.default_rng(0)
    nearest_deg, blended_deg = [], []
    for R_true in Rotation.random(100, rng).as_matrix():
        index, scores = retrieved(R_true, rng, noise)
        nearest_deg.append(np.rad2deg(rotation_angle_rad(usual_views()[0], R_true)).min())
        blended_deg.append(np.rad2deg(rotation_angle_rad(blended(index, scores).R, R_true)))
    assert np.median(nearest_deg) > 4
    assert np.median(blended_deg) < at_most_deg


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_the_last_digit_of_the_scores_does_not_matter(seed: int) -> None:
    """Also where it changes which view is best, or last."""
    rng = np.random.default_rng(seed)
    index, scores = retrieved(Rotation.random(random_state=seed).as_matrix(), rng, 0.02)
    shaken = scores + 1e-6 * rng.normal(size=len(scores))
    order = np.argsort(-shaken)
    moved = rotation_angle_rad(blended(index[order], shaken[order]).R, blended(index, scores).R)
    assert np.rad2deg(moved) < 0.01


def test_a_tie_of_two_neighbours_is_their_middle_whichever_is_first() -> None:
    """As a view that is best by a hair: 1e-9 decides nothing."""
    turns = Rotation.from_euler("z", [[0], [10], [200]], degrees=True).as_matrix()
    q, box, t_m = quaternions_from_rotations(turns), np.array([[0, 0, 8, 8], [0, 0, 10, 10], [0, 0, 99, 99]]), np.eye(3)
    for order, scores in (([0, 1, 2], [0.8 + 1e-9, 0.8, 0.1]), ([1, 0, 2], [0.8 + 1e-9, 0.8, 0.1])):
        view = blended_view(q[order], box[order], t_m[order], np.array(scores))
        middle = Rotation.from_euler("z", 5, degrees=True).as_matrix()
        assert np.rad2deg(rotation_angle_rad(view.R, middle)) < 1e-5
        np.testing.assert_allclose(view.box_xyxy_px, [0, 0, 9, 9], atol=1e-6)
        np.testing.assert_allclose(view.t_m, [0.5, 0.5, 0], atol=1e-6)


@given(seeds)
@settings(deadline=None)
def test_opposite_views_are_not_mixed(seed: int) -> None:
    """A box that looks alike from behind: what comes out is next to the best view."""
    rng = np.random.default_rng(seed)
    front = Rotation.random(random_state=seed)
    group = [front * Rotation.from_rotvec(np.deg2rad(8) * rng.uniform(-1, 1, 3)) for _ in range(5)]
    behind = [turn * Rotation.from_euler("y", 180, degrees=True) for turn in group]
    R = np.stack([turn.as_matrix() for pair in zip(group, behind, strict=True) for turn in pair])
    scores = np.sort(rng.uniform(0.6, 0.8, len(R)))[::-1]
    view = blended_view(quaternions_from_rotations(R), np.ones((10, 4)), np.ones((10, 3)), scores)
    assert np.rad2deg(rotation_angle_rad(view.R, R[::2])).min() < 14


def test_equal_scores_and_a_single_candidate_give_the_first_view() -> None:
    R = Rotation.random(4, random_state=1).as_matrix()
    q, box, t_m = quaternions_from_rotations(R), np.arange(16.0).reshape(4, 4), np.arange(12.0).reshape(4, 3)
    for k in (1, 4):
        view = blended_view(q[:k], box[:k], t_m[:k], np.full(k, 0.7, np.float32))
        np.testing.assert_allclose(view.R, R[0], atol=1e-12)
        np.testing.assert_allclose(view.box_xyxy_px, box[0])
        np.testing.assert_allclose(view.t_m, t_m[0])


@given(seeds)
def test_quaternions_are_those_of_the_rotations(seed: int) -> None:
    turns = Rotation.random(5, random_state=seed)
    R = np.concatenate([turns.as_matrix(), [np.eye(3), np.diag([1.0, -1, -1]), np.diag([-1.0, -1, 1])]])
    back = Rotation.from_quat(np.roll(quaternions_from_rotations(R), -1, axis=1)).as_matrix()
    np.testing.assert_allclose(back, R, atol=1e-12)


SYMMETRIES = {
    "a half turn": Symmetries(discrete=(Pose(np.diag([-1.0, -1, 1]), np.zeros(3)).as_matrix(),)),
    "a bottle": Symmetries(continuous=((np.array([0, 0, 1.0]), np.zeros(3)),)),
    "a can": Symmetries(
        (Pose(np.diag([1.0, -1, -1]), np.zeros(3)).as_matrix(),), ((np.array([0, 0, 1.0]), np.zeros(3)),)
    ),
}


@pytest.mark.parametrize("symmetries", SYMMETRIES.values(), ids=SYMMETRIES.keys())
@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_which_of_equal_views_comes_first_changes_the_blend_by_a_symmetry_alone(
    symmetries: Symmetries, seed: int
) -> None:
    """Two copies of a view are one picture, and rounding says which is best."""
    rng = np.random.default_rng(seed)
    true = Rotation.random(random_state=seed)
    views = true * Rotation.from_rotvec(np.deg2rad(6) * rng.normal(size=(CANDIDATES, 3)))
    every = symmetries.transforms(n_steps=360)[:, :3, :3]
    copies = [views.as_matrix() @ every[rng.integers(len(every), size=CANDIDATES)] for _ in range(2)]
    scores = np.sort(rng.uniform(0.5, 0.9, CANDIDATES))[::-1]
    flips = quaternions_from_rotations(np.stack([np.eye(3), *(m[:3, :3] for m in symmetries.discrete)]))
    axes = np.array([axis for axis, _ in symmetries.continuous]).reshape(-1, 3)
    box, t_m = np.tile([0.0, 0, 9, 9], (CANDIDATES, 1)), np.ones((CANDIDATES, 3))
    one, other = (
        blended_view(nearest_copies(quaternions_from_rotations(R), flips, axes), box, t_m, scores).R for R in copies
    )
    finest = symmetries.transforms(n_steps=20000)[:, :3, :3]
    assert np.rad2deg(rotation_angle_rad(one @ finest, other).min()) < 0.02  # half a step of 20000 is 0.009
    assert np.rad2deg(rotation_angle_rad(one @ finest, true.as_matrix()).min()) < 6


def test_a_view_without_symmetries_is_its_own_copy() -> None:
    _, quaternions = usual_views()
    itself = nearest_copies(quaternions[:5], np.array([[1.0, 0, 0, 0]]), np.zeros((0, 3)))
    np.testing.assert_array_equal(itself, quaternions[:5])
