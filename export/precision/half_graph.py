"""What a graph with float16 in it must not compute in float16, and the casts that see to it.

Most of it is float32 already, by the plan that torch traced. What torch's own composites hide (the softmax of an
attention, in-place functions) is found here, by operator, whatever it came from.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

FLOAT16, FLOAT32 = TensorProto.FLOAT16, TensorProto.FLOAT

# Operators whose result or whose inner sums leave float16's range or need more than its 11 bits (tensorrt facts: the
# softmax, norms, sums, exp and log, ranking, sampling grids).
SENSITIVE = frozenset({
    "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization", "LRN",
    "MeanVarianceNormalization", "RMSNormalization",
    "Softmax", "LogSoftmax", "Softplus", "Exp", "Log", "Pow", "Sqrt", "Reciprocal",
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "CumSum",
    "ArgMax", "ArgMin", "TopK", "GridSample", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh",
})  # fmt: skip


def element_types(model: ModelProto) -> dict[str, int]:
    """Tensor -> its type, of the whole graph."""
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    return {v.name: v.type.tensor_type.elem_type for v in values} | {t.name: t.data_type for t in graph.initializer}


def sensitive_halves(model: ModelProto, types: dict[str, int]) -> Iterator[NodeProto]:
    """Sensitive operators that compute in float16."""
    for node in model.graph.node:
        if node.op_type in SENSITIVE and any(types.get(name) == FLOAT16 for name in (*node.input, *node.output)):
            yield node


def sensitive_in_float32(model: ModelProto) -> int:
    """Wrap, in place, every sensitive operator of float16 in casts; neighbours pass float32 on. How many there were."""
    types = element_types(model)
    wrapped = {node.output[0] for node in sensitive_halves(model, types)}
    if not wrapped:
        return 0
    wide: dict[str, str] = {}  # float16 tensor -> the same in float32
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.output[0] not in wrapped:
            nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            if types.get(name) == FLOAT16:
                if name not in wide:
                    wide[name] = f"{name}_float32"
                    nodes.append(_cast(name, wide[name], FLOAT32, node.name))
                node.input[i] = wide[name]
        nodes.append(node)
        for i, name in enumerate(node.output):
            if types.get(name) == FLOAT16:
                node.output[i] = wide[name] = f"{name}_float32"
                nodes.append(_cast(wide[name], name, FLOAT16, node.name))
    used = {name for node in nodes for name in node.input} | {value.name for value in model.graph.output}
    del model.graph.node[:]
    model.graph.node.extend(node for node in nodes if node.op_type != "Cast" or node.output[0] in used)
    return len(wrapped)


def _cast(source: str, target: str, element_type: int, beside: str) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{beside}/Cast/{target}", to=element_type)
