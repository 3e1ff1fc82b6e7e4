"""Exported nodes are called after the modules of the network, each by a name of its own."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import helper

from posekit.export.onnx_from_network import _traced
from posekit.export.onnx_names import SCOPES, module_of, name_after_modules
from posekit.export.systems import system_named
from posekit.runtime.crop import CropPreset

torch.set_num_threads(1)
NETWORKS = {
    "tram3d": {"image_px": 32, "dim": 24, "depth": 2, "heads": 3, "channels": 8},
    "template-pose": {"backbone": "nano", "channels": 16, "hidden": 96, "max_pool": True},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_bearing_node_is_called_after_a_layer(name: str) -> None:
    system = system_named(name)
    network = system.network(**NETWORKS[name]).eval()
    model = _traced(system.graphs(network, CropPreset("square", 32))["embedder"], 19)
    name_after_modules(model)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    onnx.checker.check_model(model)
    layers = {f"network.{n}" for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)}
    constants = {tensor.name for tensor in model.graph.initializer}
    heavy = [n.name for n in model.graph.node if n.op_type in ("Conv", "MatMul", "Gemm") and n.input[1] in constants]
    assert {called.rpartition("/")[0] for called in heavy} == layers


def test_a_node_without_origin_is_called_after_its_operator() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    name_after_modules(model)
    assert [node.name for node in model.graph.node] == ["Relu", "Relu_2"]


def test_the_module_is_the_innermost_around_the_operation() -> None:
    node = helper.make_node("Add", ["a", "b"], ["c"])
    entry = node.metadata_props.add()
    entry.key, entry.value = SCOPES, "['', 'module', 'module.net', 'module.net.block', 'add_3']"
    assert module_of(node) == "net.block"
