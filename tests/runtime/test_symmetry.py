"""Symmetries: BOP's semantics, in metres."""

from __future__ import annotations

import numpy as np
import pytest

from posekit.runtime.errors import InputError
from posekit.runtime.pose import Pose
from posekit.runtime.symmetry import Symmetries, bop_from_symmetries, symmetries_from_bop

HALF_TURN_Z = Pose.from_rotvec([0, 0, np.pi], [0.01, 0.02, 0.0]).as_matrix()
FLIP_X = Pose.from_rotvec([np.pi, 0, 0]).as_matrix()
Z, OFFSET = np.array([0.0, 0.0, 1.0]), np.array([0.02, -0.01, 0.0])


def test_without_symmetry_only_the_identity_is_left() -> None:
    assert Symmetries().is_trivial
    np.testing.assert_array_equal(Symmetries().transforms(), np.eye(4)[None])


def test_identity_comes_first_and_counts_multiply() -> None:
    symmetries = Symmetries(discrete=(FLIP_X,), continuous=((Z, np.zeros(3)),))
    transforms = symmetries.transforms(n_steps=12)
    assert transforms.shape == (24, 4, 4)
    np.testing.assert_array_equal(transforms[0], np.eye(4))
    distances = np.abs(transforms[:, None] - transforms[None]).max(axis=(2, 3)) + np.eye(24)
    assert distances.min() > 0.1  # no transform twice


def test_continuous_transforms_are_a_group_that_keeps_the_axis() -> None:
    transforms = Symmetries(continuous=((2 * Z, OFFSET),)).transforms(n_steps=10)
    on_axis = np.append(OFFSET + 0.3 * Z, 1.0)
    np.testing.assert_allclose(transforms @ on_axis, np.tile(on_axis, (10, 1)), atol=1e-12)
    for product in (transforms[:, None] @ transforms[None]).reshape(-1, 4, 4):
        assert np.abs(transforms - product).max(axis=(1, 2)).min() < 1e-9


def test_step_is_never_wider_than_asked() -> None:
    symmetries = Symmetries(continuous=((Z, np.zeros(3)),))
    assert len(symmetries.transforms(max_angle_step_rad=np.radians(10))) == 36
    assert len(symmetries.transforms(max_angle_step_rad=np.radians(11))) == 33


def test_bop_millimetres_become_metres_and_back() -> None:
    entry = {
        "diameter": 100.0,
        "symmetries_discrete": [[-1, 0, 0, 10, 0, -1, 0, 20, 0, 0, 1, 0, 0, 0, 0, 1]],
        "symmetries_continuous": [{"axis": [0, 0, 1], "offset": [20, -10, 0]}],
    }
    symmetries = symmetries_from_bop(entry)
    np.testing.assert_allclose(symmetries.discrete[0], HALF_TURN_Z, atol=1e-12)
    np.testing.assert_allclose(symmetries.continuous[0][1], OFFSET)
    again = symmetries_from_bop(bop_from_symmetries(symmetries))
    np.testing.assert_allclose(again.transforms(n_steps=7), symmetries.transforms(n_steps=7), atol=1e-12)
    assert bop_from_symmetries(Symmetries()) == {}


@pytest.mark.parametrize(
    "entry",
    [
        {"symmetries_discrete": [[1, 2, 3]]},
        {"symmetries_discrete": [list(range(16))]},
        {"symmetries_continuous": [{"axis": [0, 0, 1]}]},
        {"symmetries_continuous": [{"axis": [0, 0, 0], "offset": [0, 0, 0]}]},
        {"symmetries_continuous": [{"axis": [0, 0], "offset": [0, 0, 0]}]},
    ],
)
def test_malformed_symmetries_are_refused(entry: dict[str, object]) -> None:
    with pytest.raises(InputError):
        symmetries_from_bop(entry)


def test_no_steps_are_refused() -> None:
    with pytest.raises(InputError, match="steps"):
        Symmetries().transforms(n_steps=0)
