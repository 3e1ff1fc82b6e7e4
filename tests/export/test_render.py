"""The ray renderer: exact geometry, any pinhole, nearest surface wins."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from posekit.export.mesh import ObjectModel, Texture, model_from_arrays
from posekit.export.render import (
    SHADOW_OFFSET_M,
    Lighting,
    Renderer,
    Rendering,
    encoded,
    headlight,
    projected_box,
    projected_window,
    random_lighting,
    ray_map,
    shade,
    shaded_linear,
)
from posekit.runtime.crop import CropPreset, crop_warp
from posekit.runtime.errors import InputError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Array, Pose

CAMERA = Intrinsics(np.array([[200.0, 3.0, 63.0], [0.0, 190.0, 50.0], [0.0, 0.0, 1.0]]), 128, 96)
RADIUS_M = 0.05
HALF_M = np.array([0.03, 0.04, 0.06])
SPHERE, BOX, WALL = 1, 2, 3


def painted(mesh: trimesh.Trimesh, colour: tuple[int, int, int]) -> ObjectModel:
    return model_from_arrays(mesh.vertices, mesh.faces, np.tile(np.array(colour, np.uint8), (len(mesh.vertices), 1)))


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    wall = model_from_arrays([[-2.0, -2, 0], [2.0, -2, 0], [2.0, 2, 0], [-2.0, 2, 0]], [[0, 1, 2], [0, 2, 3]])
    return Renderer(
        {
            SPHERE: painted(trimesh.creation.icosphere(subdivisions=5, radius=RADIUS_M), (200, 40, 40)),
            BOX: painted(trimesh.creation.box(extents=2 * HALF_M), (40, 200, 40)),
            WALL: wall,
        }
    )


def random_pose(seed: int) -> Pose:
    rng = np.random.default_rng(seed)
    R = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    return Pose(R, np.array([*rng.uniform(-0.06, 0.06, 2), rng.uniform(0.3, 0.8)]))


def assert_geometry_is_exact(seen: Rendering, poses: list[Pose]) -> None:
    """coords -> camera -> pixel and depth, for every pixel that shows something."""
    rows, columns = np.nonzero(seen.mask)
    assert len(rows) > 20
    for k, pose in enumerate(poses):
        chosen = seen.object_index[rows, columns] == k
        points = pose.apply(seen.coords_obj_m[rows[chosen], columns[chosen]])
        pixels = seen.intrinsics.project(points)
        np.testing.assert_allclose(pixels, np.stack([columns[chosen], rows[chosen]], axis=-1), atol=1e-3)
        np.testing.assert_allclose(points[:, 2], seen.depth_m[rows[chosen], columns[chosen]], atol=1e-6)


@given(st.integers(0, 10**6))
def test_coordinates_reproject_to_their_pixels(renderer: Renderer, seed: int) -> None:
    poses = [random_pose(seed), random_pose(seed + 1)]
    assert_geometry_is_exact(renderer.render([(SPHERE, poses[0]), (BOX, poses[1])], CAMERA), poses)


def test_sphere_has_its_analytic_silhouette_depth_and_normals(renderer: Renderer) -> None:
    centre = np.array([0.02, -0.03, 0.4])
    seen = renderer.render([(SPHERE, Pose(np.eye(3), centre))], CAMERA)
    rays = ray_map(CAMERA)
    unit = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    along = unit @ centre
    missed_by = np.sqrt(np.maximum(centre @ centre - along**2, 0))
    clear = np.abs(missed_by - RADIUS_M) > 2e-4  # the mesh is a little smaller than the sphere
    np.testing.assert_array_equal(seen.mask[clear], (missed_by < RADIUS_M)[clear])
    inside = missed_by < RADIUS_M - 2e-3
    depth = ((along - np.sqrt(np.maximum(RADIUS_M**2 - missed_by**2, 0)))[..., None] * unit)[..., 2]
    np.testing.assert_allclose(seen.depth_m[inside], depth[inside], atol=2e-4)
    np.testing.assert_allclose(
        seen.normal_cam[inside], (rays * depth[..., None] - centre)[inside] / RADIUS_M, atol=0.02
    )


def test_box_face_is_flat_and_as_wide_as_the_pinhole_says(renderer: Renderer) -> None:
    seen = renderer.render([(BOX, Pose(np.eye(3), np.array([0, 0, 0.5])))], CAMERA)
    near = 0.5 - HALF_M[2]
    np.testing.assert_allclose(seen.depth_m[seen.mask], near, atol=1e-6)
    wide, high = 2 * HALF_M[0] * CAMERA.K[0, 0] / near, 2 * HALF_M[1] * CAMERA.K[1, 1] / near
    assert seen.mask[50].sum() == pytest.approx(wide, abs=1)
    assert seen.mask[:, 63].sum() == pytest.approx(high, abs=1)
    assert (seen.albedo_rgb_u8[seen.mask] == (40, 200, 40)).all()
    assert not seen.albedo_rgb_u8[~seen.mask].any()
    assert not seen.depth_m[~seen.mask].any()


@given(st.integers(0, 10**6), st.sampled_from([SPHERE, BOX]))
def test_mask_fills_the_projected_box(renderer: Renderer, seed: int, object_id: int) -> None:
    pose = random_pose(seed)
    box = projected_box(renderer.models[object_id], pose, CAMERA)
    shift = np.floor(box[:2]) - 2
    K = CAMERA.K.copy()
    K[:2, 2] -= shift
    width_px, height_px = (np.ceil(box[2:]) - shift + 3).astype(int)
    camera = Intrinsics(K, int(width_px), int(height_px))
    mask = renderer.render([(object_id, pose)], camera).mask
    columns, rows = np.flatnonzero(mask.any(axis=0)) + shift[0], np.flatnonzero(mask.any(axis=1)) + shift[1]
    seen = [columns[0] - 0.5, rows[0] - 0.5, columns[-1] + 0.5, rows[-1] + 0.5]
    tolerance = 1.0 if object_id == SPHERE else 3.0  # a sharp corner can end between pixel centres
    np.testing.assert_allclose(seen, box, atol=tolerance)
    outermost = np.array([-columns[0], -rows[0], columns[-1], rows[-1]])
    assert (outermost <= box * (-1, -1, 1, 1) + 1e-3).all()  # never outside


def test_moved_principal_point_is_a_crop_of_the_full_picture(renderer: Renderer) -> None:
    placements = [(SPHERE, random_pose(4)), (BOX, random_pose(5))]
    full = renderer.render(placements, CAMERA)
    K = CAMERA.K.copy()
    K[:2, 2] -= (37, 22)
    part = renderer.render(placements, Intrinsics(K, 40, 30))
    window = np.s_[22:52, 37:77]
    np.testing.assert_array_equal(part.object_index, full.object_index[window])
    np.testing.assert_allclose(part.coords_obj_m, full.coords_obj_m[window], atol=1e-6)
    np.testing.assert_array_equal(part.albedo_rgb_u8, full.albedo_rgb_u8[window])


def test_crop_camera_of_a_preset_keeps_the_geometry_exact(renderer: Renderer) -> None:
    pose = Pose(np.eye(3), np.array([-0.2, 0.1, 0.6]))
    warp = crop_warp(projected_box(renderer.models[BOX], pose, CAMERA), CropPreset("square", 64, pad=1.5), (128, 96))
    K = np.vstack([warp, [0, 0, 1]]) @ CAMERA.K
    assert not 0 < K[0, 2] < 64  # far off the patch
    seen = renderer.render([(BOX, pose)], Intrinsics(K, 64, 64))
    assert_geometry_is_exact(seen, [pose])
    assert seen.mask.any(axis=0).sum() in range(30, 46)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_nearest_object_wins_in_either_order(renderer: Renderer, order: tuple[int, int]) -> None:
    placements = [(SPHERE, Pose(np.eye(3), np.array([0, 0, 0.4]))), (BOX, Pose(np.eye(3), np.array([0, 0, 0.6])))]
    seen = renderer.render([placements[k] for k in order], CAMERA)
    assert placements[order[seen.object_index[50, 63]]][0] == SPHERE
    alone = [renderer.render([p], CAMERA) for p in placements]
    front = np.minimum(*(np.where(r.mask, r.depth_m, np.inf) for r in alone))
    np.testing.assert_array_equal(np.where(seen.mask, seen.depth_m, np.inf), front)


def test_objects_behind_or_beside_the_camera_are_not_seen(renderer: Renderer) -> None:
    away = [np.array([0, 0, -0.5]), np.array([5.0, 0, 0.5]), np.array([0, -5.0, 0.5])]
    for t_m in away:
        assert projected_window(renderer.models[BOX], Pose(np.eye(3), t_m), CAMERA) is None
        assert not renderer.render([(BOX, Pose(np.eye(3), t_m))], CAMERA).mask.any()


def test_camera_inside_an_object_sees_its_inner_side(renderer: Renderer) -> None:
    seen = renderer.render([(BOX, Pose.identity())], CAMERA)
    assert seen.mask.all()
    assert_geometry_is_exact(seen, [Pose.identity()])
    assert (np.einsum("hwc,hwc->hw", seen.normal_cam, ray_map(CAMERA)) < 0).all()


def test_box_of_an_object_that_reaches_behind_the_camera_is_refused(renderer: Renderer) -> None:
    with pytest.raises(InputError, match="behind"):
        projected_box(renderer.models[BOX], Pose.identity(), CAMERA)


def test_supersampling_averages_colour_and_leaves_geometry_alone() -> None:
    strips, x = 150, np.linspace(-0.1, 0.1, 151)  # each narrower than a pixel, alternately black and white
    corners = [[(x[k], -0.1, 0), (x[k + 1], -0.1, 0), (x[k + 1], 0.1, 0), (x[k], 0.1, 0)] for k in range(strips)]
    faces = [(4 * k + a, 4 * k + b, 4 * k + c) for k in range(strips) for a, b, c in ((0, 1, 2), (0, 2, 3))]
    colours = np.repeat(255 * (np.arange(strips) % 2), 4)[:, None].repeat(3, axis=1)
    renderer = Renderer({1: model_from_arrays(np.reshape(corners, (-1, 3)), faces, colours)})
    plain, fine = (renderer.render([(1, Pose(np.eye(3), np.array([0, 0, 0.5])))], CAMERA, s) for s in (1, 8))
    np.testing.assert_array_equal(plain.object_index, fine.object_index)
    np.testing.assert_array_equal(plain.coords_obj_m, fine.coords_obj_m)
    rough, smooth = (r.albedo_rgb_u8[30:70, 40:90].astype(float) for r in (plain, fine))
    assert smooth.mean() == pytest.approx(127.5, abs=5)
    assert smooth.std() < 0.4 * rough.std()


def test_far_textures_are_looked_up_without_aliasing() -> None:
    image = np.zeros((256, 256, 3), np.uint8)
    image[:, ::2] = 255
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    corners = [[-0.1, 0.1, 0], [0.1, 0.1, 0], [0.1, -0.1, 0], [-0.1, -0.1, 0]]
    square = model_from_arrays(corners, [[0, 1, 2], [0, 2, 3]], texture=Texture(uv, image))
    seen = Renderer({1: square}).render([(1, Pose(np.eye(3), np.array([0, 0, 0.5])))], CAMERA)
    np.testing.assert_allclose(seen.albedo_rgb_u8[30:70, 40:90], 127.5, atol=1)


def test_texture_is_upright_and_not_mirrored() -> None:
    """v points up: the image's upper left corner is seen at the upper left of a square that stands before the camera."""
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4, :4] = (255, 0, 0)
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    corners = [[-0.1, 0.1, 0], [0.1, 0.1, 0], [0.1, -0.1, 0], [-0.1, -0.1, 0]]  # y down: the first is lower left
    square = model_from_arrays(corners, [[0, 1, 2], [0, 2, 3]], texture=Texture(uv, image))
    seen = Renderer({1: square}).render([(1, Pose(np.eye(3), np.array([0, 0, 0.6])))], CAMERA)
    assert seen.albedo_rgb_u8[35, 45].tolist() == [255, 0, 0]
    assert not seen.albedo_rgb_u8[65, 45].any()
    assert not seen.albedo_rgb_u8[35, 80].any()


def test_shadow_falls_where_geometry_says(renderer: Renderer) -> None:
    """A sphere before a wall, light from the side: the shadow's centre follows by similar triangles."""
    to_light = np.array([0.6, 0.0, -0.8])
    placements = [(SPHERE, Pose(np.eye(3), np.array([0.0, 0.0, 0.6]))), (WALL, Pose(np.eye(3), np.array([0, 0, 0.8])))]
    x = np.linspace(-0.4, 0.4, 801)
    points = np.stack([x, np.zeros_like(x), np.full_like(x, 0.8 - SHADOW_OFFSET_M)], axis=-1)
    dark = x[renderer.shadowed(placements, points, to_light)]
    assert dark.mean() == pytest.approx(-0.2 * 0.6 / 0.8, abs=2e-3)
    assert np.ptp(dark) == pytest.approx(2 * RADIUS_M / 0.8, abs=3e-3)
    assert not renderer.shadowed(placements[1:], points, to_light).any()


def test_lambert_on_a_frontal_wall(renderer: Renderer) -> None:
    seen = renderer.render([(WALL, Pose(np.eye(3), np.array([0, 0, 1.0])))], CAMERA)
    tilted = np.array([[np.sin(np.radians(60)), 0, -np.cos(np.radians(60))]])
    lit = shaded_linear(seen, Lighting(tilted, np.array([[1.0, 0.5, 0.0]]), np.full(3, 0.1)))
    albedo = (160 / 255) ** 2.2
    np.testing.assert_allclose(lit[50, 63], albedo * np.array([0.6, 0.35, 0.1]), rtol=1e-4)
    dark = shaded_linear(seen, Lighting(tilted, np.ones((1, 3)), np.zeros(3)), np.zeros((1, 96, 128), np.float32))
    assert not dark.any()


def test_highlight_sits_where_light_mirrors_into_the_eye(renderer: Renderer) -> None:
    seen = renderer.render([(SPHERE, Pose(np.eye(3), np.array([0, 0, 0.4])))], CAMERA)
    light = Lighting(np.array([[0.0, 0.0, -1.0]]), np.ones((1, 3)), np.zeros(3), specular=1.0, shininess=80.0)
    matte = Lighting(light.to_light, light.colours, light.ambient)
    gloss = (shaded_linear(seen, light) - shaded_linear(seen, matte)).sum(axis=-1)
    peak = np.unravel_index(gloss.argmax(), gloss.shape)
    np.testing.assert_allclose(peak, (50, 63), atol=2)


def test_unlit_albedo_survives_encoding() -> None:
    levels = np.linspace(0, 1, 256, dtype=np.float32)[None, :, None] * np.ones(3, np.float32)
    np.testing.assert_array_equal(encoded(levels**2.2)[0, :, 0], np.arange(256))


def test_random_lights_are_repeatable_and_from_the_camera_side() -> None:
    draws = [random_lighting(np.random.default_rng(s)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0].to_light, draws[1].to_light)
    assert draws[0].ambient.tolist() != draws[2].ambient.tolist()
    mean: Array = np.concatenate([random_lighting(np.random.default_rng(s)).to_light for s in range(200)]).mean(axis=0)
    assert mean[2] < -0.4
    assert mean[1] < -0.2


def test_shade_leaves_nothing_black(renderer: Renderer) -> None:
    seen = renderer.render([(SPHERE, random_pose(1))], CAMERA)
    picture = shade(seen, headlight())
    assert picture.dtype == np.uint8
    assert not picture[~seen.mask].any()
    assert picture[seen.mask].max() > 100


def test_distorted_camera_and_unknown_object_are_refused(renderer: Renderer) -> None:
    bent = Intrinsics(CAMERA.K, 128, 96, (0.1, 0.0, 0.0, 0.0))
    with pytest.raises(InputError, match="distortion"):
        renderer.render([(BOX, random_pose(0))], bent)
    with pytest.raises(InputError, match="99"):
        renderer.render([(99, random_pose(0))], CAMERA)
