"""Every key of a recipe is heard: changing it changes what is made, or giving it is refused where it has no effect."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import typing
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import trimesh
from onnx import TensorProto, helper
from recordings import write_recording
from safetensors.torch import save_file
from toy_networks import scenes, toy_network

from posekit.calibration.ranges import calibrate
from posekit.export import pipeline
from posekit.export.bank import build_bank
from posekit.export.example_feed import example_feed
from posekit.export.inputs import ExportInputs, read_inputs
from posekit.export.objects import bundled_object
from posekit.export.parity import network_outputs
from posekit.export.recipe import ExportRecipe, NetworkRecipe, recipe_from_toml
from posekit.export.recipe_detector import ThirdParty, detector_from_recipe
from posekit.export.recipe_keys import KEYS
from posekit.export.recipe_networks import built_network
from posekit.export.rejection import rejection_from_scores
from posekit.export.steps import Steps
from posekit.export.systems import GraphSource
from posekit.export.verify.gates import Gates
from posekit.runtime.crop import PRESETS, crop
from posekit.runtime.errors import ExportError, RecipeError
from posekit.runtime.intrinsics import Intrinsics
from posekit.runtime.pose import Pose
from posekit.runtime.solvers import pose_from_correspondences
from posekit.runtime.tensor import Feed, TensorSpec

torch.set_num_threads(1)
CAMERA = Intrinsics(np.array([[150.0, 0, 79.5], [0, 150, 59.5], [0, 0, 1]]), 160, 120)
FRAMES = 66

NETS = """
import torch
from torch import nn

class Embedder(nn.Module):
    def __init__(self, channels=4):
        super().__init__()
        self.layer = nn.Conv2d(3, channels, 8, stride=8)
    def forward(self, x):
        return self.layer(x)

class Other(Embedder):
    def forward(self, x):
        return -self.layer(x)

class Regressor(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 1)
    def forward(self, crops, box=None):
        z = 1 + torch.sigmoid(self.b(self.a(crops.mean(dim=(2, 3)))))[:, 0]
        R = torch.eye(3).expand(len(crops), 3, 3) * (1 + 0 * z)[:, None, None]
        x = z if box is None else box[:, 0]
        return R, torch.stack([x, z, z], dim=1), z

class Maps(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 8, stride=8)
    def forward(self, crops):
        maps = self.layer(crops)
        return torch.sigmoid(maps[:, 0]), maps[:, 1:].permute(0, 2, 3, 1)

class Detector(nn.Module):
    def __init__(self, gain=1.0):
        super().__init__()
        self.layer, self.gain = nn.Conv2d(3, 1, 32, stride=32), gain
    def forward(self, x):
        scores, cell = torch.sigmoid(self.gain * self.layer(x)).flatten(1).topk(2, dim=1)
        return torch.stack([cell, cell, cell + 32, cell + 32], dim=2).float(), scores, cell * 0

class OtherDetector(Detector):
    def forward(self, x):
        return super().forward(-x)
"""

OBJECTS = """
name = "toy"
default_path = "look"
[[objects]]
id = 1
name = "brick"
mesh = "brick.ply"
unit = "m"
"""
EMBEDDER = """
[[networks]]
name = "look"
network = "keynets:Embedder"
role = "embedder"
checkpoint = "random"
crop = {rule = "square", size_px = 32}
bank = {sphere = 42, in_plane_steps = 2, search = "flat", max_angle_deg = 60}
"""
POSE = """
[[networks]]
name = "guess"
network = "keynets:Regressor"
role = "pose"
checkpoint = "random"
crop = {rule = "square", size_px = 32}
"""
MAPS = """
[[networks]]
name = "maps"
network = "keynets:Maps"
role = "correspondence"
checkpoint = "random"
crop = {rule = "square", size_px = 32}
solver = {method = "p3p-ransac", iterations = 100, reprojection_px = 2}
"""
SYSTEM = """
[[networks]]
name = "tram"
system = "tram3d"
checkpoint = "random"
options = {image_px = 32, dim = 32, depth = 1, heads = 2, channels = 4}
crop = {rule = "square", size_px = 32}
"""
SOLVER = 'solver = {method = "p3p-ransac", iterations = 100, reprojection_px = 2}\n'
GDR = f"""{OBJECTS}
[[networks]]
name = "gdr"
system = "gdr-net"
checkpoint = "random"
options = {{backbone = "nano", crop_size_px = 64, regions = 0, head_widths = [8, 8, 8], pnp_width = 8, pnp_hidden = [8, 8]}}
crop = {{rule = "dzi", size_px = 64, pad = 1.5}}
"""
DETECTOR = """
[detector]
family = "posekit"
network = "keynets:Detector"
checkpoint = "random"
input_wh_px = [64, 64]
"""
DETECTOR_SYSTEM = """
[detector]
family = "posekit"
system = "anchor-free"
checkpoint = "random"
options = {classes = 1, input_wh_px = [64, 64], widths = [4, 4, 8, 8], detections = 4}
"""
ONNX = """
[detector]
family = "yolov8"
onnx = "yolo.onnx"
labels = "labels.txt"
input_wh_px = [64, 64]
"""
VARIANTS = """
[precision]
variants = ["int8"]
[calibration]
source = "recording"
"""
ENGINES = """
[engines]
crops_per_pass = [1, 2, 3]
"""
LOOK = OBJECTS + EMBEDDER


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Everything that the recipes name."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "keynets.py").write_text(NETS)
    for name, sides in (("brick", (0.2, 0.1, 0.1)), ("slab", (0.2, 0.1, 0.02))):
        box = trimesh.creation.box(sides).subdivide().subdivide()
        box.visual.vertex_colors = np.random.default_rng(0).integers(0, 255, (len(box.vertices), 3)).astype(np.uint8)
        box.export(folder / f"{name}.ply")
    (folder / "models_info.json").write_text('{"1": {"symmetries_discrete": [[-1,0,0,0,0,-1,0,0,0,0,1,0,0,0,0,1]]}}')
    write_recording(folder / "recording", FRAMES)
    write_recording(folder / "other", FRAMES, seed=1)
    (folder / "labels.txt").write_text("brick\ncup\n")
    (folder / "labels2.txt").write_text("cup\nbrick\n")
    for name, weight in (("yolo", 0.01), ("yolo2", 0.02)):
        onnx.save(yolo(weight), folder / f"{name}.onnx")
    frames = {
        name: [{"object_id": 1, "box_xyxy_px": [8 + i, 38, 54 + i, 84]}]
        for i in range(FRAMES)
        for name in (f"{i:06d}.png", f"000001/{i:06d}")
    }
    (folder / "images").symlink_to(folder / "recording" / "test" / "000001" / "rgb")
    (folder / "boxes.json").write_text(json.dumps(frames))
    for name, focal in (("a", 150.0), ("b", 160.0)):
        camera = {"fx": focal, "fy": focal, "cx": 79.5, "cy": 59.5, "width": 160, "height": 120}
        (folder / f"{name}.json").write_text(json.dumps(camera))
    sys.path.insert(0, str(folder))
    try:
        import keynets  # type: ignore[import-not-found]

        torch.manual_seed(5)
        weights = {f"net.{name}": tensor for name, tensor in keynets.Embedder().state_dict().items()}
        torch.save(
            {"ema": weights, "raw": {f"net.{n}": 2 * t for n, t in keynets.Embedder().state_dict().items()}},
            folder / "look.pth",
        )
        torch.save({"ema": {name: 3 * tensor for name, tensor in weights.items()}}, folder / "look2.pth")
        both = weights | {name.replace("net.", "ema."): -tensor for name, tensor in weights.items()}
        save_file(both, folder / "both.safetensors")
        detector = keynets.Detector().state_dict()
        torch.save({"ema": detector, "raw": {name: 2 * tensor for name, tensor in detector.items()}}, folder / "d.pth")
        torch.save({"ema": {name: 3 * tensor for name, tensor in detector.items()}}, folder / "d2.pth")
        save_file({f"{p}.{n}": t + (p == "a") for p in "ab" for n, t in detector.items()}, folder / "d.safetensors")
        yield folder
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("keynets", None)


def yolo(gain: float) -> onnx.ModelProto:
    """Two classes; the size of its input is left open, its predictions are means of the picture."""
    pixels = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, "h", "w"])
    out = helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 6, "cells"])
    of_row = [40, 40, 10, 10, 0.3, 0.3]  # centre, size, two classes
    kernels = [gain * scale for scale in of_row for _ in range(3 * 64)]
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [6, 3, 8, 8], kernels)
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["maps"], strides=[8, 8]),
        helper.make_node("Reshape", ["maps", "shape"], ["fine"]),
        helper.make_node("AveragePool", ["images"], ["half"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["half", "weight"], ["maps16"], strides=[8, 8]),
        helper.make_node("Reshape", ["maps16", "shape"], ["middle"]),
        helper.make_node("AveragePool", ["half"], ["quarter"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["quarter", "weight"], ["maps32"], strides=[8, 8]),
        helper.make_node("Reshape", ["maps32", "shape"], ["coarse"]),
        helper.make_node("Concat", ["fine", "middle", "coarse"], ["output0"], axis=2),
    ]
    shape = helper.make_tensor("shape", TensorProto.INT64, [3], [1, 6, -1])
    graph = helper.make_graph(nodes, "yolo", [pixels], [out], [weight, shape])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def read(folder: Path, text: str) -> ExportRecipe:
    path = folder / "toy.toml"
    path.write_text(text)
    return recipe_from_toml(path)


# What is made of a recipe, as one digest each.
def digest(*values: object) -> str:
    found = hashlib.sha256()
    for value in values:
        found.update(np.ascontiguousarray(value).tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
    return found.hexdigest()


def of_graph(source: GraphSource) -> str:
    out = network_outputs(source, source.module.eval(), example_feed(source.inputs, {"batch": 2, "views": 200}))
    return digest(source.role, source.inputs, source.outputs, source.trunk, *out.values())


def networks(recipe: ExportRecipe) -> str:
    built = {entry.name: built_network(recipe, entry) for entry in recipe.networks}
    rows = [(name, [of_graph(g) for g in row.graphs.values()], dict(row.paths)) for name, row in built.items()]
    return digest(rows)


def crops(recipe: ExportRecipe) -> str:
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3)).astype(np.uint8)
    stated = recipe.networks[0].crop
    preset = PRESETS[stated] if isinstance(stated, str) else stated
    assert preset is not None
    cut = crop(image, (-20.0, 30.0, 170.0, 90.0), CAMERA, preset)
    return digest(cut.pixels, cut.warp)


class Embeds:
    """The embedder as a session."""

    backend, inputs = "torch", ()

    def __init__(self, source: GraphSource) -> None:
        self.source = source
        shape = network_outputs(source, source.module, example_feed(source.inputs, {"batch": 1}))["descriptors"].shape
        self.outputs = (TensorSpec("descriptors", "float32", ("batch", *shape[1:])),)

    def run(self, feed: Feed) -> dict[str, Any]:
        return network_outputs(self.source, self.source.module, dict(feed))

    def close(self) -> None:
        pass


def bank(recipe: ExportRecipe) -> str:
    entry, model = recipe.networks[0], bundled_object(recipe, recipe.objects[0]).model
    network = built_network(recipe, entry)
    path = recipe.folder / "bank.safetensors"
    session = Embeds(network.graphs["embedder"])
    build_bank(path, session, "0" * 64, model, 1, network.crop, entry.bank)
    return digest(path.read_bytes().split(b"}}", 1)[1])  # what follows the header, in which the recipe's bank stands


def solver(recipe: ExportRecipe) -> str:
    """On pairs with noise, outliers and unsure cells, and on some that a search of a hundred triples finds by luck."""
    entry = recipe.networks[0].solver
    assert entry is not None
    rng = np.random.default_rng(3)
    points, pose = rng.uniform(-0.05, 0.05, (5, 3)), Pose(np.eye(3), np.array([0.01, 0.0, 0.5]))
    enough = pose_from_correspondences(points, CAMERA.project(pose.apply(points)), CAMERA.K, entry) is not None
    points = rng.uniform(-0.05, 0.05, (60, 3))
    pixels = CAMERA.project(pose.apply(points)) + rng.normal(scale=0.7, size=(60, 2))
    pixels[:25] += rng.uniform(-30, 30, (25, 2))
    found = pose_from_correspondences(points, pixels, CAMERA.K, entry)
    luck = np.random.default_rng(0)
    points = luck.uniform(-0.05, 0.05, (60, 3))
    pixels = CAMERA.project(pose.apply(points))
    pixels[luck.permutation(60)[:48]] = luck.uniform(270, 370, (48, 2))
    lucky = pose_from_correspondences(points, pixels, CAMERA.K, entry) is not None
    return digest(
        enough, lucky, entry.mask_threshold, found and (found.cam_from_obj.t_m.tolist(), found.inliers.tolist())
    )


def rejection(recipe: ExportRecipe) -> str:
    """The threshold for scores of one object and of what is not it."""
    rng = np.random.default_rng(2)
    rate = recipe.networks[0].false_accept_rate
    return digest(rejection_from_scores(rng.normal(0.8, 0.1, 300), rng.normal(0.4, 0.1, 300), rate))


def manifest(recipe: ExportRecipe) -> str:
    """Objects, detector and paths, as they come into the bundle."""
    inputs = ExportInputs(
        recipe,
        {row.id: bundled_object(recipe, row) for row in recipe.objects},
        {},
        detector_from_recipe(recipe, recipe.detector) if recipe.detector else None,
    )
    draft = pipeline._Draft(inputs, recipe.folder, lambda *_: None, Steps())
    without_hash = dataclasses.replace(pipeline._manifest(draft), provenance={})
    return digest(
        without_hash, [row.member for row in inputs.objects.values()], [inputs.ids_of(n) for n in recipe.networks]
    )


def detector(recipe: ExportRecipe) -> str:
    assert recipe.detector is not None
    found = detector_from_recipe(recipe, recipe.detector)
    graph = found.graph.content if isinstance(found.graph, ThirdParty) else of_graph(found.graph.graph)
    return digest(found.entry, graph)


def heard(recipe: ExportRecipe) -> str:
    """What is calibrated and verified on, and with which method."""
    found = read_inputs(recipe, lambda *_: None)
    name = next(iter(found.crops))
    fed = [array for portion in found.crops[name].feeds for array in portion.feed.values()]
    seen = [array for s in found.samples for array in (s.image_rgb_u8, s.detection.box_xyxy_px)]
    ranges = calibrate(toy_network(), scenes(8).feeds, recipe.precision.method)
    seen += [s.intrinsics.K for s in found.samples]
    return digest(sorted(found.crops), found.variants_of(name), found.crops_per_pass, ranges.ranges, *fed, *seen)


Made = Callable[[ExportRecipe], str]
FROM_FILE = LOOK.replace('"random"', '"look.pth"\ncheckpoint_key = "ema"\ncheckpoint_prefix = "net."')
FROM_TABLES = LOOK.replace('"random"', '"both.safetensors"\ncheckpoint_prefix = "net."')
TURNED = LOOK.replace('"m"', '"m"\nsymmetries_continuous = [{axis = [0, 0, 1]}]')
GUESS = OBJECTS.replace('"look"', '"guess"') + POSE
SOLVED = OBJECTS.replace('"look"', '"maps"') + MAPS
FULL, BORDER = GUESS.replace('"square"', '"full"'), GUESS.replace('"square"', '"border"')
DETECTED, DETECTED_ONNX = LOOK + DETECTOR, LOOK + ONNX
DETECTED_FROM_FILE = DETECTED.replace(
    'r"\ncheckpoint = "random"\ninput', 'r"\ncheckpoint = "d.pth"\ncheckpoint_key = "ema"\ninput'
)
DETECTED_FROM_TABLES = DETECTED_FROM_FILE.replace(
    'd.pth"\ncheckpoint_key = "ema"', 'd.safetensors"\ncheckpoint_prefix = "a."'
)
TWO = LOOK.replace("[[networks]]", '[[objects]]\nid = 2\nname = "slab"\nmesh = "slab.ply"\nunit = "m"\n[[networks]]')

# Key -> what is made, a recipe, and how it is changed in that key alone.
CASES: dict[str, tuple[Made, str, str, str]] = {
    "ExportRecipe.name": (manifest, LOOK, 'name = "toy"', 'name = "boy"'),
    "ExportRecipe.default_path": (manifest, LOOK + POSE, 'path = "look"', 'path = "guess"'),
    "ObjectRecipe.id": (manifest, LOOK, "id = 1", "id = 2"),
    "ObjectRecipe.name": (manifest, LOOK, 'name = "brick"', 'name = "stone"'),
    "ObjectRecipe.mesh": (manifest, LOOK, "brick.ply", "slab.ply"),
    "ObjectRecipe.unit": (manifest, LOOK, '"m"', '"inch"'),
    "ObjectRecipe.symmetries_discrete": (
        manifest,
        LOOK,
        '"m"',
        '"m"\nsymmetries_discrete = [[-1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]]',
    ),
    "ObjectRecipe.symmetries_continuous": (manifest, LOOK, '"m"', '"m"\nsymmetries_continuous = [{axis = [0, 0, 1]}]'),
    "ObjectRecipe.models_info": (manifest, LOOK, '"m"', '"m"\nmodels_info = "models_info.json"'),
    "ContinuousSymmetry.axis": (manifest, TURNED, "[0, 0, 1]", "[1, 0, 0]"),
    "ContinuousSymmetry.offset_m": (manifest, TURNED, "1]}", "1], offset_m = [1, 0, 0]}"),
    "NetworkRecipe.name": (networks, LOOK, 'name = "look"', 'name = "see"'),
    "NetworkRecipe.checkpoint": (networks, FROM_FILE, "look.pth", "look2.pth"),
    "NetworkRecipe.system": (
        networks,
        OBJECTS + SYSTEM,
        SYSTEM[SYSTEM.index("system") : SYSTEM.index("crop")],
        'system = "template-pose"\ncheckpoint = "random"\noptions = {backbone = "base"}\n',
    ),
    "NetworkRecipe.network": (networks, LOOK, "Embedder", "Other"),
    "NetworkRecipe.seed": (networks, LOOK, '"random"', '"random"\nseed = 1'),
    "NetworkRecipe.checkpoint_key": (networks, FROM_FILE, '"ema"', '"raw"'),
    "NetworkRecipe.checkpoint_prefix": (networks, FROM_TABLES, '"net."', '"ema."'),
    "NetworkRecipe.options": (networks, LOOK, "bank =", "options = {channels = 5}\nbank ="),
    "NetworkRecipe.crop": (crops, GUESS, 'crop = {rule = "square", size_px = 32}', 'crop = "full-512"'),
    "NetworkRecipe.objects": (manifest, TWO, "bank =", "objects = [2]\nbank ="),
    "NetworkRecipe.bank": (
        bank,
        LOOK,
        LOOK[LOOK.index("bank =") :],
        'bank = {sphere = 42, in_plane_steps = 1, search = "flat"}',
    ),
    "NetworkRecipe.false_accept_rate": (rejection, LOOK, "bank =", "false_accept_rate = 0.2\nbank ="),
    "NetworkRecipe.solver": (solver, SOLVED, "iterations = 100", "iterations = 1"),
    "NetworkRecipe.normalise": (networks, OBJECTS + SYSTEM, "options", "normalise = {bgr = true}\noptions"),
    "NetworkRecipe.feeds": (networks, GUESS, "crop =", 'feeds = ["crops", "box"]\ncrop ='),
    "NetworkRecipe.threshold": (networks, LOOK, "crop =", "threshold = 0.9\ncrop ="),
    "NetworkRecipe.trunk": (networks, GUESS + VARIANTS, "crop =", 'trunk = ["a"]\ncrop ='),
    "NormaliseRecipe.mean": (networks, OBJECTS + SYSTEM, "options", "normalise = {mean = [0, 0, 0]}\noptions"),
    "NormaliseRecipe.std": (networks, LOOK, "crop =", "normalise = {std = [1, 1, 1]}\ncrop ="),
    "NormaliseRecipe.bgr": (networks, LOOK, "crop =", "normalise = {bgr = true}\ncrop ="),
    "BankRecipe.sphere": (bank, LOOK, "sphere = 42", "sphere = 162"),
    "BankRecipe.in_plane_steps": (bank, LOOK, "steps = 2", "steps = 3"),
    "BankRecipe.in_plane": (bank, LOOK.replace("steps = 2", "steps = 3"), "max_", 'in_plane = "render", max_'),
    "BankRecipe.max_angle_deg": (bank, LOOK, "= 60", "= 90"),
    "BankRecipe.distance_m": (bank, LOOK, "max_", "distance_m = 3, max_"),
    "BankRecipe.precision": (bank, LOOK, "max_", 'precision = "fp32", max_'),
    "BankRecipe.supersample": (bank, LOOK, "max_", "supersample = 1, max_"),
    "BankRecipe.search": (networks, LOOK, '"flat"', '"coarse"'),
    "CropPreset.rule": (crops, GUESS, '"square"', '"dzi"'),
    "CropPreset.size_px": (crops, GUESS, "= 32", "= 48"),
    "CropPreset.pad": (crops, GUESS, "size_px", "pad = 1.5, size_px"),
    "CropPreset.border_px": (crops, BORDER, "size_px", "border_px = 5, size_px"),
    "CropPreset.blank_outside_box": (crops, FULL, "size_px", "blank_outside_box = true, size_px"),
    "SolverEntry.method": (solver, SOLVED, "p3p-ransac", "p3p-lo-ransac"),
    "SolverEntry.iterations": (solver, SOLVED, "= 100", "= 1"),
    "SolverEntry.reprojection_px": (solver, SOLVED, "px = 2", "px = 1"),
    "SolverEntry.min_correspondences": (solver, SOLVED, "px = 2", "px = 2, min_correspondences = 5"),
    "SolverEntry.mask_threshold": (solver, SOLVED, "px = 2", "px = 2, mask_threshold = 0.9"),
    "ExportRecipe.detector": (manifest, LOOK, "[[networks]]", f"{DETECTOR}[[networks]]"),
    "DetectorRecipe.onnx": (detector, DETECTED_ONNX, "yolo.onnx", "yolo2.onnx"),
    "DetectorRecipe.network": (detector, DETECTED, ":Detector", ":OtherDetector"),
    "DetectorRecipe.checkpoint": (detector, DETECTED_FROM_FILE, '"d.pth"', '"d2.pth"'),
    "DetectorRecipe.seed": (detector, DETECTED, "input_wh", "seed = 3\ninput_wh"),
    "DetectorRecipe.checkpoint_key": (detector, DETECTED_FROM_FILE, '"ema"', '"raw"'),
    "DetectorRecipe.checkpoint_prefix": (detector, DETECTED_FROM_TABLES, '"a."', '"b."'),
    "DetectorRecipe.options": (detector, DETECTED, "input_wh", "options = {gain = 2}\ninput_wh"),
    "DetectorRecipe.normalise": (detector, LOOK + DETECTOR_SYSTEM, "options", "normalise = {bgr = true}\noptions"),
    "DetectorRecipe.input_wh_px": (detector, DETECTED_ONNX, "64, 64", "96, 64"),
    "DetectorRecipe.labels": (detector, DETECTED_ONNX, "labels.txt", "labels2.txt"),
    "DetectorRecipe.objects": (detector, DETECTED_ONNX, "labels =", "objects = {cup = 1}\nlabels ="),
    "DetectorRecipe.letterbox_value": (detector, DETECTED_ONNX, "labels =", "letterbox_value = 7\nlabels ="),
    "DetectorRecipe.score_threshold": (detector, DETECTED_ONNX, "labels =", "score_threshold = 0.9\nlabels ="),
    "DetectorRecipe.iou_threshold": (detector, DETECTED_ONNX, "labels =", "iou_threshold = 0.9\nlabels ="),
    "DetectorRecipe.variants": (heard, GUESS + DETECTOR + VARIANTS, "input_wh", "variants = []\ninput_wh"),
    "PrecisionRecipe.variants": (heard, GUESS + VARIANTS, '"int8"', '"fp16"'),
    "PrecisionRecipe.method": (heard, GUESS + VARIANTS, "[calib", 'method = "percentile"\n[calib'),
    "ExportRecipe.calibration": (heard, GUESS + VARIANTS, '"recording"', '"other"'),
    "ExportRecipe.verification": (heard, GUESS + VARIANTS, "[calib", '[verification]\nsource = "other"\n[calib'),
    "CropsRecipe.source": (heard, GUESS + VARIANTS, '"recording"', '"other"'),
    "CropsRecipe.boxes": (heard, GUESS + VARIANTS, '"recording"', '"recording"\nboxes = "boxes.json"'),
    "CropsRecipe.camera": (
        heard,
        GUESS + VARIANTS.replace('"recording"', '"images"\nboxes = "boxes.json"\ncamera = "a.json"'),
        "a.json",
        "b.json",
    ),
    "CropsRecipe.max_crops": (heard, GUESS + VARIANTS, '"recording"', '"recording"\nmax_crops = 32'),
    "EnginesRecipe.crops_per_pass": (heard, GUESS + VARIANTS + ENGINES, "[1, 2, 3]", "[1, 2, 4]"),
}
# What needs no case: "path" and "sha256" are no keys; sections and kinds are tried by their own keys.
NO_CASE = {
    "ExportRecipe.path",
    "ExportRecipe.sha256",
    *("ExportRecipe.objects", "ExportRecipe.networks", "ExportRecipe.precision", "ExportRecipe.engines"),
    "NetworkRecipe.role",  # with other outputs it is another network
    "ExportRecipe.gates",  # posekit.export.verify.gates asserts that each gate is a row
    "DetectorRecipe.family",  # with other outputs it is another file
    "DetectorRecipe.system",  # there is one
}


def records(kind: type) -> Iterator[type]:
    """Every record of a recipe."""
    yield kind
    for hint in typing.get_type_hints(kind).values():
        for part in parts(hint):
            if dataclasses.is_dataclass(part):
                yield from records(typing.cast(type, part))


def parts(hint: Any) -> Iterator[Any]:
    yield hint
    for part in typing.get_args(hint):
        yield from parts(part)


def test_no_key_is_without_a_case() -> None:
    fields = {
        f"{record.__name__}.{field.name}"
        for record in records(ExportRecipe)
        if record is not Gates
        for field in dataclasses.fields(record)
    }
    assert fields == CASES.keys() | NO_CASE
    gates = {f"Gates.{field.name}" for field in dataclasses.fields(Gates)}
    assert fields | gates >= KEYS.keys()
    assert not CASES.keys() & NO_CASE


@cache
def made_of(made: Made, text: str, folder: Path) -> str:
    return made(read(folder, text))


@pytest.mark.parametrize("key", CASES)
def test_a_key_changes_what_is_made(key: str, folder: Path) -> None:
    made, text, old, new = CASES[key]
    assert text.count(old) == 1
    assert made_of(made, text, folder) != made_of(made, text.replace(old, new), folder)


@pytest.mark.parametrize(
    ("made", "text"), [(bank, LOOK), (solver, SOLVED), (detector, DETECTED), (heard, GUESS + VARIANTS)]
)
def test_what_is_made_follows_from_the_recipe_alone(made: Made, text: str, folder: Path) -> None:
    assert made(read(folder, text)) == made_of(made, text, folder)


REFUSED: dict[str, list[tuple[str, str, str]]] = {
    "NetworkRecipe.seed": [(FROM_FILE, "crop =", "seed = 0\ncrop =")],
    "NetworkRecipe.checkpoint_key": [(LOOK, "crop =", 'checkpoint_key = "a"\ncrop =')],
    "NetworkRecipe.checkpoint_prefix": [(LOOK, "crop =", 'checkpoint_prefix = "a"\ncrop =')],
    "NetworkRecipe.bank": [
        (GUESS, "crop =", "bank = {}\ncrop ="),
        (SOLVED, "crop =", "bank = {}\ncrop ="),
        (GDR, "crop =", "bank = {sphere = 162}\ncrop ="),
    ],
    "NetworkRecipe.false_accept_rate": [(GUESS, "crop =", "false_accept_rate = 0.1\ncrop =")],
    "NetworkRecipe.solver": [
        (LOOK, "crop =", f"{SOLVER}crop ="),
        (GUESS, "crop =", f"{SOLVER}crop ="),
        (OBJECTS + SYSTEM, "crop =", f"{SOLVER}crop ="),
    ],
    "NetworkRecipe.role": [(GDR, "crop =", 'role = "pose"\ncrop =')],
    "NetworkRecipe.feeds": [
        (LOOK, "crop =", 'feeds = ["crops"]\ncrop ='),
        (GDR, "crop =", 'feeds = ["crops"]\ncrop ='),
    ],
    "NetworkRecipe.threshold": [
        (GUESS, "crop =", "threshold = 0.2\ncrop ="),
        (OBJECTS + SYSTEM, "crop =", "threshold = 0.2\ncrop ="),
    ],
    "NetworkRecipe.trunk": [
        (GUESS, "crop =", 'trunk = ["a"]\ncrop ='),
        (GDR + VARIANTS, "crop =", 'trunk = ["backbone"]\ncrop ='),
    ],
    "BankRecipe.in_plane": [(LOOK.replace("steps = 2", "steps = 1"), "max_", 'in_plane = "render", max_')],
    "CropPreset.pad": [(FULL, "size_px", "pad = 1.5, size_px"), (BORDER, "size_px", "pad = 1.5, size_px")],
    "CropPreset.border_px": [(FULL, "size_px", "border_px = 2, size_px"), (GUESS, "size_px", "border_px = 2, size_px")],
    "DetectorRecipe.checkpoint": [(DETECTED_ONNX, "labels =", 'checkpoint = "d.pth"\nlabels =')],
    "DetectorRecipe.seed": [
        (DETECTED_ONNX, "labels =", "seed = 1\nlabels ="),
        (DETECTED_FROM_FILE, "input_wh", "seed = 1\ninput_wh"),
    ],
    "DetectorRecipe.checkpoint_key": [
        (DETECTED_ONNX, "labels =", 'checkpoint_key = "a"\nlabels ='),
        (DETECTED, "input_wh", 'checkpoint_key = "a"\ninput_wh'),
    ],
    "DetectorRecipe.checkpoint_prefix": [
        (DETECTED_ONNX, "labels =", 'checkpoint_prefix = "a"\nlabels ='),
        (DETECTED, "input_wh", 'checkpoint_prefix = "a"\ninput_wh'),
    ],
    "DetectorRecipe.options": [(DETECTED_ONNX, "labels =", "options = {a = 1}\nlabels =")],
    "DetectorRecipe.normalise": [(DETECTED_ONNX, "labels =", "normalise = {bgr = true}\nlabels =")],
    "DetectorRecipe.input_wh_px": [(LOOK + DETECTOR_SYSTEM, "options", "input_wh_px = [64, 64]\noptions")],
    "DetectorRecipe.letterbox_value": [
        (DETECTED_ONNX.replace("yolov8", "rtdetr"), "labels =", "letterbox_value = 7\nlabels =")
    ],
    "DetectorRecipe.iou_threshold": [
        (DETECTED_ONNX.replace("yolov8", "yolo-end2end"), "labels =", "iou_threshold = 0.5\nlabels ="),
        (DETECTED, "input_wh", "iou_threshold = 0.5\ninput_wh"),
    ],
    "PrecisionRecipe.method": [
        (LOOK, "[[networks]]", '[precision]\nmethod = "minmax"\n[[networks]]'),
        (GUESS + VARIANTS.replace("int8", "fp16"), "[calib", 'method = "minmax"\n[calib'),
    ],
    "ExportRecipe.calibration": [(GUESS, "[[networks]]", '[calibration]\nsource = "recording"\n[[networks]]')],
    "ExportRecipe.verification": [(LOOK, "[[networks]]", '[verification]\nsource = "recording"\n[[networks]]')],
    "ExportRecipe.gates": [(LOOK, "[[networks]]", "[gates]\nlost = 0.1\n[[networks]]")],
    **{
        f"Gates.{name}": [(GUESS + VARIANTS, "[calib", f"[gates]\n{name} = 0.5\n[calib")]
        for name in (
            "cosine_p1",
            "top1",
            "box_lost",
            "box_iou_p5",
            "box_score_p95",
            "box_recall_drop",
            "box_recall_min",
        )
    },
    "Gates.output_p95": [(FROM_FILE + VARIANTS, "[calib", "[gates]\noutput_p95 = 0.5\n[calib")],
}


def test_every_rule_has_a_recipe_that_breaks_it() -> None:
    assert REFUSED.keys() == KEYS.keys()


@pytest.mark.parametrize(
    ("key", "text", "old", "new"), [(key, *case) for key, cases in REFUSED.items() for case in cases]
)
def test_a_key_without_effect_is_refused_with_where_it_has_one(
    key: str, text: str, old: str, new: str, folder: Path
) -> None:
    assert text.count(old) == 1
    read(folder, text)
    with pytest.raises(RecipeError) as caught:
        read(folder, text.replace(old, new))
    name, told = key.split(".")[1], str(caught.value)
    assert f".{name}: got a key that has no effect here, expected it only {KEYS[key].where}" in told


def test_a_third_partys_detector_is_tried_before_anything_is_made(folder: Path) -> None:
    onnx.save(yolo(0.2), folder / "loud.onnx")
    recipe = read(folder, DETECTED_ONNX.replace("yolo.onnx", "loud.onnx"))
    with pytest.raises(ExportError, match=r"which are no probabilities.*expected the outputs of a yolov8 detector"):
        detector(recipe)


def test_frames_may_be_counted_without_variants(folder: Path) -> None:
    text = LOOK + '[calibration]\nsource = "recording"\n[engines]\ncrops_per_pass = "measured"\n'
    assert read_inputs(read(folder, text), lambda *_: None).crops_per_pass == {"look": (1, 1, 1)}


@pytest.mark.parametrize(
    ("normalise", "told"),
    [
        (
            "mean = [123.675, 116.28, 103.53], std = [58.395, 57.12, 57.375]",
            "mean = [0.485, 0.456, 0.406], std = [0.229",
        ),
        ("mean = [0, 0, 0], std = [255, 255, 255]", "0 to 0.00392, expected mean and std of pixels in 0..1"),
        ("std = [255, 255, 255]", "write mean = [0, 0, 0], std = [1, 1, 1]"),
        ("mean = [127.5, 127.5, 127.5]", "write mean = [0.5, 0.5, 0.5], std = [0.003922"),
    ],
)
@pytest.mark.parametrize("text", [LOOK, OBJECTS + SYSTEM])
def test_numbers_of_pixels_in_0_to_255_are_told_with_both_readings(
    text: str, normalise: str, told: str, folder: Path
) -> None:
    with pytest.raises(RecipeError) as caught:
        read(folder, text.replace("crop =", f"normalise = {{{normalise}}}\ncrop ="))
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "normalise",
    [
        "mean = [0, 0, 0], std = [1, 1, 1]",
        "mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5]",
        "mean = [0, 0, 0], std = [0.00392157, 0.00392157, 0.00392157]",
    ],
    ids=["0 to 1", "-1 to 1", "0 to 255"],
)
def test_usual_numbers_pass(normalise: str, folder: Path) -> None:
    read(folder, LOOK.replace("crop =", f"normalise = {{{normalise}}}\ncrop ="))


def test_a_system_keeps_what_the_recipe_leaves_out(folder: Path) -> None:
    """GDR-Net takes BGR in 0..1; a checkpoint that was trained with ImageNet's numbers still takes BGR."""
    plain = built_network(*both(read(folder, GDR)))
    stated = built_network(
        *both(read(folder, GDR.replace("crop =", "normalise = {mean = [0.5, 0.25, 0.125]}\ncrop =")))
    )
    pixels = torch.from_numpy(example_feed(plain.graphs["pose"].inputs, {"batch": 1})["crops"])
    for graph in ("pose", "correspondence"):
        was, now = (network.graphs[graph].module.entrance(pixels) for network in (plain, stated))  # type: ignore[operator]
        torch.testing.assert_close(was, pixels.permute(0, 3, 1, 2).flip(1) / 255)
        torch.testing.assert_close(now, was - torch.tensor([0.125, 0.25, 0.5]).view(1, 3, 1, 1))


def test_what_a_system_has_already_is_no_wish(folder: Path) -> None:
    own = "normalise = {mean = [0, 0, 0], std = [1, 1, 1], bgr = true}"
    with pytest.raises(
        RecipeError, match=r"network 'gdr': got normalise as gdr-net has it already.* bgr True, or none"
    ):
        built_network(*both(read(folder, GDR.replace("crop =", f"{own}\ncrop ="))))


def both(recipe: ExportRecipe) -> tuple[ExportRecipe, NetworkRecipe]:
    return recipe, recipe.networks[0]
