"""The mesh and symmetries that a bundle carries per object."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import save

from posekit.runtime.bundle import Bundle
from posekit.runtime.errors import BundleError
from posekit.runtime.manifest import ContinuousSymmetry, ObjectEntry
from posekit.runtime.object_model import object_model, object_points_m, symmetries_from_entry

VERTICES = np.eye(3, dtype=np.float32)
FACES = np.array([[0, 1, 2]], np.int32)
FLIP = (-1.0, 0, 0, 0.02, 0, -1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1)
ENTRY = ObjectEntry(1, "x", 0.1, (0, 0, 0), (1, 1, 1), "x.safetensors", (FLIP,), (ContinuousSymmetry((0, 0, 1)),))


def bundle_with(**arrays: Any) -> Bundle:
    content = memoryview(save(arrays))
    return cast(Bundle, SimpleNamespace(path="toy.posekit", read=lambda member: content))


def test_the_mesh_of_an_object_is_read() -> None:
    model = object_model(bundle_with(vertices_m=VERTICES, faces=FACES), ENTRY)
    np.testing.assert_array_equal(model.vertices_m, VERTICES)
    np.testing.assert_array_equal(model.faces, FACES)


@pytest.mark.parametrize(
    "arrays",
    [
        {"vertices_m": VERTICES},
        {"vertices_m": VERTICES, "faces": FACES + 1},
        {"vertices_m": VERTICES, "faces": FACES - 1},
        {"vertices_m": VERTICES[:, :2].copy(), "faces": FACES},
        {"vertices_m": VERTICES * np.nan, "faces": FACES},
    ],
)
def test_other_members_are_refused_by_name(arrays: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"x\.safetensors"):
        object_model(bundle_with(**arrays), ENTRY)


def test_all_vertices_are_beside_the_thinned_mesh() -> None:
    points_m = np.arange(12, dtype=np.float32).reshape(4, 3)
    bundle = bundle_with(points_m=points_m, vertices_m=VERTICES, faces=FACES)
    np.testing.assert_array_equal(object_points_m(bundle, ENTRY), points_m)
    np.testing.assert_array_equal(object_model(bundle, ENTRY).vertices_m, VERTICES)


@pytest.mark.parametrize("points", [{}, {"points_m": VERTICES[:0]}, {"points_m": VERTICES[:, :2].copy()}])
def test_errors_are_not_measured_on_a_thinned_mesh(points: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"x\.safetensors.*points_m .*Export the bundle again"):
        object_points_m(bundle_with(vertices_m=VERTICES, faces=FACES, **points), ENTRY)


def test_symmetries_are_those_of_the_manifest() -> None:
    symmetries = symmetries_from_entry(ENTRY)
    np.testing.assert_allclose(symmetries.discrete[0][0, 3], 0.02)
    np.testing.assert_array_equal(symmetries.continuous[0][0], [0, 0, 1])
