"""Blocks are a partition of the nodes; they follow the modules that the nodes are called after, or the connections."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper

from posekit.calibration.nodes import weighted_nodes
from posekit.export.detector_from_onnx import detector_graph_from_onnx
from posekit.export.precision.blocks import MOST_CONNECTED, MOST_NAMED, blocks_of

PART = st.text("abc01", min_size=1, max_size=3)
NAME = st.lists(PART, min_size=0, max_size=4).map(lambda parts: ".".join(parts) + "/Conv" if parts else "Conv")
FLAT = ("Conv_{}", "p2o.Conv.{}", "/Conv_{}", "detector/Conv_{}", "model/Conv/Conv_{}", "net/conv2d_{}/Conv2D")


def graph(nodes: dict[str, tuple[str, ...]]) -> ModelProto:
    """Node -> the nodes that it reads from, an activation in between; "" is the input."""
    made = []
    for name, sources in nodes.items():
        tensors = [f"{source}:act" if source else "x" for source in sources]
        made += [
            helper.make_node("Concat", tensors, [f"{name}:in"], f"{name}:concat", axis=1),
            helper.make_node("Conv", [f"{name}:in", "w"], [f"{name}:out"], name),
            helper.make_node("Relu", [f"{name}:out"], [f"{name}:act"], f"{name}:relu"),
        ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(made, "g", [x], [x]))


def chained(names: list[str]) -> ModelProto:
    return graph({name: (before,) for name, before in zip(names, ["", *names], strict=False)})


@given(st.lists(NAME, unique=True), st.integers(0, 10**6))
def test_blocks_are_a_partition_in_order(names: list[str], seed: int) -> None:
    rng = random.Random(seed)
    sources = {name: tuple(rng.choices(["", *names[:i]], k=rng.randint(1, 3))) for i, name in enumerate(names)}
    blocks = blocks_of(graph(sources), names)
    assert sorted(name for members in blocks.values() for name in members) == sorted(names)
    assert all(members == tuple(name for name in names if name in members) for members in blocks.values())
    assert all(len(members) <= MOST_NAMED for members in blocks.values())


def test_layers_of_a_module_are_one_block() -> None:
    names = [
        "net.conv1/Conv",
        "net.layer1.0.conv1/Conv",
        "net.layer1.0.conv2/Conv",
        "net.layer1.0.downsample.0/Conv",
        "Conv",
    ]
    assert blocks_of(chained(names), names) == {
        "net": ("net.conv1/Conv",),
        "net.layer1.0": ("net.layer1.0.conv1/Conv", "net.layer1.0.conv2/Conv"),
        "net.layer1.0.downsample": ("net.layer1.0.downsample.0/Conv",),
        "Conv": ("Conv",),
    }


@pytest.mark.parametrize("name", FLAT)
def test_names_without_modules_give_blocks_of_connected_nodes(name: str) -> None:
    names = [name.format(i) for i in range(40)]
    blocks = list(blocks_of(chained(names), names).values())
    assert [len(members) for members in blocks] == [MOST_CONNECTED] * 6 + [3, 1]  # the answer is a block of its own
    assert blocks[0] == tuple(names[:MOST_CONNECTED])


def test_branches_and_answers_are_apart() -> None:
    """A trunk with two heads, as detectors have it."""
    sources: dict[str, tuple[str, ...]] = {f"t{i}": (f"t{i - 1}" if i else "",) for i in range(12)}
    sources |= {f"box{i}": (f"box{i - 1}" if i else "t11",) for i in range(4)}
    sources |= {f"class{i}": (f"class{i - 1}" if i else "t11",) for i in range(4)}
    blocks = blocks_of(graph(sources), list(sources))
    assert blocks["box3"] == ("box3",)
    assert blocks["class3"] == ("class3",)
    assert not any("box0" in members and "class0" in members for members in blocks.values())


def test_yolox_nano_is_no_single_block(data_dir: Path) -> None:
    model = detector_graph_from_onnx(data_dir / "weights" / "yolox_nano.onnx", "yolox", 80)
    nodes = [node.name for node in weighted_nodes(model)]
    blocks = blocks_of(model, nodes)
    assert len(nodes) == 113
    assert 20 <= len(blocks) <= 40
    answers = {f"detector/Conv_{n}" for n in (327, 328, 314, 347, 360, 361, 380, 393, 394)}
    assert answers <= set(blocks)
