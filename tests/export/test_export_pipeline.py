"""From a recipe to a bundle that estimates poses: one's own networks, a mesh, a detector, everything at toy size."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
import trimesh
from onnx import helper, numpy_helper
from recordings import write_recording
from safetensors.torch import save_file

from posekit.bank_build import BankRequest, SymmetryWish, add_object, rebuild_bank, symmetries_from_wish
from posekit.export import pipeline
from posekit.export.mesh import read_mesh, transformed, write_ply
from posekit.export.pipeline import ExportReport, export_recipe
from posekit.export.recipe import ExportRecipe, recipe_from_toml
from posekit.export.recipe_networks import built_network
from posekit.export.render import Renderer, headlight, shade
from posekit.runtime.backends import open_session
from posekit.runtime.bundle import Bundle
from posekit.runtime.crop import PRESETS
from posekit.runtime.detection import Detection, box_from_mask
from posekit.runtime.errors import (
    CheckpointError,
    ExportError,
    InputError,
    MeshError,
    OutputError,
    PosekitError,
    RecipeError,
)
from posekit.runtime.estimator import PoseEstimator
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.object_model import object_model
from posekit.runtime.pose import Pose, rotation_angle_rad
from posekit.runtime.tensors import tensors_from_bytes

torch.set_num_threads(1)
CAMERA = Intrinsics(np.array([[500.0, 0, 319.5], [0, 500, 239.5], [0, 0, 1]]), 640, 480)

TOY_NETS = """
import torch
from torch import nn

def patches(side=8):
    "Each place is its patch, projected by the weights."
    return nn.Conv2d(3, 3 * side * side, side, stride=side, bias=False)

class Regressor(nn.Module):
    "No rotation; the distance at which the object's diagonal looks as long as the box's."
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
    def forward(self, crops, box, K, bbox_m):
        size_px = (box[:, 2:] - box[:, :2]).norm(dim=1)
        size_m = (bbox_m[:, 1] - bbox_m[:, 0]).norm(dim=1)
        z = self.gain * K[:, 0, 0] * size_m / size_px
        centre = (box[:, :2] + box[:, 2:]) / 2
        xy = (centre - K[:, :2, 2]) / torch.stack([K[:, 0, 0], K[:, 1, 1]], dim=1) * z[:, None]
        R = torch.eye(3).expand(len(crops), 3, 3) * (1 + 0 * z)[:, None, None]
        return R, torch.cat([xy, z[:, None]], dim=1), torch.sigmoid(crops.mean(dim=(1, 2, 3)))

class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 8, stride=8)
    def forward(self, crops):
        y = self.conv(crops)
        return y[:, 0].sigmoid(), 0.1 * y[:, 1:].permute(0, 2, 3, 1)

class Detector(nn.Module):
    "The brightest 32 px cells."
    def __init__(self):
        super().__init__()
        self.pool = nn.AvgPool2d(32)
        self.gain = nn.Parameter(torch.ones(1))
    def forward(self, x):
        scores, cell = (self.pool(x).amax(dim=1).flatten(1) * self.gain).topk(3, dim=1)
        x0, y0 = (cell % 4) * 32.0, torch.div(cell, 4, rounding_mode="floor") * 32.0
        return torch.stack([x0, y0, x0 + 32, y0 + 32], dim=2), scores, cell * 0
"""

HEAD = """
name = "toy"
default_path = "find"
[[objects]]
id = 4
name = "brick"
mesh = "brick.ply"
unit = "mm"
symmetries_continuous = [{axis = [0, 0, 2]}]
"""
FIND = """
[[networks]]
name = "find"
network = "toynets:patches"
role = "embedder"
checkpoint = "patches.safetensors"
checkpoint_prefix = "net."
crop = {rule = "square", size_px = 64}
normalise = {mean = [0, 0, 0], std = [1, 1, 1]}
bank = {sphere = 42, in_plane_steps = 4, supersample = 1, search = "flat", precision = "fp32"}
"""
REGRESS = """
[[networks]]
name = "guess"
network = "toynets:Regressor"
role = "pose"
feeds = ["crops", "box", "K", "bbox_m"]
checkpoint = "random"
crop = {rule = "square", size_px = 32}
"""
DENSE = """
[[networks]]
name = "dense"
network = "toynets:Dense"
role = "correspondence"
checkpoint = "random"
seed = 3
crop = {rule = "square", size_px = 64}
solver = {method = "epnp-ransac", iterations = 20, reprojection_px = 3}
"""
DETECTOR = """
[detector]
network = "toynets:Detector"
checkpoint = "random"
family = "posekit"
input_wh_px = [128, 96]
normalise = {mean = [0, 0, 0], std = [1, 1, 1]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toynets.py").write_text(TOY_NETS)
    box = trimesh.creation.box((60, 100, 160)).subdivide().subdivide().subdivide().subdivide().subdivide()
    colours = np.clip((box.vertices / (30, 50, 80) + 1) * 127, 0, 255).astype(np.uint8)
    trimesh.Trimesh(box.vertices, box.faces, vertex_colors=colours, process=False).export(folder / "brick.ply")
    identity = torch.eye(192) - 1 / 192  # the patch less its mean
    save_file({"net.weight": identity.reshape(192, 3, 8, 8).contiguous()}, folder / "patches.safetensors")
    yield folder
    sys.modules.pop("toynets", None)


def recipe(folder: Path, *sections: str) -> ExportRecipe:
    path = folder / "toy.toml"
    path.write_text("".join(sections))
    return recipe_from_toml(path)


@pytest.fixture(scope="module")
def exported(folder: Path) -> ExportReport:
    stages: list[tuple[str, int, int]] = []
    report = export_recipe(recipe(folder, HEAD, FIND), folder / "toy.posekit", lambda *stage: stages.append(stage))
    names = list(dict.fromkeys(name for name, _, _ in stages))
    assert names == ["objects", "graphs of find", "bank of brick for find", "rejection of find", "pack"]
    assert all(any(s == (name, total, total) for s in stages) for name, _, total in stages)
    return report


def test_a_coarse_search_finds_the_same_poses(exported: ExportReport, folder: Path) -> None:
    """Through the whole road; and the bank can be built again without saying how it is searched."""
    coarse = folder / "coarse.posekit"
    made = recipe(folder, HEAD, FIND.replace('"flat"', '"coarse"'))
    export_recipe(made, coarse, lambda *stage: None)
    boxes = [np.array([200.0 + x, 150, 300 + x, 290]) for x in range(0, 200, 20)]
    frame = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    found = []
    for path in (exported.path, coarse):
        with Bundle(path) as bundle, PoseEstimator(bundle) as estimator:
            assert bundle.manifest.graphs["find.matcher"].views == 168
            estimates = estimator.estimate(frame, CAMERA, [Detection(4, 1.0, box) for box in boxes])
            found.append([(e.cam_from_obj.as_matrix(), e.score) for e in estimates])
    for (flat, flat_score), (near, near_score) in zip(*found, strict=True):
        np.testing.assert_allclose(near, flat, atol=1e-6)
        assert near_score == pytest.approx(flat_score, rel=1e-4)
    rebuild_bank(BankRequest(coarse, 4, folder / "brick.ply", "mm", coarse, in_plane_steps=5), lambda done, total: None)
    with Bundle(coarse) as bundle, PoseEstimator(bundle) as estimator:
        assert (bundle.manifest.graphs["find.matcher"].views or 0) >= 210
        assert len(estimator.estimate(frame, CAMERA, [Detection(4, 1.0, boxes[0])])) == 1


@pytest.fixture(scope="module")
def cone(folder: Path) -> Path:
    """A mesh of another object: a cone whose colours tell every side apart."""
    mesh = trimesh.creation.cone(60, 130).subdivide().subdivide().subdivide()
    mesh.apply_translation(-mesh.bounds.mean(axis=0))
    low, high = mesh.bounds
    colours = np.clip((mesh.vertices - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_colors=colours, process=False).export(folder / "cone.ply")
    return folder / "cone.ply"


def request(bundle: Path, object_id: int, mesh: Path, output: Path, **wishes: Any) -> BankRequest:
    return BankRequest(bundle, object_id, mesh, "mm", output, **wishes)


def quiet(done: int, total: int) -> None: ...


def test_an_object_is_added_and_nothing_else_changes(exported: ExportReport, cone: Path, tmp_path: Path) -> None:
    out = tmp_path / "two.posekit"
    built = add_object(request(exported.path, 9, cone, out, name="cone", in_plane_steps=12), quiet)
    assert built.checks["find"].found > 0.6
    assert built.told == ("symmetry: none, assumed; --symmetry says otherwise",)
    with Bundle(exported.path) as before, Bundle(out) as after, PoseEstimator(after) as estimator:
        assert all(bytes(after.read(name)) == bytes(before.read(name)) for name in before.manifest.files)
        new = set(after.manifest.files) - set(before.manifest.files)
        assert new == {"banks/find.cone.safetensors", "objects/cone.safetensors"}
        assert after.manifest.objects[:1] == before.manifest.objects
        assert after.manifest.objects[1].diameter_m == pytest.approx(np.hypot(0.13, 0.06), rel=1e-3)
        assert after.manifest.graphs["find.matcher"].views == 504
        assert estimator.object_ids == (4, 9)
        assert after.manifest.paths["find"].rejection == before.manifest.paths["find"].rejection
    for object_id, name, cause in ((9, "cup", "object id"), (10, "cone", "object name"), (10, "a b", "object name")):
        with pytest.raises(InputError, match=cause):
            add_object(request(out, object_id, cone, out, name=name), quiet)


def test_an_object_whose_views_are_not_found_again_is_not_added(
    exported: ExportReport, folder: Path, tmp_path: Path
) -> None:
    """A plain can looks the same all around and upside down; stated as what it is, it is found."""
    trimesh.creation.cylinder(40, 120).export(folder / "can.ply")
    out = tmp_path / "out.posekit"
    plain = request(exported.path, 9, folder / "can.ply", out, name="can", in_plane_steps=12)
    with pytest.raises(ExportError, match=r"self-check of object 9 .*State the object's symmetry"):
        add_object(plain, quiet)
    assert not list(tmp_path.iterdir())
    with pytest.raises(MeshError, match="stated symmetry"):
        add_object(replace(plain, mesh=folder / "brick.ply", symmetry=SymmetryWish(("z/4",))), quiet)
    built = add_object(replace(plain, symmetry=SymmetryWish(("z", "x/2"))), quiet)
    assert built.told[1].startswith("colours: the mesh has one")


def test_another_objects_mesh_is_refused_or_replaces_it_whole(
    exported: ExportReport, cone: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.posekit"
    with pytest.raises(MeshError, match=r"cone\.ply, for object 4: got diameter 0\.14"):
        rebuild_bank(request(exported.path, 4, cone, out), quiet)
    brick = read_mesh(folder / "brick.ply", "mm")
    write_ply(transformed(brick, np.eye(3), (0.01, 0, 0)), folder / "shifted.ply")
    with pytest.raises(MeshError, match=r"a bounding box 0\.01 m off"):
        rebuild_bank(request(exported.path, 4, folder / "shifted.ply", out), quiet)
    ellipsoid = trimesh.creation.icosphere(subdivisions=4)
    ellipsoid.apply_scale((30, 50, 80))
    ellipsoid.export(folder / "ellipsoid.ply")
    with pytest.raises(MeshError, match="for object 4: got diameter"):
        rebuild_bank(request(exported.path, 4, folder / "ellipsoid.ply", out), quiet)
    assert not out.exists()
    rebuild_bank(request(exported.path, 4, cone, out, in_plane_steps=12, replace_model=True), quiet)
    with Bundle(out) as bundle:
        (entry,) = bundle.manifest.objects
        assert (entry.id, entry.name, entry.symmetries_continuous) == (4, "brick", ())
        assert entry.diameter_m == pytest.approx(np.hypot(0.13, 0.06), rel=1e-3)
        assert bundle.manifest.paths["find"].rejection == {}


def test_a_bank_is_built_as_the_bundles_own_into_a_file_that_others_share(
    exported: ExportReport, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "brick.safetensors"
    built = rebuild_bank(request(exported.path, 4, folder / "brick.ply", file), quiet)
    assert built.banks["find"].views == 168
    with Bundle(exported.path) as bundle:
        assert file.read_bytes() == bytes(bundle.read("banks/find.brick.safetensors"))
    with Bundle(exported.path, {4: file}) as bundle, PoseEstimator(bundle) as estimator:
        assert bundle.manifest.paths["find"].banks == {"4": str(file)}
        assert bundle.manifest.paths["find"].rejection == {}
        assert estimator.object_ids == (4,)


def test_the_ceiling_and_the_thresholds_are_in_a_report(exported: ExportReport) -> None:
    with Bundle(exported.path) as bundle:
        told = json.loads(bytes(bundle.read("reports/banks.json")))
    ceiling = told["banks"]["banks/find.brick.safetensors"]["ceiling"]
    assert ceiling["n"] == 200
    assert ceiling["nearest_amodal"]["rotation_p50_deg"] > 10  # 42 directions, a quarter turn apart in the image
    assert told["rejection"]["find"]["of"] == "rendered"
    told = told["rejection"]["find"]  # raw patches in few views: whatever they say of this object, it is said
    assert told["thresholds"].keys() | told["undecided"].keys() == {"4"}


@pytest.mark.parametrize("turn", ["w", "z/1", "z/", "z/x", "z/99"])
def test_symmetries_that_are_none_are_refused(turn: str, folder: Path) -> None:
    with pytest.raises(InputError, match="symmetry"):
        symmetries_from_wish(SymmetryWish((turn,)), 1, read_mesh(folder / "brick.ply", "mm"))


def test_a_stated_turn_goes_through_the_objects_middle(folder: Path) -> None:
    model = transformed(read_mesh(folder / "brick.ply", "mm"), np.eye(3), (0.3, 0.2, 0.1))
    symmetries, told = symmetries_from_wish(SymmetryWish(("z/2", "x/2")), 1, model)
    assert told == "symmetry: z/2, x/2 through the surface's centroid"
    expected = [np.diag([-1.0, -1, 1]), np.diag([1.0, -1, -1])]
    for found, turn in zip(symmetries.discrete, expected, strict=True):
        np.testing.assert_allclose(found[:3, :3], turn, atol=1e-9)
        np.testing.assert_allclose(found[:3, :3] @ [0.3, 0.2, 0.1] + found[:3, 3], [0.3, 0.2, 0.1], atol=1e-6)


def test_the_bundle_says_what_it_is(exported: ExportReport, folder: Path) -> None:
    with Bundle(exported.path) as bundle:
        manifest = bundle.manifest
        assert manifest == exported.manifest
        assert set(manifest.files) == {
            "graphs/find.embedder.fp32.onnx",
            "graphs/find.matcher.fp32.onnx",
            "banks/find.brick.safetensors",
            "objects/brick.safetensors",
            "reports/banks.json",
            "reports/parity.json",
        }
        assert manifest.system == "own embedder"
        assert set(manifest.provenance) >= {"posekit", "torch", "onnx", "recipe", "checkpoint of find"}
        assert manifest.provenance["checkpoint of find"].startswith("sha256 ")
        parity = json.loads(bytes(bundle.read("reports/parity.json")))
        assert parity["find.embedder"]["figures"][0]["output"] == "descriptors"
        assert manifest.objects[0].diameter_m == pytest.approx(np.hypot(np.hypot(0.06, 0.1), 0.16), rel=1e-5)
        assert manifest.objects[0].symmetries_continuous[0].axis == (0.0, 0.0, 1.0)
        assert len(object_model(bundle, manifest.objects[0]).faces) <= 5000
        assert tensors_from_bytes(bundle.read("objects/brick.safetensors"), "mesh").arrays["colours"].dtype == np.uint8
        assert open_session(bundle, "find.embedder").outputs == manifest.graphs["find.embedder"].outputs
    assert exported.size == exported.path.stat().st_size
    assert set(exported.banks) <= set(manifest.files)
    assert not list(folder.glob(".*"))  # no scratch left


def test_the_bundle_estimates_poses(exported: ExportReport, folder: Path) -> None:
    check_poses(exported.path, folder)


@pytest.mark.parametrize(
    ("wh_px", "places"), [((48, 64), 48), pytest.param((96, 64), 96, marks=pytest.mark.slow)], ids=["tall", "wide"]
)
def test_crops_need_not_be_square(wh_px: tuple[int, int], places: int, folder: Path) -> None:
    """The bundle's graphs, its bank, its crops and its poses."""
    size = f"size_px = {list(wh_px)}"
    whole = HEAD.replace("symmetries_continuous = [{axis = [0, 0, 2]}]\n", "")  # the brick's sides differ in colour
    report = export_recipe(recipe(folder, whole, FIND.replace("size_px = 64", size)), folder / "oblong.posekit")
    graph = report.manifest.graphs["find.embedder"]
    assert graph.inputs[0].shape == ("batch", wh_px[1], wh_px[0], 3)
    assert graph.outputs[0].shape[1] == places
    assert report.manifest.paths["find"].crop.size_px == wh_px
    check_poses(report.path, folder)


def check_poses(path: Path, folder: Path) -> None:
    """Views of its own bank are found again."""
    model = read_mesh(folder / "brick.ply", "mm")
    with Bundle(path) as bundle, PoseEstimator(bundle) as estimator:
        bank = tensors_from_bytes(bundle.read("banks/find.brick.safetensors"), "bank").arrays
        errors = []
        for i in range(0, 168, 21):
            truth = Pose(bank["R"][i], np.array([0.0, 0.0, 0.8]))
            rendering = Renderer({4: model}).render([(4, truth)], CAMERA)
            detection = Detection(4, 1.0, box_from_mask(rendering.mask))
            (estimate,) = estimator.estimate(shade(rendering, headlight()), CAMERA, [detection])
            errors.append(
                (
                    np.rad2deg(rotation_angle_rad(estimate.cam_from_obj.R, truth.R)),
                    np.linalg.norm(estimate.cam_from_obj.t_m - truth.t_m),
                )
            )
    assert np.median([angle for angle, _ in errors]) < 1.0
    assert np.median([shift for _, shift in errors]) < 0.03


@pytest.mark.slow
def test_equal_recipes_give_equal_bytes(exported: ExportReport, folder: Path) -> None:
    again = export_recipe(recipe(folder, HEAD, FIND), folder / "again.posekit")
    assert again.path.read_bytes() == exported.path.read_bytes()


@pytest.mark.slow
def test_every_role_in_one_bundle(folder: Path) -> None:
    everything = recipe(folder, HEAD.replace('"find"', '"guess"'), REGRESS, DENSE, DETECTOR)
    report = export_recipe(everything, folder / "roles.posekit")
    assert report.manifest.provenance["checkpoint of guess"] == "random weights (seed 0), not for use"
    model = read_mesh(folder / "brick.ply", "mm")
    truth = Pose(np.eye(3), np.array([0.05, -0.02, 0.7]))
    rendering = Renderer({4: model}).render([(4, truth)], CAMERA)
    detection = Detection(4, 1.0, box_from_mask(rendering.mask))
    image = shade(rendering, headlight())
    with Bundle(report.path) as bundle:
        with PoseEstimator(bundle) as estimator:
            (estimate,) = estimator.estimate(image, CAMERA, [detection])
            found, true = estimate.cam_from_obj.t_m, truth.t_m
            assert np.linalg.norm(found[:2] / found[2] - true[:2] / true[2]) < 0.01
            assert {d.object_id for d in estimator.detect(image, CAMERA)} <= {4}
        with PoseEstimator(bundle, path="dense") as estimator:
            assert len(estimator.estimate(image, CAMERA, [detection])) <= 1


def test_a_threshold_from_a_recording_is_a_step_that_is_kept(folder: Path) -> None:
    """Made again for other frames; the half that variants are judged on is none of them."""
    section = '[calibration]\nsource = "recording"\n'
    recording = write_recording(folder / "recording", 40, object_id=4)
    reports = []
    for odd, even in ((False, False), (True, False), (False, True)):
        for index, changed in ((1, odd), (0, even)):
            if changed:
                picture = recording / "test" / "000001" / "rgb" / f"{index:06d}.png"
                cv2.imwrite(str(picture), np.zeros((120, 160, 3), np.uint8))
        reports.append(export_recipe(recipe(folder, HEAD, FIND, section), folder / "toy.posekit"))
    assert ["rejection of find" in report.made for report in reports] == [True, False, True]
    (told,) = {report.rejections["find"].undecided["4"] for report in reports}
    assert told.startswith("20 crops of it, 80 of anything else")
    assert reports[0].rejections["find"].of == "recorded"


def yolo(labels: dict[int, str]) -> onnx.ModelProto:
    """A YOLOv8 in name: 84 equal boxes whose class score is the image's brightness."""
    rows = np.tile(np.array([[32], [32], [20], [10], *[[1]] * len(labels)], np.float32), (1, 84))[None]
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("ReduceMax", ["mean"], ["one"], axes=[1], keepdims=1),
        helper.make_node("Reshape", ["one", "shape"], ["brightness"]),
        helper.make_node("Mul", ["brightness", "rows"], ["output0"]),
    ]
    graph = helper.make_graph(
        nodes,
        "yolo",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info("output0", onnx.TensorProto.FLOAT, list(rows.shape))],
        [numpy_helper.from_array(rows, "rows"), numpy_helper.from_array(np.array([1, 1, 1]), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.add(key="names", value=str(labels))
    return model


@pytest.mark.slow
def test_a_third_partys_detector_finds_by_name(folder: Path) -> None:
    onnx.save(yolo({0: "cup", 1: "brick"}), folder / "yolo.onnx")
    section = '[detector]\nonnx = "yolo.onnx"\nfamily = "yolov8"\nscore_threshold = 0.1\n'
    report = export_recipe(recipe(folder, HEAD.replace('"find"', '"guess"'), REGRESS, section), folder / "yolo.posekit")
    entry = report.manifest.detector
    assert entry is not None
    assert (entry.class_object_ids, entry.input_wh_px, entry.score_threshold) == ((-1, 4), (64, 64), 0.1)
    assert report.manifest.provenance["detector"].startswith("yolo.onnx, sha256 ")
    with Bundle(report.path) as bundle, PoseEstimator(bundle) as estimator:
        assert estimator.has_detector
        estimator.detect(np.full((480, 640, 3), 200, np.uint8), CAMERA)
    onnx.save(yolo({0: "cup"}), folder / "yolo.onnx")
    with pytest.raises(RecipeError, match="the objects brick among them"):
        export_recipe(recipe(folder, HEAD.replace('"find"', '"guess"'), REGRESS, section), folder / "yolo.posekit")


def test_random_weights_follow_from_the_seed(folder: Path) -> None:
    whole = recipe(folder, HEAD.replace('"find"', '"dense"'), DENSE)
    state = torch.random.get_rng_state()
    first, second = (built_network(whole, whole.networks[0]) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    for a, b in zip(
        first.graphs["correspondence"].module.parameters(),
        second.graphs["correspondence"].module.parameters(),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_a_systems_defaults_hold_until_the_recipe_says_otherwise(folder: Path) -> None:
    text = '[[networks]]\nname = "fine"\nsystem = "gdr-net"\ncheckpoint = "random"\n'
    whole = recipe(folder, HEAD.replace('"find"', '"fine.regressor"'), text)
    network = built_network(whole, whole.networks[0])
    assert network.crop == PRESETS["dzi-1.5-256"]
    assert set(network.paths) == {"regressor", "epnp"}


TRAM = '[[networks]]\nname = "find"\nsystem = "tram3d"\ncheckpoint = "random"\n'


@pytest.mark.parametrize(
    ("sections", "kind", "named"),
    [
        ((HEAD.replace('"find"', '"lost"'), FIND), RecipeError, "one of find"),
        ((HEAD, FIND.replace("patches.saf", "lost.saf")), CheckpointError, "lost.safetensors"),
        ((HEAD, FIND.replace('"net."', '"w."')), CheckpointError, "checkpoint_prefix"),
        ((HEAD, FIND.replace("toynets:patches", "toynets:lost")), RecipeError, "lost"),
        ((HEAD.replace("brick.ply", "lost.ply"), FIND), MeshError, "lost.ply"),
        ((HEAD.replace("[0, 0, 2]", "[0, 0, 0]"), FIND), RecipeError, "symmetries of object 'brick'"),
        ((HEAD, FIND.replace("[[networks]]", "[[networks]]\noptions = {depth = 3}")), RecipeError, "depth"),
        ((HEAD, TRAM.replace("tram3d", "tram4d")), RecipeError, "tram3d"),
        ((HEAD, TRAM + "options = {width = 3}\n"), RecipeError, "width"),
        (
            (HEAD, TRAM + 'crop = {rule = "square", size_px = [224, 128]}\n'),
            RecipeError,
            "224 x 128 px, expected a square",
        ),
        (
            (HEAD, TRAM + 'solver = {method = "epnp-ransac", iterations = 1, reprojection_px = 1}\n'),
            RecipeError,
            "for a network with a correspondence path",
        ),
        ((HEAD, FIND, DETECTOR.replace("[detector]", "[detector]\nobjects = {cup = 4}")), RecipeError, "cup"),
    ],
)
def test_what_cannot_be_exported_is_named_and_nothing_is_written(
    sections: tuple[str, ...], kind: type[PosekitError], named: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "onnx_from_network", None)  # all of these are known before the first graph
    out = folder / "refused.posekit"
    with pytest.raises(kind) as caught:
        export_recipe(recipe(folder, *sections), out)
    assert named in str(caught.value)
    assert not out.exists()
    assert not list(folder.glob(".*"))


def test_no_folder_to_write_to(folder: Path) -> None:
    with pytest.raises(OutputError, match="absent"):
        export_recipe(recipe(folder, HEAD, FIND), folder / "absent" / "toy.posekit")
