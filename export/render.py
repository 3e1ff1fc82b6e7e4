"""Pictures of object models on the CPU: primary and shadow rays through Embree, shading in NumPy.

Where Embree has no wheel, primary rays go through a z-buffer (posekit.export.raster).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from posekit.export.mesh import ObjectModel
from posekit.export.raster import Hits, RasterScene
from posekit.runtime.errors import InputError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Array, Pose, rotation_from_rotvec

Floats = npt.NDArray[np.float32]
Image = npt.NDArray[np.uint8]
Placement = tuple[int, Pose]

DISPLAY_GAMMA = 2.2
NEAR_M = 1e-3
IDENTITY = np.eye(3)
SHADOW_OFFSET_M = 1e-4  # lifts a shadow ray off the surface it starts on
LINEAR_FROM_U8 = ((np.arange(256) / 255.0) ** DISPLAY_GAMMA).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Rendering:
    """What a pinhole camera sees, per pixel; zeros (index -1) where there is nothing.

    albedo_rgb_u8: (H, W, 3).   normal_cam: (H, W, 3) float32, unit, towards the camera.
    depth_m: (H, W) float32, z in the camera.   coords_obj_m: (H, W, 3) float32, in the frame of the seen object.
    object_index: (H, W) int32, which of the placements.
    """

    albedo_rgb_u8: Image
    normal_cam: Floats
    depth_m: Floats
    coords_obj_m: Floats
    object_index: npt.NDArray[np.int32]
    intrinsics: Intrinsics

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.object_index >= 0)


@dataclass(frozen=True, eq=False)
class Lighting:
    """Distant lights. Linear intensities, 1 = a white surface facing the light is white.

    to_light: (L, 3) unit vectors in the camera frame.   colours: (L, 3).   ambient: (3,).
    """

    to_light: Array
    colours: Array
    ambient: Array
    specular: float = 0.0
    shininess: float = 20.0


class Scene(Protocol):
    """The rays of one mesh, in its own frame."""

    def first_hits(self, pixels: Array, cam_from_obj: Pose, intrinsics: Intrinsics) -> Hits: ...

    def occluded(
        self, origins: npt.NDArray[np.floating], directions: npt.NDArray[np.floating]
    ) -> npt.NDArray[np.bool_]: ...


class EmbreeScene:
    """One mesh, ray-traced. Arguments and results as of `RasterScene`."""

    def __init__(self, vertices_m: npt.NDArray[np.floating], faces: npt.NDArray[np.integer]) -> None:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene as Embree

        self._scene = Embree(robust=True)  # no rays slip through the edges between triangles
        TriangleMesh(self._scene, np.ascontiguousarray(vertices_m[faces]))

    def first_hits(self, pixels: Array, cam_from_obj: Pose, intrinsics: Intrinsics) -> Hits:
        """Directions keep z = 1, so Embree's distance is the depth."""
        u, v, one = (cam_from_obj.R.T @ np.linalg.inv(intrinsics.K)).T
        directions = (pixels[:, :1] * u + (pixels[:, 1:] * v + one)).astype(np.float32)
        origins = np.empty_like(directions)
        origins[:] = cam_from_obj.inverse().t_m
        found = self._scene.run(origins, directions, output=1)
        ray = np.flatnonzero(found["primID"] >= 0)
        return ray, found["tfar"][ray].astype(np.float64), found["primID"][ray], found["u"][ray], found["v"][ray]

    def occluded(
        self, origins: npt.NDArray[np.floating], directions: npt.NDArray[np.floating]
    ) -> npt.NDArray[np.bool_]:
        """(N,) bool: whether a ray meets the mesh anywhere."""
        return np.asarray(self._scene.run(origins, directions, query="OCCLUDED") != -1)


SceneOf = Callable[[npt.NDArray[np.floating], npt.NDArray[np.integer]], Scene]


def scene_of(vertices_m: npt.NDArray[np.floating], faces: npt.NDArray[np.integer]) -> Scene:
    """Embree's where it is installed."""
    return (EmbreeScene if find_spec("embreex") else RasterScene)(vertices_m, faces)


class Renderer:
    """Draws placed objects. One scene per object, built once."""

    def __init__(self, models: Mapping[int, ObjectModel], scene_of: SceneOf = scene_of) -> None:
        self.models = dict(models)
        self._scenes = {object_id: scene_of(m.vertices_m, m.faces) for object_id, m in self.models.items()}
        self._texels_per_m = {object_id: _texels_per_m(model) for object_id, model in self.models.items()}

    def render(self, placements: Sequence[Placement], intrinsics: Intrinsics, supersample: int = 1) -> Rendering:
        """Render placements (object_id, cam_from_obj); the nearest surface wins.

        Geometry is that of the ray through each pixel's centre. With supersample s > 1 the albedo is the mean over
        those of s x s rays in the pixel that meet the same object. Raises InputError for a distorted camera or an unknown
        object.
        """
        _check(placements, intrinsics, self.models)
        h, w = intrinsics.height_px, intrinsics.width_px
        depth = np.zeros((h, w), np.float32)
        normal, coords = np.zeros((h, w, 3), np.float32), np.zeros((h, w, 3), np.float32)
        albedo, index = np.zeros((h, w, 3), np.uint8), np.full((h, w), -1, np.int32)
        for i, (object_id, cam_from_obj) in enumerate(placements):
            window = projected_window(self.models[object_id], cam_from_obj, intrinsics)
            if window is None:
                continue
            hits = self._hits(object_id, cam_from_obj, intrinsics, pixel_grid(window))
            before = depth[window].ravel()[hits.ray]
            nearer = (before == 0) | (hits.depth_m < before)
            hits = hits.subset(nearer)
            rows, columns = np.divmod(hits.ray, window[1].stop - window[1].start)
            at = (rows + window[0].start, columns + window[1].start)
            depth[at], index[at], coords[at] = hits.depth_m, i, hits.points_obj_m
            normal[at] = self._normals(object_id, cam_from_obj, hits)
            albedo[at] = self._albedo(
                object_id, hits, intrinsics, cam_from_obj, supersample, np.stack(at[::-1], axis=-1)
            )
        return Rendering(albedo, normal, depth, coords, index, intrinsics)

    def shadowed(
        self, placements: Sequence[Placement], points_cam_m: npt.NDArray[Any], to_light: npt.NDArray[Any]
    ) -> npt.NDArray[np.bool_]:
        """(N,) bool: does any placed object stand between a point (N, 3) and the distant light at to_light (3,), unit?

        Start the points slightly off their own surface (SHADOW_OFFSET_M).
        """
        points, light = np.asarray(points_cam_m, np.float32), np.asarray(to_light, np.float32)
        along_light, squared = points @ light, np.einsum("ij,ij->i", points, points)
        dark = np.zeros(len(points), np.bool_)
        for object_id, cam_from_obj in placements:
            model = self.models[object_id]
            centre = cam_from_obj.apply(model.bbox_centre_m).astype(np.float32)
            radius = float(np.linalg.norm(model.extents_m)) / 2
            along = float(centre @ light) - along_light
            missed_by = float(centre @ centre) - 2 * (points @ centre) + squared - along**2
            near = np.flatnonzero((missed_by < radius**2 + 1e-5) & (along > -radius) & ~dark)
            if near.size:
                R = cam_from_obj.R.astype(np.float32)
                start = (points[near] - cam_from_obj.t_m.astype(np.float32)) @ R
                directions = np.tile(light @ R, (near.size, 1))
                dark[near] = self._scenes[object_id].occluded(start, directions)
        return dark

    def _hits(self, object_id: int, cam_from_obj: Pose, intrinsics: Intrinsics, pixels: Array) -> _Hits:
        """First hits of the rays through pixels (N, 2)."""
        ray, depth, face, u, v = self._scenes[object_id].first_hits(pixels, cam_from_obj, intrinsics)
        along_u, along_v, one = (cam_from_obj.R.T @ np.linalg.inv(intrinsics.K)).T
        directions = pixels[ray, :1] * along_u + (pixels[ray, 1:] * along_v + one)
        points = cam_from_obj.inverse().t_m + depth[:, None] * directions
        return _Hits(
            **vars(self._surface(object_id, face, u, v)),
            ray=ray,
            depth_m=depth.astype(np.float32),
            points_obj_m=points.astype(np.float32),
            directions_obj=directions.astype(np.float32),
        )

    def _surface(self, object_id: int, face: npt.NDArray[np.intp], u: Array, v: Array) -> _Surface:
        weights = np.stack([1 - u - v, u, v], axis=-1).astype(np.float32)
        return _Surface(self.models[object_id].faces[face], weights)

    def _normals(self, object_id: int, cam_from_obj: Pose, hits: _Hits) -> Floats:
        normals = hits.interpolated(self.models[object_id].normals)
        away = np.einsum("ij,ij->i", normals, hits.directions_obj) > 0
        normals[away] *= -1
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        return np.asarray(normals @ cam_from_obj.R.T.astype(np.float32))

    def _albedo(
        self,
        object_id: int,
        hits: _Hits,
        intrinsics: Intrinsics,
        cam_from_obj: Pose,
        supersample: int,
        pixels: npt.NDArray[Any],
    ) -> Image:
        """(N, 3) colours of hits at pixels (N, 2): at the centre, or the mean over s x s rays."""
        if not len(hits.ray):
            return np.zeros((0, 3), np.uint8)
        level = self._mip_level(object_id, hits, intrinsics, supersample)
        if supersample == 1:
            return self._colours(object_id, hits, level)
        steps = (np.arange(supersample) + 0.5) / supersample - 0.5
        shifts = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
        total = np.zeros((len(pixels), 3), np.float32)
        count = np.zeros(len(pixels), np.float32)
        for shift in shifts:
            ray, _, face, u, v = self._scenes[object_id].first_hits(pixels + shift, cam_from_obj, intrinsics)
            total[ray] += self._colours(object_id, self._surface(object_id, face, u, v), level)
            count[ray] += 1
        missed = count == 0  # a sliver thinner than the sub-pixel grid: only the centre ray met it
        if missed.any():
            total[missed] = self._colours(object_id, hits.subset(missed), level)
        return np.asarray(total / np.maximum(count, 1)[:, None] + 0.5, np.float32).astype(np.uint8)

    def _colours(self, object_id: int, at: _Surface, level: int) -> Image:
        model = self.models[object_id]
        if model.texture is not None:
            return model.texture.lookup(at.interpolated(model.texture.uv), level)
        return (at.interpolated(model.colours_rgb_u8) + 0.5).astype(np.uint8)

    def _mip_level(self, object_id: int, hits: _Hits, intrinsics: Intrinsics, supersample: int) -> int:
        rays_per_m = supersample * float(intrinsics.K[0, 0]) / float(np.median(hits.depth_m))
        return int(max(0.0, np.floor(np.log2(max(self._texels_per_m[object_id] / rays_per_m, 1.0)) + 0.5)))


@dataclass(frozen=True, eq=False)
class _Surface:
    """Points of a mesh. corners: (N, 3) vertices of their faces.  weights: (N, 3) of these."""

    corners: npt.NDArray[np.int32]
    weights: Floats

    def interpolated(self, per_vertex: npt.NDArray[Any]) -> Floats:
        """(V, C) -> (N, C) float32."""
        a, b, c = (per_vertex[self.corners[:, k]] for k in range(3))
        w = self.weights
        return np.asarray(w[:, :1] * a + w[:, 1:2] * b + w[:, 2:] * c, np.float32)


@dataclass(frozen=True, eq=False)
class _Hits(_Surface):
    ray: npt.NDArray[np.intp]
    depth_m: Floats
    points_obj_m: Floats
    directions_obj: Floats

    def subset(self, chosen: npt.NDArray[np.bool_]) -> _Hits:
        return _Hits(**{name: getattr(self, name)[chosen] for name in self.__dataclass_fields__})


def projected_window(model: ObjectModel, cam_from_obj: Pose, intrinsics: Intrinsics) -> tuple[slice, slice] | None:
    """(rows, columns) of the image that can show the object; None when it is behind the camera or outside."""
    low, high = model.bbox_min_m, model.bbox_max_m
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True)), axis=-1).reshape(-1, 3)
    seen = cam_from_obj.apply(corners)
    w, h = intrinsics.width_px, intrinsics.height_px
    if (seen[:, 2] <= NEAR_M).all():
        return None
    if (seen[:, 2] <= NEAR_M).any():
        return slice(0, h), slice(0, w)
    uv = intrinsics.project(seen)
    x0, y0 = np.maximum(np.floor(uv.min(axis=0)), 0).astype(int)
    x1, y1 = np.minimum(np.ceil(uv.max(axis=0)) + 1, (w, h)).astype(int)
    return (slice(int(y0), int(y1)), slice(int(x0), int(x1))) if x0 < x1 and y0 < y1 else None


def projected_box(model: ObjectModel, cam_from_obj: Pose, intrinsics: Intrinsics) -> Array:
    """(4,) x0 y0 x1 y1 of the whole silhouette, px, not clipped to the image. The object is in front of the camera."""
    seen = cam_from_obj.apply(model.vertices_m)
    if float(seen[:, 2].min()) <= NEAR_M:
        raise InputError(
            "object pose", got="an object that reaches behind the camera", expected="z > 0", remedy="Move it away."
        )
    uv = intrinsics.project(seen)
    return np.concatenate([uv.min(axis=0), uv.max(axis=0)])


def pixel_grid(window: tuple[slice, slice]) -> Array:
    """Pixel centres of (rows, columns), row by row, (N, 2) as (u, v)."""
    u, v = np.meshgrid(np.arange(window[1].start, window[1].stop), np.arange(window[0].start, window[0].stop))
    return np.stack([u.ravel(), v.ravel()], axis=-1).astype(np.float64)


def ray_map(intrinsics: Intrinsics, turned: npt.ArrayLike = IDENTITY) -> Array:
    """(H, W, 3): the rays (z = 1) of all pixel centres, each multiplied by the matrix `turned` (3, 3).

    One outer sum of rows and columns: several times faster than a product per pixel.
    """
    u, v, one = (np.asarray(turned, np.float64) @ np.linalg.inv(intrinsics.K)).T
    rows = np.arange(intrinsics.height_px)[:, None, None] * v + one
    return np.asarray(np.arange(intrinsics.width_px)[None, :, None] * u + rows)


def shaded_linear(rendering: Rendering, lighting: Lighting, light_visibility: Floats | None = None) -> Floats:
    """(H, W, 3) linear light: ambient + Lambert + Blinn-Phong.

    light_visibility: (L, H, W) in 0..1, 0 = in shadow.
    """
    mask = rendering.mask
    normal = rendering.normal_cam[mask]
    if lighting.specular > 0:
        to_eye = -ray_map(rendering.intrinsics)[mask].astype(np.float32)
        to_eye /= np.sqrt(np.einsum("nc,nc->n", to_eye, to_eye))[:, None]
    diffuse = np.broadcast_to(lighting.ambient.astype(np.float32), normal.shape).copy()
    gloss = np.zeros_like(diffuse)
    for k, (towards, colour) in enumerate(zip(lighting.to_light, lighting.colours, strict=True)):
        to_light, tint = towards.astype(np.float32), colour.astype(np.float32)
        visible = np.float32(1) if light_visibility is None else light_visibility[k][mask]
        direct = np.clip(np.einsum("nc,c->n", normal, to_light), 0, None) * visible
        diffuse += direct[:, None] * tint
        if lighting.specular > 0:
            half = to_eye + to_light
            cosine = np.einsum("nc,nc->n", normal, half) / np.sqrt(np.einsum("nc,nc->n", half, half) + 1e-12)
            mirrored = np.float32(lighting.specular) * np.clip(cosine, 0, None) ** np.float32(lighting.shininess)
            gloss += (mirrored * (direct > 0) * visible)[:, None] * tint
    linear = np.zeros(rendering.normal_cam.shape, np.float32)
    linear[mask] = LINEAR_FROM_U8[rendering.albedo_rgb_u8[mask]] * diffuse + gloss
    return linear


def shade(rendering: Rendering, lighting: Lighting) -> Image:
    """(H, W, 3) uint8 picture of a rendering, black where there is nothing."""
    mask = rendering.mask
    picture = np.zeros(rendering.normal_cam.shape, np.uint8)
    picture[mask] = encoded(shaded_linear(rendering, lighting)[mask])
    return picture


def encoded(linear: Floats) -> Image:
    """Linear light 0..1 -> display uint8 (gamma 2.2), clipped."""
    return (np.clip(linear, 0, 1) ** (1 / DISPLAY_GAMMA) * 255 + 0.5).astype(np.uint8)


def headlight() -> Lighting:
    """Plain light from the camera: what banks and pictures for people are rendered with."""
    return Lighting(np.array([[0.0, 0.0, -1.0]]), np.full((1, 3), 0.75), np.full(3, 0.25))


def random_rotation(rng: np.random.Generator) -> Array:
    """Draw a (3, 3) rotation, all alike: the direction of a normal vector of four numbers is a quaternion."""
    w, *xyz = rng.normal(size=4)
    axis = np.array(xyz) / np.linalg.norm(xyz)
    return rotation_from_rotvec(axis * 2 * math.atan2(float(np.linalg.norm(xyz)), w))


def random_lighting(rng: np.random.Generator) -> Lighting:
    """One to three lights from the camera's side and above, slightly coloured; total brightness near 1."""
    count = int(rng.integers(1, 4))
    to_light = rng.normal(size=(count, 3)) * (1.0, 0.6, 0.4) + (0.0, -0.7, -0.9)
    to_light /= np.linalg.norm(to_light, axis=1, keepdims=True)
    share = rng.dirichlet(np.full(count, 2.0)) * rng.uniform(0.5, 1.0)
    colours = share[:, None] * rng.uniform(0.85, 1.15, size=(count, 3))
    ambient = rng.uniform(0.15, 0.45) * rng.uniform(0.9, 1.1, size=3)
    return Lighting(to_light, colours, ambient, rng.uniform(0.0, 0.4), rng.uniform(8.0, 60.0))


def _texels_per_m(model: ObjectModel) -> float:
    if model.texture is None:
        return 0.0
    h, w = model.texture.image_rgb_u8.shape[:2]
    a, b, c = (model.texture.uv[model.faces[:, k]] * np.array([w, h], np.float32) for k in range(3))
    d, e = b - a, c - a
    texels = float(np.abs(d[:, 0] * e[:, 1] - d[:, 1] * e[:, 0]).sum() / 2)
    return float(np.sqrt(texels / model.as_trimesh.area))


def _check(placements: Sequence[Placement], intrinsics: Intrinsics, models: Mapping[int, ObjectModel]) -> None:
    if intrinsics.is_distorted:
        raise InputError(
            "camera to render with",
            got=f"distortion {intrinsics.distortion}",
            expected="an ideal pinhole camera",
            remedy="Pass intrinsics.undistorted() and undistort the real image.",
        )
    for object_id, _ in placements:
        if object_id not in models:
            raise InputError(
                "object to render", got=object_id, expected=f"one of {sorted(models)}", remedy="Add its model."
            )
