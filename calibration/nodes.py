"""Which nodes of a graph bear weights that INT8 pays for, and which tensors feed them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from posekit.runtime.errors import PrecisionError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

OP_TYPES = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SMALLEST_WEIGHT = 17  # elements: a constant of 4 x 4 or less is geometry (a rotation, a transform), not weights


@dataclass(frozen=True)
class WeightedNode:
    """One node that can be quantised.  activation, weight: names of its first and second input.

    axis: of the weight, along which each slice makes one output channel and gets a scale of its own.
    """

    name: str
    op_type: str
    activation: str
    weight: str
    axis: int


def weighted_nodes(model: ModelProto) -> tuple[WeightedNode, ...]:
    """The nodes that the INT8 option set covers, in graph order.

    Convolutions and products with a constant weight; products of two activations (attention, matching) and small
    constants (geometry) are none. In a graph with float16 weights only those count: its author kept the rest in
    float32 on purpose. Every node of `model` must have a name of its own (`with_node_names`).
    """
    from onnx import TensorProto

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    found = [(node, weights[node.input[1]]) for node in model.graph.node if _bears_weight(node, weights)]
    halves = [(node, weight) for node, weight in found if weight.data_type == TensorProto.FLOAT16]
    return tuple(
        WeightedNode(node.name, node.op_type, node.input[0], weight.name, _channel_axis(node))
        for node, weight in halves or found
    )


def with_node_names(model: ModelProto) -> ModelProto:
    """A copy in which every node has a name of its own: those without get one from operator and place."""
    named = type(model)()
    named.CopyFrom(model)
    taken = [node.name for node in named.graph.node if node.name]
    if len(set(taken)) != len(taken):
        twice = next(name for name in taken if taken.count(name) > 1)
        raise PrecisionError(
            "graph", got=f"two nodes called {twice!r}", expected="names of their own", remedy="Export the graph again."
        )
    for place, node in enumerate(named.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{place}"
            while node.name in taken:
                node.name += "_"
    return named


def _bears_weight(node: NodeProto, weights: Mapping[str, TensorProto]) -> bool:
    from onnx import TensorProto

    if node.op_type not in OP_TYPES or node.domain not in ("", "ai.onnx") or len(node.input) < 2:
        return False
    weight = weights.get(node.input[1])
    if weight is None or node.input[0] in weights or weight.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        return False
    size = 1
    for n in weight.dims:
        size *= n
    plane = len(weight.dims) == 2 or node.op_type.startswith("Conv")  # a stack of matrices has no one column axis
    return plane and size >= SMALLEST_WEIGHT and not _attribute(node, "transA", 0)


def _channel_axis(node: NodeProto) -> int:
    """Conv: (out, in, ...).  ConvTranspose: (in, out, ...).  MatMul: (in, out).  Gemm: (in, out), or (out, in) transposed."""
    return 0 if node.op_type == "Conv" or _attribute(node, "transB", 0) else 1


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)
