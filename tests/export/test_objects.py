"""What a bundle keeps of an object: a thinned mesh to draw, and every vertex to measure on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import trimesh

from posekit.benchmarks.pose_error import add_m, adds_m, scored_object
from posekit.export.objects import MAX_FACES, BundledObject, bundled_object
from posekit.export.recipe import ExportRecipe, ObjectRecipe
from posekit.runtime.bundle import Bundle
from posekit.runtime.object_model import object_model
from posekit.runtime.pose import Array, Pose

# Fine at one end and coarse at the other: thinning moves the mean over vertices.
BALL = trimesh.creation.icosphere(5, radius=0.03)
BAR = trimesh.creation.box((0.2, 0.02, 0.02))
MESH: Any = trimesh.util.concatenate([BALL.apply_translation((0.1, 0, 0)), BAR])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> BundledObject:
    folder = tmp_path_factory.mktemp("objects")
    MESH.export(folder / "club.ply")
    row = ObjectRecipe(1, "club", "club.ply", "m")
    return bundled_object(ExportRecipe("toy", "x", (row,), (), path=str(folder / "toy.toml")), row)


def bundle_of(kept: BundledObject) -> Bundle:
    return cast(Bundle, SimpleNamespace(path="toy.posekit", read=lambda member: memoryview(kept.member)))


def test_errors_are_over_every_vertex_of_the_mesh(kept: BundledObject) -> None:
    scored = scored_object(bundle_of(kept), kept.entry)
    vertices = np.asarray(MESH.vertices, np.float32)
    assert len(MESH.faces) > 3 * MAX_FACES
    np.testing.assert_array_equal(np.unique(scored.vertices_m, axis=0), np.unique(vertices, axis=0))
    assert len(scored.vertices_m) == len(vertices)
    estimate, true = Pose.from_rotvec([0, 0, 0.1], [0, 0, 0.5]), Pose(np.eye(3), np.array([0, 0, 0.5]))
    # Published ADD: a turn by 0.1 rad moves a vertex by 2 sin(0.05) times its distance from the axis.
    published = 2 * np.sin(0.05) * np.linalg.norm(vertices[:, :2].astype(float), axis=1).mean()
    assert add_m(estimate, true, scored.vertices_m) == pytest.approx(published, rel=1e-6)
    assert adds_m(estimate, true, scored) < published
    thinned: Array = object_model(bundle_of(kept), kept.entry).vertices_m
    assert add_m(estimate, true, thinned) != pytest.approx(published, rel=1e-3)


def test_what_is_drawn_is_thinned(kept: BundledObject) -> None:
    assert len(object_model(bundle_of(kept), kept.entry).faces) <= 1.1 * MAX_FACES
