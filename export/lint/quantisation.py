"""Rules about Q/DQ: what TensorRT takes is symmetric, signed, 8 bits, on the inputs of weighted operators."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto as T

from posekit.export.lint.finding import NVIDIA, ONNXRUNTIME, Fault, Rule
from posekit.export.lint.typed_graph import Node, TypedGraph, dtype_name

QDQ = ("QuantizeLinear", "DequantizeLinear")
SCALE, ZERO_POINT = 1, 2
TENSORRT_TYPES = {T.INT8, T.UINT8, T.INT4, T.FLOAT8E4M3FN, T.FLOAT4E2M1}  # of the parser's own message
SCALE_OPSET = 19  # the first with float16 scales
FREE_SCALE_OPSET = 23  # the first whose QuantizeLinear takes a scale of another type than its input
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
BIASED = ("Conv", "ConvTranspose", "Gemm")
POINTWISE = ("Softmax", "Sigmoid", "Erf", "Relu")
FLOATS = (T.FLOAT, T.FLOAT16, T.BFLOAT16)


def quantised_dtype(node: Node) -> int | None:
    """The integer type on the quantised side of a Q or DQ, by ONNX's rules: uint8 for a Q that does not say."""
    if node.op_type == "DequantizeLinear":
        return node.dtype(node.input(0))
    if node.input(ZERO_POINT):
        return node.dtype(node.input(ZERO_POINT))
    return node.integer("output_dtype", 0) or T.UINT8


def _said_already(node: Node) -> bool:
    """Whether a DQ repeats the arguments of the Q that feeds it, so that a finding there covers both."""
    source = node.producer(0)
    if node.op_type != "DequantizeLinear" or source is None or source.op_type != "QuantizeLinear":
        return False
    return all(_same_argument(source, node, index) for index in (SCALE, ZERO_POINT))


def _same_argument(a: Node, b: Node, index: int) -> bool:
    if a.input(index) == b.input(index):
        return True
    values = a.value(index), b.value(index)
    if values[0] is None or values[1] is None:
        return not a.input(index) and values[1] is not None and not np.any(values[1])
    return values[0].dtype == values[1].dtype and np.array_equal(values[0], values[1])


def _pairs(graph: TypedGraph) -> Iterator[Node]:
    return (node for node in graph.of(*QDQ) if not _said_already(node))


def _constant_dq(node: Node | None) -> bool:
    """Whether a node is the DQ of stored weights."""
    return node is not None and node.op_type == "DequantizeLinear" and node.value(0) is not None


def _activation_dq(node: Node | None) -> bool:
    return node is not None and node.op_type == "DequantizeLinear" and not node.is_foldable(0)


def nonzero_zero_point(graph: TypedGraph) -> Iterator[Fault]:
    """The parser ends with "Non-zero zero point is not supported"; onnx-tensorrt operators.md."""
    for node in _pairs(graph):
        zero = node.value(ZERO_POINT)
        if zero is not None and zero.dtype.kind in "iu" and quantised_dtype(node) != T.INT32 and np.any(zero):
            values = sorted({int(v) for v in zero.ravel()})
            shown = str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
            yield Fault(node, f"{shown} ({zero.dtype})")


def uint8_quantised(graph: TypedGraph) -> Iterator[Fault]:
    """Accepted in silence (tests) and read as int8, so 0..255 saturates at 127."""
    for node in _pairs(graph):
        stated = bool(node.input(ZERO_POINT)) or node.op_type == "DequantizeLinear" or node.integer("output_dtype", 0)
        zero = node.value(ZERO_POINT)
        if stated and quantised_dtype(node) == T.UINT8 and (zero is None or not np.any(zero)):
            yield Fault(node, "uint8")


def missing_zero_point(graph: TypedGraph) -> Iterator[Fault]:
    """ONNX reads an absent zero point as uint8, TensorRT as int8; nobody says a word."""
    for node in graph.of("QuantizeLinear"):
        if not node.input(ZERO_POINT) and not node.integer("output_dtype", 0):
            yield Fault(node, "none, which is uint8 to ONNX and int8 to TensorRT")


def variable_zero_point(graph: TypedGraph) -> Iterator[Fault]:
    """The builder of TensorRT-RTX 1.7.1: "has `zero_point` which is not an initializer" (a test builds it)."""
    for node in _pairs(graph):
        if node.input(ZERO_POINT) and not node.is_foldable(ZERO_POINT):
            yield Fault(node, f"{node.input(ZERO_POINT)!r}, computed by the graph")


def bad_scale(graph: TypedGraph) -> Iterator[Fault]:
    """The parser of TensorRT-RTX 1.7.1: "Scale coefficients must all be positive" (a test builds it)."""
    for node in _pairs(graph):
        scale = node.value(SCALE)
        if scale is None or scale.dtype.kind != "f":
            continue
        wrong = scale[~(np.isfinite(scale) & (scale > 0))].ravel()
        if wrong.size:
            yield Fault(node, f"{wrong[0]:g} ({wrong.size} of {scale.size} wrong)")


def int32_dequantize(graph: TypedGraph) -> Iterator[Fault]:
    """The parser, and onnxruntime issues 14229 and 17738: "Int32 but must have type FP8, FP4, Int4, Int8 ..."."""
    for node in graph.of("DequantizeLinear"):
        if quantised_dtype(node) == T.INT32:
            reader = next((n for n in node.consumers() if n.op_type in BIASED), None)
            yield Fault(node, f"int32{f', the bias of {reader.name}' if reader else ''}")


def quantised_type(graph: TypedGraph) -> Iterator[Fault]:
    """The types in the parser's own message; onnx-tensorrt operators.md, Q and DQ."""
    for node in _pairs(graph):
        found = quantised_dtype(node)
        if found is not None and found not in TENSORRT_TYPES and found != T.INT32:
            yield Fault(node, dtype_name(found))


def scale_dtype(graph: TypedGraph) -> Iterator[Fault]:
    """ONNX, QuantizeLinear before opset 23: input and scale share one type. Only RTX looks away (tests)."""
    for node in graph.of("QuantizeLinear") if SCALE_OPSET <= graph.opset < FREE_SCALE_OPSET else ():
        data, scale = node.dtype(node.input(0)), node.dtype(node.input(SCALE))
        if data in FLOATS and scale in FLOATS and data != scale:
            yield Fault(node, f"{dtype_name(scale)} for {dtype_name(data)} values")


def fp16_scale_opset(graph: TypedGraph) -> Iterator[Fault]:
    """ONNX, QuantizeLinear: float16 since opset 19. Only RTX looks away (tests)."""
    for node in _pairs(graph) if graph.opset < SCALE_OPSET else ():
        types = {node.dtype(node.input(SCALE)), *(node.dtype(n) for n in (node.input(0), *node.outputs))}
        if types & {T.FLOAT16, T.BFLOAT16}:
            yield Fault(node, f"opset {graph.opset}")


def weight_axis(graph: TypedGraph) -> Iterator[Fault]:
    """TensorRT-RTX 1.7.1: builds, but into a float kernel. ONNX: the axis of output channels."""
    for node in graph.of(*WEIGHTED):
        source = node.producer(1)
        if source is None or not _constant_dq(source) or source.integer("block_size", 0):
            continue
        shape, scale = source.shape(source.input(0)), source.value(SCALE)
        if shape is None or scale is None or scale.size < 2 or len(shape) < 2:
            continue
        axis, wanted = source.integer("axis", 1) % len(shape), _channel_axis(node, len(shape))
        if axis != wanted:
            yield Fault(source, f"axis {axis} of {node.op_type} weights {list(shape)}", f"axis {wanted}")


def _channel_axis(node: Node, rank: int) -> int:
    if node.op_type == "Gemm":
        return 0 if node.integer("transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, rank - 1)


def _blockwise(graph: TypedGraph, both: bool) -> Iterator[Fault]:
    for node in graph.of("DequantizeLinear"):
        block = node.integer("block_size", 0)
        if block and quantised_dtype(node) == T.INT8:
            others = [n.producer(0) for n in node.consumers() if n.op_type in WEIGHTED]
            if any(_activation_dq(other) for other in others) == both:
                yield Fault(node, f"blocks of {block}")


def blockwise_activations(graph: TypedGraph) -> Iterator[Fault]:
    """TensorRT-RTX 1.7.1: blockwise int8 weights with int8 activations fail to build."""
    return _blockwise(graph, both=True)


def blockwise_weights(graph: TypedGraph) -> Iterator[Fault]:
    """TensorRT-RTX 1.7.1: builds by a kernel that dequantises first."""
    return _blockwise(graph, both=False)


def qdq_around_activation(graph: TypedGraph) -> Iterator[Fault]:
    """TensorRT-RTX 1.7.1: becomes a kernel of its own between two conversions; no speed, fewer digits."""
    for node in graph.of(*POINTWISE):
        readers = node.consumers()
        if (
            _activation_dq(node.producer(0))
            and readers
            and all(r.op_type == "QuantizeLinear" for r in readers)
            and not _quantised_by(node.producer(0), WEIGHTED)
        ):
            yield Fault(node, f"DequantizeLinear, {node.op_type}, QuantizeLinear")


def requantised_before_relu(graph: TypedGraph) -> Iterator[Fault]:
    """TensorRT-RTX 1.7.1: extra kernels and rounding; on ONNX Runtime CPU 11 of 20 convolutions stay float."""
    for node in graph.of("Relu"):
        source = node.producer(0)
        if source is not None and _activation_dq(source) and _quantised_by(source, WEIGHTED):
            yield Fault(node, "QuantizeLinear and DequantizeLinear before it")


def _quantised_by(dq: Node | None, op_types: tuple[str, ...]) -> bool:
    """Whether a DQ comes from a Q right behind one of these operators."""
    quantiser = dq.producer(0) if dq is not None else None
    origin = quantiser.producer(0) if quantiser is not None and quantiser.op_type == "QuantizeLinear" else None
    return origin is not None and origin.op_type in op_types


def float_weights(graph: TypedGraph) -> Iterator[Fault]:
    """The file is four times as big; folding it later would undo the quantisation."""
    for node in graph.of("QuantizeLinear"):
        shape = node.shape(node.input(0))
        if node.is_foldable(0):
            yield Fault(node, f"{dtype_name(node.dtype(node.input(0)))} {list(shape or ())}")


def int8_constant(graph: TypedGraph) -> Iterator[Fault]:
    """TensorRT-RTX: "Quantized constant only allowed before DQ"; a test builds it."""
    for scope in graph.scopes:
        for name, tensor in scope.tensors.items():
            for node in scope.consumers.get(name, ()) if tensor.data_type == T.INT8 else ():
                if node.op_type not in QDQ and node.standard:
                    yield Fault(node, f"int8 constant {name!r} read by {node.op_type}")


def quantised_attention(graph: TypedGraph) -> Iterator[Fault]:
    """TensorRT-RTX 1.7.1: an int8 product is emitted; off by default for accuracy and its extra kernels."""
    for node in graph.of("MatMul"):
        if all(_activation_dq(node.producer(i)) for i in (0, 1)):
            yield Fault(node, "both sides quantised")


def qdq_pair(graph: TypedGraph) -> Iterator[Fault]:
    """ONNX: q = x / s, x = q s; with another s the values come back multiplied by the ratio."""
    for node in graph.of("DequantizeLinear"):
        source = node.producer(0)
        if source is None or source.op_type != "QuantizeLinear":
            continue
        a, b = source.value(SCALE), node.value(SCALE)
        if a is not None and b is not None and not np.array_equal(a, b):
            shown = " against ".join(f"{float(v.ravel()[0]):g}" if v.size else "none" for v in (a, b))
            yield Fault(node, f"scale {shown}")


def onnxruntime_fp16_scales(graph: TypedGraph) -> Iterator[Fault]:
    """ONNX Runtime 1.24 and 1.31: the optimiser takes a float16 product as scale of the bias, cosine 0.86 to 0.96.

    It acts where inputs and output are quantised, the latter directly or behind a Relu; a test shows both.
    """
    for node in graph.of(*BIASED):
        sources = [node.producer(i) for i in (0, 1)]
        scaled = all(
            s is not None and s.op_type == "DequantizeLinear" and s.dtype(s.input(SCALE)) == T.FLOAT16 for s in sources
        )
        readers = [r for n in node.consumers() for r in (n.consumers() if n.op_type == "Relu" else [n])]
        if scaled and node.input(2) and any(r.op_type == "QuantizeLinear" for r in readers):
            yield Fault(node, "float16 scales, a bias and a quantised output")


RULES = (
    Rule("nonzero-zero-point", "error", NVIDIA, "zero point", "0",
         "Quantise symmetrically (ActivationSymmetric and WeightSymmetric, QInt8 for both).", nonzero_zero_point),
    Rule("uint8-quantised", "error", NVIDIA, "quantised type", "int8; TensorRT reads uint8 as int8, which stops at 127",
         "Quantise activations to QInt8 with zero point 0.", uint8_quantised),
    Rule("missing-zero-point", "error", NVIDIA, "zero-point input", "an int8 initialiser of zeros",
         "Add the zero point as third input, int8 and 0.", missing_zero_point),
    Rule("variable-zero-point", "error", NVIDIA, "zero point", "a constant",
         "Quantise statically: the range is measured before, not at run time.", variable_zero_point),
    Rule("bad-scale", "error", NVIDIA, "quantisation scale", "positive, finite numbers",
         "Calibrate again; a constant or dead channel needs a scale above 0.", bad_scale),
    Rule("int32-dequantize", "error", NVIDIA, "dequantised type", "a float bias, not quantised",
         "Quantise with extra option QuantizeBias=False.", int32_dequantize),
    Rule("quantised-type", "error", NVIDIA, "quantised type", "int8 (or int4, float8, float4)",
         "Quantise to QInt8.", quantised_type),
    Rule("scale-dtype", "error", ONNXRUNTIME, "scale type", "the type of the values that it scales",
         "Cast the scales to the type of the graph before quantising, at opset 19 or later.", scale_dtype),
    Rule("fp16-scale-opset", "error", ONNXRUNTIME, "float16 Q/DQ", "opset 19 or later",
         "Export with opset 19.", fp16_scale_opset),
    Rule("weight-axis", "warning", NVIDIA, "axis of per-channel weight scales", "the axis of output channels",
         "Quantise weights along output channels; along others the kernel is not int8.", weight_axis),
    Rule("blockwise-activations", "error", NVIDIA, "blockwise int8 weights under int8 activations",
         "one scale per output channel", "Quantise weights per channel, or leave the activations float.",
         blockwise_activations),
    Rule("blockwise-weights", "warning", NVIDIA, "blockwise int8 weights", "one scale per output channel",
         "Quantise weights per channel; blocks are dequantised by a kernel of their own.", blockwise_weights),
    Rule("qdq-around-activation", "warning", NVIDIA, "Q/DQ around an activation function",
         "Q/DQ on the inputs of Conv, Gemm and MatMul alone",
         'Quantise with op_types_to_quantize=["Conv", "Gemm", "MatMul"].', qdq_around_activation),
    Rule("requantised-before-relu", "warning", NVIDIA + ONNXRUNTIME, "Relu", "Relu right behind its convolution",
         "Exclude output quantisation of Conv, Gemm and MatMul (OpTypesToExcludeOutputQuantization).",
         requantised_before_relu),
    Rule("float-weights", "warning", NVIDIA, "weights that are quantised at load", "int8 weights with a DQ alone",
         "Quantise with AddQDQPairToWeight=False: a quarter of the size.", float_weights),
    Rule("int8-constant", "error", NVIDIA, "int8 constant", "int8 constants in front of DequantizeLinear alone",
         "Quantise Conv, Gemm and MatMul alone; do the reshaping before quantising.", int8_constant),
    Rule("quantised-attention", "warning", NVIDIA, "product of two activations", "float activations on both sides",
         "Quantise with MatMulConstBOnly=True, or verify that this product is worth its error.", quantised_attention),
    Rule("qdq-pair", "error", NVIDIA + ONNXRUNTIME + ("openvino",), "Q/DQ pair",
         "one scale for both", "Calibrate and quantise again; one of the two was changed.", qdq_pair),
    Rule("onnxruntime-fp16-scales", "error", ONNXRUNTIME, "int8 with float16 scales on ONNX Runtime CPU",
         "float32 scales; its optimiser WeightBiasQuantization gives wrong numbers in silence",
         "Run it on TensorRT or OpenVINO, or with disabled_optimizers=['WeightBiasQuantization'], as posekit does.",
         onnxruntime_fp16_scales),
)  # fmt: skip
