"""Explicit INT8: one set of Q/DQ options that TensorRT, TensorRT-RTX and OpenVINO all run as integers.

Activations: one symmetric int8 scale per tensor.  Weights: stored as int8, one symmetric scale per output channel.
Biases and outputs stay as they are. Scales have the type of what they scale, so a float16 graph gets float16 scales.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from posekit.calibration.nodes import OP_TYPES, WeightedNode, weighted_nodes, with_node_names
from posekit.calibration.ranges import RangeTable
from posekit.runtime.errors import PrecisionError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

INT8_MAX = 127
LEAST_OPSET = 13  # the first whose Q/DQ have a scale per channel
FLOAT16_OPSET = 19  # the first whose Q/DQ take float16
BRANCH = "_int8"  # suffix of the tensors that only nodes to quantise see
CUT = f"{BRANCH}_Identity"
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
EXTRA_OPTIONS: dict[str, Any] = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,  # TensorRT has no int32 DequantizeLinear
    "AddQDQPairToWeight": False,  # int8 weights in the file: a quarter of the size
    "QDQDisableWeightAdjustForInt32Bias": True,  # else weights are made coarser for biases that stay float
    "DedicatedQDQPair": False,
    "MatMulConstBOnly": True,
    "OpTypesToExcludeOutputQuantization": list(OP_TYPES),  # Q behind Conv, before Relu, costs kernels and accuracy
}


def quantized(model: ModelProto, table: RangeTable, excluded_nodes: Collection[str] = ()) -> ModelProto:
    """The INT8 graph: Q/DQ around every weighted node that is not excluded. Equal input gives equal bytes.

    excluded_nodes: names of weighted nodes that keep their precision; they also keep their exact inputs.
    Raises PrecisionError for a graph that is quantised already, whose opset cannot say it, or that does not fit the
    table, and for excluded names that are no weighted nodes.
    """
    named = with_node_names(model)
    _check_unquantised(named)
    nodes = weighted_nodes(named)
    kept = _kept(nodes, excluded_nodes)
    if not kept:
        return named
    _check_table(kept, table)
    branched, own = _branched(named, kept)
    result = _by_onnxruntime(
        branched, own, {node.activation: table.ranges[node.activation.removesuffix(BRANCH)].amax for node in own}
    )
    _without_branches(result)
    _restore_origin(result, named)
    _check_result(result, kept)
    return result


def quantised_nodes(model: ModelProto) -> tuple[str, ...]:
    """Names of the nodes whose activation and weight both come out of int8, in graph order: read back from the file."""
    from onnx import TensorProto

    producers = {output: node for node in model.graph.node for output in node.output}
    int8 = {t.name for t in model.graph.initializer if t.data_type == TensorProto.INT8}

    def from_int8(tensor: str) -> bool:
        dequantize = producers.get(tensor)
        if dequantize is None or dequantize.op_type != DEQUANTIZE:
            return False
        source = producers.get(dequantize.input[0])
        return dequantize.input[0] in int8 or (source is not None and source.op_type == QUANTIZE)

    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type in OP_TYPES and from_int8(node.input[0]) and from_int8(node.input[1])
    )


def _kept(nodes: Sequence[WeightedNode], excluded: Collection[str]) -> tuple[WeightedNode, ...]:
    unknown = sorted(set(excluded) - {node.name for node in nodes})
    if unknown:
        raise PrecisionError(
            "excluded node",
            got=repr(unknown[0]),
            expected=f"names such as {', '.join(node.name for node in nodes[:5])}",
            remedy="Only convolutions and products with constant weights can be left out.",
        )
    return tuple(node for node in nodes if node.name not in excluded)


def least_opset(model: ModelProto) -> int:
    """Of those that can say this graph in INT8."""
    from onnx import TensorProto

    half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in model.graph.initializer)
    return FLOAT16_OPSET if half else LEAST_OPSET


def _check_unquantised(model: ModelProto) -> None:
    found = next((node for node in model.graph.node if node.op_type in (QUANTIZE, DEQUANTIZE)), None)
    if found is not None:
        raise PrecisionError(
            "graph to quantise",
            got=f"{found.op_type} {found.name!r}",
            expected="a graph without Q/DQ",
            remedy="Start from the float32 or float16 file.",
        )
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < least_opset(model):
        raise PrecisionError(
            "graph to quantise",
            got=f"opset {opset}",
            expected=f"at least {least_opset(model)}",
            remedy="Export it again at opset 19.",
        )


def _check_table(kept: Sequence[WeightedNode], table: RangeTable) -> None:
    for node in kept:
        if node.activation not in table.ranges:
            raise PrecisionError(
                f"range table for {node.name!r}",
                got=f"no range of {node.activation!r}",
                expected="ranges of this very graph",
                remedy="Calibrate this graph; a table serves no other.",
            )


def _by_onnxruntime(model: ModelProto, nodes: Sequence[WeightedNode], amax: Mapping[str, float]) -> ModelProto:
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    dtypes = {name: onnx.helper.tensor_dtype_to_np_dtype(types[name]) for name in amax}
    ranges = {
        name: TensorData(lowest=np.array(-amax[name], dtype), highest=np.array(amax[name], dtype))
        for name, dtype in sorted(dtypes.items())
    }
    overrides = _weight_overrides(model, nodes) | {
        name: [_exact(_float16_scale(amax[name]))]
        for name, dtype in dtypes.items()
        if dtype == np.float16 and _rounds_to_zero(amax[name])
    }
    with _quiet():
        quantizer = QDQQuantizer(
            inferred,
            True,  # scales per channel
            False,  # the full range of 8 bits
            QuantType.QInt8,
            QuantType.QInt8,
            TensorsData(CalibrationMethod.MinMax, ranges),
            [node.name for node in nodes],
            [],
            list(OP_TYPES),
            {**EXTRA_OPTIONS, "TensorQuantOverrides": overrides},
        )
        result: ModelProto = quantizer.quantize_model()
    return result


# Below the least normal float16 (a scale of 6e-5, that is values up to 0.008) ONNX Runtime takes a scale of 1, which
# rounds everything to zero without a word. Subnormal float16 says such scales well enough: to 0.1 % at 3e-5.


def _weight_overrides(model: ModelProto, nodes: Sequence[WeightedNode]) -> dict[str, list[dict[str, Any]]]:
    """Scales of all channels, for the float16 weights of which at least one channel is that small."""
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    overrides = {}
    for node in nodes:
        weight = numpy_helper.to_array(weights[node.weight])
        axes = tuple(i for i in range(weight.ndim) if i != node.axis)
        reach = np.abs(weight).max(axis=axes).astype(np.float64)
        if weight.dtype == np.float16 and _rounds_to_zero(reach).any():
            scales = np.where(reach > 0, _float16_scale(reach), 1.0)
            overrides[node.weight] = [{"axis": node.axis, **_exact(scale)} for scale in scales]
    return overrides


def _rounds_to_zero(reach: Any) -> Any:
    return (np.asarray(reach) > 0) & (np.asarray(reach) / INT8_MAX < np.finfo(np.float16).tiny)


def _float16_scale(reach: Any) -> Any:
    """The least float16 that reaches all of it: nothing is clipped, and nothing divided by zero."""
    wanted = np.asarray(reach) / INT8_MAX
    rounded = wanted.astype(np.float16)
    return np.where(rounded < wanted, np.nextafter(rounded, np.float16(np.inf)), rounded)


def _exact(scale: npt.NDArray[np.float16]) -> dict[str, Any]:
    return {"scale": np.array(scale, np.float16), "zero_point": np.array(0, np.int8)}


# ONNX Runtime's quantiser hands the rounded tensor to every consumer and lets no node keep its exact weights. So the
# nodes to quantise get tensors of their own first, and the branch is cut out again afterwards.


def _branched(model: ModelProto, kept: Sequence[WeightedNode]) -> tuple[ModelProto, tuple[WeightedNode, ...]]:
    """A copy in which each activation of a kept node comes through an Identity, and each weight is used by one only.

    A residual Add right behind a kept node shares the branch: TensorRT adds int8 residuals inside that node's kernel.
    """
    from onnx import helper

    branched = type(model)()
    branched.CopyFrom(model)
    by_name = {node.name: node for node in kept}
    activations = {node.activation for node in kept}
    results = {output for node in branched.graph.node if node.name in by_name for output in node.output}
    weights = {tensor.name: tensor for tensor in branched.graph.initializer}
    uses = Counter(name for node in branched.graph.node for name in set(node.input))
    moved, nodes, placed = [], [], set()
    for node in branched.graph.node:
        row = by_name.get(node.name)
        residual = node.op_type == "Add" and bool(results & set(node.input))
        if row is not None and uses[row.weight] > 1:
            own = branched.graph.initializer.add()
            own.CopyFrom(weights[row.weight])
            own.name = node.input[1] = f"{row.weight}_of_{row.name}"
        for i, name in enumerate(node.input):
            if name in activations and (residual or (row is not None and i == 0)):
                node.input[i] = name + BRANCH
                if name not in placed:
                    nodes.append(helper.make_node("Identity", [name], [name + BRANCH], name=f"{name}{BRANCH}_Identity"))
                    placed.add(name)
        nodes.append(node)
        if row is not None:
            moved.append(replace(row, activation=node.input[0], weight=node.input[1]))
    _replace_nodes(branched, nodes)
    return branched, tuple(moved)


def _without_branches(result: ModelProto) -> None:
    """In place: feed the Q nodes from the exact tensors themselves, and put every Q/DQ right before its first reader."""
    sources = {n.output[0]: n.input[0] for n in result.graph.node if n.op_type == "Identity" and n.name.endswith(CUT)}
    added = {n.output[0]: n for n in result.graph.node if n.op_type in (QUANTIZE, DEQUANTIZE)}
    ordered: list[NodeProto] = []

    def place(node: NodeProto) -> None:
        for i, name in enumerate(node.input):
            if name in added:
                place(added.pop(name))
            elif name in sources:
                node.input[i] = sources[name]
        ordered.append(node)

    for node in result.graph.node:
        if node.op_type not in (QUANTIZE, DEQUANTIZE) and not node.name.endswith(CUT):
            place(node)
    _replace_nodes(result, ordered)


def _replace_nodes(model: ModelProto, nodes: Sequence[NodeProto]) -> None:
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]  # they die with the list they are in
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _restore_origin(result: ModelProto, source: ModelProto) -> None:
    """In place: the source's attributes (Gemm's beta is reset along with its bias), types, producer and opset alone."""
    attributes = {node.name: node.attribute for node in source.graph.node}
    for node in result.graph.node:
        if node.name in attributes:
            del node.attribute[:]
            node.attribute.extend(attributes[node.name])
    for field in ("producer_name", "producer_version"):
        setattr(result, field, getattr(source, field))
    del result.metadata_props[:], result.opset_import[:], result.graph.value_info[:]
    result.metadata_props.extend(source.metadata_props)
    result.opset_import.extend(source.opset_import)
    result.graph.value_info.extend(source.graph.value_info)


def _check_result(result: ModelProto, kept: Sequence[WeightedNode]) -> None:
    import onnx

    onnx.checker.check_model(result, full_check=True)
    missing = sorted({node.name for node in kept} - set(quantised_nodes(result)))
    if missing:
        raise PrecisionError(
            "quantised graph",
            got=f"node {missing[0]!r} without int8 inputs",
            expected=f"{len(kept)} quantised nodes",
            remedy="This version of ONNX Runtime refuses that node: leave it out by name.",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser logs about what is decided here."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
