"""A bundle of a small trained network (the reference GDR-Net's regressor) in three precisions, and frames of its objects.

What is planted into such a bundle costs poses, as it would a user: a toy that sees nothing loses nothing.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from posekit.calibration.nodes import weighted_nodes, with_node_names
from posekit.calibration.ranges import calibrate
from posekit.export.mesh import write_ply
from posekit.export.objects import bundled_object
from posekit.export.onnx_from_network import onnx_from_network
from posekit.export.pack import Content, pack_bundle
from posekit.export.precision.int8 import int8_content
from posekit.export.recipe import recipe_from_toml
from posekit.export.recipe_networks import built_network
from posekit.export.reference.objects import reference_objects
from posekit.export.reference.views import REFERENCE_CAMERA, random_pose
from posekit.export.render import Renderer, projected_box, random_lighting, shade
from posekit.export.verify.samples import Sample, feeds_from
from posekit.runtime.detection import Detection
from posekit.runtime.manifest import FORMAT, GraphEntry, Manifest, PathEntry

GRAPH, PATH = "gdr.pose", "gdr"
OBJECTS = (1, 2, 3)
KEPT = ("network.pnp", "network.head.out", "network.head.stages.2")  # what stays in float16 in the int8 file


def rendered_samples(count: int, seed: int = 0) -> list[Sample]:
    """One object in each frame, lit at random before a coloured wall; boxes and poses are true."""
    renderer = Renderer({i: thing.model for i, thing in reference_objects().items()})
    rng, made = np.random.default_rng(seed), []
    for k in range(count):
        object_id = OBJECTS[k % len(OBJECTS)]
        pose = random_pose(renderer.models[object_id], REFERENCE_CAMERA, rng)
        seen = renderer.render([(object_id, pose)], REFERENCE_CAMERA)
        wall = cv2.resize(rng.integers(60, 200, (8, 10, 3), dtype=np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
        image = np.where(seen.mask[..., None], shade(seen, random_lighting(rng)), wall)
        box = projected_box(renderer.models[object_id], pose, REFERENCE_CAMERA)
        made.append(Sample(f"{k}", image, REFERENCE_CAMERA, Detection(object_id, 1.0, box), pose))
    return made


def write_trained_bundle(folder: Path, calibrated_on: list[Sample]) -> Path:
    """fp32 as posekit exports it, fp16 and int8 of the same nodes."""
    text = files("posekit.export.reference").joinpath("reference.toml").read_text()
    head, tail = text[: text.index("[detector]")], text[text.index("# Maps and") : text.index("# Template")]
    for thing in reference_objects().values():
        write_ply(thing.model, folder / f"{thing.name}.ply", "mm")
    weights = files("posekit.export.reference").joinpath("gdr_net.safetensors").read_bytes()
    (folder / "gdr_net.safetensors").write_bytes(weights)
    (folder / "gdr.toml").write_text(head + tail)
    recipe = recipe_from_toml(folder / "gdr.toml")
    network = built_network(recipe, recipe.networks[0])
    rows = [bundled_object(recipe, row) for row in recipe.objects]
    exported = onnx_from_network(network.graphs["pose"], folder / "pose.onnx")
    plain = onnx.load(str(folder / "pose.onnx"))
    half = halved(plain)
    feeds = feeds_from(calibrated_on, network.crop, [row.entry for row in rows], exported.inputs)
    table = calibrate(half, lambda: iter(feeds), "minmax")
    kept = [node.name for node in weighted_nodes(half) if node.name.startswith(KEPT)]
    members: dict[str, Content] = {row.entry.model: row.member for row in rows}
    members |= {"fp32.onnx": plain.SerializeToString(), "fp16.onnx": half.SerializeToString()}
    members["int8.onnx"] = int8_content(half, table, kept)
    variants = {"fp32": "fp32.onnx", "fp16": "fp16.onnx", "int8": "int8.onnx"}
    graph = GraphEntry("pose", variants, exported.inputs, exported.outputs)  # type: ignore[arg-type]
    path = PathEntry("regressor", GRAPH, network.crop, OBJECTS)
    manifest = Manifest(
        format=FORMAT, name="trained", system="gdr-net", provenance={"checkpoint of gdr": network.origin},
        graphs={GRAPH: graph}, objects=tuple(row.entry for row in rows), paths={PATH: path}, default_path=PATH, files={},
    )  # fmt: skip
    return pack_bundle(folder / "trained.posekit", manifest, members).path


def halved(plain: ModelProto) -> ModelProto:
    """Every convolution and matrix product with its weights in float16, everything between in float32."""
    model = with_node_names(plain)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = list(model.graph.node)
    mine = {node.name for node in weighted_nodes(model)}
    del model.graph.node[:]
    for node in nodes:
        if node.name not in mine:
            model.graph.node.append(node)
            continue
        for k, name in enumerate(node.input):
            half = f"{name}/half/{node.name}"
            if name in weights:
                array: npt.NDArray[np.float32] = numpy_helper.to_array(weights[name])
                model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float16), half))
            else:
                model.graph.node.append(
                    helper.make_node("Cast", [name], [half], f"{half}/Cast", to=TensorProto.FLOAT16)
                )
            node.input[k] = half
        out = node.output[0]
        node.output[0] = f"{out}/half"
        model.graph.node.append(node)
        model.graph.node.append(helper.make_node("Cast", [f"{out}/half"], [out], f"{out}/Cast", to=TensorProto.FLOAT))
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)
    del model.graph.value_info[:]
    return model
