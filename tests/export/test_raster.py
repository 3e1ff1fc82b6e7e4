"""The z-buffer sees what Embree's rays see, pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from posekit.export.mesh import ObjectModel, model_from_arrays, read_mesh
from posekit.export.raster import RasterScene
from posekit.export.render import EmbreeScene, Renderer, SceneOf, headlight, shade
from posekit.runtime.errors import BackendError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Pose

CAMERA = Intrinsics(np.array([[700.0, 4.0, 59.5], [0.0, 650.0, 63.0], [0.0, 0.0, 1.0]]), 120, 128)
BOTH: tuple[SceneOf, SceneOf] = (EmbreeScene, RasterScene)


def colourful(mesh: trimesh.Trimesh) -> ObjectModel:
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    return model_from_arrays(mesh.vertices, mesh.faces, ((mesh.vertices - low) / (high - low) * 255).astype(np.uint8))


def assert_alike(model: ObjectModel, poses: int, supersample: int) -> None:
    embree, raster = (Renderer({1: model}, scene_of) for scene_of in BOTH)
    rng = np.random.default_rng(0)
    for R in Rotation.random(poses, rng).as_matrix():
        pose = Pose(R, np.array([*rng.uniform(-0.02, 0.02, 2), rng.uniform(0.6, 1.0)]))
        true, seen = (renderer.render([(1, pose)], CAMERA, supersample) for renderer in (embree, raster))
        assert true.mask.sum() > 300
        assert (true.mask != seen.mask).sum() <= 2  # a pixel centre exactly on the outline
        both = true.mask & seen.mask
        same = both & (np.abs(true.depth_m - seen.depth_m) < 1e-5)
        assert same.sum() >= 0.998 * both.sum()  # where two surfaces are one, either may be first
        np.testing.assert_allclose(seen.coords_obj_m[same], true.coords_obj_m[same], atol=2e-5)
        pictures = [shade(rendering, headlight()).astype(int) for rendering in (true, seen)]
        off = np.abs(pictures[0] - pictures[1]).max(axis=2)
        assert np.quantile(off[both], 0.99) <= 2


@pytest.mark.parametrize("supersample", [1, 2])
def test_pictures_are_those_of_embree(supersample: int) -> None:
    """Large triangles, a curved surface, a hole, and a surface that is seen from both sides."""
    assert_alike(colourful(trimesh.creation.box((0.06, 0.1, 0.08))), 6, supersample)
    assert_alike(colourful(trimesh.creation.torus(0.04, 0.015)), 6, supersample)
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.05)
    bowl = ball.submesh([np.flatnonzero(ball.triangles_center[:, 2] < 0)], append=True)
    assert_alike(colourful(bowl), 6, supersample)


def test_a_scan_of_triangles_smaller_than_a_pixel(data_dir: Path) -> None:
    assert_alike(read_mesh(data_dir / "lm_models" / "obj_000009.ply", "mm"), 4, 1)


def test_a_mesh_behind_the_camera_is_not_seen() -> None:
    box = trimesh.creation.box((0.06, 0.1, 0.08))
    scene = RasterScene(box.vertices, box.faces)
    behind = Pose(np.eye(3), np.array([0.0, 0, -0.5]))
    ray, *_ = scene.first_hits(np.array([[59.0, 63.0], [60.0, 63.0]]), behind, CAMERA)
    assert not len(ray)


def test_shadows_are_left_to_embree() -> None:
    box = trimesh.creation.box((0.06, 0.1, 0.08))
    with pytest.raises(BackendError, match="embreex"):
        RasterScene(box.vertices, box.faces).occluded(np.zeros((1, 3)), np.ones((1, 3)))
