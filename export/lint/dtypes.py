"""Rules about types and numbers: strong typing, what only ends of the graph may be, and what float16 cannot hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cache

import numpy as np
import onnx
from onnx import TensorProto as T

from posekit.export.lint.finding import ALL, NVIDIA, ONNXRUNTIME, Fault, Rule
from posekit.export.lint.quantisation import QDQ
from posekit.export.lint.typed_graph import Node, TypedGraph, dtype_name, finite_constant

FLOAT16_MAX = 65504.0
DENORMAL_SHARE, DENORMAL_COUNT = 0.1, 64
NOT_IN_TENSORRT = (T.INT16, T.UINT16, T.UINT32, T.UINT64, T.STRING, T.COMPLEX64, T.COMPLEX128)
READS_UINT8 = ("Cast", "CastLike", "Shape", "Size")

# Operators whose float16 loses what poses need, the argument it is about, and why: measured on a pose graph.
WANTS_FLOAT32: dict[str, tuple[int, str]] = {
    "Softmax": (0, "sums of exponentials"),
    "LogSoftmax": (0, "sums of exponentials"),
    "Exp": (0, "overflow above 11"),
    "ReduceMean": (0, "long sums"),
    "ReduceSum": (0, "long sums"),
    "ReduceL2": (0, "sums of squares"),
    "ReduceSumSquare": (0, "sums of squares"),
    "ReduceLogSumExp": (0, "sums of exponentials"),
    "CumSum": (0, "long sums"),
    "LpNormalization": (0, "sums of squares"),
    "TopK": (0, "near ties change places"),
    "ArgMax": (0, "near ties change places"),
    "ArgMin": (0, "near ties change places"),
    "GridSample": (1, "coordinates are off by 0.3 px at 640"),
}


@cache
def _signature(op_type: str, opset: int) -> tuple[tuple[tuple[str, frozenset[str]], ...], bool] | None:
    """Per argument (type variable, types allowed), and whether the last one repeats with one type."""
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    rows = tuple((i.type_str, frozenset(i.types)) for i in schema.inputs)
    repeats = bool(schema.inputs) and schema.inputs[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic
    return (rows if not repeats or schema.inputs[-1].is_homogeneous else rows[:-1]), repeats


def _typed_arguments(node: Node) -> Iterator[tuple[str, frozenset[str], str, int]]:
    """(type variable, types allowed, name, type) of each argument of known type."""
    signature = _signature(node.op_type, node.graph.opset) if node.standard and node.op_type not in QDQ else None
    if signature is None or not signature[0]:
        return
    rows, repeats = signature
    for index, name in enumerate(node.proto.input):
        found = node.dtype(name)
        if found is not None and (index < len(rows) or repeats):
            variable, allowed = rows[min(index, len(rows) - 1)]
            yield variable, allowed, name, found


def mixed_types(graph: TypedGraph) -> Iterator[Fault]:
    """TensorRT-RTX ends in "must have same input types"; the groups are those of ONNX's schemas."""
    for node in graph.nodes:
        groups: dict[str, dict[int, str]] = defaultdict(dict)
        for variable, _, name, found in _typed_arguments(node):
            groups[variable].setdefault(found, name)
        for types in groups.values():
            if len(types) > 1:
                yield Fault(node, " and ".join(f"{dtype_name(t)} ({name})" for t, name in types.items()))


def operator_type(graph: TypedGraph) -> Iterator[Fault]:
    """ONNX's operator schemas; ONNX Runtime refuses such a graph when it loads (a test loads it)."""
    for node in graph.nodes:
        for _, allowed, name, found in _typed_arguments(node):
            if f"tensor({dtype_name(found)})" not in allowed and any(a.startswith("tensor(") for a in allowed):
                yield Fault(node, f"{dtype_name(found)} ({name}) at opset {graph.opset}")


def double(graph: TypedGraph) -> Iterator[Fault]:
    """onnx-tensorrt operators.md: DOUBLE is cast down to FLOAT, clamped to its range."""
    found = [node for node in graph.nodes if any(node.dtype(name) == T.DOUBLE for name in node.outputs)]
    if found:
        yield Fault(found[0], f"float64, from {len(found)} node{'s' if len(found) > 1 else ''}")


def unsupported_dtype(graph: TypedGraph) -> Iterator[Fault]:
    """onnx-tensorrt operators.md: the list of types; the RTX parser says "Unsupported ONNX data type" (tests)."""
    for node in graph.nodes:
        types = {node.dtype(name) for name in node.outputs} & set(NOT_IN_TENSORRT)
        if types and node.op_type not in QDQ:
            yield Fault(node, ", ".join(sorted(map(dtype_name, types))))
    for scope in graph.scopes[:1]:
        for name in scope.inputs:
            if scope.dtypes.get(name) in NOT_IN_TENSORRT:
                yield Fault(name, dtype_name(scope.dtypes[name]))


def uint8_inside(graph: TypedGraph) -> Iterator[Fault]:
    """onnx-tensorrt operators.md: UINT8 is for network inputs and outputs; the RTX parser says so too (tests)."""
    ends = graph.scopes[0].outputs if graph.scopes else ()
    for node in graph.nodes:
        if node.op_type in QDQ:
            continue
        reads = node.op_type not in READS_UINT8 and any(node.dtype(name) == T.UINT8 for name in node.proto.input)
        if reads or any(node.dtype(name) == T.UINT8 and name not in ends for name in node.outputs):
            yield Fault(node, f"{node.op_type} of uint8")


def fp16_sensitive(graph: TypedGraph) -> Iterator[Fault]:
    """The table above: on a pose graph, float16 in coordinates and decoding cost up to 9.6 degrees."""
    for op_type, (index, why) in WANTS_FLOAT32.items():
        for node in graph.of(op_type):
            if node.dtype(node.input(index)) == T.FLOAT16 and not _squares(node.producer(index)):
                yield Fault(node, f"float16 {op_type}: {why}")


def fp16_layernorm(graph: TypedGraph) -> Iterator[Fault]:
    """LayerNormalization sums in float32 by itself, its parts do not: x above 255 squares to inf."""
    for node in graph.of("ReduceMean", "ReduceSum"):
        if node.dtype(node.input(0)) == T.FLOAT16 and _squares(node.producer(0)):
            yield Fault(node, "the mean of squares in float16")


def _squares(node: Node | None) -> bool:
    if node is None:
        return False
    exponent = node.value(1) if node.op_type == "Pow" else None
    squared = exponent is not None and exponent.size == 1 and float(exponent.ravel()[0]) == 2
    return squared or (node.op_type == "Mul" and node.input(0) == node.input(1))


def fp16_overflow(graph: TypedGraph) -> Iterator[Fault]:
    """IEEE 754: the largest float16 is 65504; a constant above becomes inf when it is cast."""
    for node in graph.of("Cast"):
        values = finite_constant(node.value(0)) if node.integer("to", 0) == T.FLOAT16 else None
        if values is not None and values.size and np.abs(values).max() > FLOAT16_MAX:
            yield Fault(node, f"{values[np.abs(values).argmax()]:g} cast to float16")


def nan_constant(graph: TypedGraph) -> Iterator[Fault]:
    """IEEE 754: a NaN in a weight makes every output that reads it NaN."""
    for row in graph.float_constants:
        if row.nan:
            yield Fault(row.name, f"{row.nan} NaN of {row.size}")


def inf_constant(graph: TypedGraph) -> Iterator[Fault]:
    """IEEE 754: inf - inf and 0 inf are NaN; in float16 it is mostly a weight that overflowed."""
    for row in graph.float_constants:
        if row.inf:
            yield Fault(row.name, f"{row.inf} infinite of {row.size} ({row.dtype})")


def fp16_denormals(graph: TypedGraph) -> Iterator[Fault]:
    """IEEE 754: below 2^-14 a float16 loses one digit per halving."""
    for row in graph.float_constants:
        if row.size >= DENORMAL_COUNT and row.small > DENORMAL_SHARE * row.nonzero:
            yield Fault(row.name, f"{row.small} of {row.size} below 6.1e-5")


RULES = (
    Rule("mixed-types", "error", NVIDIA + ONNXRUNTIME, "types of one operator's inputs", "one type",
         "Cast where the precision changes; a strongly typed engine never does it for you.", mixed_types),
    Rule("operator-type", "error", ONNXRUNTIME, "input type", "a type that ONNX gives this operator",
         "Cast the input, or export with a newer opset.", operator_type),
    Rule("double", "warning", NVIDIA, "precision", "float32; TensorRT turns float64 into it in silence",
         "Export in float32, and check the numbers there.", double),
    Rule("unsupported-dtype", "error", NVIDIA, "tensor type", "float, int8, int32, int64 or bool",
         "Use int32 or int64 for whole numbers.", unsupported_dtype),
    Rule("uint8-inside", "error", NVIDIA, "uint8 tensor", "uint8 at inputs and outputs alone, next to a Cast",
         "Cast pixels to float before anything else.", uint8_inside),
    Rule("fp16-sensitive", "warning", ALL, "precision", "float32",
         "Cast to float32 in front, and back behind it.", fp16_sensitive),
    Rule("fp16-layernorm", "warning", ALL, "normalisation in pieces", "LayerNormalization, or float32",
         "Export with opset 17 or later so that it stays one operator, or keep it in float32.", fp16_layernorm),
    Rule("fp16-overflow", "error", ALL, "constant", "at most 65504",
         "Clamp it to 65504, or leave this part in float32.", fp16_overflow),
    Rule("nan-constant", "error", ALL, "constant", "numbers", "Export from an intact checkpoint.", nan_constant),
    Rule("inf-constant", "warning", ALL, "constant", "finite numbers",
         "Use a large finite number (a mask: -1e4 in float16), or scale the weights.", inf_constant),
    Rule("fp16-denormals", "warning", ALL, "float16 constant", "most values at 6.1e-5 or more",
         "Keep these weights in float32, or fold a scale into the layer.", fp16_denormals),
)  # fmt: skip
