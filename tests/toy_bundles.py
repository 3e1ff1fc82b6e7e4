"""Toy bundles: tiny graphs whose right answer is known, packed as real ones are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper
from safetensors.numpy import save

from posekit.export.pack import pack_bundle
from posekit.runtime.crop import CropPreset
from posekit.runtime.manifest import (
    FORMAT,
    GraphEntry,
    Manifest,
    ObjectEntry,
    PathEntry,
    Precision,
    Role,
    SolverEntry,
)
from posekit.runtime.pose import Pose
from posekit.runtime.records import json_from_record
from posekit.runtime.tensor import TensorSpec

SIZE = 32
CROP = CropPreset("square", SIZE, pad=1.2)
CROPS = TensorSpec("crops", "uint8", ("batch", SIZE, SIZE, 3))
BOX = TensorSpec("box", "float32", ("batch", 4))
SOLVER = SolverEntry()
Box = tuple[tuple[float, float, float], tuple[float, float, float]]  # smallest and largest coordinates
COLOURS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]], np.float32)
TYPES = {"uint8": T.UINT8, "float32": T.FLOAT, "int64": T.INT64}


def graph_bytes(
    nodes: list[onnx.NodeProto],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    **constants: np.ndarray,
) -> bytes:
    """An ONNX file of a few nodes."""
    feeds, results = (
        [helper.make_tensor_value_info(s.name, TYPES[s.dtype], list(s.shape)) for s in specs]
        for specs in (inputs, outputs)
    )
    initialisers = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "toy", feeds, results, initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def constant_graph(role: Role, inputs: tuple[TensorSpec, ...], **outputs: np.ndarray) -> tuple[bytes, GraphEntry]:
    """The same outputs for every row of the first input. A row whose least number is negative gives NaN, where it can."""
    first = inputs[0].name
    axes = list(range(1, len(inputs[0].shape)))
    nodes = [
        helper.make_node("Shape", [first], ["batch"], start=0, end=1),
        helper.make_node("Cast", [first], ["float"], to=T.FLOAT),
        helper.make_node("ReduceMin", ["float", "axes"], ["least"], keepdims=0),
        helper.make_node("Sqrt", ["least"], ["root"]),
        helper.make_node("Mul", ["root", "zero"], ["poison"]),
    ]
    constants = {"axes": np.array(axes), "zero": np.zeros(1, np.float32)}
    specs = []
    for name, value in outputs.items():
        kind = "int64" if value.dtype.kind == "i" else "float32"
        specs.append(TensorSpec(name, kind, ("batch", *value.shape)))
        constants |= {f"{name}0": value.astype(kind)[None], f"{name}_ones": np.ones(value.ndim, np.int64)}
        constants[f"{name}_column"] = np.array([-1] + [1] * value.ndim)
        tiled = name if kind == "int64" else f"{name}_tiled"
        nodes.append(helper.make_node("Concat", ["batch", f"{name}_ones"], [f"{name}_repeats"], axis=0))
        nodes.append(helper.make_node("Tile", [f"{name}0", f"{name}_repeats"], [tiled]))
        if kind == "float32":
            nodes.append(helper.make_node("Reshape", ["poison", f"{name}_column"], [f"{name}_poison"]))
            nodes.append(helper.make_node("Add", [tiled, f"{name}_poison"], [name]))
    content = graph_bytes(nodes, inputs, tuple(specs), **constants)
    member = {"correspondence": "maps"}.get(role, role)
    return content, _entry(role, f"{member}.onnx", inputs, tuple(specs))


def pose_graph(t_of_box: np.ndarray) -> tuple[bytes, GraphEntry]:
    """R = I, t = box @ t_of_box + (0, 0, 1), score = 1 per crop."""
    outputs = (
        TensorSpec("R", "float32", ("batch", 3, 3)),
        TensorSpec("t", "float32", ("batch", 3)),
        TensorSpec("score", "float32", ("batch",)),
    )
    nodes = [
        helper.make_node("MatMul", ["box", "t_of_box"], ["shift"]),
        helper.make_node("Add", ["shift", "ahead"], ["t"]),
        helper.make_node("Shape", ["box"], ["shape"], start=0, end=1),
        helper.make_node("Expand", ["one", "shape"], ["score"]),
        helper.make_node("Reshape", ["score", "column"], ["column_score"]),
        helper.make_node("Mul", ["column_score", "eye"], ["R"]),
    ]
    content = graph_bytes(
        nodes,
        (BOX,),
        outputs,
        t_of_box=t_of_box.astype(np.float32),
        ahead=np.array([0, 0, 1], np.float32),
        one=np.ones(1, np.float32),
        column=np.array([-1, 1, 1]),
        eye=np.eye(3, dtype=np.float32)[None],
    )
    return content, _entry("pose", "pose.onnx", (BOX,), outputs)


def embedder_graph() -> tuple[bytes, GraphEntry]:
    """Descriptor = unit mean colour of the crop, one place."""
    outputs = (TensorSpec("descriptors", "float32", ("batch", 1, 3)),)
    nodes = [
        helper.make_node("Cast", ["crops"], ["float"], to=T.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("LpNormalization", ["mean"], ["unit"], axis=1, p=2),
        helper.make_node("Unsqueeze", ["unit", "one"], ["descriptors"]),
    ]
    content = graph_bytes(nodes, (CROPS,), outputs, axes=np.array([1, 2]), one=np.array([1]))
    return content, _entry("embedder", "embedder.onnx", (CROPS,), outputs)


def _matcher_graph() -> tuple[bytes, GraphEntry]:
    inputs = (
        TensorSpec("descriptors", "float32", ("batch", 1, 3)),
        TensorSpec("templates", "float32", (1, 3, "views")),
        TensorSpec("weights", "float32", ("views",)),
    )
    outputs = (TensorSpec("index", "int64", ("batch", 5)), TensorSpec("score", "float32", ("batch", 5)))
    nodes = [
        helper.make_node("Squeeze", ["descriptors", "one"], ["q"]),
        helper.make_node("Squeeze", ["templates", "zero"], ["t"]),
        helper.make_node("MatMul", ["q", "t"], ["cosine"]),
        helper.make_node("Mul", ["cosine", "weights"], ["weighted"]),
        helper.make_node("TopK", ["weighted", "five"], ["score", "index"]),
    ]
    content = graph_bytes(nodes, inputs, outputs, one=np.array([1]), zero=np.array([0]), five=np.array([5]))
    return content, _entry("matcher", "matcher.onnx", inputs, outputs)


def _maps_graph(mask: np.ndarray, coords_m: np.ndarray) -> tuple[bytes, GraphEntry]:
    """The same maps for every crop."""
    height, width = mask.shape
    outputs = (
        TensorSpec("mask", "float32", ("batch", height, width)),
        TensorSpec("coords_m", "float32", ("batch", height, width, 3)),
    )
    nodes = [
        helper.make_node("Shape", ["box"], ["shape"], start=0, end=1),
        helper.make_node("Concat", ["shape", "ones2"], ["shape3"], axis=0),
        helper.make_node("Concat", ["shape", "ones3"], ["shape4"], axis=0),
        helper.make_node("Tile", ["mask0", "shape3"], ["mask"]),
        helper.make_node("Tile", ["coords0", "shape4"], ["coords_m"]),
    ]
    content = graph_bytes(
        nodes,
        (BOX,),
        outputs,
        ones2=np.ones(2, np.int64),
        ones3=np.ones(3, np.int64),
        mask0=mask.astype(np.float32)[None],
        coords0=coords_m.astype(np.float32)[None],
    )
    return content, _entry("correspondence", "maps.onnx", (BOX,), outputs)


def _entry(role: Role, member: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> GraphEntry:
    return GraphEntry(role, {"fp32": member}, inputs, outputs)


def bank_bytes(
    embedder_sha256: str, crop: CropPreset = CROP, object_id: int = 1, search: str = "flat", **changes: Any
) -> bytes:
    """A bank of six plain colours; view i is turned by 60 i degrees about z, one metre away, in a 20 px box.

    Its object is a ring about z, which fills that box however it is turned.
    """
    n = len(COLOURS)
    round_z = np.arange(72) * np.pi / 36
    angles = np.arange(n) * np.pi / 3
    R = np.zeros((n, 3, 3), np.float32)
    R[:, 0, 0] = R[:, 1, 1] = np.cos(angles)
    R[:, 1, 0], R[:, 0, 1] = np.sin(angles), -np.sin(angles)
    R[:, 2, 2] = 1
    arrays = {
        "templates": np.ascontiguousarray((COLOURS / np.linalg.norm(COLOURS, axis=1, keepdims=True)).T[None]),
        "weights": np.ones(n, np.float32),
        "R": R,
        "t_m": np.tile(np.array([0, 0, 1], np.float32), (n, 1)),
        "centre_m": np.zeros(3, np.float32),
        "outermost_m": np.stack([0.1 * np.cos(round_z), 0.1 * np.sin(round_z), 0 * round_z], axis=1).astype(np.float32),
        "box_xyxy_px": np.tile(np.array([40, 40, 60, 60], np.float32), (n, 1)),
        "K": np.array([[100, 0, 50], [0, 100, 50], [0, 0, 1]], np.float32),
    } | changes
    metadata = {
        "format": "posekit-bank-3",
        "object_id": str(object_id),
        "embedder_sha256": embedder_sha256,
        "precision": "fp32",
        "crop": json_from_record(crop),
        "views": "{}",
        "search": search,
    }
    return bytes(save(arrays, metadata))


def write_toy_bundle(
    path: Path,
    t_of_box: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    coords_m: np.ndarray | None = None,
    bank: bytes | None = None,
    replaced: Mapping[str, tuple[bytes, GraphEntry]] | None = None,
    variants: Mapping[tuple[str, Precision], bytes] | None = None,
    provenance: Mapping[str, str] | None = None,
    box_m: Box = ((-0.1, -0.1, -0.1), (0.1, 0.1, 0.1)),
) -> Path:
    """A bundle with the three kinds of path, for objects 1 and 2.

    replaced: graphs by name, instead of the right ones.  variants: further files of a graph, by name and precision.
    """
    pose, pose_entry = pose_graph(np.zeros((4, 3)) if t_of_box is None else t_of_box)
    embedder, embedder_entry = embedder_graph()
    matcher, matcher_entry = _matcher_graph()
    maps, maps_entry = _maps_graph(
        np.zeros((8, 8)) if mask is None else mask, np.zeros((8, 8, 3)) if coords_m is None else coords_m
    )
    if replaced and "embedder" in replaced:
        embedder, embedder_entry = replaced["embedder"]
    sha256 = hashlib.sha256(embedder).hexdigest()
    members = {
        "pose.onnx": pose,
        "embedder.onnx": embedder,
        "matcher.onnx": matcher,
        "maps.onnx": maps,
        "box.safetensors": bytes(
            save(
                {
                    "points_m": np.zeros((3, 3), np.float32),
                    "vertices_m": np.zeros((3, 3), np.float32),
                    "faces": np.array([[0, 1, 2]], np.int32),
                }
            )
        ),
        "one.bank": bank or bank_bytes(sha256),
        "two.bank": bank_bytes(sha256, object_id=2),
    }
    box = ObjectEntry(1, "box", 0.2, *box_m, "box.safetensors")
    manifest = Manifest(
        format=FORMAT,
        name="toy",
        system="toy",
        provenance=dict(provenance or {}),
        graphs={"pose": pose_entry, "embedder": embedder_entry, "matcher": matcher_entry, "maps": maps_entry},
        objects=(box, replace(box, id=2, name="other")),
        paths={
            "regressor": PathEntry("regressor", "pose", CROP, (1, 2)),
            "bank": PathEntry(
                "bank", "embedder", CROP, (1, 2), matcher="matcher", banks={"1": "one.bank", "2": "two.bank"}
            ),
            "epnp": PathEntry("correspondence", "maps", CROP, (1,), solver=SOLVER),
        },
        default_path="regressor",
        files={},
    )
    for name, (content, entry) in (replaced or {}).items():
        members[f"{name}.onnx"], manifest.graphs[name] = content, entry
    for (name, precision), content in (variants or {}).items():
        members[f"{name}.{precision}.onnx"] = content
        manifest.graphs[name].variants[precision] = f"{name}.{precision}.onnx"
    pack_bundle(path, manifest, members)
    return path


def perfect_maps(
    truth: Pose, K_crop: np.ndarray, crop_px: int = 128, grid: int = 32, radius_m: float = 0.06
) -> tuple[np.ndarray, np.ndarray]:
    """Mask and coordinates (grid, grid) of a sphere, ray by ray: what a perfect network says about a crop."""
    cells = (np.arange(grid) + 0.5) * crop_px / grid - 0.5
    u, v = np.meshgrid(cells, cells)
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(K_crop).T
    a, b = (rays**2).sum(axis=-1), rays @ truth.t_m
    root = b**2 - a * (truth.t_m @ truth.t_m - radius_m**2)
    depth = (b - np.sqrt(np.maximum(root, 0))) / a
    return (root > 0).astype(np.float32), truth.inverse().apply(rays * depth[..., None]).astype(np.float32)
