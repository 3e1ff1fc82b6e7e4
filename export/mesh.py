"""Object models: triangle meshes with colour, in metres. trimesh reads the files."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import trimesh
from scipy.spatial import ConvexHull, QhullError, cKDTree
from scipy.spatial.distance import cdist

from posekit.runtime.errors import MeshError

Unit = Literal["m", "cm", "mm", "inch"]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Image = npt.NDArray[np.uint8]

METRES_PER: dict[str, float] = {"m": 1.0, "cm": 1e-2, "mm": 1e-3, "inch": 0.0254}
LIKELY_DIAMETER_M = (5e-3, 5.0)
TYPICAL_DIAMETER_M = 0.2
PLAIN_GREY = 160  # albedo of a mesh that carries no colour
NEARLY_UNTILED = 0.05  # exporters overshoot the texture's border by this much without meaning to tile it


class UnitWarning(UserWarning):
    """A mesh has a diameter that suggests another unit than the one stated."""


@dataclass(frozen=True, eq=False)
class Texture:
    """uv: (V, 2) float32, v upwards, (0, 0) the lower left corner.   image_rgb_u8: (H, W, 3)."""

    uv: Floats
    image_rgb_u8: Image

    @cached_property
    def pyramid(self) -> tuple[Image, ...]:
        """The image and its halvings, for lookups without aliasing."""
        levels = [np.ascontiguousarray(self.image_rgb_u8)]
        while min(levels[-1].shape[:2]) > 32:
            h, w = levels[-1].shape[:2]
            halved = cv2.resize(
                levels[-1], (w // 2, h // 2), interpolation=cv2.INTER_LINEAR_EXACT
            )  # equal on all machines
            levels.append(np.asarray(halved, np.uint8))
        return tuple(levels)

    def lookup(self, uv: npt.NDArray[Any], level: int = 0) -> Image:
        """Bilinear colours at uv (N, 2) -> (N, 3) uint8. Tiles where the model's uv leave 0..1."""
        image = self.pyramid[min(max(level, 0), len(self.pyramid) - 1)]
        h, w = image.shape[:2]
        tiled = bool((self.uv < 0).any() or (self.uv > 1).any())
        columns = 1024  # remap refuses images longer than 32767
        padded = np.zeros((-(-len(uv) // columns) * columns, 2), np.float32)
        padded[: len(uv)] = np.mod(uv, 1.0) if tiled else uv
        x, y = (padded[:, 0] * w - 0.5).reshape(-1, columns), ((1 - padded[:, 1]) * h - 0.5).reshape(-1, columns)
        border = cv2.BORDER_WRAP if tiled else cv2.BORDER_REPLICATE
        looked_up = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=border)
        return np.asarray(looked_up.reshape(-1, 3)[: len(uv)], np.uint8)


@dataclass(frozen=True, eq=False)
class ObjectModel:
    """A coloured triangle mesh in the object frame.

    vertices_m: (V, 3) float32.   faces: (F, 3) int32.   normals: (V, 3) float32, unit.
    colours_rgb_u8: (V, 3) uint8 albedo; a texture, where there is one, takes precedence.
    """

    vertices_m: Floats
    faces: Ints
    normals: Floats
    colours_rgb_u8: Image
    texture: Texture | None = None

    @cached_property
    def bbox_min_m(self) -> Floats:
        return np.asarray(self.vertices_m.min(axis=0))

    @cached_property
    def bbox_max_m(self) -> Floats:
        return np.asarray(self.vertices_m.max(axis=0))

    @cached_property
    def bbox_centre_m(self) -> Floats:
        return np.asarray((self.bbox_min_m + self.bbox_max_m) / 2)

    @cached_property
    def extents_m(self) -> Floats:
        return self.bbox_max_m - self.bbox_min_m

    @cached_property
    def diameter_m(self) -> float:
        """The largest distance between two points of the surface."""
        return _diameter(self.vertices_m)

    @cached_property
    def as_trimesh(self) -> Any:
        """The geometry for trimesh's algorithms; vertices keep their order."""
        return trimesh.Trimesh(self.vertices_m, self.faces, vertex_normals=self.normals, process=False)

    def surface_points(self, n: int, seed: int) -> tuple[Floats, Floats]:
        """(points_m (n, 3), unit face normals (n, 3)), spread evenly over the surface. Equal seeds, equal points."""
        candidates, on_face = trimesh.sample.sample_surface(self.as_trimesh, 4 * n, seed=seed)
        radius = float(np.sqrt(self.as_trimesh.area / (2 * n)))
        while True:
            _, kept = trimesh.points.remove_close(candidates, radius)  # type: ignore[no-untyped-call]
            if kept.sum() >= n:
                break
            radius *= 0.9
        chosen = np.flatnonzero(kept)[:n]
        normals = self.as_trimesh.face_normals[on_face[chosen]]
        return candidates[chosen].astype(np.float32), np.asarray(normals, np.float32)


def model_from_arrays(
    vertices_m: npt.ArrayLike,
    faces: npt.ArrayLike,
    colours_rgb_u8: npt.ArrayLike | None = None,
    normals: npt.ArrayLike | None = None,
    texture: Texture | None = None,
    name: str = "mesh",
) -> ObjectModel:
    """Check and complete a mesh: normals are computed where absent, colour is grey where absent.

    Raises MeshError (naming `name`) for no faces, indices out of range, NaN, or a surface without area.
    """
    vertices, triangles = np.asarray(vertices_m, np.float32), np.asarray(faces)
    _check(vertices, triangles, name)
    mesh = trimesh.Trimesh(vertices, triangles, process=False)
    if colours_rgb_u8 is None:
        colours = np.full((len(vertices), 3), PLAIN_GREY, np.uint8) if texture is None else texture.lookup(texture.uv)
    else:
        colours = np.asarray(colours_rgb_u8, np.uint8)
    unit = np.asarray(mesh.vertex_normals if normals is None else normals, np.float32)
    return ObjectModel(vertices, triangles.astype(np.int32), unit, colours, texture)


def read_mesh(path: Path | str, unit: Unit) -> ObjectModel:
    """Read PLY (BOP's too, with its texture), OBJ with MTL, STL or GLB; lengths in `unit` become metres.

    Raises MeshError when the file is missing, unreadable or not a usable mesh. Warns with UnitWarning when the
    diameter is outside 5 mm .. 5 m.
    """
    path = Path(path)
    if unit not in METRES_PER:
        raise MeshError(
            f"unit of {path.name}", got=unit, expected=f"one of {sorted(METRES_PER)}", remedy="Set mesh_unit."
        )
    mesh = _trimesh_from_file(path)
    vertices = np.asarray(mesh.vertices, np.float32) * np.float32(METRES_PER[unit])
    _check(vertices, np.asarray(mesh.faces), str(path))  # before trimesh computes anything from them
    texture = _texture(mesh)
    colours = None if texture is not None else _vertex_colours(mesh)
    model = model_from_arrays(vertices, mesh.faces, colours, mesh.vertex_normals, texture, name=str(path))
    if not LIKELY_DIAMETER_M[0] <= model.diameter_m <= LIKELY_DIAMETER_M[1]:
        warnings.warn(_unit_doubt(path.name, model.diameter_m, unit), UnitWarning, stacklevel=2)
    return model


def simplified(model: ObjectModel, max_faces: int) -> ObjectModel:
    """At most about `max_faces` triangles (quadric decimation); each vertex takes the colour nearest to it.

    A textured model becomes one with vertex colours. A model that is small enough is returned as it is.
    """
    if len(model.faces) <= max_faces:
        return model
    welded = trimesh.Trimesh(model.vertices_m, model.faces, process=False)
    welded.merge_vertices(merge_norm=True, merge_tex=True)  # doubled vertices at seams would tear open
    coarse = welded.simplify_quadric_decimation(face_count=max_faces)
    points, colours = _coloured_points(model)
    _, nearest = cKDTree(points).query(coarse.vertices)
    return model_from_arrays(coarse.vertices, coarse.faces, colours[nearest], name="simplified mesh")


def transformed(model: ObjectModel, R: npt.ArrayLike, t_m: npt.ArrayLike) -> ObjectModel:
    """The same surface with vertices x -> R x + t_m."""
    rotation, shift = np.asarray(R, np.float32), np.asarray(t_m, np.float32)
    return replace(model, vertices_m=model.vertices_m @ rotation.T + shift, normals=model.normals @ rotation.T)


def write_ply(model: ObjectModel, path: Path, unit: Unit = "mm") -> None:
    """Write geometry, normals and vertex colours as binary PLY."""
    mesh = trimesh.Trimesh(
        model.vertices_m / np.float32(METRES_PER[unit]),
        model.faces,
        vertex_normals=model.normals,
        vertex_colors=model.colours_rgb_u8,
        process=False,
    )
    path.write_bytes(trimesh.exchange.ply.export_ply(mesh, encoding="binary", vertex_normal=True))


def _trimesh_from_file(path: Path) -> Any:
    remedy = "Export the object as PLY, OBJ, STL or GLB."
    if not os.path.isfile(path):
        raise MeshError(str(path), got="no such file", expected="a mesh file", remedy="Check the path.")
    try:
        loaded = trimesh.load_scene(path, process=False, maintain_order=True)
        if not loaded.geometry:
            raise ValueError("no geometry")
        mesh = loaded.to_mesh()
    except Exception as error:  # trimesh's readers raise whatever their parsers raise
        raise MeshError(
            str(path), got=f"{type(error).__name__}: {error}", expected="a readable mesh", remedy=remedy
        ) from error
    if len(mesh.faces) == 0:
        raise MeshError(str(path), got="no faces", expected="a triangle mesh, not a point cloud", remedy=remedy)
    return mesh


def _texture(mesh: Any) -> Texture | None:
    if mesh.visual.kind != "texture" or getattr(mesh.visual, "uv", None) is None:
        return None
    material = mesh.visual.material
    image = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
    if image is None:
        return None
    uv = np.asarray(mesh.visual.uv, np.float32)
    if uv.min() > -NEARLY_UNTILED and uv.max() < 1 + NEARLY_UNTILED:
        uv = np.clip(uv, 0.0, 1.0)
    return Texture(uv, np.asarray(image.convert("RGB"), np.uint8))


def _vertex_colours(mesh: Any) -> Image | None:
    if mesh.visual.kind is None:
        return None
    colours = mesh.visual if mesh.visual.kind in ("vertex", "face") else mesh.visual.to_color()
    return np.asarray(colours.vertex_colors, np.uint8)[:, :3]


def _check(vertices: Floats, faces: npt.NDArray[Any], name: str) -> None:
    problem = _problem(vertices, faces)
    if problem:
        raise MeshError(
            name,
            got=problem,
            expected="a triangle mesh with finite vertices and some area",
            remedy="Repair or export the mesh again.",
        )


def _problem(vertices: Floats, faces: npt.NDArray[Any]) -> str | None:
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        return f"vertices of shape {vertices.shape}"
    if faces.ndim != 2 or faces.shape[-1] != 3 or len(faces) == 0:
        return f"faces of shape {faces.shape}"
    if faces.min() < 0 or faces.max() >= len(vertices):
        return f"face indices {faces.min()}..{faces.max()} for {len(vertices)} vertices"
    if not np.isfinite(vertices[faces]).all():
        return "NaN or infinite vertices"
    a, b, c = np.moveaxis(vertices[faces].astype(np.float64), 1, 0)
    if float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum()) <= 0.0:
        return "a degenerate mesh: all faces have no area"
    return None


def _diameter(vertices: Floats) -> float:
    points = vertices.astype(np.float64)
    try:
        points = points[ConvexHull(points).vertices]
    except QhullError:  # a flat sheet has no hull in space; its own points do
        points = np.unique(points, axis=0)
    blocks = (points[i : i + 512] for i in range(0, len(points), 512))
    return float(max(cdist(block, points, "sqeuclidean").max() for block in blocks) ** 0.5)


def _unit_doubt(name: str, diameter_m: float, unit: str) -> str:
    raw = diameter_m / METRES_PER[unit]
    probable = min(METRES_PER, key=lambda u: abs(np.log(raw * METRES_PER[u] / TYPICAL_DIAMETER_M)))
    return (
        f"{name}: read in '{unit}' its diameter is {diameter_m:.4g} m; "
        f"in '{probable}' it would be {raw * METRES_PER[probable]:.4g} m. State the unit of the mesh."
    )


def _coloured_points(model: ObjectModel) -> tuple[npt.NDArray[Any], Image]:
    """Points dense enough to carry the model's colours: its vertices, or samples of its texture."""
    if model.texture is None:
        return model.vertices_m, model.colours_rgb_u8
    points, on_face = trimesh.sample.sample_surface(model.as_trimesh, 100_000, seed=0)
    triangles = model.as_trimesh.triangles[on_face]
    corners = trimesh.triangles.points_to_barycentric(triangles, points)  # type: ignore[no-untyped-call]
    uv = np.einsum("nk,nkc->nc", corners, model.texture.uv[model.faces[on_face]])
    return points, model.texture.lookup(uv)
