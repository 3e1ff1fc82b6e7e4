"""Is a float16 graph what it claims? Weights of the trunk in float16, sensitive operators and everything else in float32."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto, helper

from posekit.export.precision.half import HalfNetwork
from posekit.export.precision.half_graph import FLOAT16, element_types, sensitive_halves
from posekit.export.precision.trunk import EXCEPT, read_trunk
from posekit.export.systems import GraphSource
from posekit.runtime.errors import PrecisionError

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class HalfReport:
    """trunk: what runs in float16, as stated or found.  half_ops: operators with weights in float16.
    float32_ops: names of those in float32, all outside the trunk.  initializer_bytes: by NumPy type.
    """

    trunk: tuple[str, ...]
    half_ops: int
    float32_ops: tuple[str, ...]
    initializer_bytes: dict[str, int]


def check_half(model: ModelProto, source: GraphSource) -> HalfReport:
    """PrecisionError unless `model`, exported from `source` in float16, computes in float16 where `source.trunk` says and
    nowhere else. Nodes are told apart by their names (posekit.export.onnx_graph.name_nodes).
    """
    trunk = source.module.trunk if isinstance(source.module, HalfNetwork) else read_trunk(source)
    types = element_types(model)
    constants = _constants(model)
    weighted = [n for n in model.graph.node if n.op_type in WEIGHTED and not constants.isdisjoint(n.input)]
    half = [node for node in weighted if types[node.output[0]] == FLOAT16]
    full = [node for node in weighted if types[node.output[0]] != FLOAT16]
    silent = [node for node in full if trunk.has(_owner(node))]
    if silent or not half:
        shown = ", ".join(node.name for node in silent[:3]) or "no float16 weights at all"
        raise _wrong(
            source,
            f"a silent float32 trunk: {shown}" + (f" and {len(silent) - 3} more" if len(silent) > 3 else ""),
            f"float16 weights in {', '.join(trunk.parts)}",
            f'Find where forward casts to float32, or keep the layer out: "{EXCEPT}NAME" in the trunk.',
        )
    for node in sensitive_halves(model, types):
        raise _wrong(source, f"{node.name} in float16", f"{node.op_type} in float32", "Report this: a cast is missing.")
    for node in model.graph.node:
        if FLOAT16 in map(types.get, node.output) and not trunk.has(_owner(node)):
            raise _wrong(source, f"{node.name} in float16", "float32 outside the trunk", "Name its submodule as trunk.")
    sizes: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        sizes[helper.tensor_dtype_to_np_dtype(tensor.data_type).name] += _bytes(tensor)
    return HalfReport(source.trunk, len(half), tuple(node.name for node in full), dict(sorted(sizes.items())))


def _owner(node: NodeProto) -> str:
    """The submodule that a node is from."""
    return node.name.partition("/")[0]


def _constants(model: ModelProto) -> set[str]:
    """Matrices that depend on no input of the graph: initializers, and what is computed from them alone."""
    constant = {tensor.name for tensor in model.graph.initializer}
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    for node in model.graph.node:
        if constant.issuperset(node.input):
            constant.update(node.output)
            matrices.update(node.output if not matrices.isdisjoint(node.input) else ())
    return matrices


def _bytes(tensor: TensorProto) -> int:
    size = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    for n in tensor.dims:
        size *= n
    return int(size)


def _wrong(source: GraphSource, got: str, expected: str, remedy: str) -> PrecisionError:
    return PrecisionError(f"float16 {source.role} graph", got=got, expected=expected, remedy=remedy)
