"""The three reference objects: repeatable, distinct from every side, with the symmetries they claim."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from posekit.export.reference.clutter import FIRST_CLUTTER_ID, SHAPES, clutter_models
from posekit.export.reference.objects import reference_objects
from posekit.export.render import Renderer
from posekit.export.viewsphere import view_rotations
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Pose, rotation_from_rotvec

CAMERA = Intrinsics(np.array([[300.0, 0, 39.5], [0, 300.0, 39.5], [0, 0, 1.0]]), 80, 80)


def test_objects_are_rebuilt_alike() -> None:
    first = reference_objects()
    reference_objects.cache_clear()
    again = reference_objects()
    assert [o.name for o in first.values()] == ["bracket", "duckling", "bottle"]
    for object_id, thing in first.items():
        np.testing.assert_array_equal(thing.model.vertices_m, again[object_id].model.vertices_m)
        np.testing.assert_array_equal(thing.model.colours_rgb_u8, again[object_id].model.colours_rgb_u8)


@pytest.mark.parametrize("object_id", [1, 2, 3])
def test_size_and_origin(object_id: int) -> None:
    model = reference_objects()[object_id].model
    assert 0.15 <= model.diameter_m <= 0.20
    assert 4000 <= len(model.faces) <= 15000
    np.testing.assert_allclose(model.bbox_centre_m, 0.0, atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(model.normals, axis=1), 1.0, atol=1e-3)


def test_bottle_turns_freely_but_has_a_top() -> None:
    bottle = reference_objects()[3]
    tree = cKDTree(bottle.model.vertices_m)
    for transform in bottle.symmetries.transforms(n_steps=7):
        moved = bottle.model.vertices_m @ transform[:3, :3].T + transform[:3, 3]
        distance, nearest = tree.query(moved)
        assert distance.max() < 2e-3  # one facet
        level = np.abs(bottle.model.vertices_m[nearest, 2] - bottle.model.vertices_m[:, 2]) < 1e-5
        np.testing.assert_array_equal(bottle.model.colours_rgb_u8[nearest][level], bottle.model.colours_rgb_u8[level])
    upside_down = bottle.model.vertices_m @ rotation_from_rotvec([np.pi, 0, 0]).T
    assert tree.query(upside_down)[0].max() > 0.01


@pytest.mark.parametrize("object_id", [1, 2])
def test_no_two_views_of_an_unsymmetric_object_look_alike(object_id: int) -> None:
    """Pictures from 42 directions x 4 turns differ by far more than neighbouring pixels would explain."""
    thing = reference_objects()[object_id]
    assert thing.symmetries.is_trivial
    renderer = Renderer({object_id: thing.model})
    views = [Pose(R, np.array([0, 0, 0.8])) for R in view_rotations(42, 4)]
    pictures = np.stack([renderer.render([(object_id, v)], CAMERA).albedo_rgb_u8 for v in views]).astype(np.float32)
    flat = pictures.reshape(len(views), -1)
    squared = (flat**2).sum(axis=1)
    apart = np.sqrt(np.maximum(squared[:, None] + squared[None] - 2 * flat @ flat.T, 0)) / np.sqrt(squared.mean())
    assert apart[~np.eye(len(views), dtype=bool)].min() > 0.35


def test_clutter_is_repeatable_varied_and_centred() -> None:
    clutter = clutter_models(len(SHAPES), seed=1)
    again = clutter_models(len(SHAPES), seed=1)
    other = clutter_models(len(SHAPES), seed=2)
    assert list(clutter) == list(range(FIRST_CLUTTER_ID, FIRST_CLUTTER_ID + len(SHAPES)))
    for object_id, model in clutter.items():
        np.testing.assert_array_equal(model.vertices_m, again[object_id].vertices_m)
        assert not np.array_equal(model.colours_rgb_u8, other[object_id].colours_rgb_u8)
        np.testing.assert_allclose(model.bbox_centre_m, 0.0, atol=1e-6)
        assert 0.02 < model.diameter_m < 0.23
