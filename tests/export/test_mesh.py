"""Object models: readers, units, sizes and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import trimesh
from scipy.spatial import cKDTree

from posekit.export.mesh import (
    METRES_PER,
    ObjectModel,
    Texture,
    Unit,
    UnitWarning,
    model_from_arrays,
    read_mesh,
    simplified,
    transformed,
    write_ply,
)
from posekit.runtime.errors import MeshError
from posekit.runtime.pose import rotation_from_rotvec

EXTENTS_M = np.array([0.06, 0.08, 0.24])
DIAGONAL_M = float(np.linalg.norm(EXTENTS_M))


def box_model(colour_by_height: bool = False, edge_m: float = 0.02) -> ObjectModel:
    mesh = trimesh.creation.box(extents=EXTENTS_M).subdivide_to_size(edge_m)
    colours = np.full((len(mesh.vertices), 3), 90, np.uint8)
    if colour_by_height:
        colours[:, 0] = np.where(mesh.vertices[:, 2] > 0, 250, 10)
    return model_from_arrays(mesh.vertices, mesh.faces, colours)


def bop_quad(folder: Path) -> Path:
    """A textured square as BOP writes one: upper left red, upper right green, lower left blue, lower right white."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:32, :32], image[:32, 32:] = (255, 0, 0), (0, 255, 0)
    image[32:, :32], image[32:, 32:] = (0, 0, 255), (255, 255, 255)
    cv2.imwrite(str(folder / "quad.png"), image[..., ::-1])
    lines = ["ply", "format ascii 1.0", "comment TextureFile quad.png", "element vertex 4"]
    lines += [f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz", "texture_u", "texture_v")]
    lines += ["element face 2", "property list uchar int vertex_indices", "end_header"]
    for x, y in ((0, 0), (1, 0), (1, 1), (0, 1)):
        lines.append(f"{100 * x} {100 * y} 0 0 0 1 {x} {y}")
    path = folder / "quad.ply"
    path.write_text("\n".join([*lines, "3 0 1 2", "3 0 2 3", ""]))
    return path


def colour_at(model: ObjectModel, uv: tuple[float, float]) -> list[int]:
    assert model.texture is not None
    return [int(v) for v in model.texture.lookup(np.array([uv], np.float32))[0]]


@pytest.mark.parametrize("unit", list(METRES_PER))
def test_every_unit_becomes_metres(tmp_path: Path, unit: Unit) -> None:
    model = box_model()
    write_ply(model, tmp_path / "box.ply", unit)
    again = read_mesh(tmp_path / "box.ply", unit)
    np.testing.assert_allclose(again.extents_m, EXTENTS_M, rtol=1e-5)
    np.testing.assert_array_equal(again.colours_rgb_u8, model.colours_rgb_u8)
    np.testing.assert_array_equal(again.faces, model.faces)


@pytest.mark.parametrize("suffix", ["stl", "glb", "obj", "ply", "off"])
def test_formats_agree(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"box.{suffix}"
    trimesh.creation.box(extents=EXTENTS_M).export(path)
    model = read_mesh(path, "m")
    np.testing.assert_allclose(model.extents_m, EXTENTS_M, rtol=1e-6)
    assert model.diameter_m == pytest.approx(DIAGONAL_M, rel=1e-6)
    assert len(model.faces) == 12
    assert model.colours_rgb_u8.shape == (len(model.vertices_m), 3)


def test_bop_texture_lands_where_it_belongs(tmp_path: Path) -> None:
    model = read_mesh(bop_quad(tmp_path), "mm")
    corners = {tuple(np.round(v[:2] * 10).astype(int)): uv for v, uv in zip(model.vertices_m, model.texture.uv, strict=True)}  # type: ignore[union-attr]  # fmt: skip
    assert {key: tuple(uv) for key, uv in corners.items()} == {
        (0, 0): (0, 0),
        (1, 0): (1, 0),
        (1, 1): (1, 1),
        (0, 1): (0, 1),
    }
    assert colour_at(model, (0.25, 0.75)) == [255, 0, 0]
    assert colour_at(model, (0.75, 0.75)) == [0, 255, 0]
    assert colour_at(model, (0.25, 0.25)) == [0, 0, 255]
    assert colour_at(model, (0.75, 0.25)) == [255, 255, 255]


def test_obj_with_mtl_keeps_its_texture(tmp_path: Path) -> None:
    bop_quad(tmp_path)
    (tmp_path / "quad.mtl").write_text("newmtl skin\nKd 1 1 1\nmap_Kd quad.png\n")
    body = "".join(f"v {x} {y} 0\nvt {x} {y}\n" for x, y in ((0, 0), (1, 0), (1, 1), (0, 1)))
    path = tmp_path / "quad.obj"
    path.write_text("mtllib quad.mtl\n" + body + "usemtl skin\nf 1/1 2/2 3/3\nf 1/1 3/3 4/4\n")
    model = read_mesh(path, "m")
    assert colour_at(model, (0.25, 0.75)) == [255, 0, 0]
    assert colour_at(model, (0.75, 0.25)) == [255, 255, 255]


def test_tiled_texture_repeats() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[:, 1] = 200
    texture = Texture(np.array([[0, 0], [3, 0], [3, 3]], np.float32), image)
    at = np.array([[0.75, 0.5], [1.75, 0.5], [2.75, 2.5]], np.float32)
    np.testing.assert_array_equal(texture.lookup(at)[:, 0], [200, 200, 200])


def test_texture_pyramid_keeps_the_mean() -> None:
    image = np.random.default_rng(0).integers(0, 255, (256, 128, 3)).astype(np.uint8)
    for level in Texture(np.zeros((3, 2), np.float32), image).pyramid:
        np.testing.assert_allclose(level.mean(axis=(0, 1)), image.mean(axis=(0, 1)), atol=1.0)


def test_diameter_is_the_largest_distance_not_the_diagonal_of_the_box() -> None:
    sphere = trimesh.creation.icosphere(subdivisions=3, radius=0.05)
    assert model_from_arrays(sphere.vertices, sphere.faces).diameter_m == pytest.approx(0.1, rel=1e-4)
    flat = model_from_arrays([[0.0, 0, 0], [0.3, 0, 0], [0.3, 0.4, 0], [0, 0.4, 0]], [[0, 1, 2], [0, 2, 3]])
    assert flat.diameter_m == pytest.approx(0.5)


def test_diameter_and_extents_do_not_depend_on_the_frame() -> None:
    model = box_model()
    turned = transformed(model, rotation_from_rotvec([0.3, -1.0, 0.4]), [1.0, 2.0, 3.0])
    assert turned.diameter_m == pytest.approx(model.diameter_m, rel=1e-5)
    np.testing.assert_allclose(model.bbox_centre_m, 0.0, atol=1e-8)
    np.testing.assert_allclose(turned.bbox_centre_m, [1, 2, 3], atol=1e-6)


def test_surface_points_are_on_the_surface_even_and_repeatable() -> None:
    model = box_model()
    points, normals = model.surface_points(500, seed=3)
    assert points.shape == normals.shape == (500, 3)
    outside = np.abs(points) / (EXTENTS_M / 2)
    np.testing.assert_allclose(outside.max(axis=1), 1.0, atol=1e-5)
    facing = np.argmax(outside, axis=1)
    np.testing.assert_allclose(
        np.take_along_axis(normals, facing[:, None], 1)[:, 0], np.sign(points[range(500), facing])
    )
    spacing = cKDTree(points).query(points, k=2)[0][:, 1]
    fair = np.sqrt(2 * (0.06 * 0.08 + 0.06 * 0.24 + 0.08 * 0.24) / 500)
    assert spacing.min() > 0.4 * fair
    np.testing.assert_array_equal(points, model.surface_points(500, seed=3)[0])
    assert (points != model.surface_points(500, seed=4)[0]).any()


def test_simplified_keeps_shape_and_colours() -> None:
    model = box_model(colour_by_height=True, edge_m=0.006)
    coarse = simplified(model, 600)
    assert len(coarse.faces) <= 640
    np.testing.assert_allclose(coarse.extents_m, model.extents_m, rtol=0.02)
    clear = np.abs(coarse.vertices_m[:, 2]) > 0.01
    np.testing.assert_array_equal(coarse.colours_rgb_u8[clear, 0], np.where(coarse.vertices_m[clear, 2] > 0, 250, 10))
    assert simplified(model, 10**6) is model


def test_simplified_bakes_the_texture(tmp_path: Path) -> None:
    textured = read_mesh(bop_quad(tmp_path), "mm")
    assert textured.texture is not None
    mesh = trimesh.Trimesh(textured.vertices_m, textured.faces, process=False)
    vertices, faces = trimesh.remesh.subdivide_to_size(mesh.vertices, mesh.faces, 0.005)  # type: ignore[no-untyped-call]
    fine = model_from_arrays(vertices, faces, texture=Texture(np.asarray(vertices[:, :2] * 10, np.float32), textured.texture.image_rgb_u8))  # fmt: skip
    coarse = simplified(fine, 400)
    assert coarse.texture is None
    corner = np.argmin(np.linalg.norm(coarse.vertices_m - [0, 0.1, 0], axis=1))
    assert coarse.colours_rgb_u8[corner].tolist() == [255, 0, 0]


def test_unlikely_diameter_warns_with_the_probable_unit(tmp_path: Path) -> None:
    write_ply(box_model(), tmp_path / "box.ply", "mm")
    with pytest.warns(UnitWarning, match=r"diameter is 260 m; in 'mm' it would be 0\.26 m"):
        read_mesh(tmp_path / "box.ply", "m")
    write_ply(box_model(), tmp_path / "metres.ply", "m")
    with pytest.warns(UnitWarning, match="in 'm' it would be"):
        read_mesh(tmp_path / "metres.ply", "mm")


def ascii_ply(path: Path, vertices: list[str], faces: list[str]) -> Path:
    lines = ["ply", "format ascii 1.0", f"element vertex {len(vertices)}", *(f"property float {a}" for a in "xyz")]
    lines += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    path.write_text("\n".join([*lines, *vertices, *faces, ""]))
    return path


@pytest.mark.parametrize(
    ("vertices", "faces", "cause"),
    [
        (["0 0 0", "1 0 0", "0 1 0"], [], "no faces"),
        (["0 0 0", "nan 0 0", "0 1 0"], ["3 0 1 2"], "NaN"),
        (["0 0 0", "1 0 0", "2 0 0"], ["3 0 1 2"], "degenerate"),
        (["0 0 0", "1 0 0", "0 1 0"], ["3 0 1 7"], "bad.ply"),
    ],
)
def test_unusable_meshes_are_refused(tmp_path: Path, vertices: list[str], faces: list[str], cause: str) -> None:
    path = ascii_ply(tmp_path / "bad.ply", vertices, faces)
    with pytest.raises(MeshError, match=cause) as caught:
        read_mesh(path, "m")
    assert "bad.ply" in str(caught.value)


def test_missing_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MeshError, match="no such file"):
        read_mesh(tmp_path / "absent.ply", "m")
    for name, content in (("noise.ply", b"\x00\x01not a mesh"), ("noise.xyzw", b"hello"), ("empty.stl", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MeshError, match=name):
            read_mesh(tmp_path / name, "m")


def test_unknown_unit_is_refused(tmp_path: Path) -> None:
    write_ply(box_model(), tmp_path / "box.ply")
    with pytest.raises(MeshError, match="foot"):
        read_mesh(tmp_path / "box.ply", "foot")  # type: ignore[arg-type]


@pytest.mark.parametrize("vertices", [np.zeros((3, 2)), np.zeros(3)])
def test_arrays_of_other_shapes_are_refused(vertices: npt.NDArray[np.float64]) -> None:
    with pytest.raises(MeshError, match="shape"):
        model_from_arrays(vertices, [[0, 1, 2]])


@pytest.mark.parametrize("folder", ["opencv_box", "cube_video", "lm_models", "ycbv"])
def test_real_models_have_the_published_size(data_dir: Path, folder: str) -> None:
    models = data_dir / folder / "models" if (data_dir / folder / "models").is_dir() else data_dir / folder
    table = json.loads((models / "models_info.json").read_text())
    for object_id, row in list(table.items())[:4]:
        model = read_mesh(models / f"obj_{int(object_id):06d}.ply", "mm")
        assert model.diameter_m == pytest.approx(row["diameter"] / 1000, rel=5e-3)
        np.testing.assert_allclose(model.bbox_min_m * 1000, [row[f"min_{a}"] for a in "xyz"], atol=0.1)
        assert np.ptp(model.colours_rgb_u8.astype(int), axis=0).max() > 10  # carries colour
        assert (model.texture is not None) == (folder in ("opencv_box", "cube_video"))
